"""Rotation, shift, shear and zoom in one resampling, to the last bit as Keras has it.

Matrix = Rotation . Shift . Shear . Zoom about the picture's centre, left out factor by factor
where neutral, then rows and columns swapped (keras 3.15, keras/src/legacy/preprocessing/image.py,
`apply_affine_transform`). The chain of 3 x 3 products is slow; it is here because a closed form
rounds differently.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from augserver.draws import Draws


def needed(draws: Draws) -> NDArray[np.bool_]:
    """Which samples are resampled at all: bool (n,)."""
    wanted: NDArray[np.bool_] = (
        (draws.theta != 0)
        | (draws.tx != 0)
        | (draws.ty != 0)
        | (draws.shear != 0)
        | (draws.zx != 1)
        | (draws.zy != 1)
    )
    return wanted


def matrix(draws: Draws, i: int, height: int, width: int) -> NDArray[np.float64]:
    """The i-th sample's map from output to input coordinates.

    Returns:
        float64 (3, 3), homogeneous, about the centre of a square picture of that many pixels.
    """
    tx, ty = draws.tx[i], draws.ty[i]
    zx, zy = draws.zx[i], draws.zy[i]
    factors = []
    # Sines of one number at a time, as in Keras: those of an array may differ in the last bit.
    if draws.theta[i] != 0:
        theta = np.deg2rad(draws.theta[i])
        cos, sin = np.cos(theta), np.sin(theta)
        factors.append(np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]))
    if tx != 0 or ty != 0:
        factors.append(np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]]))
    if draws.shear[i] != 0:
        shear = np.deg2rad(draws.shear[i])
        factors.append(np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]]))
    if zx != 1 or zy != 1:
        factors.append(np.array([[zx, 0, 0], [0, zy, 0], [0, 0, 1]]))
    product = reduce(np.dot, factors) if factors else np.eye(3)
    row, column = height / 2 - 0.5, width / 2 - 0.5
    product = np.dot(np.array([[1, 0, row], [0, 1, column], [0, 0, 1]]), product)
    product = np.dot(product, np.array([[1, 0, -row], [0, 1, -column], [0, 0, 1]]))
    # Keras swaps rows and columns last, centre and shift included. So tx, a share of the height,
    # moves columns, and a picture that is not square turns about a point off its centre
    # (keras-team/keras#17398). Having Keras's pictures means having that too.
    swap = [1, 0, 2]
    result: NDArray[np.float64] = product[swap][:, swap]
    return result


def warp(
    picture: NDArray[Any],
    transform: NDArray[np.float64],
    *,
    channel_axis: int,
    order: int,
    fill_mode: str,
    cval: float,
) -> NDArray[Any]:
    """Resample every channel of a picture.

    Args:
        picture: (H, W, C) or (C, H, W).
        transform: float64 (3, 3) of `matrix`.
        channel_axis: 2 or 0.

    Returns:
        A picture of the same shape and dtype whose memory lies channel by channel, as Keras's
        does: the sum of a picture in float32 depends on the order of its memory.
    """
    planes = np.moveaxis(picture, channel_axis, 0)
    warped = np.empty(planes.shape, planes.dtype)
    for plane, target in zip(planes, warped, strict=True):
        ndimage.affine_transform(
            plane,
            transform[:2, :2],
            transform[:2, 2],
            output=target,
            order=order,
            mode=fill_mode,
            cval=cval,
        )
    return np.moveaxis(warped, 0, channel_axis)
