"""What fit() finds is Keras's, without Keras's copies of the pictures."""

from __future__ import annotations

import functools
import itertools
import random
import tracemalloc
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE, keras_module
from real_data import CIFAR10, needs_cifar10
from same_face import Faces, faces, same

pytestmark = SCIPY_NOISE


@pytest.fixture(scope="module")
def both() -> Iterator[Faces]:
    """Ours and Keras's."""
    yield from faces()


@pytest.fixture(scope="module")
def sums(both: Faces) -> Any:
    """The module that adds."""
    return keras_module("augclient.image.sums")


SHAPES = [
    (n, h, w, c)
    for n, (h, w), c in itertools.product(
        (1, 2, 7, 33, 130), ((1, 1), (1, 5), (8, 8), (13, 9), (32, 32), (100, 97)), (1, 2, 3, 4)
    )
    if n * h * w * c < 400_000
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lying", list(itertools.permutations(range(4))))
def test_channels_are_added_in_numpy_s_order_however_they_lie(
    sums: Any, dtype: str, lying: tuple[int, int, int, int]
) -> None:
    numpy = np.random.default_rng(lying)
    for shape in random.Random(repr(lying)).sample(SHAPES, 12):
        # The axes in this order of memory, seen as (N, H, W, C) and as (N, C, H, W).
        memory = numpy.uniform(-20, 255, [shape[axis] for axis in lying]).astype(dtype)
        for x, axis in (
            (memory.transpose(np.argsort(lying)), 3),
            (memory.transpose(np.argsort(lying)).transpose(0, 3, 1, 2), 1),
        ):
            wanted = np.copy(x).sum(axis=tuple(other for other in range(4) if other != axis))
            read: list[int] = []
            for chunk in (128, 1000, 1 << 20):
                got = sums.channel_sums(
                    x, axis, dtype, lambda values, channels: values, read.append, chunk
                )
                assert np.array_equal(got, wanted), (x.shape, axis, chunk)
            assert sum(read) == 3 * x.size


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::-1], lambda x: x[:, ::2], lambda x: x[..., ::-1], lambda x: x[:, :, 3:9],
        lambda x: np.broadcast_to(x[:1], x.shape), lambda x: np.asfortranarray(x),
    ],
)  # fmt: skip
def test_views_are_added_as_the_copy_that_keras_makes_of_them(sums: Any, view: Any) -> None:
    numpy = np.random.default_rng(0)
    for shape in ((9, 20, 12, 3), (9, 20, 12, 1), (1, 20, 12, 2)):
        for stored, dtype in (("uint8", "float32"), ("float32", "float32"), ("int32", "float64")):
            x = view(numpy.uniform(0, 255, shape).astype(stored))
            wanted = np.copy(np.asarray(x, dtype)).sum(axis=(0, 1, 2))
            got = sums.channel_sums(x, 3, dtype, lambda values, channels: values, len_of, 200)
            assert np.array_equal(got, wanted)


def len_of(count: int) -> None:
    """Somebody who is told how much was read, and does not care."""


@pytest.mark.parametrize("shape", [(1, 1, 1, 950), (3, 2, 1, 100), (3, 2, 1, 101), (4, 3, 1, 7)])
def test_an_older_numpy_s_pieces_are_added_one_after_the_other(sums: Any, shape: Any) -> None:
    x = np.random.default_rng(0).uniform(-20, 255, shape).astype(np.float32)
    wanted = np.zeros(shape[1], np.float32)
    # Of one block (or one channel) the run goes on through all of it.
    runs = x if shape[0] > 1 else x.reshape(1, shape[1], -1, order="C")
    for block in runs.reshape(runs.shape[0], shape[1], -1):
        for start in range(0, block.shape[1], 100):
            wanted += np.array([part.sum() for part in block[:, start : start + 100]])
    adding = sums._Adding(np.float32, lambda values, channels: values, len_of, 300, 100)
    assert np.array_equal(adding.sums(x, 1), wanted)


def test_only_what_numpy_is_seen_to_do_is_understood(sums: Any) -> None:
    assert sums.understood("float32")
    assert sums.understood(np.float64)
    for dtype in ("float16", "uint8", ">f4", "complex64"):
        assert not sums.understood(dtype)
    before = np.setbufsize(8192 * 16)
    try:
        assert not sums.understood("float32")
    finally:
        np.setbufsize(before)


def fitted(face: Any, x: Any, options: dict[str, Any], **how: Any) -> Any:
    """The generator after its fit, and what np.random gives next."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = face.ImageDataGenerator(**options)
        generator.fit(x, **how)
    return generator, np.random.random()


@pytest.mark.parametrize("case", range(40))
def test_mean_and_deviation_are_keras_s_to_the_last_bit(
    both: Faces, monkeypatch: pytest.MonkeyPatch, case: int
) -> None:
    statistics = keras_module("augclient.image.statistics")
    chunk = 1 << (case % 14 + 6)
    monkeypatch.setattr(statistics, "fit", functools.partial(statistics.fit, chunk=chunk))
    rng = random.Random(case)
    data_format = rng.choice(["channels_last", "channels_first"])
    channels, size = rng.choice([1, 3, 4]), rng.choice([(9, 14), (32, 32), (100, 90)])
    shape = (channels, *size) if data_format == "channels_first" else (*size, channels)
    n = rng.choice([1, 5, 20])
    x: Any = np.random.default_rng(case).uniform(0, 255, (n, *shape))
    x = x.astype(rng.choice(["uint8", "float32", "float64"]))
    x = rng.choice([x, x[::-1], np.asfortranarray(x), x.tolist() if x.size < 20_000 else x])
    options = {
        "featurewise_center": True,
        "featurewise_std_normalization": rng.random() < 0.8,
        "rescale": rng.choice([None, 1 / 255, np.float64(0.3), 2]),
        "data_format": data_format,
        "dtype": rng.choice(["float32", "float32", "float64", "float16"]),
    }
    (ours, _), (theirs, _) = (fitted(face, x, options) for face in (both.ours, both.theirs))
    same(ours.mean, theirs.mean)
    if options["featurewise_std_normalization"]:
        same(ours.std, theirs.std)
    else:
        assert ours.std is None
    assert ours.zca_whitening_matrix is None


def test_settings_that_were_changed_after_the_constructor_are_those_that_count(both: Faces) -> None:
    x = np.random.default_rng(0).uniform(0, 255, (40, 3, 3, 3)).astype(np.float32)
    for changed in (
        {"featurewise_center": False}, {"zca_whitening": True, "zca_epsilon": 1.0},
        {"zca_whitening": True, "featurewise_center": False},
    ):  # fmt: skip
        made = []
        for face in (both.ours, both.theirs):
            generator = face.ImageDataGenerator(
                featurewise_center=True, featurewise_std_normalization=True
            )
            vars(generator).update(changed)
            generator.fit(x)
            made.append(generator)
        ours, theirs = made
        assert (ours.mean is None) == (theirs.mean is None)
        same(ours.std, theirs.std)
        if "zca_whitening" in changed:
            compare_whitened(ours, theirs, x)


def compare_whitened(ours: Any, theirs: Any, x: Any) -> None:
    """Within 1e-5 of the range of what Keras makes of the same pictures."""
    wanted = theirs.standardize(np.array(x, theirs.dtype))
    got = ours.standardize(np.array(x, ours.dtype))
    assert got.dtype == wanted.dtype
    assert np.abs(got - wanted).max() <= 1e-5 * (wanted.max() - wanted.min())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [30, 75, 76, 100, 1000])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-1])
def test_whitened_pictures_are_keras_s_with_few_and_with_many(
    both: Faces, n: int, dtype: str, epsilon: float
) -> None:
    numpy = np.random.default_rng(n)
    # Neighbours alike, as in photographs: what whitening undoes.
    x = numpy.uniform(0, 60, (n, 5, 5, 3)).cumsum(axis=1).cumsum(axis=2) / 5
    fresh = numpy.uniform(0, 60, (50, 5, 5, 3)).cumsum(axis=1).cumsum(axis=2) / 5
    options = {"zca_whitening": True, "zca_epsilon": epsilon, "dtype": dtype, "rescale": 1 / 255}
    (ours, _), (theirs, _) = (fitted(face, x, options) for face in (both.ours, both.theirs))
    same(ours.mean, theirs.mean)
    assert ours.zca_whitening_matrix.dtype == theirs.zca_whitening_matrix.dtype
    compare_whitened(ours, theirs, x)
    compare_whitened(ours, theirs, fresh)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: np.concatenate([x[:50]] * 4),
        lambda x: np.repeat(x[..., :1], 3, axis=3),
        lambda x: np.where(np.arange(5)[:, None, None] < 2, 0, x),
    ],
    ids=["pictures twice", "gray as colours", "a black border"],
)
def test_where_keras_whitens_its_own_rounding_ours_is_the_same(both: Faces, spoil: Any) -> None:
    x = spoil(np.random.default_rng(1).uniform(0, 255, (200, 5, 5, 3)).astype("float32"))
    (ours, _), (theirs, _) = (
        fitted(face, x, {"zca_whitening": True}) for face in (both.ours, both.theirs)
    )
    assert np.array_equal(ours.zca_whitening_matrix, theirs.zca_whitening_matrix)


def test_many_pictures_are_whitened_without_decomposing_them(
    both: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the pictures were decomposed as a whole")

    x = np.random.default_rng(3).uniform(0, 255, (2500, 5, 5, 3)).astype(np.float32)
    theirs, _ = fitted(both.theirs, x, {"zca_whitening": True})
    monkeypatch.setattr(np.linalg, "svd", refused)
    ours, _ = fitted(both.ours, x, {"zca_whitening": True})
    compare_whitened(ours, theirs, x)


def test_pictures_of_one_value_are_whitened_as_by_keras(both: Faces) -> None:
    x = np.full((200, 5, 5, 3), 7, np.float32)
    (ours, _), (theirs, _) = (
        fitted(face, x, {"zca_whitening": True}) for face in (both.ours, both.theirs)
    )
    assert np.allclose(ours.zca_whitening_matrix, theirs.zca_whitening_matrix, rtol=1e-6)


@needs_cifar10
def test_real_pictures_are_whitened_as_by_keras(both: Faces) -> None:
    with np.load(CIFAR10) as arrays:
        x, fresh = arrays["x_train"][:1500, ::4, ::4], arrays["x_test"][:200, ::4, ::4]
    options = {"zca_whitening": True, "data_format": "channels_last"}
    (ours, _), (theirs, _) = (fitted(face, x, options) for face in (both.ours, both.theirs))
    compare_whitened(ours, theirs, x)
    compare_whitened(ours, theirs, fresh)


@pytest.mark.parametrize("own", [False, True], ids=["", "a subclass's own change"])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(
    "wanted",
    [{}, {"featurewise_center": True},
     {"featurewise_center": True, "featurewise_std_normalization": True}, {"zca_whitening": True},
     {"featurewise_center": True, "rescale": np.float64(1 / 255)}],
)  # fmt: skip
def test_augmented_fits_draw_and_find_what_keras_does(
    both: Faces, rounds: int, wanted: dict[str, Any], own: bool
) -> None:
    x = np.random.default_rng(2).integers(0, 256, (30, 6, 5, 3)).astype(np.uint8)
    options = {
        "rotation_range": 30, "width_shift_range": [1, 2], "channel_shift_range": 9.0,
        "horizontal_flip": True, "brightness_range": (0.5, 1.5), "rescale": 0.7,
        "data_format": "channels_last", **wanted,
    }  # fmt: skip
    results = []
    for face, more in ((both.ours, {"workers": 0}), (both.theirs, {})):

        class Own(face.ImageDataGenerator):  # type: ignore[misc,name-defined]
            def random_transform(self, x: Any, seed: Any = None) -> Any:
                return super().random_transform(x, seed) + np.random.random()

        chosen = SimpleNamespace(ImageDataGenerator=Own) if own else face
        how = {"augment": True, "rounds": rounds, "seed": 5}
        results.append(fitted(chosen, x, {**options, **more}, **how))
    (ours, mine), (theirs, keras) = results
    assert mine == keras, "np.random goes on from another state"
    for name in ("mean", "std"):
        found = getattr(theirs, name)
        if found is None:
            assert getattr(ours, name) is None
        else:
            same(getattr(ours, name), found)
    if wanted.get("zca_whitening"):
        compare_whitened(ours, theirs, x)


def test_the_seed_is_only_drawn_from_where_pictures_are_changed(both: Faces) -> None:
    x = np.ones((2, 4, 4, 3), np.float32)
    for face in (both.ours, both.theirs):
        np.random.seed(1)
        _, after = fitted(face, x, {"featurewise_center": True}, seed=9)
        assert after == np.random.RandomState(9).random_sample()


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_whole_numbers_are_refused_by_numpy_as_with_keras(both: Faces, dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    for options in ({"featurewise_center": True}, {"rescale": 0.5, "zca_whitening": True}):
        texts = []
        for face in (both.ours, both.theirs):
            with pytest.raises(TypeError) as raised:
                fitted(face, x, {**options, "dtype": dtype})
            texts.append(str(raised.value))
        assert texts[0] == texts[1]


def test_a_wrong_rank_is_refused_and_odd_channels_are_warned_of(both: Faces) -> None:
    for face in (both.ours, both.theirs):
        generator = face.ImageDataGenerator(data_format="channels_last", featurewise_center=True)
        with pytest.raises(ValueError, match=r"Input to `.fit\(\)` should have rank 4.*\(4, 5\)"):
            generator.fit(np.ones((4, 5)))
        with pytest.warns(UserWarning, match=r"Expected input to be images.*axis 3.*5 channels"):
            generator.fit(np.ones((2, 4, 4, 5)))
        assert generator.mean.shape == (1, 1, 5)


def test_no_pictures_are_warned_of_as_by_keras(both: Faces) -> None:
    means = []
    for face in (both.ours, both.theirs):
        generator = face.ImageDataGenerator(data_format="channels_last", featurewise_center=True)
        with (
            pytest.warns(RuntimeWarning, match="Mean of empty slice"),
            pytest.warns(RuntimeWarning, match="invalid value"),
        ):
            generator.fit(np.ones((0, 4, 4, 3)))
        means.append(generator.mean)
    same(*means)


def test_pictures_are_not_copied_and_not_changed(both: Faces) -> None:
    x = np.random.default_rng(0).integers(0, 256, (1500, 64, 64, 3)).astype(np.uint8)
    before = x.copy()
    generator = both.ours.ImageDataGenerator(
        featurewise_center=True, featurewise_std_normalization=True, data_format="channels_last"
    )
    tracemalloc.start()
    generator.fit(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes, "Keras takes at least twelve times as much"
    assert np.array_equal(x, before)


def test_a_fit_that_takes_long_shows_how_far_it_is(
    both: Faces, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = keras_module("augclient.image.progress")
    with progress.Progress(1000, patience=3600.0) as quick:
        quick.advance(1000)
    assert capsys.readouterr().out == ""
    with progress.Progress(1000, patience=0.0) as slow:
        assert [len(part) for part in slow.over([np.ones(250), np.ones(500)])] == [250, 500]
        slow.advance(100)
    shown = capsys.readouterr().out
    assert "25/100" in shown
    assert "100/100" in shown
