"""Real pictures for tests; not shipped, so tests that want them skip where they are absent."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

#: Beside the checkout, or where AUGSERVER_TEST_DATA says.
FOLDER = Path(os.environ.get("AUGSERVER_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CIFAR10 = FOLDER / "cifar10" / "cifar10.npz"

needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.exists(), reason=f"real CIFAR-10 pictures are not at {CIFAR10}"
)

DOGS_CATS = FOLDER / "dogs_cats" / "train"
BAD_IMAGES = FOLDER / "bad_images"

needs_dogs_cats = pytest.mark.skipif(
    not DOGS_CATS.exists(), reason=f"real photographs are not at {DOGS_CATS}"
)
needs_bad_images = pytest.mark.skipif(
    not BAD_IMAGES.exists(), reason=f"damaged and unusual pictures are not at {BAD_IMAGES}"
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What Pillow does with a file of BAD_IMAGES (`expected.csv`)."""

    path: Path
    error: str  # the name of the exception's class; empty if it is read
    size: tuple[int, int]  # width and height, where it is read
    mean: tuple[float, ...]  # of the picture as RGB
    loses: bool  # Pillow's own conversion gives no error and wrong pixels

    def __str__(self) -> str:
        return self.path.name


def bad_images() -> list[Expected]:
    """All files of BAD_IMAGES; none where the folder is absent."""
    if not BAD_IMAGES.exists():
        return []
    with open(BAD_IMAGES / "expected.csv", newline="", encoding="utf-8") as file:
        return [
            Expected(
                path=BAD_IMAGES / "files" / row["file"],
                error=row["exception"],
                size=(int(row["width"] or 0), int(row["height"] or 0)),
                mean=tuple(map(float, row["rgb_mean"].split())),
                loses="SILENT LOSS" in row["note"],
            )
            for row in csv.DictReader(file)
        ]
