"""The drop-in class by frames, and on a server that is killed under it: Keras's own batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE, image_data_generators
from PIL import Image
from restarted import Restarted, restarted

pytestmark = SCIPY_NOISE

PICTURES = np.random.default_rng(8).integers(0, 256, (60, 12, 12, 3), np.uint8)
LABELS = np.tile(np.arange(5), 12)
SETTINGS: dict[str, Any] = {
    "rotation_range": 30, "width_shift_range": 0.2, "zoom_range": 0.2, "horizontal_flip": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    yield from image_data_generators()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Restarted]:
    with restarted(tmp_path) as server:
        yield server


def same(ours: Any, theirs: Any, server: Restarted) -> None:
    """Both give the same batches, though the server is killed after a few of them."""
    for number in range(20):
        if number == 3:
            server.end()
            server.start()
        mine, keras_own = next(ours), next(theirs)
        for a, b in zip(mine, keras_own, strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
    ours.close()


@pytest.mark.parametrize("memory", ["frames", "shared"])
def test_arrays_of_the_drop_in_flow_on_over_a_kill(
    keras: ModuleType, server: Restarted, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from augclient.image import ImageDataGenerator

    monkeypatch.setenv("AUGSERVER_MEMORY", memory)
    flow: dict[str, Any] = {"batch_size": 4, "seed": 3}
    ours = ImageDataGenerator(**SETTINGS, address=server.address).flow(PICTURES, LABELS, **flow)
    theirs = keras.ImageDataGenerator(**SETTINGS).flow(PICTURES, LABELS, **flow)
    same(ours, theirs, server)


def test_files_of_the_drop_in_flow_on_over_a_kill(
    keras: ModuleType, server: Restarted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from augclient.image import ImageDataGenerator

    monkeypatch.setenv("AUGSERVER_MEMORY", "frames")
    for number, picture in enumerate(PICTURES):
        below = tmp_path / "classes" / ("cat", "dog")[number % 2]
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(below / f"{number:02}.png")
    top = str(tmp_path / "classes")
    flow: dict[str, Any] = {"target_size": (10, 10), "batch_size": 4, "seed": 3}
    ours = ImageDataGenerator(**SETTINGS, address=server.address)
    theirs = keras.ImageDataGenerator(**SETTINGS)
    same(ours.flow_from_directory(top, **flow), theirs.flow_from_directory(top, **flow), server)


def test_work_on_single_pictures_goes_on_over_a_kill(
    keras: ModuleType, server: Restarted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from augclient.image import ImageDataGenerator

    monkeypatch.setenv("AUGSERVER_MEMORY", "frames")
    ours = ImageDataGenerator(**SETTINGS, address=server.address)
    theirs = keras.ImageDataGenerator(**SETTINGS)
    for number, picture in enumerate(PICTURES[:6].astype("float32")):
        if number == 3:
            server.end()
            server.start()
        mine = ours.random_transform(picture.copy(), seed=number)
        assert np.array_equal(mine, theirs.random_transform(picture.copy(), seed=number))
