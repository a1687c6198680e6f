"""Pictures for the demo and the examples: drawn on the spot, learnable, never downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError

Pictures = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

#: What is drawn; the label is the place in this list.
SHAPES = (
    "disc", "ring", "square", "frame", "triangle", "plus", "cross", "rows", "columns", "chequers",
)  # fmt: skip
SIDE = 32
SEED = 2017


@dataclass(frozen=True, slots=True)
class Dataset:
    """Pictures (N, H, W, C) and their labels (N,), for training and for validation."""

    x_train: Pictures
    y_train: Labels
    x_test: Pictures
    y_test: Labels

    def save(self, path: Path) -> None:
        """Write it as a .npz, as a server can read it."""
        np.savez_compressed(
            path,
            x_train=self.x_train,
            y_train=self.y_train.astype(np.uint8),
            x_test=self.x_test,
            y_test=self.y_test.astype(np.uint8),
        )


def draw_dataset(pictures: int) -> Dataset:
    """So many pictures to learn from, and a sixth of that to see what was learnt."""
    x_train, y_train = draw(pictures, SEED)
    x_test, y_test = draw(max(pictures // 6, 1), SEED + 1)
    return Dataset(x_train, y_train, x_test, y_test)


def draw(count: int, seed: int) -> tuple[Pictures, Labels]:
    """Shapes of any colour, at any place, of any size, on noise.

    A shape's colour says nothing about its label, so that a network has to look at its form. All
    shapes remain what they are when they are flipped or turned by a few degrees.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(SHAPES), count)
    # Few distinct values, so that a file of such pictures is small.
    noise = 16 * rng.integers(0, 6, (count, SIDE, SIDE, 1))
    background = 16 * rng.integers(0, 6, (count, 1, 1, 3)) + noise
    light = rng.integers(0, 2, (count, 1, 1, 3))
    light[np.arange(count), ..., rng.integers(0, 3, count)] = 1  # never black on dark
    colour = 96 + 144 * light - noise // 2
    radius = rng.integers(7, 12, (count, 1, 1))
    middle = rng.integers(12, SIDE - 12, (2, count, 1, 1))
    place = np.mgrid[0:SIDE, 0:SIDE][:, None]
    down, right = (place - middle) / radius
    x = np.where(_inside(labels, down, right)[..., None], colour, background)
    return x.clip(0, 255).astype(np.uint8), labels


def _inside(
    labels: Labels, down: npt.NDArray[np.float64], right: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Which pixels belong to the shape; a shape fills -1 to 1 in both directions."""
    distance = np.hypot(down, right)
    side = np.maximum(abs(down), abs(right))
    square = side <= 0.85
    bands = [np.floor(d * 2.4).astype(int) % 2 == 0 for d in (down, right)]
    masks = {
        "disc": distance <= 0.95,
        "ring": (distance <= 1) & (distance >= 0.55),
        "square": square,
        "frame": square & (side >= 0.45),
        "triangle": (down <= 0.8) & (down >= -0.9) & (abs(right) <= (down + 0.9) * 0.6),
        "plus": (np.minimum(abs(down), abs(right)) <= 0.28) & (side <= 1),
        "cross": (np.minimum(abs(down - right), abs(down + right)) <= 0.4) & square,
        "rows": square & bands[0],
        "columns": square & bands[1],
        "chequers": square & (bands[0] == bands[1]),
    }
    chosen = labels[:, None, None]
    return np.select([chosen == n for n in range(len(SHAPES))], [masks[s] for s in SHAPES])


def read_dataset(path: Path) -> Dataset:
    """The pictures of a .npz whose arrays are named as CIFAR-10's.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found: Mapping[str, Any] = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"--data: {path} cannot be read: {error}") from error
    wanted = "x_train, y_train, x_test, y_test: pictures (N, H, W, C) of uint8, and whole numbers"
    for part in ("train", "test"):
        x, y = found.get(f"x_{part}"), found.get(f"y_{part}")
        if (
            x is None or y is None or x.ndim != 4 or x.dtype != np.uint8 or x.shape[3] not in (1, 3)
            or y.dtype.kind not in "iu" or y.size != len(x) or not len(x)
        ):  # fmt: skip
            shapes = ", ".join(f"{k} {v.dtype} {v.shape}" for k, v in found.items()) or "nothing"
            raise ConfigError(f"--data: {path}: got {shapes}; wanted {wanted}")
    return Dataset(
        found["x_train"],
        found["y_train"].reshape(-1).astype(np.int64),
        found["x_test"],
        found["y_test"].reshape(-1).astype(np.int64),
    )
