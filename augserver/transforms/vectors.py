"""Short vectors for numba: the channels of a pixel, or eight numbers, in one register.

LLVM turns a loop over pixels into gathers, which cost more than the arithmetic. A pixel whose
channels lie side by side is one load, though, and its two neighbours in a row are one load of
twice the size. numba has no type for that, so here are some; `lanes` has what can be done with
them. LLVM splits them where a machine's registers are shorter.

No operation may be contracted or reordered: none carries a fast-math flag.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from augserver.compiling import kept

F32, F64 = ir.FloatType(), ir.DoubleType()
I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class LanesType(types.Type):
    """So many numbers of one kind."""

    def __init__(self, element: Any, count: int, scalar: Any) -> None:
        super().__init__(name=f"Lanes({scalar}, {count})")
        self.vector = ir.VectorType(element, count)
        self.scalar = scalar


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: LanesType) -> None:
        super().__init__(manager, lanes, lanes.vector)


#: The channels of a pixel.
PIXEL = LanesType(F32, 4, types.float32)
#: The channels of two pixels.
PIXELS = LanesType(F32, 8, types.float32)
#: Eight numbers, or two pixels in double.
WIDE = LanesType(F64, 8, types.float64)

#: Eight times eight bytes.
BYTES = LanesType(I64, 8, types.int64)

Builder = Any
Value = Any

#: For what is compiled into a kernel, and cached with it alone.
compiled: Any = njit(nogil=True, error_model="numpy")
#: ... and called for every row, which would otherwise cost a tenth of the kernel's time.
inlined: Any = njit(nogil=True, error_model="numpy", forceinline=True)


def kernel(function: Callable[..., Any]) -> Any:
    """For what is called from Python, without its lock; kept in numba's cache where that can be."""
    return kept(function, error_model="numpy")


def constant(kind: Any, values: list[Any]) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), values)


def undefined(kind: Any) -> Any:
    return ir.Constant(kind, ir.Undefined)


def shuffle(b: Builder, first: Value, second: Value, places: list[int]) -> Value:
    return b.shuffle_vector(first, second, constant(I32, places))


def splat(b: Builder, value: Value, count: int) -> Value:
    empty = undefined(ir.VectorType(value.type, count))
    return shuffle(b, b.insert_element(empty, value, I32(0)), empty, [0] * count)


def load(b: Builder, address: Value, kind: Any, align: int) -> Value:
    loaded = b.load(b.inttoptr(address, kind.as_pointer()))
    loaded.align = align
    return loaded


def store(b: Builder, address: Value, value: Value, align: int) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = align


def floats(b: Builder, octets: Value) -> Value:
    """8-bit numbers as float32."""
    count = octets.type.count
    wide = b.zext(octets, ir.VectorType(I32, count))
    return b.sitofp(wide, ir.VectorType(F32, count))


def operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Value]], Any]:
    """An intrinsic of fixed types from a function of an IR builder and the arguments."""

    def decorate(emit: Callable[..., Value]) -> Any:
        def generate(context: Any, builder: Builder, _: Any, values: Any) -> Value:
            value = emit(builder, *values)
            return context.get_dummy_value() if result is types.void else value

        def typed(context: Any, *given: Any) -> Any:
            return signature(result, *arguments), generate

        typed.__name__, typed.__doc__ = emit.__name__, emit.__doc__
        # numba asks how many arguments there are, and takes *given for a tuple.
        names = ["context", *(f"argument{k}" for k in range(len(arguments)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in names]
        typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return intrinsic(typed)

    return decorate


def _elementwise(symbol: Any, method: str) -> None:
    """An operator between two equal kinds of lanes."""

    def types_of(context: Any) -> Callable[[Any, Any], Any]:
        def typer(left: Any, right: Any) -> Any:
            return left if isinstance(left, LanesType) and left == right else None

        return typer

    type_callable(symbol)(types_of)

    def generate(context: Any, builder: Builder, sig: Any, values: Any) -> Value:
        return getattr(builder, method)(*values)

    lower_builtin(symbol, LanesType, LanesType)(generate)


for _symbol, _method in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _elementwise(_symbol, _method)
