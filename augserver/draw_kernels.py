"""The parameters of a whole batch in one call, compiled: what draws.py and keras_draws.py say.

Those two are the meaning; the tests hold the numbers here against theirs, bit for bit. So there is
no fastmath, and each number is computed by the same operations in the same order.

A *plan* is two small tables with one row for each parameter: theta, tx, ty, shear, zx, zy, channel
shift, brightness; then the horizontal and the vertical flip. `lanes` (int64 (10, 2)) says which of
a sample's doubles makes it, or -1 where it is not drawn, and which one its sign, or -1: what has a
sign is chosen from a list. `ranges` (float64 (10, 3)) says low, high - low, and what the number is
multiplied by at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from augserver.compiling import kernel
from augserver.draws import SEED_BLOCK

_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUNDS = 10
_SEED_BLOCK = np.uint64(SEED_BLOCK)
_TO_UNIT = 1.0 / 2.0**53  # a power of two: to multiply by it is to divide by its inverse
_TY, _FLIPS = 2, 8  # rows of a plan
#: Doubles of a sample that the counter scheme has room for; see `augserver.draws.Lane`.
LANES = 12


def _read(dtype: Any, axes: int) -> Any:
    """The type of an array that is only read, however it lies."""
    return types.Array(dtype, axes, "A", readonly=True)


_PLAN = (
    _read(types.int64, 2), _read(types.float64, 2),
    _read(types.float64, 1), _read(types.float64, 1),
    types.float64[:, ::1], types.boolean[:, ::1],
)  # fmt: skip


@njit(nogil=True)
def philox(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64
) -> Any:
    """Philox 4x32-10 of one counter: four words, each a uint64 below 2**32."""
    for _ in range(_ROUNDS):
        p0 = c0 * _M0
        p1 = c2 * _M1
        c0 = (p1 >> _32) ^ c1 ^ k0
        c2 = (p0 >> _32) ^ c3 ^ k1
        c1 = p1 & _MASK
        c3 = p0 & _MASK
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@njit(nogil=True)
def _unit(a: np.uint64, b: np.uint64) -> float:
    """Two words to a double in [0, 1), as numpy's `random_sample`."""
    whole = ((a >> np.uint64(5)) << np.uint64(26)) + (b >> np.uint64(6))
    return float(whole) * _TO_UNIT


@kernel(_read(types.float64, 2), *_PLAN)
def from_doubles(
    doubles: NDArray[np.float64],
    lanes: NDArray[np.int64],
    ranges: NDArray[np.float64],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    numbers: NDArray[np.float64],
    flips: NDArray[np.bool_],
) -> None:
    """Doubles in [0, 1) to parameters.

    Args:
        doubles: (n, k), the same lanes for each sample.
        lanes, ranges: The plan. A parameter that is not drawn is its range's low.
        rows, columns: What tx and ty are chosen from, where they have signs.
        numbers: float64 (8, n), written. flips: bool (2, n), written.
    """
    n = len(doubles)
    for parameter in range(len(numbers)):
        lane, sign = lanes[parameter, 0], lanes[parameter, 1]
        low, span, scale = ranges[parameter, 0], ranges[parameter, 1], ranges[parameter, 2]
        if lane < 0:
            for i in range(n):
                numbers[parameter, i] = low
        elif sign < 0:
            for i in range(n):
                numbers[parameter, i] = (low + span * doubles[i, lane]) * scale
        else:
            choices = columns if parameter == _TY else rows
            for i in range(n):
                chosen = choices[int(doubles[i, lane] * len(choices))]
                numbers[parameter, i] = chosen * (-1.0 if doubles[i, sign] < 0.5 else 1.0) * scale
    for flip in range(len(flips)):
        lane = lanes[_FLIPS + flip, 0]
        for i in range(n):
            flips[flip, i] = lane >= 0 and doubles[i, lane] < 0.5


@kernel(types.uint64, types.uint64, _read(types.int64, 1), *_PLAN, types.uint32[:, ::1])
def from_counters(
    seed: np.uint64,
    epoch: np.uint64,
    indexes: NDArray[np.int64],
    lanes: NDArray[np.int64],
    ranges: NDArray[np.float64],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    numbers: NDArray[np.float64],
    flips: NDArray[np.bool_],
    seeds: NDArray[np.uint32],
) -> None:
    """Samples to parameters, in the counter scheme.

    Args:
        seeds: uint32 (n, 4), written; or (0, 4) where nobody wants any.
    """
    n = len(indexes)
    doubles = np.empty((n, LANES))
    k0, k1 = seed & _MASK, seed >> _32
    e = epoch & _MASK
    for block in range(LANES // 2):
        first, used = 2 * block, False
        for parameter in range(len(lanes)):
            for lane in lanes[parameter]:
                used |= lane == first or lane == first + 1
        if used:
            b = np.uint64(block)
            for i in range(n):
                sample = np.uint64(indexes[i])
                w0, w1, w2, w3 = philox(sample & _MASK, sample >> _32, e, b, k0, k1)
                doubles[i, first] = _unit(w0, w1)
                doubles[i, first + 1] = _unit(w2, w3)
    for i in range(len(seeds)):
        sample = np.uint64(indexes[i])
        w0, w1, w2, w3 = philox(sample & _MASK, sample >> _32, e, _SEED_BLOCK, k0, k1)
        seeds[i, 0], seeds[i, 1] = w0, w1
        seeds[i, 2], seeds[i, 3] = w2, w3
    from_doubles(doubles, lanes, ranges, rows, columns, numbers, flips)
