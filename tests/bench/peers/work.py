"""The two works that everybody is asked for, and in what form a batch arrives."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import TRANSFORMS, pictures
from PIL import Image, ImageOps
from real_data import CIFAR10, DOGS_CATS

from augserver.bench.work import TWO, Array, Batches, Peer, Work

#: Of everybody who has some.
WORKERS = TWO
__all__ = ["WORKERS", "Array", "Batches", "Missing", "Peer", "Work"]
PHOTOGRAPH_TRANSFORMS: dict[str, Any] = TRANSFORMS | {
    "zoom_range": [0.8, 1.0],
    "channel_shift_range": 20.0,
}
SMALL_PICTURES = 50_000
PHOTOGRAPHS, PHOTOGRAPH_SIZE, TARGET_SIZE = 2000, (500, 375), (299, 299)


class Missing(Exception):
    """A peer's package is not installed, or cannot do this work; says which."""


def needs(package: str, group: str = "pip install --group bench") -> None:
    """Raise Missing where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Missing(f"{package} is not installed ({group})")


def small_pictures(batch_size: int) -> Work:
    """50,000 pictures in memory, as CIFAR-10 has: real ones, repeated, or noise of their shape."""
    x, y = pictures()
    name = "CIFAR-10" if CIFAR10.exists() else "noise, 32x32"
    rows = np.resize(np.arange(len(x)), SMALL_PICTURES)
    return Work(name, batch_size, TRANSFORMS, y[rows].astype(np.int64), x[rows])


@contextlib.contextmanager
def photographs(batch_size: int = 64, count: int = PHOTOGRAPHS) -> Iterator[Work]:
    """JPEG files of 500x375, made of real photographs, in a folder that goes with the block.

    The photographs are of many sizes; each is cut and resized to this one and written with
    quality 75, which gives about 30 kB, as the pictures of Dogs-vs-Cats have. The files that then
    lack are the same once more, under other names.
    """
    photos = sorted(DOGS_CATS.glob("*/*.jpg"))
    folder = Path(tempfile.mkdtemp(prefix="augserver-bench-"))
    try:
        made = list(_written(photos, folder, count))
        for n in range(len(made), count):
            path = folder / made[n % len(made)].parent.name / f"{n:05d}.jpg"
            os.link(made[n % len(made)], path)
            made.append(path)
        labels = np.array([path.parent.name == "dog" for path in made], np.int64)
        yield Work(
            "photographs" if photos else "drawn photographs", batch_size, PHOTOGRAPH_TRANSFORMS,
            labels, None, tuple(map(str, made)), TARGET_SIZE,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _written(photos: list[Path], folder: Path, count: int) -> Iterator[Path]:
    for kind in ("cat", "dog"):
        (folder / kind).mkdir()
    rng = np.random.default_rng(0)
    for n in range(min(count, len(photos) or 160)):
        if photos:
            kind = photos[n].parent.name
            picture = ImageOps.fit(Image.open(photos[n]).convert("RGB"), PHOTOGRAPH_SIZE)
        else:  # soft noise, which JPEG makes about as large as a photograph
            kind = ("cat", "dog")[n % 2]
            noise = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
            picture = noise.resize(PHOTOGRAPH_SIZE, Image.Resampling.BICUBIC)
        path = folder / kind / f"{n:05d}.jpg"
        picture.save(path, quality=75)
        yield path
