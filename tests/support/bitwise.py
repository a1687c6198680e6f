"""Whether what two programs made is the same, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np


def same(got: Any, wanted: Any) -> bool:
    """Whether two values are of one type and equal, bit for bit."""
    if type(got) is not type(wanted):
        return False
    if isinstance(wanted, (tuple, list)):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    if isinstance(wanted, np.ndarray):
        if wanted.dtype == object:
            return same(got.tolist(), wanted.tolist())
        return (got.dtype, got.shape) == (wanted.dtype, wanted.shape) and np.ascontiguousarray(
            got
        ).tobytes() == np.ascontiguousarray(wanted).tobytes()
    # An array of pandas's; numpy's scalars, and its dtypes as classes, compare by themselves.
    if hasattr(wanted, "tolist") and not isinstance(wanted, (type, np.generic)):
        return same(got.tolist(), wanted.tolist())
    return bool(got == wanted)
