"""What a kernel does with short vectors: loads, stores, a few comparisons. + - * / are operators.

Addresses are int64. Names say what a value is: a pixel is four float32, pixels are two of those,
wide is eight float64, octets are 8-bit numbers, bytes are eight times eight of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils, types

from augserver.transforms.vectors import (
    BYTES,
    F32,
    F64,
    I8,
    I32,
    I64,
    PIXEL,
    PIXELS,
    WIDE,
    Builder,
    LanesType,
    Value,
    constant,
    floats,
    load,
    operation,
    shuffle,
    splat,
    store,
    undefined,
)

# -- a pixel ---------------------------------------------------------------------------------------


@operation(PIXEL, types.float32)
def pixel(b: Builder, value: Value) -> Value:
    """The same number in every channel."""
    return splat(b, value, 4)


@operation(PIXEL, types.float32, types.float32, types.float32, types.float32)
def pixel_of(b: Builder, *values: Value) -> Value:
    """A pixel of four numbers."""
    lanes = undefined(PIXEL.vector)
    for k, value in enumerate(values):
        lanes = b.insert_element(lanes, value, I32(k))
    return lanes


@operation(types.float32, PIXEL, types.int64)
def channel(b: Builder, lanes: Value, k: Value) -> Value:
    """One of a pixel's numbers."""
    return b.extract_element(lanes, b.trunc(k, I32))


@operation(PIXEL, types.int64)
def load_pixel(b: Builder, address: Value) -> Value:
    """Four float32."""
    return load(b, address, PIXEL.vector, 4)


@operation(PIXEL, types.int64)
def load_three(b: Builder, address: Value) -> Value:
    """Three float32, the first again as the fourth; four are read."""
    lanes = load(b, address, PIXEL.vector, 4)
    return shuffle(b, lanes, lanes, [0, 1, 2, 0])


@operation(PIXEL, types.int64)
def load_octets(b: Builder, address: Value) -> Value:
    """Four 8-bit numbers."""
    return floats(b, load(b, address, ir.VectorType(I8, 4), 1))


@operation(PIXEL, types.int64)
def load_three_octets(b: Builder, address: Value) -> Value:
    """Three 8-bit numbers, the first again as the fourth; four are read."""
    octets = load(b, address, ir.VectorType(I8, 4), 1)
    return floats(b, shuffle(b, octets, octets, [0, 1, 2, 0]))


@operation(types.float32, types.int64)
def load_octet(b: Builder, address: Value) -> Value:
    """One 8-bit number."""
    return b.uitofp(load(b, address, I8, 1), F32)


@operation(types.float32, types.int64)
def load_float(b: Builder, address: Value) -> Value:
    """One float32."""
    return load(b, address, F32, 4)


@operation(types.void, types.int64, types.float32)
def store_float(b: Builder, address: Value, value: Value) -> None:
    """One float32."""
    store(b, address, value, 4)


@operation(types.void, types.int64, PIXEL)
def store_pixel(b: Builder, address: Value, lanes: Value) -> None:
    """Four float32."""
    store(b, address, lanes, 4)


@operation(types.void, types.int64, types.int64)
def spread_octets(b: Builder, target: Value, address: Value) -> None:
    """Four pixels of three 8-bit numbers become four of float32; 16 bytes are read."""
    octets = load(b, address, ir.VectorType(I8, 16), 1)
    places = [3 * k + c for k in range(4) for c in (0, 1, 2, 0)]
    store(b, target, floats(b, shuffle(b, octets, octets, places)), 4)


@operation(types.void, types.int64, types.int64)
def copy_octet(b: Builder, target: Value, address: Value) -> None:
    """One byte."""
    store(b, target, load(b, address, I8, 1), 1)


@operation(types.void, types.int64, types.int64)
def copy_octets(b: Builder, target: Value, address: Value) -> None:
    """32 bytes."""
    store(b, target, load(b, address, ir.VectorType(I8, 32), 1), 1)


@operation(types.void, types.int64, types.int64)
def store_octet(b: Builder, address: Value, value: Value) -> None:
    """One 8-bit number."""
    store(b, address, b.trunc(value, I8), 1)


@operation(types.void, types.int64)
def prefetch(b: Builder, address: Value) -> None:
    """Ask for a line of memory that is read soon; no address can be wrong."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    # Its name depends on how this LLVM writes pointers.
    function = b.module.declare_intrinsic("llvm.prefetch", [I8.as_pointer()], kind)
    b.call(function, [b.inttoptr(address, I8.as_pointer()), I32(0), I32(3), I32(1)])


@operation(PIXEL, PIXEL, PIXEL)
def lesser(b: Builder, left: Value, right: Value) -> Value:
    """The lesser of two numbers, channel by channel; neither is NaN."""
    return b.select(b.fcmp_ordered("<", right, left), right, left)


@operation(PIXEL, PIXEL, PIXEL)
def greater(b: Builder, left: Value, right: Value) -> Value:
    """The greater of two numbers, channel by channel; the right one where they are equal."""
    return b.select(b.fcmp_ordered(">", left, right), left, right)


@operation(PIXEL, PIXEL, types.int64)
def minus_doubles(b: Builder, lanes: Value, address: Value) -> Value:
    """Minus four float64, in double, rounded back."""
    double = ir.VectorType(F64, 4)
    result = b.fsub(b.fpext(lanes, double), load(b, address, double, 8))
    return b.fptrunc(result, PIXEL.vector)


@operation(PIXEL, PIXEL, types.int64)
def by_doubles(b: Builder, lanes: Value, address: Value) -> Value:
    """Divided by four float64, in double, rounded back."""
    double = ir.VectorType(F64, 4)
    result = b.fdiv(b.fpext(lanes, double), load(b, address, double, 8))
    return b.fptrunc(result, PIXEL.vector)


# -- two pixels ------------------------------------------------------------------------------------


@operation(PIXELS, types.float32)
def pixels(b: Builder, value: Value) -> Value:
    """The same number in every channel of two pixels."""
    return splat(b, value, 8)


@operation(PIXELS, types.int64, types.int64)
def load_pixels(b: Builder, first: Value, second: Value) -> Value:
    """Two pixels of four float32, each from its own address."""
    one, two = (load(b, a, PIXEL.vector, 4) for a in (first, second))
    return shuffle(b, one, two, list(range(8)))


@operation(types.void, types.int64, types.int64, PIXELS)
def store_pixels(b: Builder, first: Value, second: Value, lanes: Value) -> None:
    """Each to its own address, in that order: the second may lie over the first's end."""
    store(b, first, shuffle(b, lanes, lanes, [0, 1, 2, 3]), 4)
    store(b, second, shuffle(b, lanes, lanes, [4, 5, 6, 7]), 4)


# -- eight pixels of 8-bit numbers -----------------------------------------------------------------


@operation(BYTES, types.int64, types.int64)
def gather(b: Builder, base: Value, places: Value) -> Value:
    """Eight bytes from each of eight places, int32, beyond the base."""
    lanes = undefined(BYTES.vector)
    for k in range(8):
        place = b.sext(load(b, b.add(places, I64(4 * k)), I32, 4), I64)
        lanes = b.insert_element(lanes, load(b, b.add(base, place), I64, 1), I32(k))
    return lanes


@operation(WIDE, BYTES, types.int64)
def octet(b: Builder, lanes: Value, k: Value) -> Value:
    """The k-th byte of each, counted from its address on, as a number."""
    shift = b.mul(k, I64(8)) if sys.byteorder == "little" else b.sub(I64(56), b.mul(k, I64(8)))
    bits = b.and_(b.lshr(lanes, splat(b, shift, 8)), constant(I64, [255] * 8))
    return b.uitofp(bits, WIDE.vector)


@operation(types.void, types.int64, PIXELS)
def store_eight(b: Builder, address: Value, lanes: Value) -> None:
    """Eight float32."""
    store(b, address, lanes, 4)


def _interleaved(b: Builder, planes: tuple[Value, Value, Value], channels: int) -> Value:
    """Eight pixels from three planes, the first plane again for a fourth channel."""
    order = [8 * (c % 3) + k for k in range(8) for c in range(channels)]
    two = shuffle(b, planes[0], planes[1], list(range(16)))
    three = shuffle(b, planes[2], planes[2], list(range(16)))
    return shuffle(b, two, three, order)


@operation(types.void, types.int64, PIXELS, PIXELS, PIXELS)
def store_threes(b: Builder, address: Value, *planes: Value) -> None:
    """Eight pixels of three float32."""
    store(b, address, _interleaved(b, planes, 3), 4)


@operation(types.void, types.int64, PIXELS, PIXELS, PIXELS)
def store_fours(b: Builder, address: Value, *planes: Value) -> None:
    """Eight pixels of four float32, the first again as the fourth."""
    store(b, address, _interleaved(b, planes, 4), 4)


# -- in double -------------------------------------------------------------------------------------


@operation(WIDE, types.float64)
def wide(b: Builder, value: Value) -> Value:
    """The same number eight times."""
    return splat(b, value, 8)


@operation(WIDE, types.int64)
def load_wide(b: Builder, address: Value) -> Value:
    """Eight float64."""
    return load(b, address, WIDE.vector, 8)


@operation(WIDE, types.int64)
def load_pair(b: Builder, address: Value) -> Value:
    """Two pixels that are neighbours in memory, four float32 each, as float64."""
    return b.fpext(load(b, address, PIXELS.vector, 4), WIDE.vector)


@operation(types.void, types.int64, WIDE)
def store_wide(b: Builder, address: Value, lanes: Value) -> None:
    """Eight float64."""
    store(b, address, lanes, 8)


@operation(types.float64, types.int64)
def load_double(b: Builder, address: Value) -> Value:
    """One float64."""
    return load(b, address, F64, 8)


@operation(types.int64, types.int64)
def load_long(b: Builder, address: Value) -> Value:
    """One int64."""
    return load(b, address, I64, 8)


@operation(types.int64, types.int64)
def load_flag(b: Builder, address: Value) -> Value:
    """One bool."""
    return b.zext(load(b, address, I8, 1), I64)


@operation(types.void, types.int64, types.int64)
def store_flag(b: Builder, address: Value, value: Value) -> None:
    """One bool."""
    store(b, address, b.trunc(value, I8), 1)


@operation(types.void, types.int64, types.float64)
def store_double(b: Builder, address: Value, value: Value) -> None:
    """One float64."""
    store(b, address, value, 8)


@operation(types.void, types.int64, WIDE)
def store_whole(b: Builder, address: Value, lanes: Value) -> None:
    """Eight whole numbers as int32."""
    store(b, address, b.fptosi(lanes, ir.VectorType(I32, 8)), 4)


@operation(types.int64, types.int64)
def load_whole(b: Builder, address: Value) -> Value:
    """One int32."""
    return b.sext(load(b, address, I32, 4), I64)


@operation(WIDE, types.int64)
def repeat(b: Builder, address: Value) -> Value:
    """One float64, eight times."""
    return splat(b, load(b, address, F64, 8), 8)


@operation(WIDE, types.int64, types.int64)
def repeat_halves(b: Builder, low: Value, high: Value) -> Value:
    """One float64 four times, another four times."""
    empty = undefined(WIDE.vector)
    both = b.insert_element(empty, load(b, low, F64, 8), I32(0))
    both = b.insert_element(both, load(b, high, F64, 8), I32(1))
    return shuffle(b, both, empty, [0] * 4 + [1] * 4)


@operation(WIDE, WIDE, WIDE)
def low_halves(b: Builder, left: Value, right: Value) -> Value:
    """The first four of both."""
    return shuffle(b, left, right, [0, 1, 2, 3, 8, 9, 10, 11])


@operation(WIDE, WIDE, WIDE)
def high_halves(b: Builder, left: Value, right: Value) -> Value:
    """The last four of both."""
    return shuffle(b, left, right, [4, 5, 6, 7, 12, 13, 14, 15])


@operation(PIXELS, WIDE)
def rounded(b: Builder, lanes: Value) -> Value:
    """Eight float64 as float32."""
    return b.fptrunc(lanes, PIXELS.vector)


@operation(WIDE, WIDE, WIDE, WIDE, WIDE)
def where_less(b: Builder, left: Value, right: Value, yes: Value, no: Value) -> Value:
    """Number by number: yes where left < right, no elsewhere."""
    return b.select(b.fcmp_ordered("<", left, right), yes, no)


def _by_llvm(name: str, lanes: LanesType, suffix: str) -> Callable[[Builder, Value], Value]:
    def emit(b: Builder, value: Value) -> Value:
        kind = ir.FunctionType(lanes.vector, [lanes.vector])
        function = cgutils.get_or_insert_function(b.module, kind, f"llvm.{name}.{suffix}")
        return b.call(function, [value])

    emit.__name__ = name
    return emit


#: The next whole number below, eight times.
floor = operation(WIDE, WIDE)(_by_llvm("floor", WIDE, "v8f64"))
#: The next whole number towards 0, eight times.
trunc = operation(WIDE, WIDE)(_by_llvm("trunc", WIDE, "v8f64"))
#: ... for a pixel.
trunc_pixel = operation(PIXEL, PIXEL)(_by_llvm("trunc", PIXEL, "v4f32"))


@operation(types.float64, types.float64, types.float64, types.float64)
def fused(b: Builder, *values: Value) -> Value:
    """a * b + c, rounded once: for matrices alone, whose BLAS does so; never for a picture."""
    kind = ir.FunctionType(F64, [F64] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.fma.f64"), values)
