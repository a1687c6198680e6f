"""Who a dataset of arrays is: the digest that both sides compute, of what the arrays hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def heading(name: str, array: npt.NDArray[Any]) -> bytes:
    """What goes before an array's bytes."""
    return f"{name} {array.dtype.str} {array.shape}\n".encode()


def fingerprint(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of C-contiguous arrays, as hexadecimal text."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(heading(name, array))
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
