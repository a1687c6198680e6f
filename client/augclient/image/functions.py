"""Keras's functions of one picture, with Keras's names, arguments and bits.

A picture is an array of rank 3. What resamples it or changes its brightness is a request to a
server (`where` says to which one; by default the program's own); all else is numpy, here. Random
numbers are drawn from the global np.random, as Keras draws them. (keras 3.15,
keras/src/legacy/preprocessing/image.py.)

The defaults of the axes are Keras's as well: channels first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from augclient.image import desk
from augclient.image.desk import Where
from augproto.geometry import Matrix, centred, chain, swapped

Picture = NDArray[Any]


def random_rotation(
    x: Picture,
    rg: float,
    row_axis: int = 1,
    col_axis: int = 2,
    channel_axis: int = 0,
    fill_mode: str = "nearest",
    cval: float = 0.0,
    interpolation_order: int = 1,
    *,
    where: Where | None = None,
) -> Picture:
    """Rotate a picture by up to rg degrees in either direction."""
    return apply_affine_transform(
        x,
        theta=np.random.uniform(-rg, rg),
        row_axis=row_axis,
        col_axis=col_axis,
        channel_axis=channel_axis,
        fill_mode=fill_mode,
        cval=cval,
        order=interpolation_order,
        where=where,
    )


def random_shift(
    x: Picture,
    wrg: float,
    hrg: float,
    row_axis: int = 1,
    col_axis: int = 2,
    channel_axis: int = 0,
    fill_mode: str = "nearest",
    cval: float = 0.0,
    interpolation_order: int = 1,
    *,
    where: Where | None = None,
) -> Picture:
    """Shift a picture by up to these shares of its width and of its height."""
    height, width = x.shape[row_axis], x.shape[col_axis]
    tx = np.random.uniform(-hrg, hrg) * height
    ty = np.random.uniform(-wrg, wrg) * width
    return apply_affine_transform(
        x,
        tx=tx,
        ty=ty,
        row_axis=row_axis,
        col_axis=col_axis,
        channel_axis=channel_axis,
        fill_mode=fill_mode,
        cval=cval,
        order=interpolation_order,
        where=where,
    )


def random_shear(
    x: Picture,
    intensity: float,
    row_axis: int = 1,
    col_axis: int = 2,
    channel_axis: int = 0,
    fill_mode: str = "nearest",
    cval: float = 0.0,
    interpolation_order: int = 1,
    *,
    where: Where | None = None,
) -> Picture:
    """Shear a picture by up to so many degrees in either direction."""
    return apply_affine_transform(
        x,
        shear=np.random.uniform(-intensity, intensity),
        row_axis=row_axis,
        col_axis=col_axis,
        channel_axis=channel_axis,
        fill_mode=fill_mode,
        cval=cval,
        order=interpolation_order,
        where=where,
    )


def random_zoom(
    x: Picture,
    zoom_range: Sequence[float],
    row_axis: int = 1,
    col_axis: int = 2,
    channel_axis: int = 0,
    fill_mode: str = "nearest",
    cval: float = 0.0,
    interpolation_order: int = 1,
    *,
    where: Where | None = None,
) -> Picture:
    """Zoom a picture by two factors from (low, high), one for each axis.

    Raises:
        ValueError: The range is not two numbers.
    """
    if len(zoom_range) != 2:
        raise ValueError(
            f"`zoom_range` should be a tuple or list of two floats. Received: {zoom_range}"
        )
    low, high = zoom_range
    zx, zy = (1, 1) if low == 1 and high == 1 else np.random.uniform(low, high, 2)
    return apply_affine_transform(
        x,
        zx=zx,
        zy=zy,
        row_axis=row_axis,
        col_axis=col_axis,
        channel_axis=channel_axis,
        fill_mode=fill_mode,
        cval=cval,
        order=interpolation_order,
        where=where,
    )


def apply_channel_shift(x: Picture, intensity: float, channel_axis: int = 0) -> Picture:
    """Add an amount to all channels and clip to the range that the picture had before.

    Returns:
        A picture of the same shape, of the dtype that numpy gives to the sum. Its memory lies
        channel by channel.
    """
    planes = np.rollaxis(x, channel_axis, 0)
    low, high = planes.min(), planes.max()
    # Plane by plane: how numpy lays out the whole depends on how the planes lie.
    shifted = np.stack([np.clip(plane + intensity, low, high) for plane in planes])
    return np.rollaxis(shifted, 0, channel_axis + 1)


def random_channel_shift(x: Picture, intensity_range: float, channel_axis: int = 0) -> Picture:
    """Add an amount from -intensity_range..intensity_range to all channels, clipped."""
    intensity = np.random.uniform(-intensity_range, intensity_range)
    return apply_channel_shift(x, intensity, channel_axis=channel_axis)


def apply_brightness_shift(
    x: Picture, brightness: float, scale: bool = True, *, where: Where | None = None
) -> Picture:
    """Multiply a picture's brightness by a factor, through Pillow's 8 bits.

    The axis of its channels is that of Keras's global image_data_format.

    Args:
        x: 1, 3 or 4 channels; of 4, the last is alpha and stays.
        scale: Stretch minimum..maximum to 0..255 before, and leave it so. Otherwise a picture
            within 0..255 is cut to whole numbers (one within 0..1 goes black), and any other is
            stretched before and back afterwards.

    Returns:
        A picture of the same shape and Keras's global floatx; one that was stretched back has
        what numpy makes of that and its own dtype.

    Raises:
        ValueError: It is not a picture of 1, 3 or 4 channels.
    """
    first = keras.config.image_data_format() == "channels_first"
    return brightness_shifted(x, brightness, scale, channel_axis=0 if first else 2, where=where)


def random_brightness(
    x: Picture,
    brightness_range: Sequence[float],
    scale: bool = True,
    *,
    where: Where | None = None,
) -> Picture:
    """Multiply a picture's brightness by a factor from (low, high).

    Raises:
        ValueError: The range is not two numbers, or x is no picture.
    """
    if len(brightness_range) != 2:
        raise ValueError(
            f"`brightness_range should be tuple or list of two floats. Received: {brightness_range}"
        )
    factor = np.random.uniform(brightness_range[0], brightness_range[1])
    return apply_brightness_shift(x, factor, scale, where=where)


def brightness_shifted(
    x: Picture, brightness: float, scale: bool, *, channel_axis: int, where: Where | None
) -> Picture:
    """`apply_brightness_shift` of a picture whose channels lie on this axis."""
    low, high = np.min(x), np.max(x)
    beyond = bool(low < 0 or high > 255)
    # Stretched and cut here, in the dtype in which Keras does it: a rounding more or less is a
    # whole level of grey. What goes to the server is 8 bits a value.
    pixels = np.asarray(x, keras.config.floatx())
    if pixels.ndim != 3:
        raise ValueError(
            "Expected image array to have rank 3 (single image). "
            f"Got array with shape: {pixels.shape}"
        )
    pixels = np.moveaxis(pixels, channel_axis, 2)
    if scale or beyond:
        pixels = pixels - np.min(pixels)
        peak = np.max(pixels)
        if peak != 0:
            pixels /= peak
        pixels *= 255
    if pixels.shape[2] not in (1, 3, 4):
        raise ValueError(f"Unsupported channel number: {pixels.shape[2]}")
    bright = desk.brighten(pixels.astype("uint8"), brightness, where=where or Where())
    # Row by row in memory, as a picture of Pillow's is: float32 means depend on it.
    result = np.moveaxis(np.array(bright, keras.config.floatx(), order="C"), 2, channel_axis)
    return result / 255 * (high - low) + low if beyond and not scale else result


def transform_matrix_offset_center(matrix: NDArray[Any], x: float, y: float) -> Matrix:
    """Move the fixed point of a 3 x 3 matrix into the middle of x rows and y columns."""
    return centred(matrix, x, y)


def apply_affine_transform(
    x: Picture,
    theta: float = 0,
    tx: float = 0,
    ty: float = 0,
    shear: float = 0,
    zx: float = 1,
    zy: float = 1,
    row_axis: int = 1,
    col_axis: int = 2,
    channel_axis: int = 0,
    fill_mode: str = "nearest",
    cval: float = 0.0,
    order: int = 1,
    *,
    where: Where | None = None,
) -> Picture:
    """Rotate, shift, shear and zoom a picture in one resampling.

    Args:
        theta: Degrees.
        tx, ty: Pixels along rows and along columns.
        shear: Degrees.
        zx, zy: Factors; above 1 the picture shrinks.
        row_axis, col_axis, channel_axis: A permutation of 0, 1, 2; channels first or last.
        fill_mode: What lies outside: "nearest", "constant" (cval), "reflect", "wrap" and the
            other modes of scipy.ndimage.
        order: Of the spline; 0 picks the nearest pixel, 1 is bilinear.

    Returns:
        A picture of the same shape and dtype whose memory lies channel by channel. If all
        parameters are neutral: x itself, and nobody is asked.

    Raises:
        ValueError: The axes are no such permutation, or x is not of rank 3.
    """
    axes = {row_axis, col_axis, channel_axis}
    if len(axes) != 3:
        raise ValueError(
            "'row_axis', 'col_axis', and 'channel_axis' must be distinct: "
            f"got {row_axis}, {col_axis} and {channel_axis}"
        )
    if axes != {0, 1, 2}:
        raise ValueError(f"Invalid axis' indices: {axes - {0, 1, 2}}; wanted 0, 1 and 2")
    if x.ndim != 3:
        raise ValueError(f"Input arrays must be multi-channel 2D images. Got shape {x.shape}")
    if channel_axis == 1:
        raise ValueError(
            "Channels are allowed and the first and last dimensions. Got channel_axis=1"
        )
    matrix = chain(theta, tx, ty, shear, zx, zy)
    if matrix is None:
        return x
    matrix = centred(matrix, x.shape[row_axis], x.shape[col_axis])
    if col_axis > row_axis:
        matrix = swapped(matrix)
    return desk.warp(
        x,
        np.ascontiguousarray(matrix[:2, :2]),
        np.ascontiguousarray(matrix[:2, 2]),
        channel_axis=channel_axis,
        fill_mode=fill_mode,
        cval=cval,
        order=order,
        where=where or Where(),
    )


def flip_axis(x: Any, axis: int) -> Picture:
    """Mirror a picture along an axis: a view with a negative stride."""
    return np.flip(np.asarray(x), axis)
