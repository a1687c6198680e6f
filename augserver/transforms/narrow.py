"""Batches of fewer bits than they are computed in: uint8 and float16, rounded at the very end.

Whatever the backend, pictures are computed as float32 and pass through one function here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augserver.backend import compiled
from augserver.draws import Draws
from augserver.transforms.pipeline import TransformBatch

#: What is computed in.
WIDE = "float32"
#: What may be made of it.
NARROW = ("uint8", "float16")
#: Of pictures on their way: few enough for a core's own cache.
_BYTES = 1 << 20


def narrow(pictures: NDArray[np.float32], out: NDArray[Any]) -> None:
    """Round pictures to another dtype.

    uint8: to the nearest whole number, of two the even one; below 0 to 0, above 255 to 255, and
    NaN to 0. float16: to the nearest, of two the one whose last bit is 0; infinite from 65520 on,
    and there is one NaN.

    Args:
        pictures: Any shape, contiguous; overwritten.
        out: The same shape, contiguous; uint8 or float16.
    """
    assert pictures.flags.c_contiguous, "a copy would be rounded, and thrown away"
    assert out.flags.c_contiguous, "a copy would be written to"
    compiled = _kernels()
    if compiled is None:
        _by_numpy(pictures, out)
    elif out.dtype == np.uint8:
        compiled.to_octets(pictures.reshape(-1), out.reshape(-1))
    else:
        flat = pictures.reshape(-1)
        compiled.to_halves(flat, flat.view(np.uint32), out.reshape(-1).view(np.uint16))


def _by_numpy(pictures: NDArray[np.float32], out: NDArray[Any]) -> None:
    with np.errstate(all="ignore"):
        if out.dtype == np.uint8:
            np.rint(pictures, out=pictures)
            np.fmax(pictures, 0, out=pictures)  # not maximum: of 0 and NaN this takes 0
            np.fmin(pictures, 255, out=pictures)
            np.copyto(out, pictures, casting="unsafe")
        else:
            np.copyto(out, pictures, casting="same_kind")
            np.copyto(out, np.float16(np.nan), where=np.isnan(pictures))


def _kernels() -> ModuleType | None:
    return compiled("augserver.transforms.narrow_kernels")


class Narrowed:
    """A `TransformBatch` into uint8 or float16, by one that computes in float32.

    Args:
        transform: The one that computes.
    """

    def __init__(self, transform: TransformBatch) -> None:
        self._transform = transform

    def transform_batch(
        self,
        source: NDArray[Any],
        indexes: NDArray[np.int64],
        draws: Draws,
        out: NDArray[Any],
        note: Callable[[int], None] | None = None,
    ) -> None:
        """See `TransformBatch`."""
        picture = out.shape[1:]
        rows = max(1, _BYTES // max(1, int(np.prod(picture)) * np.dtype(WIDE).itemsize))
        wide = np.empty((min(rows, len(indexes)), *picture), WIDE)
        for first in range(0, len(indexes), rows):
            part = slice(first, first + rows)
            of_part = draws if rows >= len(indexes) else draws.of(part)
            pictures = wide[: len(indexes[part])]
            self._transform.transform_batch(source, indexes[part], of_part, pictures, note)
            narrow(pictures, out[part])
