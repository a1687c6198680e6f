"""Random parameters as a pure function of (seed, epoch, sample): the `counter` scheme.

A counter-based generator has no state to advance: it scrambles a counter under a key. With the
seed as key and (sample, epoch, block) as counter, a sample's augmentation depends on nothing else:
not on the batch it came in, on its neighbours, on the shard or on the worker.

Every parameter reads its own lane, whether or not the others are in use. So switching one option
on changes that option only, and two runs that differ in one option can be compared picture by
picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augproto.transforms import ShiftRange, Transforms

# Philox 4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC11).
_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, added to the key each round
_WORD = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

#: The block whose four words seed np.random and random; far above the lanes, which may grow.
SEED_BLOCK = 255


class Lane(IntEnum):
    """Where each parameter's number lies: block lane // 2, its first or second double.

    The numbers are part of what a seed means: a lane may be added, never moved.
    """

    THETA = 0
    HEIGHT_SHIFT = 1
    WIDTH_SHIFT = 2
    SHEAR = 3
    ZOOM_X = 4
    ZOOM_Y = 5
    FLIP_HORIZONTAL = 6
    FLIP_VERTICAL = 7
    CHANNEL_SHIFT = 8
    BRIGHTNESS = 9
    HEIGHT_SIGN = 10  # the signs serve shifts that are chosen from a list
    WIDTH_SIGN = 11


@dataclass(frozen=True, slots=True)
class Draws:
    """Parameters of n samples, under the names that Keras's `get_random_transform` gives them.

    Keras draws tx from height_shift_range, as pixels or as a share of the HEIGHT, and then moves
    the picture along its COLUMNS by it; zx stretches columns likewise (`apply_affine_transform`
    swaps the axes last; reported as keras-team/keras#17398). Having Keras's pictures means having
    this too, so the names are Keras's and the meaning is what Keras does.

    Attributes:
        theta, shear: float64 (n,), degrees; 0 is neutral.
        tx, ty: float64 (n,), pixels, from height_shift_range and width_shift_range; 0 is neutral.
        zx, zy: float64 (n,), factors (above 1 shows more of the picture, smaller); 1 is neutral.
        flip_horizontal, flip_vertical: bool (n,).
        channel_shift: float64 (n,), in units of the picture; None where nothing is shifted.
        brightness: float64 (n,), factors; None where brightness is left alone.
        seeds: uint32 (n, 4), for np.random (words 0, 1) and random (words 2, 3) before a user's
            function runs; None where no function draws.
    """

    theta: NDArray[np.float64]
    tx: NDArray[np.float64]
    ty: NDArray[np.float64]
    shear: NDArray[np.float64]
    zx: NDArray[np.float64]
    zy: NDArray[np.float64]
    flip_horizontal: NDArray[np.bool_]
    flip_vertical: NDArray[np.bool_]
    channel_shift: NDArray[np.float64] | None = None
    brightness: NDArray[np.float64] | None = None
    seeds: NDArray[np.uint32] | None = None

    @classmethod
    def joined(cls, several: Sequence[Draws]) -> Draws:
        """The parameters of several batches, one after the other."""
        columns: dict[str, Any] = {}
        for name in Draws.__slots__:
            parts = [getattr(draws, name) for draws in several]
            columns[name] = None if parts[0] is None else np.concatenate(parts)
        return cls(**columns)

    def of(self, places: NDArray[np.int64] | slice) -> Draws:
        """The parameters of some of the samples."""
        columns: dict[str, Any] = {}
        for name in Draws.__slots__:
            column = getattr(self, name)
            columns[name] = None if column is None else column[places]
        return Draws(**columns)


def philox(counter: Sequence[NDArray[np.uint64]], key: int) -> tuple[NDArray[np.uint64], ...]:
    """Philox 4x32-10 over whole arrays.

    Args:
        counter: Four uint64 arrays of 32-bit words that broadcast against one another.
        key: 64 bits; the low 32 are the first key word.

    Returns:
        Four uint64 arrays of 32-bit words, each of the counters' common shape.
    """
    # 64-bit lanes hold a 32 x 32 bit product whole, which is why the words do not come as uint32.
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c2 = (p1 >> _32) ^ c1 ^ np.uint64(k0), (p0 >> _32) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def draw(
    transforms: Transforms,
    *,
    seed: int,
    epoch: int,
    indexes: NDArray[np.int64],
    height: int,
    width: int,
) -> Draws:
    """Draw the parameters of some samples, distributed as Keras's `get_random_transform` has them.

    Args:
        transforms: The ranges. Only the blocks that they need are computed.
        seed: 64 bits. epoch: its low 32 bits count.
        indexes: int64 (n,): the samples' places in their dataset, not in the batch.
        height, width: Of a picture, in pixels: a shift may be a share of it.
    """
    t, n = transforms, len(indexes)
    number, seeds = _numbers(t, seed, epoch, indexes)

    def between(lane: Lane, low: float, high: float, neutral: float = 0.0) -> NDArray[np.float64]:
        return low + (high - low) * number[lane] if lane in number else np.full(n, neutral)

    def shift(value: Lane, sign: Lane, limit: ShiftRange, length: int) -> NDArray[np.float64]:
        if value not in number:
            return np.zeros(n)
        if isinstance(limit, float):
            pixels = between(value, -limit, limit)
        else:
            choices = np.array(range(limit) if isinstance(limit, int) else limit, np.float64)
            # Never out of range: for u < 1 the double u * k stays below k.
            pixels = choices[(number[value] * len(choices)).astype(np.int64)]
            pixels *= np.where(number[sign] < 0.5, -1.0, 1.0)
        return pixels * length if np.max(limit) < 1 else pixels

    def flip(lane: Lane) -> NDArray[np.bool_]:
        return number[lane] < 0.5 if lane in number else np.zeros(n, np.bool_)

    assert isinstance(t.zoom_range, tuple)  # Transforms turns a single number into a pair
    return Draws(
        theta=between(Lane.THETA, -t.rotation_range, t.rotation_range),
        tx=shift(Lane.HEIGHT_SHIFT, Lane.HEIGHT_SIGN, t.height_shift_range, height),
        ty=shift(Lane.WIDTH_SHIFT, Lane.WIDTH_SIGN, t.width_shift_range, width),
        shear=between(Lane.SHEAR, -t.shear_range, t.shear_range),
        zx=between(Lane.ZOOM_X, *t.zoom_range, neutral=1.0),
        zy=between(Lane.ZOOM_Y, *t.zoom_range, neutral=1.0),
        flip_horizontal=flip(Lane.FLIP_HORIZONTAL),
        flip_vertical=flip(Lane.FLIP_VERTICAL),
        channel_shift=(
            between(Lane.CHANNEL_SHIFT, -t.channel_shift_range, t.channel_shift_range)
            if t.channel_shift_range
            else None
        ),
        brightness=between(Lane.BRIGHTNESS, *t.brightness_range) if t.brightness_range else None,
        seeds=seeds,
    )


def lanes(t: Transforms) -> list[Lane]:
    """The lanes that these transforms read."""
    zoomed = t.zoom_range != (1.0, 1.0)
    rows, columns = t.height_shift_range, t.width_shift_range
    wanted = {
        Lane.THETA: t.rotation_range,
        Lane.HEIGHT_SHIFT: rows,
        Lane.WIDTH_SHIFT: columns,
        Lane.SHEAR: t.shear_range,
        Lane.ZOOM_X: zoomed,
        Lane.ZOOM_Y: zoomed,
        Lane.FLIP_HORIZONTAL: t.horizontal_flip,
        Lane.FLIP_VERTICAL: t.vertical_flip,
        Lane.CHANNEL_SHIFT: t.channel_shift_range,
        Lane.BRIGHTNESS: t.brightness_range,
        Lane.HEIGHT_SIGN: rows and not isinstance(rows, float),
        Lane.WIDTH_SIGN: columns and not isinstance(columns, float),
    }
    return [lane for lane, needed in wanted.items() if needed]


def _numbers(
    t: Transforms, seed: int, epoch: int, indexes: NDArray[np.int64]
) -> tuple[dict[Lane, NDArray[np.float64]], NDArray[np.uint32] | None]:
    """One double in [0, 1) per sample for each lane in use, and the seeds if a function is."""
    used = lanes(t)
    seeded = t.function is not None and not t.named
    blocks = sorted({lane // 2 for lane in used}) + [SEED_BLOCK] * seeded
    if not blocks:
        return {}, None
    sample = indexes.astype(np.uint64)
    counter = (
        sample & _WORD,
        sample >> _32,
        np.array([epoch & 0xFFFFFFFF], np.uint64),
        np.array(blocks, np.uint64)[:, np.newaxis],
    )
    words = philox(counter, seed)  # each (blocks, n)
    halves = _doubles(words[0], words[1]), _doubles(words[2], words[3])
    numbers = {lane: halves[lane % 2][blocks.index(lane // 2)] for lane in used}
    if not seeded:
        return numbers, None
    return numbers, np.stack([word[-1] for word in words], axis=1).astype(np.uint32)


def _doubles(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Two 32-bit words to a double in [0, 1) with 53 bits, by numpy's legacy `random_sample`."""
    whole = ((a >> np.uint64(5)) << np.uint64(26)) + (b >> np.uint64(6))
    return whole.astype(np.float64) / 2.0**53
