"""Resampling of pictures by the parameters of a batch; the matrix is `augproto.geometry`'s."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from augproto.geometry import centred, chain, swapped
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
    product = chain(
        draws.theta[i], draws.tx[i], draws.ty[i], draws.shear[i], draws.zx[i], draws.zy[i]
    )
    return swapped(centred(np.eye(3) if product is None else product, height, width))


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
    from scipy import ndimage  # a quarter of a second, which only those pay who come here

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
