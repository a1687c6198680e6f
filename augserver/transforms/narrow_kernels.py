"""What narrow.py says, compiled: numpy takes as long to round a small picture as a kernel to make
it, and more for float16. The tests hold these against numpy, bit for bit."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from augserver.compiling import kernel

#: Added to a float32 from 0 to 255 and taken off again, it leaves the nearest whole number, of two
#: the even one: between 2**23 and 2**24 there are no fractions.
_WHOLE = np.float32(3 << 22)
_0, _255 = np.float32(0), np.float32(255)

_SIGN, _ABSOLUTE = np.uint32(0x8000), np.uint32(0x7FFFFFFF)
_INFINITE = np.uint32(0x7F800000)
_LARGE = np.uint32(0x47800000)  # 65536, in the bits of a float32
_NORMAL = np.uint32(0x38800000)  # 2**-14, the smallest float16 with all of its bits
_REBIAS = np.uint32(0x38000000)  # from a float32's exponent to a float16's
_HALF, _STEPS = np.float32(0.5), np.float32(1 << 24)
_LAST, _BELOW = np.uint32(1), np.uint32(0xFFF)
_13, _16 = np.uint32(13), np.uint32(16)
_NAN16, _INFINITE16 = np.uint32(0x7E00), np.uint32(0x7C00)


@kernel(types.float32[::1], types.uint8[::1])
def to_octets(numbers: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Both (n,)."""
    for i in range(len(numbers)):
        number = numbers[i]
        # NaN is not above 0.
        number = number if number > _0 else _0
        number = number if number < _255 else _255
        out[i] = np.int32((number + _WHOLE) - _WHOLE)


@kernel(types.float32[::1], types.uint32[::1], types.uint16[::1])
def to_halves(
    numbers: NDArray[np.float32], bits: NDArray[np.uint32], out: NDArray[np.uint16]
) -> None:
    """All (n,): numbers, the same memory as bits, and the bits of float16."""
    for i in range(len(numbers)):
        sign = (bits[i] >> _16) & _SIGN
        absolute = bits[i] & _ABSOLUTE
        # To the nearest, of two the even one: what is cut off counts from a half of the last bit
        # that is kept, or from just above it where that bit is 0.
        shifted = np.uint32(absolute - _REBIAS + _BELOW + ((absolute >> _13) & _LAST)) >> _13
        # Below 2**-14 a float16 counts in steps of 2**-24, as a float32 does from a half on.
        steps = np.uint32(np.int32(((abs(numbers[i]) + _HALF) - _HALF) * _STEPS))
        half = steps if absolute < _NORMAL else shifted
        half = _INFINITE16 if absolute >= _LARGE else half
        out[i] = _NAN16 if absolute > _INFINITE else sign | half
