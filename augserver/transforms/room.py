"""What a kernel is called with besides pictures: parameters of samples, its own scratch memory,
and the numbers that stand for words. Nothing here needs numba.

A kernel takes addresses. Parameters are copied to memory whose address is known: an array's own
costs a microsecond to ask for, and arrays of another layout would be another compilation, for which
a worker would need seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Fill modes.
NEAREST, REFLECT, WRAP, CONSTANT = range(4)
#: Kinds of sources: 8-bit numbers, or float32.
OCTETS, FLOATS = range(2)
#: Functions that every server has (`augproto.named`), without the data format.
NO_FUNCTION, CAFFE, TF, TORCH = range(4)
#: Bytes of a pixel of a scratch picture of float32.
PIXEL_BYTES = 16

_LINE = 64  # bytes that memory is fetched by
_STEP = 256


def address(array: NDArray[Any]) -> int:
    """Where an array begins."""
    where: int = array.__array_interface__["data"][0]
    return where


class Room:
    """Arrays for some number of samples; each begins on a line of memory.

    Attributes:
        samples: There is room for so many.
        at: The address of each array, by name.
        drawn: float64 (6, samples): theta, tx, ty, shear, zx, zy.
        trigonometry: float64 (4, samples): cosine and sine of theta and of shear.
        matrices: float64 (samples, 6).
        indexes: int64 (samples,).
        warped, horizontal, vertical, declined: bool (samples,).
        shifts, factors: float32 (samples,): of the channels, and of brightness.
    """

    def __init__(self, samples: int, **scratch: int) -> None:
        """Args: scratch: bytes of what else a kernel needs, by name."""
        self.samples = n = -(-samples // _STEP) * _STEP
        self.at: dict[str, int] = {}
        self._kept: list[NDArray[np.uint8]] = []
        self.drawn = self._array("drawn", np.float64, 6, n)
        self.trigonometry = self._array("trigonometry", np.float64, 4, n)
        self.matrices = self._array("matrices", np.float64, n, 6)
        self.indexes = self._array("indexes", np.int64, n)
        self.warped = self._array("warped", np.bool_, n)
        self.horizontal = self._array("horizontal", np.bool_, n)
        self.vertical = self._array("vertical", np.bool_, n)
        self.declined = self._array("declined", np.bool_, n)
        self.shifts = self._array("shifts", np.float32, n)
        self.factors = self._array("factors", np.float32, n)
        for name, size in scratch.items():
            self._array(name, np.uint8, size)

    def _array(self, name: str, dtype: type[Any], *shape: int) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.zeros(size + _LINE, np.uint8)
        self._kept.append(memory)
        begin = -address(memory) % _LINE
        self.at[name] = address(memory) + begin
        array: NDArray[Any] = memory[begin : begin + size].view(dtype).reshape(shape)
        return array
