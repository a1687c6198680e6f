"""A row of the batch from the scratch picture, where `taps.place` has found it.

Value = upper left * row weight * column weight + ..., from left to right and from top to bottom,
in double, then one rounding to float32: scipy's order. A product of two weights would save a
multiplication and round in another way.
"""

from __future__ import annotations

from augserver.transforms.lanes import (
    gather,
    high_halves,
    load_pair,
    load_pixels,
    load_whole,
    load_wide,
    low_halves,
    octet,
    pixels,
    repeat,
    repeat_halves,
    rounded,
    store_eight,
    store_fours,
    store_pixels,
    store_threes,
    wide,
)
from augserver.transforms.vectors import compiled, inlined


@inlined
def blend(scratch, pitch, numbers, pad, places, width, scale, offset, target, step):
    """A row of pixels of float32, two at a time, times scale, plus offset.

    A load takes a pixel and its right neighbour. An odd width makes a pixel too much.
    """
    zero, scales, offsets = wide(0.0), pixels(scale), pixels(offset)
    for j in range(0, width, 2):
        one = scratch + load_whole(places + 4 * j)
        two = scratch + load_whole(places + 4 * j + 4)
        at = numbers + 8 * j
        columns = repeat_halves(at + 4 * pad, at + 5 * pad)
        upper_one = load_pair(one) * repeat(at + 2 * pad) * columns
        lower_one = load_pair(one + pitch) * repeat(at + 3 * pad) * columns
        at += 8
        columns = repeat_halves(at + 4 * pad, at + 5 * pad)
        upper_two = load_pair(two) * repeat(at + 2 * pad) * columns
        lower_two = load_pair(two + pitch) * repeat(at + 3 * pad) * columns
        total = zero + low_halves(upper_one, upper_two)  # no zero stays negative
        total = total + high_halves(upper_one, upper_two)
        total = total + low_halves(lower_one, lower_two)
        total = total + high_halves(lower_one, lower_two)
        made = rounded(total) * scales + offsets
        store_pixels(target + j * step, target + (j + 1) * step, made)


@compiled
def choose(scratch, places, width, scale, offset, target, step):
    """A row of pixels, each the nearest one, times scale, plus offset."""
    zero, scales, offsets = pixels(0.0), pixels(scale), pixels(offset)
    for j in range(0, width, 2):
        one = scratch + load_whole(places + 4 * j)
        two = scratch + load_whole(places + 4 * j + 4)
        made = (load_pixels(one, two) + zero) * scales + offsets
        store_pixels(target + j * step, target + (j + 1) * step, made)


@compiled
def _sum(upper, lower, left, right, above, below, west, east):
    """One channel of eight pixels; upper and lower are what `gather` gave."""
    total = octet(upper, left) * above * west + octet(upper, right) * above * east
    total = total + octet(lower, left) * below * west
    return rounded(total + octet(lower, right) * below * east)


@inlined
def blend_octets(
    scratch, pitch, channels, numbers, pad, places, width, scale, offset, target, step
):
    """A row of pixels of one or three 8-bit numbers, eight at a time, times scale, plus offset.

    Eight bytes hold a pixel and its right neighbour. A width that is no multiple of 8 makes up to
    seven pixels too many.

    Args:
        step: 16 writes four numbers a pixel, the first again where there is none; otherwise as
            many as there are channels.
    """
    scales, offsets = pixels(scale), pixels(offset)
    for j in range(0, width, 8):
        at = numbers + 8 * j
        above, below = load_wide(at + 2 * pad), load_wide(at + 3 * pad)
        west, east = load_wide(at + 4 * pad), load_wide(at + 5 * pad)
        upper, lower = gather(scratch, places + 4 * j), gather(scratch + pitch, places + 4 * j)
        line = target + j * step
        if channels == 1:
            a = _sum(upper, lower, 0, 1, above, below, west, east) * scales + offsets
            if step == 4:
                store_eight(line, a)
            else:
                store_fours(line, a, a, a)
            continue
        a = _sum(upper, lower, 0, 3, above, below, west, east) * scales + offsets
        b = _sum(upper, lower, 1, 4, above, below, west, east) * scales + offsets
        c = _sum(upper, lower, 2, 5, above, below, west, east) * scales + offsets
        if step == 12:
            store_threes(line, a, b, c)
        else:
            store_fours(line, a, b, c)
