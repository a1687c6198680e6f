"""Pictures of one size become pictures of another, by Pillow, as Keras's `load_img` does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize(
    source: Array,
    indexes: npt.NDArray[np.int64],
    size: tuple[int, int],
    *,
    interpolation: str,
    data_format: str,
) -> Array:
    """Resize some of the pictures.

    8-bit pictures are resized as 8-bit pictures, which rounds; all others channel by channel in
    float32 (Pillow's mode "F").

    Args:
        source: All pictures, (samples, height, width, channels) or channels first.
        indexes: Which of them.
        size: (height, width) to get.

    Returns:
        As many pictures as indexes, of the source's data format; uint8, or else float32.
    """
    first = data_format == "channels_first"
    pictures = source[indexes]
    if first:
        pictures = np.moveaxis(pictures, 1, -1)
    dtype = np.uint8 if source.dtype == np.uint8 else np.float32
    out = np.empty((len(indexes), *size, pictures.shape[-1]), dtype)
    for i, picture in enumerate(pictures):
        out[i] = _resize_one(picture.astype(dtype, copy=False), size, RESAMPLING[interpolation])
    return np.moveaxis(out, -1, 1) if first else out


def _resize_one(picture: Array, size: tuple[int, int], how: Image.Resampling) -> Array:
    height, width = size
    if picture.dtype == np.uint8 and picture.shape[2] == 3:
        # Pillow has no premultiplied alpha here, so three channels together equal three alone.
        whole = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), how)
        return np.asarray(whole)
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(picture[:, :, c])).resize((width, height), how)
        )
        for c in range(picture.shape[2])
    ]
    return np.stack(channels, axis=-1)
