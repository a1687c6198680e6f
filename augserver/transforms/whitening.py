"""ZCA whitening: a batch's finished pictures, flattened, times one matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from augproto.errors import ConfigError


def checked(matrix: NDArray[Any], name: str, picture: tuple[int, ...]) -> NDArray[Any]:
    """The matrix, if it is one for pictures of that shape.

    Raises:
        ConfigError: It is not.
    """
    numbers = int(np.prod(picture))
    if matrix.shape != (numbers, numbers) or matrix.dtype not in (np.float32, np.float64):
        raise ConfigError(
            f"whitening: array {name!r} is {matrix.dtype} of shape {matrix.shape}; wanted float32 "
            f"or float64 of shape {(numbers, numbers)}, for pictures of shape {picture}"
        )
    return matrix


def whiten(batch: NDArray[Any], matrix: NDArray[Any]) -> None:
    """Multiply each picture, flattened row by row, by the matrix from the right; in place.

    Keras multiplies picture by picture (`ImageDataGenerator.standardize`), for which the whole
    matrix comes from memory each time. One product for the batch takes a sixth of the time, and
    differs in the last bits.

    Args:
        batch: (n, *picture), contiguous.
        matrix: (d, d), d numbers being a picture.
    """
    flat = batch.reshape(len(batch), -1)
    assert np.shares_memory(flat, batch), "a copy would leave the batch as it was"
    # Not into the batch: a product must not write where it still reads.
    flat[...] = flat @ matrix
