"""Rotation, shift, shear and zoom as one matrix, to the last bit as Keras has it.

Matrix = Rotation . Shift . Shear . Zoom about the picture's centre, left out factor by factor
where neutral, then rows and columns swapped (keras 3.15, keras/src/legacy/preprocessing/image.py,
`apply_affine_transform`). The chain of 3 x 3 products is slow; it is here because a closed form
rounds differently. Workers and programs that change a single picture compute it alike.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def chain(
    theta: float, tx: float, ty: float, shear: float, zx: float, zy: float
) -> NDArray[Any] | None:
    """Rotation . Shift . Shear . Zoom without what is neutral, (3, 3); None if all is.

    Args:
        theta, shear: Degrees.
        tx, ty: Pixels.
        zx, zy: Factors.
    """
    factors: list[NDArray[Any]] = []
    # Sines of one number at a time, as in Keras: those of an array may differ in the last bit.
    if theta != 0:
        angle = np.deg2rad(theta)
        cos, sin = np.cos(angle), np.sin(angle)
        factors.append(np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]))
    if tx != 0 or ty != 0:
        factors.append(np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]]))
    if shear != 0:
        angle = np.deg2rad(shear)
        factors.append(np.array([[1, -np.sin(angle), 0], [0, np.cos(angle), 0], [0, 0, 1]]))
    if zx != 1 or zy != 1:
        factors.append(np.array([[zx, 0, 0], [0, zy, 0], [0, 0, 1]]))
    return reduce(np.dot, factors) if factors else None


def centred(matrix: NDArray[Any], rows: float, columns: float) -> Matrix:
    """The same map with its fixed point in the middle of so many rows and columns."""
    row, column = float(rows) / 2 - 0.5, float(columns) / 2 - 0.5
    there = np.array([[1, 0, row], [0, 1, column], [0, 0, 1]])
    back = np.array([[1, 0, -row], [0, 1, -column], [0, 0, 1]])
    result: Matrix = np.dot(np.dot(there, matrix), back)
    return result


def swapped(matrix: Matrix) -> Matrix:
    """Rows and columns exchanged.

    Keras does this last, centre and shift included. So tx, a share of the height, moves columns,
    and a picture that is not square turns about a point off its centre (keras-team/keras#17398).
    Having Keras's pictures means having that too.
    """
    swap = [1, 0, 2]
    return matrix[swap][:, swap]
