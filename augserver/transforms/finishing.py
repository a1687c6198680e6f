"""What happens to a row of pixels, four float32 each, once it is resampled.

Each step is a loop of its own: one loop that asked for every pixel what is wanted took longer than
all of them.
"""

from __future__ import annotations

import numpy as np

from augproto import named
from augserver.transforms.lanes import (
    by_doubles,
    channel,
    greater,
    lesser,
    load_float,
    load_pixel,
    load_whole,
    minus_doubles,
    pixel,
    pixel_of,
    store_float,
    store_pixel,
    trunc_pixel,
)
from augserver.transforms.room import NO_FUNCTION, TF, TORCH
from augserver.transforms.vectors import compiled

_CAFFE_MEAN, _TORCH_MEAN, _TORCH_STD = (
    tuple(np.float32(number) for number in numbers)
    for numbers in (named.CAFFE_MEAN, named.TORCH_MEAN, named.TORCH_STD)
)


@compiled
def negative_zero(address, count):
    """Whether there is a -0.0 in so many pixels: of two zeros numpy takes either for the least."""
    found = False
    for at in range(address, address + 16 * count, 4):
        found |= load_whole(at) == -0x80000000
    return found


@compiled
def extent(address, count):
    """The least and the greatest number of so many pixels."""
    end = address + 16 * count
    low = load_pixel(address)
    high = low
    low_b, high_b, low_c, high_c, low_d, high_d = low, low, low, low, low, low
    # Four at a time: each waits for the one before it in its own chain.
    for at in range(address, end - 63, 64):
        a, b = load_pixel(at), load_pixel(at + 16)
        c, d = load_pixel(at + 32), load_pixel(at + 48)
        low, high = lesser(low, a), greater(high, a)
        low_b, high_b = lesser(low_b, b), greater(high_b, b)
        low_c, high_c = lesser(low_c, c), greater(high_c, c)
        low_d, high_d = lesser(low_d, d), greater(high_d, d)
    for at in range(address + count // 4 * 64, end, 16):
        low, high = lesser(low, load_pixel(at)), greater(high, load_pixel(at))
    low = lesser(lesser(low, low_b), lesser(low_c, low_d))
    high = greater(greater(high, high_b), greater(high_c, high_d))
    return (
        min(min(channel(low, 0), channel(low, 1)), min(channel(low, 2), channel(low, 3))),
        max(max(channel(high, 0), channel(high, 1)), max(channel(high, 2), channel(high, 3))),
    )


@compiled
def shift(row, width, amount, low, high):
    """Add to all channels, and clip."""
    amounts, lows, highs = pixel(amount), pixel(low), pixel(high)
    for at in range(row, row + 16 * width, 16):
        store_pixel(at, lesser(greater(load_pixel(at) + amounts, lows), highs))


@compiled
def brighten(row, width, channels, factor):
    """Cut to 8 bits, multiply, clip and cut again, as Pillow does; an alpha channel is only cut."""
    factors = pixel_of(factor, factor, factor, np.float32(1.0) if channels == 4 else factor)
    least, most = pixel(0.0), pixel(255.0)
    for at in range(row, row + 16 * width, 16):
        p = trunc_pixel(load_pixel(at)) * factors
        # Where two are equal the second is taken: 8 bits have no -0.0.
        store_pixel(at, trunc_pixel(lesser(greater(p, least), most)))


@compiled
def preprocess(row, width, channels, function):
    """One of the functions of `augproto.named`, in float32 as there."""
    if function == TF:
        for at in range(row, row + 16 * width, 16):
            store_pixel(at, load_pixel(at) / pixel(127.5) - pixel(1.0))
        return
    zero, one = np.float32(0), np.float32(1)  # a fourth channel is left alone
    if function == TORCH:
        a, b, c = _TORCH_MEAN
        means = pixel_of(a, b, c, zero)
        a, b, c = _TORCH_STD
        deviations = pixel_of(a, b, c, one)
        for at in range(row, row + 16 * width, 16):
            store_pixel(at, (load_pixel(at) / pixel(255.0) - means) / deviations)
        return
    a, b, c = _CAFFE_MEAN
    means = pixel_of(a, b, c, zero)
    for at in range(row, row + 16 * width, 16):
        p = load_pixel(at)
        if channels == 4:
            p = pixel_of(channel(p, 3), channel(p, 2), channel(p, 1), channel(p, 0))
        else:
            p = pixel_of(channel(p, 2), channel(p, 1), channel(p, 0), channel(p, 0))
        store_pixel(at, p - means)


@compiled
def standardize(
    row, width, scale, offset,
    mean, mean_step, mean_doubles, deviation, deviation_step, deviation_doubles,
):  # fmt: skip
    """Times scale, plus offset, minus mean, by deviation, the latter two where there are any.

    As in numpy: in double where a statistic is of doubles, and rounded then.
    """
    scales, offsets = pixel(scale), pixel(offset)
    for at in range(row, row + 16 * width, 16):
        store_pixel(at, load_pixel(at) * scales + offsets)
    if mean and mean_doubles:
        for j in range(width):
            at = row + 16 * j
            store_pixel(at, minus_doubles(load_pixel(at), mean + j * mean_step))
    elif mean:
        for j in range(width):
            at = row + 16 * j
            store_pixel(at, load_pixel(at) - load_pixel(mean + j * mean_step))
    if deviation and deviation_doubles:
        for j in range(width):
            at = row + 16 * j
            store_pixel(at, by_doubles(load_pixel(at), deviation + j * deviation_step))
    elif deviation:
        for j in range(width):
            at = row + 16 * j
            store_pixel(at, load_pixel(at) / load_pixel(deviation + j * deviation_step))


@compiled
def deliver(row, width, channels, last, target, step, between):
    """Write a row into the batch; nothing may be written beyond the last."""
    j = 0
    if between == 4 and channels == 4:
        while j < width:
            store_pixel(target + j * step, load_pixel(row + 16 * j))
            j += 1
    elif between == 4 and channels == 3 and step == 12:
        # Four numbers for three: the next pixel lies over the fourth.
        stop = width - 1 if last else width
        while j < stop:
            store_pixel(target + 12 * j, load_pixel(row + 16 * j))
            j += 1
    for c in range(channels):
        for k in range(j, width):
            store_float(target + k * step + c * between, load_float(row + 16 * k + 4 * c))


@compiled
def complete(
    row, width, channels, last, function, scale, offset,
    mean, mean_step, mean_doubles, deviation, deviation_step, deviation_doubles,
    target, step, between,
):  # fmt: skip
    """All that depends on a pixel alone, and into the batch."""
    if function != NO_FUNCTION:
        preprocess(row, width, channels, function)
    standardize(
        row, width, scale, offset,
        mean, mean_step, mean_doubles, deviation, deviation_step, deviation_doubles,
    )  # fmt: skip
    deliver(row, width, channels, last, target, step, between)
