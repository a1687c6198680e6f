"""How a good engineer augments a picture with OpenCV: parameters of many at once, one warp each.

The warp rounds to uint8, where ours and Keras keep what is between; that is OpenCV's fast path.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from peers.work import Work

Array = npt.NDArray[Any]

_FLAGS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def matrices(work: Work, count: int, rng: np.random.Generator) -> Array:
    """Where each picture's pixels come from, drawn for `count` pictures: (count, 2, 3).

    As Keras composes it, in x and y: rotation, then shift, then zoom, about the centre. A flip is a
    change of sign, and costs nothing.
    """
    t, (height, width) = work.transforms, work.size
    turn = np.deg2rad(t["rotation_range"])
    angle = rng.uniform(-turn, turn, count)
    # Keras's height shift is sideways: it mixes its axes up here.
    right = rng.uniform(-t["height_shift_range"], t["height_shift_range"], count) * height
    down = rng.uniform(-t["width_shift_range"], t["width_shift_range"], count) * width
    low, high = t.get("zoom_range", (1.0, 1.0))
    zoom_x, zoom_y = rng.uniform(low, high, (2, count))
    mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0) if t.get("horizontal_flip") else 1.0
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.empty((count, 2, 3))
    matrix[:, 0, 0] = cos * zoom_x * mirror
    matrix[:, 0, 1] = -sin * zoom_y
    matrix[:, 1, 0] = sin * zoom_x * mirror
    matrix[:, 1, 1] = cos * zoom_y
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = np.stack([cos * right - sin * down, sin * right + cos * down], axis=1)
    matrix[:, :, 2] = shift + centre - matrix[:, :, :2] @ centre
    return matrix


def warp(picture: Array, matrix: Array, size: tuple[int, int], out: Array) -> None:
    """Move a uint8 picture's pixels into a uint8 `out`; size is (width, height)."""
    cv2.warpAffine(picture, matrix, size, out, _FLAGS, cv2.BORDER_REPLICATE)


class Colours:
    """From uint8 to float32: the rescale, and in the same look-up the channel shift, if any."""

    def __init__(self, work: Work, rng: np.random.Generator) -> None:
        self._scale = np.float32(work.transforms["rescale"])
        self._range = float(work.transforms.get("channel_shift_range", 0.0))
        self._levels = np.arange(256, dtype=np.float32)
        self._rng = rng

    def __call__(self, pictures: Array, out: Array) -> None:
        """(samples, height, width, 3), uint8, into float32 of the same shape."""
        if not self._range:
            np.multiply(pictures, self._scale, out=out)
            return
        shifts = self._rng.uniform(-self._range, self._range, len(pictures))
        for picture, shift, into in zip(pictures, shifts, out, strict=True):
            flat = picture.reshape(len(picture), -1)
            low, high, _, _ = cv2.minMaxLoc(flat)
            table = np.clip(self._levels + shift, low, high) * self._scale
            cv2.LUT(flat, table.astype(np.float32), into.reshape(len(into), -1))


def read(path: str, size: tuple[int, int]) -> Array:
    """A JPEG file as RGB, resized (nearest) to (width, height)."""
    with open(path, "rb") as file:
        data = np.frombuffer(file.read(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise ValueError(f"{path} cannot be decoded")
    resized: Array = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)
    return resized


def orders(work: Work, rng: np.random.Generator) -> Iterator[Array]:
    """The samples of each batch, epoch after epoch, shuffled; whole batches only."""
    steps = work.samples // work.batch_size
    while True:
        order = rng.permutation(work.samples)[: steps * work.batch_size]
        yield from order.reshape(steps, work.batch_size)


class Augmented:
    """Makes batches of a work into memory that is given; one for each process.

    Args:
        work: What is to be made.
        seed: Of the parameters.
        share, shares: This process makes each `shares`-th batch, from `share` on.
    """

    def __init__(self, work: Work, seed: int, share: int = 0, shares: int = 1) -> None:
        cv2.setNumThreads(0)  # the processes are the parallelism
        self._work = work
        self._rng = np.random.default_rng((seed, share))
        self._colours = Colours(work, self._rng)
        self._samples = itertools.islice(
            orders(work, np.random.default_rng(seed)), share, None, shares
        )
        self._size = (work.size[1], work.size[0])
        self._warped = np.empty(work.shape, np.uint8)

    def fill(self, slots: Array, labels: Array) -> None:
        """Several batches at once: (batches, samples, height, width, 3), float32."""
        drawn = matrices(self._work, slots.shape[0] * slots.shape[1], self._rng)
        for slot, label, of_batch in zip(
            slots, labels, np.split(drawn, len(slots)) if len(slots) > 1 else [drawn], strict=True
        ):
            samples = next(self._samples)
            np.take(self._work.y, samples, out=label, mode="clip")
            self._warp(samples, of_batch)
            self._colours(self._warped, slot)

    def _warp(self, samples: Array, drawn: Array) -> None:
        size, x, files = self._size, self._work.x, self._work.files
        # Bound to names outside the loop, which is then hardly more than OpenCV.
        move, flags, border = cv2.warpAffine, _FLAGS, cv2.BORDER_REPLICATE
        if x is not None:
            for picture, matrix, out in zip(x[samples], drawn, self._warped, strict=True):
                move(picture, matrix, size, out, flags, border)
        else:
            for sample, matrix, out in zip(samples.tolist(), drawn, self._warped, strict=True):
                move(read(files[sample], size), matrix, size, out, flags, border)
