"""The drop-in class on a server that others use: the bytes that Keras's own class gives."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import image_data_generators
from PIL import Image
from processes import serving

from augproto.errors import AugError, NotAllowed
from augserver import health

pytestmark = pytest.mark.filterwarnings(  # Keras's own
    "ignore:.*scipy.ndimage.interpolation.*:DeprecationWarning"
)

PICTURES = np.random.default_rng(8).integers(0, 256, (20, 12, 12, 3), np.uint8)
LABELS = np.tile(np.arange(5), 4)
SETTINGS: dict[str, Any] = {
    "rotation_range": 30, "width_shift_range": 0.2, "zoom_range": 0.2, "horizontal_flip": True,
    "brightness_range": (0.6, 1.2), "rescale": 1 / 255, "validation_split": 0.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    yield from image_data_generators()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, one of them with a folder below."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(PICTURES):
        below = folder / "classes" / ("cat", "dog/deep")[number % 2]
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(below / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    config = folder / "augserver.toml"
    config.write_text(f'[server]\nworkers = 1\nroots = ["{folder}"]\n')
    with serving(f"ipc://{folder}/s", "--config", str(config)):
        health.ask(f"ipc://{folder}/s", 30)  # the key at its door lasts as long as the server
        yield f"ipc://{folder}/s"


def same(ours: Any, theirs: Any, batches: int = 5) -> None:
    """Both iterators give the same batches, labels and all."""
    assert len(ours) == len(theirs)
    for _ in range(batches):
        mine, keras_own = next(ours), next(theirs)
        for a, b in zip(mine, keras_own, strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
    ours.close()


@pytest.mark.parametrize("subset", ["training", "validation"])
def test_arrays_flow_through_a_shared_server(keras: ModuleType, address: str, subset: str) -> None:
    from augclient.image import ImageDataGenerator

    flow: dict[str, Any] = {"batch_size": 4, "seed": 3, "subset": subset}
    ours = ImageDataGenerator(**SETTINGS, address=address).flow(PICTURES, LABELS, **flow)
    theirs = keras.ImageDataGenerator(**SETTINGS).flow(PICTURES, LABELS, **flow)
    same(ours, theirs)


def test_folders_flow_through_a_shared_server(
    keras: ModuleType, address: str, folder: Path
) -> None:
    from augclient.image import ImageDataGenerator

    flow: dict[str, Any] = {"target_size": (10, 10), "batch_size": 4, "seed": 3}
    ours = ImageDataGenerator(**SETTINGS, address=address)
    theirs = keras.ImageDataGenerator(**SETTINGS)
    top = str(folder / "classes")
    same(ours.flow_from_directory(top, **flow), theirs.flow_from_directory(top, **flow))


def test_a_table_of_files_flows_through_a_shared_server(
    keras: ModuleType, address: str, folder: Path
) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    from augclient.image import ImageDataGenerator

    table = pandas.DataFrame(
        {
            "filename": ["cat/0.png", "dog/deep/1.png", "cat/2.png", "cat/missing.png"],
            "class": ["a", "b", "a", "b"],
        }
    )
    flow: dict[str, Any] = {"target_size": (10, 10), "batch_size": 2, "seed": 3}
    top = str(folder / "classes")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = ImageDataGenerator(address=address).flow_from_dataframe(table, top, **flow)
        theirs = keras.ImageDataGenerator().flow_from_dataframe(table, top, **flow)
    assert len([w for w in said if "Found 1 invalid image filename" in str(w.message)]) == 2
    same(ours, theirs, 3)


def test_single_pictures_are_worked_on_by_a_shared_server(
    keras: ModuleType, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from augclient.image import ImageDataGenerator, desk

    desks = desk._Desks()  # of this test alone: they last as long as a program
    monkeypatch.setattr(desk, "_desks", desks)
    x = PICTURES[0].astype("float32")
    ours = ImageDataGenerator(**SETTINGS, address=address).random_transform(x, seed=5)
    theirs = keras.ImageDataGenerator(**SETTINGS).random_transform(x, seed=5)
    assert np.array_equal(ours, theirs)
    for opened in desks._open.values():
        opened.close()


def test_what_a_shared_server_may_not_read_or_import_is_refused_with_what_to_do(
    address: str,
) -> None:
    from augclient.image import ImageDataGenerator

    generator = ImageDataGenerator(address=address)
    with pytest.raises(NotAllowed, match="is not below a folder this server allows"):
        generator.flow_from_directory("/etc")
    own = ImageDataGenerator(preprocessing_function=lambda x: x + 1, address=address)
    with pytest.raises(AugError, match=r"cannot be imported by a server.*allow_transforms"):
        next(own.flow(PICTURES, batch_size=4))
