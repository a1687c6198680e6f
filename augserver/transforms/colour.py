"""Channel shift and brightness, whose results depend on the picture's own range."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance


def shift_channels(picture: NDArray[Any], amount: float, *, channel_axis: int) -> NDArray[Any]:
    """Add an amount to all channels and clip to the range that the picture had before.

    Returns:
        A picture of the same shape and dtype; its memory lies channel by channel, as Keras's does
        (`apply_channel_shift`).
    """
    planes = np.moveaxis(picture, channel_axis, 0)
    low, high = planes.min(), planes.max()
    shifted = np.add(planes, amount, order="C")
    return np.moveaxis(np.clip(shifted, low, high, out=shifted), 0, channel_axis)


def brighten(
    picture: NDArray[Any], factor: float, *, channel_axis: int, floatx: str = "float32"
) -> NDArray[Any]:
    """Multiply a picture's brightness by a factor, through Pillow's 8 bits.

    Keras's `apply_brightness_shift(scale=False)`. A picture within 0..255 is TRUNCATED to 8 bits
    (one within 0..1 goes black). Any other is stretched from its minimum..maximum to 0..255 and
    back afterwards. The alpha of four channels stays as it is.

    Keras takes the channel axis from a global setting; here it is the picture's own.

    Args:
        floatx: Keras's setting of that name, in which this is computed.

    Returns:
        A picture of the same shape. As in Keras it is of floatx whatever the picture was, except
        that a stretched float64 picture comes back as float64.
    """
    low, high = picture.min(), picture.max()
    beyond = bool(low < 0 or high > 255)
    eight_bit = np.asarray(np.moveaxis(picture, channel_axis, 2), floatx)
    if beyond:
        eight_bit = eight_bit - eight_bit.min()
        peak = eight_bit.max()
        if peak != 0:
            eight_bit /= peak
        eight_bit *= 255
    pixels = eight_bit.astype(np.uint8)
    single = pixels.shape[2] == 1
    image = Image.fromarray(pixels[:, :, 0] if single else pixels)
    image = ImageEnhance.Brightness(image).enhance(factor)
    bright = np.asarray(image, floatx).reshape(pixels.shape)
    result: NDArray[Any] = np.moveaxis(bright, 2, channel_axis)
    return result / 255 * (high - low) + low if beyond else result
