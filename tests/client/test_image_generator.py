"""A generator draws, changes and standardizes single pictures as Keras's does, bit for bit."""

from __future__ import annotations

import multiprocessing.pool
import random
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE
from same_face import Faces, faces, same

from augproto.transforms import FILL_MODES

pytestmark = SCIPY_NOISE


@pytest.fixture(scope="module")
def both() -> Iterator[Faces]:
    """Ours and Keras's."""
    yield from faces()


def words(text: str) -> list[str]:
    """Of a message, without what it reports and how it breaks lines."""
    return re.findall(r"\w+", text)


def what_happens(act: Callable[[], Any]) -> tuple[list[Any], Any]:
    """The warnings (category, words) and the error (type, first words), or the result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result: Any = act()
        except Exception as error:
            result = type(error), words(str(error))[:8]
    told = [
        # Keras forgets a space here and there.
        (w.category, "".join(words(str(w.message))))
        for w in caught
        if "scipy" not in str(w.message)
    ]
    return told, result


@pytest.mark.parametrize(
    "options",
    [
        {"zca_whitening": True},
        {"zca_whitening": True, "featurewise_center": True},
        {"zca_whitening": True, "featurewise_std_normalization": True},
        {"zca_whitening": True, "featurewise_std_normalization": True, "featurewise_center": True},
        {"featurewise_std_normalization": True},
        {"featurewise_std_normalization": True, "featurewise_center": True},
        {"samplewise_std_normalization": True},
        {"samplewise_std_normalization": True, "samplewise_center": True},
        {"zoom_range": 0.25}, {"zoom_range": (0.5, 2)}, {"zoom_range": [1, 1.0]}, {"zoom_range": 1},
        {"zoom_range": (1, 2, 3)}, {"zoom_range": ("a", "b")}, {"zoom_range": "zoom"},
        {"zoom_range": None}, {"zoom_range": np.float64(0.5)}, {"zoom_range": np.float32(0.5)},
        {"zoom_range": np.array([0.5, 1.5])}, {"zoom_range": True},
        {"brightness_range": (0.5, 1)}, {"brightness_range": [0.5, 1]}, {"brightness_range": 0.5},
        {"brightness_range": (1, 2, 3)}, {"brightness_range": np.array([0.5, 1])},
        {"data_format": "channels_first"}, {"data_format": "channels"},
        {"validation_split": 0.2}, {"validation_split": 0}, {"validation_split": 1},
        {"validation_split": None}, {"validation_split": -0.1}, {"validation_split": 1.5},
        {"dtype": "float64"}, {"dtype": np.uint8}, {"rescale": 0.5, "cval": 3},
    ],
)  # fmt: skip
def test_settings_are_kept_warned_of_and_refused_as_by_keras(
    both: Faces, options: dict[str, Any]
) -> None:
    ours, theirs = (
        what_happens(lambda face=face: vars(face.ImageDataGenerator(**options)))  # type: ignore[misc]
        for face in (both.ours, both.theirs)
    )
    assert ours[0] == theirs[0]
    if isinstance(theirs[1], tuple):
        assert ours[1] == theirs[1]
    else:
        assert {name: repr(ours[1][name]) for name in theirs[1]} == {
            name: repr(value) for name, value in theirs[1].items()
        }


def test_keras_s_global_settings_are_the_defaults(both: Faces) -> None:
    both.keras.config.set_image_data_format("channels_first")
    both.keras.config.set_floatx("float64")
    generator = both.ours.ImageDataGenerator()
    both.keras.config.set_image_data_format("channels_last")
    both.keras.config.set_floatx("float32")
    assert (generator.data_format, generator.dtype) == ("channels_first", "float64")
    assert (generator.channel_axis, generator.row_axis, generator.col_axis) == (1, 2, 3)


def test_new_arguments_are_by_name_only_and_say_where_the_server_is(both: Faces) -> None:
    generator = both.ours.ImageDataGenerator(
        address="ipc:///nowhere", workers=3, slots=5, timeout=7.0, order="keras"
    )
    where = generator.where
    assert (where.address, where.workers, where.slots, where.timeout) == (
        "ipc:///nowhere", 3, 5, 7.0,
    )  # fmt: skip
    assert generator.order == "keras"
    assert both.ours.ImageDataGenerator().order == "stream"
    with pytest.raises(ValueError, match=r"`order`.*'random'"):
        both.ours.ImageDataGenerator(order="random")


def test_a_pool_of_earlier_versions_gives_its_size_and_a_warning(both: Faces) -> None:
    generator = both.ours.ImageDataGenerator
    with multiprocessing.pool.ThreadPool(3) as pool, ThreadPoolExecutor(2) as executor:
        for given, workers in ((pool, 3), (executor, 2), (None, 0), (object(), None)):
            with pytest.warns(FutureWarning, match="pool=.*workers=") as told:
                assert generator(pool=given).where.workers == workers
            assert told[0].filename == __file__
        with pytest.warns(FutureWarning, match="workers=5"):
            assert generator(pool=pool, workers=5).where.workers == 5


SHIFTS: list[Any] = [
    0.2, 2.5, 3, 1, -3, -0.2, [0.1, 0.3], (1.0, 2.0), [1, -2], np.float64(0.3), np.float32(0.3),
    np.int64(4), True,
]  # fmt: skip


def some_options(rng: random.Random) -> dict[str, Any]:
    """Arguments that change a picture at random, each given more often than not."""
    every: dict[str, Any] = {
        "rotation_range": rng.choice([30, 7.5, np.float32(3), -10]),
        "width_shift_range": rng.choice(SHIFTS),
        "height_shift_range": rng.choice(SHIFTS),
        "shear_range": rng.choice([15.0, 4]),
        "zoom_range": rng.choice([0.3, [0.7, 1.2], (1, 1), [1.5, 1.5]]),
        "channel_shift_range": rng.choice([20.0, 5]),
        "horizontal_flip": True,
        "vertical_flip": True,
        "brightness_range": rng.choice([(0.5, 1.5), [1, 2]]),
        "fill_mode": rng.choice(FILL_MODES),
        "interpolation_order": rng.choice([0, 1, 2, 3]),
        "cval": rng.choice([3.0, 0, -1]),
    }
    return {name: value for name, value in every.items() if rng.random() < 0.6}


@pytest.mark.parametrize("limit", SHIFTS)
def test_shifts_are_drawn_as_by_keras(both: Faces, limit: Any) -> None:
    options = {"width_shift_range": limit, "height_shift_range": limit, "horizontal_flip": True}
    drawn = []
    for face in (both.ours, both.theirs):
        generator = face.ImageDataGenerator(**options)
        np.random.seed(5)
        drawn.append([generator.get_random_transform((9, 14, 3)) for _ in range(20)])
        drawn[-1].append(np.random.random())
    assert repr(drawn[0]) == repr(drawn[1])


@pytest.mark.parametrize("case", range(60))
def test_a_random_picture_is_keras_s(both: Faces, case: int) -> None:
    rng = random.Random(case)
    data_format = rng.choice(["channels_last", "channels_first"])
    both.keras.config.set_image_data_format(data_format)
    both.keras.config.set_floatx(rng.choice(["float32", "float32", "float64"]))
    channels, size = rng.choice([1, 3, 4]), rng.choice([(9, 14), (8, 8)])
    shape = (channels, *size) if data_format == "channels_first" else (*size, channels)
    x: Any = np.random.default_rng(case).uniform(
        *rng.choice([(0, 255), (0, 1), (-300, 300)]), shape
    )
    x = x.astype(rng.choice(["float32", "float64", "uint8" if x.min() >= 0 else "int16"]))
    options = some_options(rng)
    results = []
    for face in (both.ours, both.theirs):
        generator = face.ImageDataGenerator(**options)
        np.random.seed(case)
        drawn = generator.get_random_transform(x.shape)
        seeded = generator.get_random_transform(x.shape, seed=3)
        changed = generator.apply_transform(x.copy(), drawn)
        whole = [generator.random_transform(x.copy(), seed=k) for k in range(2)]
        results.append((repr((drawn, seeded)), [changed, *whole], np.random.random()))
    assert results[0][0] == results[1][0]
    assert results[0][2] == results[1][2]
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        same(ours, theirs)
    both.keras.config.set_floatx("float32")


def test_neutral_parameters_ask_nobody_and_return_the_picture_itself(both: Faces) -> None:
    x = np.ones((4, 5, 3), np.float32)
    both.asked.clear()
    generator = both.ours.ImageDataGenerator(data_format="channels_last")
    assert generator.apply_transform(x, {}) is x
    assert generator.random_transform(x) is x
    assert both.asked == []


def test_requests_go_where_the_generator_says(both: Faces) -> None:
    x = np.ones((4, 5, 3), np.float32)
    both.asked.clear()
    generator = both.ours.ImageDataGenerator(data_format="channels_last", workers=2, timeout=3.0)
    generator.apply_transform(x, {"theta": 10, "brightness": 0.5})
    assert both.asked == [("warp", generator.where), ("brighten", generator.where)]


@pytest.mark.parametrize("case", range(20))
def test_standardizing_works_in_place_and_as_keras_s(both: Faces, case: int) -> None:
    rng = random.Random(case)
    numpy = np.random.default_rng(case)
    names = (
        "featurewise_center", "samplewise_center", "featurewise_std_normalization",
        "samplewise_std_normalization", "zca_whitening",
    )  # fmt: skip
    options: dict[str, Any] = {name: rng.random() < 0.5 for name in names}
    options["rescale"] = rng.choice([None, 1 / 255, 0, np.float64(0.3), 2])
    options["data_format"] = "channels_last"
    options["preprocessing_function"] = rng.choice([None, np.negative, np.sqrt])
    fitted = {
        "mean": numpy.random((1, 1, 3)).astype(rng.choice(["float32", "float64"])),
        "std": numpy.random((1, 1, 3)).astype("float32"),
        "zca_whitening_matrix": numpy.random((60, 60)),
    }
    known = {name for name in fitted if rng.random() < 0.6}
    shape = rng.choice([(5, 4, 3), (2, 5, 4, 3)])
    results = []
    for face in (both.ours, both.theirs):

        def act(face: Any = face) -> Any:
            generator = face.ImageDataGenerator(**options)
            for name in known:
                setattr(generator, name, fitted[name])
            x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            return x, generator.standardize(x)

        results.append(what_happens(act))
    assert results[0][0] == results[1][0]
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        same(ours, theirs)
    assert (results[0][1][0] is results[0][1][1]) == (results[1][1][0] is results[1][1][1])


def test_a_subclass_s_own_methods_are_used(both: Faces) -> None:
    class Own(both.ours.ImageDataGenerator):  # type: ignore[misc,name-defined]
        def get_random_transform(self, img_shape: Any, seed: Any = None) -> Any:
            return {**super().get_random_transform(img_shape, seed), "tx": 2}

        def apply_transform(self, x: Any, transform_parameters: Any) -> Any:
            return super().apply_transform(x, transform_parameters) + 1000

    x = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    changed = Own(data_format="channels_last", fill_mode="constant").random_transform(x)
    assert np.array_equal(changed[:, :2], x[:, 2:] + 1000)
    assert np.array_equal(changed[:, 2:], np.full((5, 2, 3), 1000))


class _Opened:
    """Stands for an iterator's class and notes how it was called."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.called = arguments, named


@pytest.mark.parametrize(
    ("flow", "iterator", "arguments"),
    [
        ("flow", "NumpyArrayIterator", ("x", "y", 7, False, "w", 3, "dir", "p", "jpg", True, "s")),
        (
            "flow_from_directory", "DirectoryIterator",
            ("d", (1, 2), "rgba", ["c"], None, 7, False, 3, "dir", "p", "jpg", True, "s", "box", 1),
        ),
        (
            "flow_from_dataframe", "DataFrameIterator",
            ("df", "d", "x", "y", "w", (1, 2), "rgba", ["c"], None, 7, False, 3, "dir", "p", "jpg",
             "s", "box", False),
        ),
    ],
)  # fmt: skip
def test_flows_call_their_iterators_as_keras_does(
    both: Faces, monkeypatch: pytest.MonkeyPatch, flow: str, iterator: str, arguments: Any
) -> None:
    import importlib

    monkeypatch.setattr(importlib.import_module("augclient.image.flows"), iterator, _Opened)
    monkeypatch.setattr(both.theirs, iterator, _Opened)
    required = 0 if flow == "flow_from_dataframe" else 1
    for given in (arguments, arguments[: max(1, required)]):
        called = []
        for face in (both.ours, both.theirs):
            generator = face.ImageDataGenerator(dtype="float64", data_format="channels_first")
            positional, named = getattr(generator, flow)(*given).called
            called.append((["self" if p is generator else p for p in positional], named))
        assert called[0] == called[1]


@pytest.mark.parametrize(
    "options",
    [{"has_ext": 1}, {"sort": 1}, {"drop_duplicates": 1}, {"class_mode": "other"}, {"any": 1}],
)
def test_what_a_table_s_flow_no_longer_takes_is_warned_of(
    both: Faces, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    import importlib

    flows = importlib.import_module("augclient.image.flows")
    monkeypatch.setattr(flows, "DataFrameIterator", _Opened)
    monkeypatch.setattr(both.theirs, "DataFrameIterator", _Opened)
    results = []
    for face in (both.ours, both.theirs):

        def act(face: Any = face) -> Any:
            opened = face.ImageDataGenerator().flow_from_dataframe("df", **options)
            return opened.called[1]

        results.append(what_happens(act))
    assert results[0] == results[1]


def test_arrays_are_not_cached_and_who_has_asked_for_it_is_told(both: Faces) -> None:
    ours = both.ours.ImageDataGenerator(cache="decoded", workers=0)
    with pytest.warns(UserWarning, match=r"`cache='decoded'`.*`flow` takes no notice of it"):
        ours.flow(np.zeros((4, 2, 2, 3), np.float32))
