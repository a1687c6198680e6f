"""From a source to the scratch picture, which has a border of one pixel.

A scratch picture is either float32, four to a pixel, or the source's own 8-bit numbers. Below its
last row come two of which the first two pixels hold cval.
"""

from __future__ import annotations

from augserver.transforms.lanes import (
    channel,
    copy_octet,
    copy_octets,
    load_float,
    load_octet,
    load_octets,
    load_pixel,
    load_three,
    load_three_octets,
    pixel,
    pixel_of,
    spread_octets,
    store_octet,
    store_pixel,
)
from augserver.transforms.room import CONSTANT, OCTETS, WRAP
from augserver.transforms.vectors import compiled


@compiled
def _number(address, kind):
    return load_octet(address) if kind == OCTETS else load_float(address)


@compiled
def _any_pixel(address, between, kind, channels):
    """Up to four channels that lie anywhere; the first again for those that there are not."""
    if channels == 4 and between == (1 if kind == OCTETS else 4):
        return load_octets(address) if kind == OCTETS else load_pixel(address)
    a = _number(address, kind)
    b = _number(address + between, kind) if channels > 1 else a
    c = _number(address + 2 * between, kind) if channels > 2 else a
    d = _number(address + 3 * between, kind) if channels > 3 else a
    return pixel_of(a, b, c, d)


@compiled
def fetch(address, column, between, kind, channels, packed, width, last, reverse, target):
    """A row of the source as float32, four to a pixel.

    Args:
        packed: Three channels side by side, pixel after pixel.
        last: Nothing may be read beyond this row.
        reverse: Its end comes first.
    """
    j, step = 0, 16
    if reverse:
        target, step = target + 16 * (width - 1), -16
    if packed:
        stop = width - 1 if last else width
        if kind == OCTETS and not reverse:
            # 16 bytes are read for the 12 that are wanted, and four pixels written.
            while 3 * j + 16 <= 3 * width:
                spread_octets(target + 16 * j, address + 3 * j)
                j += 4
        if kind == OCTETS:
            while j < stop:
                store_pixel(target + step * j, load_three_octets(address + 3 * j))
                j += 1
        else:
            while j < stop:
                store_pixel(target + step * j, load_three(address + 12 * j))
                j += 1
    while j < width:
        at = address + j * column
        store_pixel(target + step * j, _any_pixel(at, between, kind, channels))
        j += 1


@compiled
def _copy(target, address, count):
    """So many bytes, which do not overlap."""
    if count < 32:
        for k in range(count):
            copy_octet(target + k, address + k)
        return
    for k in range(0, count - 31, 32):
        copy_octets(target + k, address + k)
    copy_octets(target + count - 32, address + count - 32)


@compiled
def fetch_octets(address, column, between, channels, width, target):
    """A row of 8-bit numbers as they are, pixel by pixel."""
    if column == channels and (between == 1 or channels == 1):
        _copy(target, address, channels * width)
        return
    for c in range(channels):
        for j in range(width):
            copy_octet(target + j * channels + c, address + j * column + c * between)


@compiled
def multiply(target, width, factor):
    """A row of float32, four to a pixel, times a factor."""
    factors = pixel(factor)
    for at in range(target, target + 16 * width, 16):
        store_pixel(at, load_pixel(at) * factors)


@compiled
def _beyond(length, mode):
    """The places, counted from the border on, that the first and the last stand for."""
    # Where scipy's splines have no border of their own, it mirrors, and multiplies by 0.
    if length > 1 and mode in (WRAP, CONSTANT):
        return 2, length - 1
    return 1, length


@compiled
def border(scratch, height, width, mode, cval):
    """Write what lies beyond a scratch picture of float32, and cval."""
    pitch = 16 * (width + 2)
    left, right = _beyond(width, mode)
    top, bottom = _beyond(height, mode)
    for row in range(scratch + pitch, scratch + (height + 1) * pitch, pitch):
        store_pixel(row, load_pixel(row + 16 * left))
        store_pixel(row + 16 * (width + 1), load_pixel(row + 16 * right))
    for at in range(scratch, scratch + pitch, 16):
        store_pixel(at, load_pixel(at + top * pitch))
        store_pixel(at + (height + 1) * pitch, load_pixel(at + bottom * pitch))
    if mode == CONSTANT:
        for row in range(height + 2, height + 4):
            store_pixel(scratch + row * pitch, pixel(cval))
            store_pixel(scratch + row * pitch + 16, pixel(cval))


@compiled
def border_octets(scratch, height, width, channels, mode, cval):
    """Write what lies beyond a scratch picture of 8-bit numbers, and cval."""
    pitch = channels * (width + 2)
    left, right = _beyond(width, mode)
    top, bottom = _beyond(height, mode)
    for row in range(scratch + pitch, scratch + (height + 1) * pitch, pitch):
        for c in range(channels):
            copy_octet(row + c, row + left * channels + c)
            copy_octet(row + (width + 1) * channels + c, row + right * channels + c)
    _copy(scratch, scratch + top * pitch, pitch)
    _copy(scratch + (height + 1) * pitch, scratch + bottom * pitch, pitch)
    if mode == CONSTANT:
        for row in range(height + 2, height + 4):
            for c in range(2 * channels):
                store_octet(scratch + row * pitch + c, int(cval))


@compiled
def finite(address, count):
    """Whether so many pixels hold finite numbers only."""
    zero = pixel(0.0)
    one, two, three, four = zero, zero, zero, zero
    end = address + 16 * count
    for at in range(address, end - 63, 64):  # each chain waits for its own sums alone
        one = one + load_pixel(at) * zero
        two = two + load_pixel(at + 16) * zero
        three = three + load_pixel(at + 32) * zero
        four = four + load_pixel(at + 48) * zero
    for at in range(address + count // 4 * 64, end, 16):
        one = one + load_pixel(at) * zero
    all_ = one + two + three + four
    return channel(all_, 0) + channel(all_, 1) + channel(all_, 2) + channel(all_, 3) == 0
