"""Where the pictures come from: a folder of the user's, a download, or this program."""

from __future__ import annotations

import contextlib
import io
import pickle
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from augproto.errors import ConfigError
from augserver import shapes

Array = npt.NDArray[Any]

BATCHES_FOLDER = "cifar-10-batches-py"
ENDINGS = (".jpg", ".jpeg", ".png")
#: Of the photographs that are drawn; Dogs-vs-Cats' have about this size.
DRAWN_SIZE = (500, 375)
DRAWN_AT_ONCE = 5000


@dataclass(frozen=True)
class Pictures:
    """Small pictures in memory: x uint8 (samples, 32, 32, 3), y int64 (samples,)."""

    x: Array
    y: Array
    origin: str


@dataclass(frozen=True)
class Photographs:
    """Picture files in two or more classes."""

    files: tuple[str, ...]
    y: Array
    origin: str


def small_pictures(data: Path | None, download: bool, drawn: int) -> Pictures:
    """CIFAR-10 from a folder or downloaded, or `drawn` pictures of the same shape.

    Raises:
        ConfigError: The download failed, or what was found cannot be read.
    """
    if data is not None:
        found = _cifar10_in(data)
        if found is not None:
            return found
    if download:
        return _downloaded()
    x, y = _shapes(drawn)
    where = f"; there is no CIFAR-10 in {data}" if data is not None else ""
    return Pictures(x, y, f"{drawn:,} shapes, drawn by this program{where}")


def _shapes(count: int) -> tuple[Array, Array]:
    """A few thousand at a time: drawing takes many times the pictures' memory."""
    parts = [
        shapes.draw(min(DRAWN_AT_ONCE, count - first), shapes.SEED + first)
        for first in range(0, count, DRAWN_AT_ONCE)
    ]
    x, y = (np.concatenate(of) for of in zip(*parts, strict=True))
    return x, y


def _cifar10_in(folder: Path) -> Pictures | None:
    for place in (folder, *_folders(folder)):
        batches = place if place.name == BATCHES_FOLDER else place / BATCHES_FOLDER
        parts = sorted(batches.glob("data_batch_*"))
        if parts:
            pairs = [_batch(path) for path in parts]
            x, y = (np.concatenate(of) for of in zip(*pairs, strict=True))
            return Pictures(x, y, f"CIFAR-10, {len(x):,} pictures, from {batches}")
        for path in sorted(place.glob("*.npz")):
            found = _archive(path)
            if found is not None:
                return found
    return None


def _archive(path: Path) -> Pictures | None:
    """The pictures of a .npz as the demo takes them; None if it holds something else."""
    try:
        # Opened here: numpy leaves open what it finds to be no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if not {"x_train", "y_train"} <= set(archive.files):
                return None
            x, y = archive["x_train"], archive["y_train"].reshape(-1)
        labels = y.astype(np.int64)
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"--data: {path} cannot be read as arrays of numbers ({error}); mend it, or move it "
            "out of the folder"
        ) from error
    if not (x.dtype == np.uint8 and x.shape[1:] == (32, 32, 3) and 0 < len(x) == len(y)):
        return None
    if labels.min() < 0:
        raise ConfigError(f"--data: {path}: got a label of {labels.min()}; wanted 0 or more")
    return Pictures(x, labels, f"{len(x):,} pictures from {path}")


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"--data: got {folder}; wanted a folder")
    return sorted(path for path in folder.iterdir() if path.is_dir())


class _ArraysOnly(pickle.Unpickler):
    """CIFAR-10's files are pickles; nothing but arrays is made of them, whoever wrote them."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _batch(path: Path) -> tuple[Array, Array]:
    """A file of CIFAR-10 as its authors publish it."""
    try:
        with open(path, "rb") as file:
            found = _ArraysOnly(file, encoding="bytes").load()
        x = np.asarray(found[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        y = np.asarray(found[b"labels"], np.int64).reshape(-1)
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--data: {path} is no file of CIFAR-10: {error}") from error
    return np.ascontiguousarray(x), y


def _downloaded() -> Pictures:
    import keras

    try:
        (x, y), _ = keras.datasets.cifar10.load_data()
    except Exception as error:  # whatever the network comes up with
        raise ConfigError(
            f"--download: CIFAR-10 could not be had from keras.datasets ({error}); leave the "
            "option out to measure with drawn pictures, or name a folder with --data"
        ) from error
    return Pictures(
        x, y.reshape(-1).astype(np.int64), f"CIFAR-10, {len(x):,} pictures, from keras.datasets"
    )


@contextlib.contextmanager
def photographs(data: Path | None, drawn: int) -> Iterator[Photographs]:
    """Cats and dogs from a folder, or files drawn into one that goes with the block."""
    found = _classes_in(data) if data is not None else None
    if found is not None:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="augserver-bench-") as folder:
        where = f"; there are no folders of pictures in {data}" if data is not None else ""
        yield _drawn(Path(folder), drawn, where)


def _classes_in(folder: Path) -> Photographs | None:
    inside = _folders(folder)
    for place in (folder, folder / "train", *inside, *(path / "train" for path in inside)):
        if not place.is_dir():
            continue
        classes = [(path, _pictures_in(path)) for path in _folders(place)]
        classes = [(path, files) for path, files in classes if files]
        if len(classes) > 1:
            files = tuple(str(file) for _, of in classes for file in of)
            y = np.repeat(np.arange(len(classes)), [len(of) for _, of in classes])
            names = ", ".join(path.name for path, _ in classes)
            return Photographs(files, y, f"{len(files):,} files from {place} ({names})")
    return None


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)


def _drawn(folder: Path, count: int, where: str) -> Photographs:
    """JPEG files of photographs' size: a shape on a soft background with some grain."""
    x, y = shapes.draw(count, shapes.SEED)
    rng = np.random.default_rng(shapes.SEED)
    y = y % 2
    files = []
    for n, (picture, label) in enumerate(zip(x, y, strict=True)):
        large = Image.fromarray(picture).resize(DRAWN_SIZE, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (DRAWN_SIZE[1], DRAWN_SIZE[0], 1))
        pixels = (np.asarray(large) + grain).clip(0, 255).astype(np.uint8)
        written = io.BytesIO()
        Image.fromarray(pixels).save(written, "JPEG", quality=75)
        path = folder / ("dog" if label else "cat") / f"{n:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(written.getvalue())
        files.append(str(path))
    return Photographs(
        tuple(files), y, f"{count:,} JPEG files of 500x375, drawn by this program{where}"
    )
