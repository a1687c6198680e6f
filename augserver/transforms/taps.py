"""Where the pixels of a row of the batch come from, and with which weights: scipy's coordinates."""

from __future__ import annotations

from augserver.transforms.lanes import (
    floor,
    load_wide,
    store_whole,
    store_wide,
    trunc,
    where_less,
    wide,
)
from augserver.transforms.room import CONSTANT, NEAREST, REFLECT, WRAP
from augserver.transforms.vectors import compiled, inlined


@compiled
def _mapped(at, length, mode):
    """Coordinates brought back into the picture, as scipy's `map_coordinate` does it."""
    zero, one = wide(0.0), wide(1.0)
    if mode != REFLECT and mode != WRAP:
        return at
    if length <= 1:
        return zero
    end = wide(float(length - 1))
    if mode == WRAP:
        below = at + end * (trunc((zero - at) / end) + one)
        above = at - end * trunc(at / end)
    else:
        whole, two = wide(float(length)), wide(2.0 * length)
        far = where_less(at, zero - two, two * trunc((zero - at) / two) + at, at)
        near = where_less(wide(-1e-15), far, wide(1e-15), zero - far) - one
        below = where_less(far, zero - whole, far + two, near)
        above = at - two * trunc(at / two)
        above = where_less(above, whole, above, two - above - one)
    return where_less(at, zero, below, where_less(end, at, above, at))


@compiled
def _outside(at, length):
    zero, one = wide(0.0), wide(1.0)
    return where_less(at, zero, one, where_less(wide(float(length - 1)), at, one, zero))


@inlined
def place(numbers, pad, places, row, column, height, width, size, order, mode):
    """Find a row's places in the scratch picture, and their weights.

    Args:
        numbers: Six rows of float64, each of pad bytes: what the columns add to the input's row and
            to its column; then, written here, the weights of the upper and lower row and of the
            left and right column.
        places: int32, written here: bytes into the scratch picture.
        row, column: Where the row begins.
        size: Bytes of a pixel of the scratch picture.
    """
    zero, one, half, least = wide(0.0), wide(1.0), wide(0.5), wide(-1.0)
    sizes, pitch = wide(float(size)), wide(float(size * (width + 2)))
    bottom = wide(float(height if order == 0 else height - 1))
    right = wide(float(width if order == 0 else width - 1))
    cell = wide(float(size * (height + 2) * (width + 2)))
    rows, columns = wide(row), wide(column)
    for j in range(0, width, 8):
        at = numbers + 8 * j
        i, k = rows + load_wide(at), columns + load_wide(at + pad)
        outside = zero
        if mode == CONSTANT:
            outside = _outside(i, height) + _outside(k, width)
        elif mode != NEAREST:
            i, k = _mapped(i, height, mode), _mapped(k, width, mode)
        first = floor(i + half) if order == 0 else floor(i)
        left = floor(k + half) if order == 0 else floor(k)
        upper, west = one - (i - first), one - (k - left)
        first = where_less(first, least, least, where_less(bottom, first, bottom, first))
        left = where_less(left, least, least, where_less(right, left, right, left))
        found = (first + one) * pitch + (left + one) * sizes
        if mode == CONSTANT:
            found = where_less(zero, outside, cell, found)
            upper = where_less(zero, outside, one, upper)
            west = where_less(zero, outside, one, west)
        store_whole(places + 4 * j, found)
        store_wide(at + 2 * pad, upper)
        store_wide(at + 3 * pad, one - upper)
        store_wide(at + 4 * pad, west)
        store_wide(at + 5 * pad, one - west)
