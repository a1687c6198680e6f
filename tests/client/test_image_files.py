"""Iterators over files list, label and save as Keras's: folders and frames, every class mode."""

from __future__ import annotations

import gc
import itertools
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bitwise import same
from keras_own import SCIPY_NOISE, image_data_generators
from PIL import Image
from recipe_feed import Feeds, instead_of_a_server

Array = np.ndarray[Any, Any]

pytestmark = SCIPY_NOISE

SIZE = (9, 7)
#: Of a DirectoryIterator and a DataFrameIterator, where they have them.
ATTRIBUTES = (
    "n", "batch_size", "seed", "shuffle", "batch_index", "total_batches_seen", "index_array",
    "white_list_formats", "image_data_generator", "data_format", "dtype", "save_to_dir",
    "save_prefix", "save_format", "filenames", "filepaths", "classes", "labels", "class_indices",
    "num_classes", "samples", "target_size", "image_shape", "color_mode", "interpolation",
    "subset", "split", "class_mode", "directory", "keep_aspect_ratio", "sample_weight",
    "allowed_class_modes",
)  # fmt: skip


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """The module with Keras's iterators."""
    yield from image_data_generators()


@pytest.fixture
def ours(keras: ModuleType) -> SimpleNamespace:
    """Our iterators, by Keras's names."""
    from augclient.image import dataframe_iterator, file_iterators, iterator, listing

    return SimpleNamespace(
        Iterator=iterator.Iterator,
        BatchFromFilesMixin=file_iterators.BatchFromFilesMixin,
        DirectoryIterator=file_iterators.DirectoryIterator,
        DataFrameIterator=dataframe_iterator.DataFrameIterator,
        validate_filename=listing.validate_filename,
    )


@pytest.fixture
def feeds(ours: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Feeds:
    """What iterators open in the place of a server's streams."""
    from augclient.image import supply

    return instead_of_a_server(monkeypatch, supply)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with pictures on several levels, links, and what is no picture."""
    root = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    endings = ("png", "JPG", "jpeg", "bmp", "ppm", "Tif")
    for i in range(23):
        below = ("", "a", "a/x", "a-b")[i % 4]
        path = root / ("cat", "dog", "newt")[i % 3] / below / f"{i:02}.{endings[i % 6]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(path)
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "cat" / "00.png").rename(root / "cat" / ".hidden.png")
    (root / "dog" / "linked").symlink_to(root / "newt" / "a-b")
    (root / "dog" / "linked.png").symlink_to(root / "cat" / "a" / "09.bmp")
    (root / "beside.png").write_bytes(b"")
    (root / ".dots").mkdir()
    (root / "eel").symlink_to(root / "newt")
    return root


def outcome(make: Callable[[], Any]) -> tuple[Any, list[str], str]:
    """What was made, the warnings, and the error."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        # Keras leaves its threads behind where a class is missing.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            made, error = make(), ""
        except Exception as raised:
            # A set is printed in any order.
            text = re.sub(r"\{.*\}", "{}", str(raised))
            made, error = None, f"{type(raised).__name__}: {text}"
        if error.startswith("KeyError"):
            gc.collect()  # ... and Python would warn of them in some later test
    return made, [f"{one.category.__name__}: {one.message}" for one in heard], error


def attribute(iterator: Any, name: str) -> Any:
    try:
        return getattr(iterator, name)
    except AttributeError:
        return "absent"


def compare(
    keras: ModuleType, ours: SimpleNamespace, name: str, capsys: Any, *positional: Any, **named: Any
) -> tuple[Any, Any]:
    """Make both, and hold all that can be seen of them against each other."""
    wanted, wanted_warnings, wanted_error = outcome(
        lambda: getattr(keras, name)(*positional, **named)
    )
    wanted_said = capsys.readouterr().out
    got, got_warnings, got_error = outcome(lambda: getattr(ours, name)(*positional, **named))
    assert capsys.readouterr().out == wanted_said
    assert sorted(got_warnings) == sorted(wanted_warnings)
    assert got_error == wanted_error
    if wanted is not None:
        for one in ATTRIBUTES:
            assert same(attribute(got, one), attribute(wanted, one)), one
    return wanted, got


def compare_batches(theirs: Any, own: Any, count: int) -> None:
    before = np.random.get_state()
    wanted = [next(theirs) for _ in range(count)]
    np.random.set_state(before)
    for i in range(count):
        assert same(next(own), wanted[i]), i
    assert own.total_batches_seen == theirs.total_batches_seen


def generator(keras: ModuleType, **options: Any) -> Any:
    return keras.ImageDataGenerator(
        horizontal_flip=True, width_shift_range=0.2, rescale=1 / 255, **options
    )


@pytest.mark.parametrize("case", range(40))
def test_folders_are_listed_and_labelled_as_by_keras(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, folder: Path, case: int, capsys: Any
) -> None:
    rng = random.Random(case)
    named: dict[str, Any] = {
        "target_size": rng.choice([SIZE, list(SIZE)]),
        "color_mode": rng.choice(["rgb", "rgba", "grayscale", "cmyk"][: 3 + (case % 8 == 0)]),
        "classes": rng.choice([None, None, ["dog", "cat"], ["newt", "dog", "gnu"], ("eel",),
                               ["cat/a"], []]),
        "class_mode": rng.choice(["categorical", "binary", "sparse", "input", None, "raw"]),
        "batch_size": rng.choice([4, 100]),
        "shuffle": rng.random() < 0.6,
        "seed": rng.choice([0, 7]),
        "data_format": rng.choice(["channels_last", "channels_first"]),
        "follow_links": rng.random() < 0.5,
        "subset": rng.choice([None, None, "training", "validation", "test"]),
        "interpolation": rng.choice(["nearest", "bilinear"]),
        "dtype": rng.choice([None, "float32", "float64"]),
    }  # fmt: skip
    directory = rng.choice([str(folder), folder, f"{folder}/"])
    chosen = rng.choice([None, generator(keras, data_format=named["data_format"],
                                         validation_split=0.3)])  # fmt: skip
    if chosen is None:
        named["subset"] = None
    theirs, own = compare(keras, ours, "DirectoryIterator", capsys, directory, chosen, **named)
    if theirs is not None:
        compare_batches(theirs, own, 4)


def test_a_folder_that_is_missing_or_empty_is_as_for_keras(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, tmp_path: Path, capsys: Any
) -> None:
    compare(keras, ours, "DirectoryIterator", capsys, tmp_path / "none", None)
    theirs, own = compare(keras, ours, "DirectoryIterator", capsys, tmp_path, None, SIZE)
    compare_batches(theirs, own, 2)


def test_tiff_files_are_warned_of_as_by_keras(
    keras: ModuleType, ours: SimpleNamespace, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "a").mkdir()
    for name in ("one.tiff", "TWO.TIFF", "three.tif"):
        (tmp_path / "a" / name).write_bytes(b"")
    compare(keras, ours, "DirectoryIterator", capsys, tmp_path, None)


def test_nothing_is_said_where_keras_is_told_to_be_silent(
    keras: ModuleType, ours: SimpleNamespace, folder: Path, capsys: Any
) -> None:
    from keras import config

    config.disable_interactive_logging()
    try:
        compare(keras, ours, "DirectoryIterator", capsys, folder, None)
    finally:
        config.enable_interactive_logging()


def frame(folder: Path, pandas: Any) -> Any:
    """Files with columns of every kind; two of them are none."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file())
    names.append("cat/missing.png")
    rng = random.Random(0)
    count = len(names)
    tags = ["beach", "sea", "sky"]
    return pandas.DataFrame(
        {
            "filename": names,
            "class": [name.split("/")[0] for name in names],
            "two": [rng.choice(["no", "yes"]) for _ in names],
            "tags": [rng.sample(tags, rng.randint(1, 3)) for _ in names],
            "mixed": [rng.choice(["sea", ("sky", "sea"), ["beach"]]) for _ in names],
            "number": np.arange(count) * 0.5,
            "other": np.arange(count),
            "weight": np.linspace(0, 1, count),
            "text": "x",
        },
        index=range(100, 100 + count),
    )


@pytest.mark.parametrize("case", range(60))
def test_frames_are_listed_and_labelled_as_by_keras(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, folder: Path, case: int, capsys: Any
) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: no frames")
    rng = random.Random(1000 + case)
    df = frame(folder, pandas)
    mode, y_col = rng.choice([
        ("categorical", "class"), ("categorical", "tags"), ("categorical", "mixed"),
        ("categorical", "number"), ("binary", "two"), ("binary", "class"), ("sparse", "class"),
        ("sparse", "tags"), ("input", "class"), (None, None), ("raw", "number"),
        ("raw", ["number", "other"]), ("raw", "class"), ("multi_output", ["number", "tags"][:1]),
        ("multi_output", ["number", "other"]), ("multi_output", "number"), ("other", "class"),
    ])  # fmt: skip
    named: dict[str, Any] = {
        "x_col": rng.choice(["filename"] * 9 + ["number"]),
        "y_col": y_col,
        "weight_col": rng.choice([None, None, "weight", "other", "text"]),
        "target_size": SIZE,
        "color_mode": rng.choice(["rgb", "rgba", "grayscale"]),
        "classes": rng.choice(
            [None, None, None, ["sea", "sky"], ["dog", "cat", "dog"], ["yes", "no"]]
        ),
        "class_mode": mode,
        "batch_size": rng.choice([4, 100]),
        "shuffle": rng.random() < 0.6,
        "seed": rng.choice([0, 7]),
        "subset": rng.choice([None, None, "training", "validation"]),
        "dtype": rng.choice(["float32", "float64"]),
        "validate_filenames": True,
    }
    if rng.random() < 0.3:
        df = df[df["filename"].str.lower().str.endswith(("png", "jpg"))].iloc[:-1]
        df = df[df["filename"] != "beside.png"]
        named["validate_filenames"] = False
    elif rng.random() < 0.2:
        df = df.assign(filename=[str(folder / name) for name in df["filename"]])
    df = df[df["filename"].str.split("/").str[-1] != "beside.png"]  # an empty file
    theirs, own = compare(
        keras, ours, "DataFrameIterator", capsys, df, rng.choice([str(folder), folder]),
        generator(keras, validation_split=0.3), **named,
    )  # fmt: skip
    if theirs is not None:
        compare_batches(theirs, own, 4)


def test_a_frame_without_rows_is_as_for_keras(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, folder: Path, capsys: Any
) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: no frames")
    df = frame(folder, pandas).iloc[:0]
    for mode in ("raw", "input"):
        theirs, own = compare(
            keras, ours, "DataFrameIterator", capsys, df, folder, None, y_col="number",
            target_size=SIZE, class_mode=mode, validate_filenames=False,
        )  # fmt: skip
        compare_batches(theirs, own, 2)


def test_validate_filename_is_keras_s(
    keras: ModuleType, ours: SimpleNamespace, folder: Path
) -> None:
    paths = [str(path) for path in folder.rglob("*")] + [str(folder / "cat" / "none.png")]
    for path, formats in itertools.product(
        paths, [("png", "jpg"), keras.Iterator.white_list_formats]
    ):
        wanted = keras.validate_filename(path, formats)
        assert ours.validate_filename(path, formats) is wanted


@pytest.mark.parametrize(
    ("order", "augmented"), [("stream", True), ("stream", False), ("keras", True)]
)
def test_pictures_are_saved_under_keras_s_names(
    keras: ModuleType,
    ours: SimpleNamespace,
    feeds: Feeds,
    folder: Path,
    tmp_path: Path,
    order: str,
    augmented: bool,
) -> None:
    chosen: Any = generator(keras) if augmented else None
    if augmented:
        chosen.order = order
    before = np.random.get_state()
    for name, module in (("theirs", keras), ("ours", ours)):
        (tmp_path / name).mkdir()
        np.random.set_state(before)
        it = module.DirectoryIterator(
            folder, chosen, SIZE, batch_size=5, seed=4, save_to_dir=tmp_path / name,
            save_prefix="aug", save_format="png",
        )  # fmt: skip
        for _ in range(7):
            next(it)
        it[1]
    np.random.set_state(before)
    names = sorted(os.listdir(tmp_path / "theirs"))
    assert len(names) > 30
    assert sorted(os.listdir(tmp_path / "ours")) == names
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_a_pass_saves_each_batch_once(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, folder: Path, tmp_path: Path
) -> None:
    it = ours.DirectoryIterator(
        folder, generator(keras), SIZE, batch_size=5, seed=4, save_to_dir=tmp_path
    )
    written: list[str] = []
    for epoch in range(2):
        assert it.num_batches == len(it)
        it[0]
        it[1]  # TensorFlow looks
        it.on_epoch_end()
        it.on_epoch_begin()
        assert it.num_batches == len(it)
        for index in (1, 0, 1, *range(2, len(it))):
            it[index]
            written += [str(path) for path in tmp_path.iterdir()]
            for path in tmp_path.iterdir():
                path.unlink()
        assert len(written) == (epoch + 1) * it.n


def test_within_a_pass_the_targets_of_an_auto_encoder_are_the_same_lease(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, folder: Path
) -> None:
    it = ours.DirectoryIterator(folder, generator(keras), SIZE, class_mode="input", seed=4)
    x, y = next(it)
    assert not np.shares_memory(x, y)
    assert it.num_batches == len(it)
    x, y = it[0]
    assert np.shares_memory(x, y)
    assert not x.flags.writeable


def test_a_class_of_ones_own_over_the_mixin_works_as_with_keras(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, folder: Path
) -> None:
    paths = sorted(str(path) for path in (folder / "newt").rglob("*.*"))
    chosen = generator(keras)

    def of(module: Any) -> Any:
        class Listed(module.BatchFromFilesMixin, module.Iterator):  # type: ignore[misc]
            class_mode, dtype, sample_weight, labels = "raw", "float32", None, np.arange(100)

            def __init__(self) -> None:
                self.set_processing_attrs(
                    chosen, SIZE, "rgb", "channels_last", None, "", "png", None, "nearest", False
                )
                super().__init__(len(paths), 3, True, 5)

            @property
            def filepaths(self) -> list[str]:
                return list(paths)

        return Listed()

    own = of(ours)
    compare_batches(of(keras), own, 7)
    assert len(feeds.opened) == 1, "a list that is made anew is the same list"
    bare = type("Bare", (ours.BatchFromFilesMixin, ours.Iterator), {})(1, 1, False, 0)
    with pytest.raises(NotImplementedError, match="`filepaths` property method has not been"):
        bare.filepaths  # noqa: B018


def test_a_method_of_the_caller_s_own_is_called_for_each_sample(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, folder: Path
) -> None:
    class Darker(keras.ImageDataGenerator):  # type: ignore[misc,name-defined]
        def apply_transform(self, x: Array, transform_parameters: Any) -> Any:
            darker = super().apply_transform(x, transform_parameters)
            return darker * np.random.uniform(0.5, 1.0)

    for order, dtype in itertools.product(("stream", "keras"), ("float32", "float64")):
        chosen = Darker(rotation_range=20, vertical_flip=True)
        chosen.order = order
        arguments = {"target_size": SIZE, "batch_size": 5, "seed": 4, "dtype": dtype}
        own = ours.DirectoryIterator(folder, chosen, **arguments)
        with pytest.warns(UserWarning, match="slow: apply_transform is the caller's own"):
            next(own)
        compare_batches(
            keras.DirectoryIterator(folder, chosen, **arguments),
            ours.DirectoryIterator(folder, chosen, **arguments),
            0,
        )
        theirs = keras.DirectoryIterator(folder, chosen, **arguments)
        before = np.random.get_state()
        next(theirs)
        wanted = [next(theirs) for _ in range(6)]
        np.random.set_state(before)
        assert all(same(next(own), batch) for batch in wanted)
