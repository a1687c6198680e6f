"""The matrix of ZCA whitening: Keras's, by a cheaper way where that gives the same pictures.

Keras takes the singular values s and left vectors u of the pictures as columns, in the pictures'
dtype, and makes u . diag(sqrt(n) / (s + epsilon)) . u^T. The same s and u come from the
eigenvalues of X^T X, which is summed up chunk by chunk in float64, and more exactly.

So whitened pictures differ by Keras's own rounding. By how much can be told from s: its
decomposition has an error of some rounding of the largest value, which weighs as 1 / s in each
direction. Measured on photographs and on made-up pictures of 192 to 3072 values, float32, the
difference was at most `_SPREAD` / sqrt(values) times that, relative to the range. Where that is
too much, or where there are fewer pictures than values in one (Keras then whitens in those
directions only that the pictures have), only the same decomposition gives the same result. Then
that is what is made, with its time and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What whitened pictures may differ by, relative to their range.
TOLERANCE = 1e-5
_SPREAD = 0.75
#: Ratio of the largest to the smallest s from which on float64 is too coarse for eigenvalues,
#: which are their squares.
_COARSE = 1e5


def whitening_matrix(
    chunks: Callable[[], Iterator[NDArray[Any]]],
    count: int,
    values: int,
    epsilon: float,
) -> NDArray[Any]:
    """Find the matrix by which rows of values are whitened from the right.

    Args:
        chunks: Gives the pictures from the beginning each time it is called, as rows, centred:
            floats (some, values) that may be written to.
        count: Pictures in all.
        values: In one picture.
        epsilon: Added to the singular values.

    Returns:
        (values, values), symmetric; float64 (with numpy 1 of the pictures' dtype, as Keras's).
    """
    if count >= values:
        matrix = _by_eigenvalues(chunks, count, values, epsilon)
        if matrix is not None:
            return matrix
    return by_decomposition(np.concatenate(list(chunks())), epsilon)


def by_decomposition(rows: NDArray[Any], epsilon: float) -> NDArray[Any]:
    """The matrix as Keras finds it, from all pictures as centred rows."""
    u, s, _ = np.linalg.svd(rows.T, full_matrices=False)
    matrix: NDArray[Any] = np.dot(u * _scale(s, len(rows), epsilon), u.T)
    return matrix


def _by_eigenvalues(
    chunks: Callable[[], Iterator[NDArray[Any]]], count: int, values: int, epsilon: float
) -> NDArray[Any] | None:
    """The matrix, or None where the condition is too bad."""
    squares = np.zeros((values, values))
    dtype = squares.dtype
    for rows in chunks():
        dtype = rows.dtype
        exact = rows.astype(np.float64)
        squares += np.dot(exact.T, exact)
    if not np.isfinite(squares).all():
        return None
    eigenvalues, u = np.linalg.eigh(squares)
    s = np.sqrt(np.maximum(eigenvalues, 0))
    if not _well_conditioned(s + epsilon, dtype):
        return None
    kept = np.result_type(_scale(np.ones(1, dtype), count, epsilon), dtype)
    matrix: NDArray[Any] = np.dot(u * _scale(s, count, epsilon), u.T)
    return matrix.astype(kept, copy=False)


def _well_conditioned(s: NDArray[np.float64], dtype: np.dtype[Any]) -> bool:
    """Whether Keras's rounding is small enough; s ascend."""
    if s[-1] > _COARSE * s[0]:
        return False
    if s[0] <= 0:  # no epsilon and nothing to whiten
        return False
    rounding = float(np.finfo(dtype).eps) * s[-1] * np.sqrt(np.mean(1 / s**2))
    return bool(rounding * _SPREAD / np.sqrt(len(s)) <= TOLERANCE)


def _scale(s: NDArray[Any], count: int, epsilon: float) -> NDArray[Any]:
    scale: NDArray[Any] = np.sqrt(count) / (s + epsilon)
    return scale
