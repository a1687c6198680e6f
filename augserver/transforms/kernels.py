"""The transforms of a whole batch in one call that holds no lock, bit for bit as `reference`.

The arithmetic is scipy's, operation by operation: coordinates, weights and sums in double, each
product and sum rounded by itself, the sum of a pixel's four neighbours from left to right, then one
rounding to float32. What follows is numpy's float32. So nothing may be contracted or reordered; the
tests read the machine code for it.

The speed comes from how memory is laid out. Each picture is copied to a scratch picture with a
border of one pixel, so that

* a pixel and its neighbour to the right are one load, wherever they lie: a gather of numbers costs
  more than all the arithmetic;
* no pixel is a special case: what lies beyond the border has been written there.

A row of the batch is made in two steps: where its pixels come from (`taps`), eight at a time, then
what they are (`blending`). 8-bit pictures of one or three channels stay 8 bits in the scratch
picture, where eight bytes are a pixel and its neighbour with all their channels; all others are
float32 there, four to a pixel.

Arrays come as addresses and strides in bytes: one compilation serves every layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from augserver.compiling import stamp
from augserver.transforms import blending, fetching, finishing, lanes, room, taps, vectors
from augserver.transforms.blending import blend, blend_octets, choose
from augserver.transforms.fetching import (
    border,
    border_octets,
    fetch,
    fetch_octets,
    finite,
    multiply,
)
from augserver.transforms.finishing import (
    brighten,
    complete,
    extent,
    negative_zero,
    shift,
)
from augserver.transforms.lanes import (
    load_double,
    load_flag,
    load_float,
    load_long,
    prefetch,
    store_double,
    store_flag,
)
from augserver.transforms.room import CONSTANT, FLOATS, NO_FUNCTION, OCTETS, PIXEL_BYTES
from augserver.transforms.taps import place
from augserver.transforms.vectors import kernel

#: Pictures of at most so many bytes are asked for while the one before is made.
_AHEAD = 1 << 14
#: Matrices beyond this are the reference's: whole numbers in double end at 2**53.
_LARGEST = 1e9


def _stamped(text: int) -> Any:
    @kernel
    def transform(
        source, samples, sample, row, column, between, kind, height, width, channels,
        indexes, count, prescale, matrices, warped, order, mode, cval,
        horizontal, vertical, shifts, factors, function, scale, offset,
        mean, mean_row, mean_column, mean_doubles,
        deviation, deviation_row, deviation_column, deviation_doubles,
        out, out_sample, out_row, out_column, out_between,
        scratch, canvas, numbers, places, declined,
    ):  # fmt: skip
        """Transform samples of a source into a batch; all arrays by address.

        Args:
            source: Then how many samples it has, and its strides; kind: OCTETS or FLOATS.
            indexes: int64 (count,).
            prescale: float32; 1 leaves every bit alone.
            matrices: float64 (count, 6), of those that are warped: bool (count,).
            order: 0 or 1. cval: float32.
            horizontal, vertical: Whether flipped, bool (count,).
            shifts: Of the channels, float32 (count,), or 0.
            factors: Of brightness, float32 (count,), or 0.
            function: NO_FUNCTION, CAFFE, TF or TORCH.
            scale, offset: float32; 1 and -0.0 leave every bit alone.
            mean, deviation: Four numbers a pixel, or 0; then their strides, 0 where spread, and
                whether the numbers are float64.
            out: float32; then its strides.
            scratch: Room for (height + 4) * (width + 2) + 8 pixels of PIXEL_BYTES.
            canvas: Room for height * width + 8 such pixels.
            numbers: Six rows of float64 and places: one of int32, each of width rounded up to a
                multiple of 8. What lies beyond width must be finite.
            declined: bool (count,). Those that are True are left out; those that only the
                reference can make, or refuse, become True.

        Returns:
            How many were left out or declined.
        """
        if text < 0:  # see `stamp`
            return count
        wide = (width + 7) // 8 * 8
        pad = 8 * wide
        packed = channels == 3 and row > 0 and (
            (kind == OCTETS and between == 1 and column == 3)
            or (kind == FLOATS and between == 4 and column == 12)
        )  # fmt: skip
        looks = shifts != 0 or factors != 0
        floats = kind == FLOATS or prescale != 1.0
        octets = (
            not floats and order == 1 and (channels == 1 or channels == 3)
            and (mode != CONSTANT or (0 <= cval <= 255 and cval == np.floor(cval)))
        )  # fmt: skip
        size = channels if octets else PIXEL_BYTES
        pitch = size * (width + 2)
        # Without a second look at its pixels a picture goes from scratch to batch, but for its last
        # rows, with which more would be written than there is room for.
        direct = 0
        if (
            not looks and function == NO_FUNCTION and mean == 0 and deviation == 0
            and out_between == 4
            and out_column == 4 * channels and out_row == width * out_column
            and (octets or channels >= 3)
        ):  # fmt: skip
            more = wide - width if octets else width % 2 + (channels == 3)
            direct = max(0, height - (more + width - 1) // width)
        for k in range(count):
            if load_flag(declined + k):
                continue
            index = load_long(indexes + 8 * k)
            if index < 0 or index >= samples:
                store_flag(declined + k, 1)
                continue
            picture = source + index * sample
            if k + 1 < count and 0 < height * row <= _AHEAD:
                # Samples lie anywhere: while this picture is made the next one comes.
                start = source + load_long(indexes + 8 * k + 8) * sample
                for at in range(start, start + height * row, 64):
                    prefetch(at)
            target = out + k * out_sample
            resampled = load_flag(warped + k) != 0
            reverse, inverse = load_flag(horizontal + k) != 0, load_flag(vertical + k) != 0
            m = matrices + 48 * k
            if resampled:
                fails = False
                for part in range(6):
                    fails |= not abs(load_double(m + 8 * part)) < _LARGEST
                for i in range(height):
                    line = scratch + (i + 1) * pitch + size
                    start = picture + i * row
                    if octets:
                        fetch_octets(start, column, between, channels, width, line)
                        continue
                    last = i == height - 1
                    fetch(start, column, between, kind, channels, packed, width, last, False, line)
                    if prescale != 1.0:
                        multiply(line, width, prescale)
                    # Which of two not-a-numbers a sum takes is the compiler's choice, and shows.
                    fails |= floats and not finite(line, width)
                if fails:
                    store_flag(declined + k, 1)
                    continue
                if octets:
                    border_octets(scratch, height, width, channels, mode, cval)
                else:
                    border(scratch, height, width, mode, cval)
                for j in range(width):
                    x = float(width - 1 - j if reverse else j)
                    store_double(numbers + 8 * j, x * load_double(m + 8))
                    store_double(numbers + pad + 8 * j, x * load_double(m + 32))
            for i in range(height):
                y = height - 1 - i if inverse else i
                # A row that nobody looks at again is completed while it is in the nearest cache.
                line = canvas + 16 * i * width if looks else canvas
                if not resampled:
                    start, last = picture + y * row, y == height - 1
                    fetch(
                        start, column, between, kind, channels, packed, width, last, reverse, line
                    )
                    if prescale != 1.0:
                        multiply(line, width, prescale)
                else:
                    begin_row = load_double(m + 16) + y * load_double(m)
                    begin_column = load_double(m + 40) + y * load_double(m + 24)
                    place(
                        numbers, pad, places, begin_row, begin_column,
                        height, width, size, order, mode,
                    )  # fmt: skip
                    step, times, plus = 16, np.float32(1.0), np.float32(-0.0)
                    if i < direct:
                        line, step, times, plus = target + i * out_row, out_column, scale, offset
                    if order == 0:
                        choose(scratch, places, width, times, plus, line, step)
                    elif octets:
                        blend_octets(
                            scratch, pitch, channels, numbers, pad, places, width,
                            times, plus, line, step,
                        )  # fmt: skip
                    else:
                        blend(scratch, pitch, numbers, pad, places, width, times, plus, line, step)
                if looks or (resampled and i < direct):
                    continue
                complete(
                    line, width, channels, i == height - 1, function, scale, offset,
                    mean + i * mean_row, mean_column, mean_doubles,
                    deviation + i * deviation_row, deviation_column, deviation_doubles,
                    target + i * out_row, out_column, out_between,
                )  # fmt: skip
            if not looks:
                continue
            amount, factor = np.float32(0), np.float32(0)
            pixels = height * width
            if floats and (not finite(canvas, pixels) or negative_zero(canvas, pixels)):
                store_flag(declined + k, 1)
                continue
            low, high = extent(canvas, pixels)
            if shifts:
                amount = load_float(shifts + 4 * k)
            if factors:
                least, most = low, high
                if shifts:
                    least = min(max(low + amount, low), high)
                    most = min(max(high + amount, low), high)
                if least < 0 or most > 255:  # Keras stretches such a picture
                    store_flag(declined + k, 1)
                    continue
                factor = load_float(factors + 4 * k)
            for i in range(height):
                line = canvas + 16 * i * width
                if shifts:
                    shift(line, width, amount, low, high)
                if factors:
                    brighten(line, width, channels, factor)
                complete(
                    line, width, channels, i == height - 1, function, scale, offset,
                    mean + i * mean_row, mean_column, mean_doubles,
                    deviation + i * deviation_row, deviation_column, deviation_doubles,
                    target + i * out_row, out_column, out_between,
                )  # fmt: skip
        left = 0
        for k in range(count):
            left += load_flag(declined + k)
        return left

    return transform


transform = _stamped(stamp(blending, fetching, finishing, lanes, room, taps, vectors))
