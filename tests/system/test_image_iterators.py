"""Iterators over a real server's streams: Keras's batches, leases, and a caller's own methods."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE, image_data_generators
from PIL import Image

pytestmark = [
    pytest.mark.keras,
    pytest.mark.slow,
    SCIPY_NOISE,
]

Array = np.ndarray[Any, Any]
OPTIONS: dict[str, Any] = {
    "rotation_range": 20, "height_shift_range": 0.1, "horizontal_flip": True, "rescale": 1 / 255,
}  # fmt: skip
SIZE = (12, 10)


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """The module with Keras's iterators."""
    yield from image_data_generators()


@pytest.fixture
def ours(keras: ModuleType) -> Any:
    """Our generator."""
    from augclient.image import ImageDataGenerator

    return ImageDataGenerator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes."""
    root = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for i in range(14):
        path = root / ("cat", "dog")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(path)
    return root


def pictures(n: int) -> Array:
    return np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)


def same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    return (got.dtype, got.shape) == (wanted.dtype, wanted.shape) and np.ascontiguousarray(
        got
    ).tobytes() == np.ascontiguousarray(wanted).tobytes()


def taken(it: Any, order: str) -> list[Any]:
    """Batches by every way that there is."""
    before = np.random.get_state()
    np.random.seed(3)
    batches = [next(it) for _ in range(4)] + [it[1], it[0]]
    it.reset()
    batches += [next(it), next(it)]
    if order == "keras":
        it.on_epoch_end()
        batches += [it[0], next(it), next(it)]
    np.random.set_state(before)
    return batches


def test_pictures_of_files_are_kept_decoded_where_that_is_wanted(
    ours: Any, folder: Path, tmp_path: Path
) -> None:
    pets = shutil.copytree(folder, tmp_path / "pets")
    options = {"target_size": SIZE, "batch_size": 4, "seed": 3}
    flow = ours(**OPTIONS).flow_from_directory(folder, **options)
    wanted = [next(flow) for _ in range(3 * len(flow))]
    flow = ours(**OPTIONS, cache="decoded", workers=1).flow_from_directory(pets, **options)
    got = [next(flow) for _ in range(len(flow))]
    shutil.rmtree(pets)
    got += [next(flow) for _ in range(2 * len(flow))]
    assert all(same(a, b) for a, b in zip(got, wanted, strict=True))
    with pytest.raises(ValueError, match="`cache` should be None"):
        ours(cache="encoded")


@pytest.mark.parametrize("order", ["stream", "keras"])
def test_arrays_and_folders_come_as_from_keras(
    keras: ModuleType, ours: Any, folder: Path, order: str
) -> None:
    x, y = pictures(13), np.arange(13)
    theirs, own = keras.ImageDataGenerator(**OPTIONS), ours(**OPTIONS, order=order)
    arguments = {"batch_size": 5, "seed": 8}
    wanted = taken(theirs.flow(x, y, **arguments), order)
    assert all(map(same, taken(own.flow(x, y, **arguments), order), wanted))
    arguments["target_size"] = SIZE  # type: ignore[assignment]
    wanted = taken(theirs.flow_from_directory(folder, **arguments), order)
    assert all(map(same, taken(own.flow_from_directory(folder, **arguments), order), wanted))


def test_a_folder_without_a_generator_comes_as_from_keras(
    keras: ModuleType, ours: Any, folder: Path, tmp_path: Path
) -> None:
    from augclient.image import DirectoryIterator

    names = {}
    for which, module in (("theirs", keras.DirectoryIterator), ("ours", DirectoryIterator)):
        (tmp_path / which).mkdir()
        it = module(folder, None, SIZE, class_mode="input", seed=2, batch_size=4,
                    save_to_dir=tmp_path / which)  # fmt: skip
        names[which] = (
            [next(it) for _ in range(5)],
            sorted(path.name for path in (tmp_path / which).iterdir()),
        )
    assert all(map(same, names["ours"][0], names["theirs"][0]))
    assert names["ours"][1] == names["theirs"][1]


@pytest.mark.parametrize("order", ["stream", "keras"])
def test_methods_of_the_caller_s_own_are_called_for_arrays_and_files(
    keras: ModuleType, ours: Any, folder: Path, order: str
) -> None:
    def darker(base: Any, **more: Any) -> Any:
        class Darker(base):  # type: ignore[misc]
            def apply_transform(self, x: Array, transform_parameters: Any) -> Any:
                done = super().apply_transform(x, transform_parameters)
                return done * np.random.uniform(0.5, 1.0)

        return Darker(**OPTIONS, **more)

    theirs, own = darker(keras.ImageDataGenerator), darker(ours, order=order)
    x, y = pictures(7), np.arange(7)
    wanted = taken(theirs.flow(x, y, batch_size=4, seed=1), order)
    with pytest.warns(UserWarning, match="slow: Darker overrides apply_transform"):
        assert all(map(same, taken(own.flow(x, y, batch_size=4, seed=1), order), wanted))
    arguments: dict[str, Any] = {"target_size": SIZE, "batch_size": 5, "seed": 1}
    wanted = taken(theirs.flow_from_directory(folder, **arguments), order)
    with pytest.warns(UserWarning, match="slow: Darker overrides apply_transform"):
        got = taken(own.flow_from_directory(folder, **arguments), order)
    assert all(map(same, got, wanted))


def test_what_is_leased_under_keras_is_let_go(keras: ModuleType, ours: Any) -> None:
    it = ours(**OPTIONS).flow(pictures(40), np.arange(40), batch_size=4, seed=8)
    wanted = [batch for batch, _ in zip(
        keras.ImageDataGenerator(**OPTIONS).flow(it.x, it.y, batch_size=4, seed=8), range(30),
        strict=False,
    )]  # fmt: skip
    got = []
    for _ in range(3):
        assert it.num_batches == 10
        it.on_epoch_begin()
        for index in range(10):
            x, y = it[index]
            assert x.flags.owndata is False
            got.append((x.copy(), y))
    assert all(map(same, got, wanted))
    stream = it._supply._finished._feed._ordered
    del x
    gc.collect()
    assert stream.leased == 0
    assert stream.copies == 0
