"""Pictures as Pillow's images and as arrays.

These are Keras's own functions, which Keras 3 keeps in `keras.utils`; what old programs know
besides is added here. Pillow is imported by Keras, and only when one of them is called.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import keras
from numpy.typing import NDArray

#: What `list_pictures` takes for a picture.
EXTENSIONS = ("jpg", "jpeg", "bmp", "png", "ppm", "tif", "tiff")


def load_img(
    path: str | bytes | Path | BytesIO,
    color_mode: str = "rgb",
    target_size: tuple[int, int] | None = None,
    interpolation: str = "nearest",
    keep_aspect_ratio: bool = False,
    *,
    grayscale: bool | None = None,
) -> Any:
    """Load a picture as a Pillow image; `keras.utils.load_img`.

    Args:
        color_mode: "rgb", "rgba", or "grayscale" (16 and 32 bits stay as they are).
        target_size: (height, width), or None for the picture's own.
        interpolation: "nearest", "bilinear", "bicubic", "hamming", "box" or "lanczos".
        keep_aspect_ratio: Cut out the middle instead of distorting.
        grayscale: As Keras 2 had it; True is color_mode="grayscale".

    Raises:
        ValueError, TypeError: An argument is none of these.
        OSError: The file is missing or no picture.
    """
    if grayscale is not None:
        warnings.warn(
            'grayscale is deprecated. Please use color_mode = "grayscale"',
            FutureWarning,
            stacklevel=2,
        )
        if grayscale:
            color_mode = "grayscale"
    return keras.utils.load_img(
        path,
        color_mode=color_mode,
        target_size=target_size,
        interpolation=interpolation,
        keep_aspect_ratio=keep_aspect_ratio,
    )


def img_to_array(img: Any, data_format: str | None = None, dtype: Any = None) -> NDArray[Any]:
    """Turn a Pillow image into an array of rank 3; `keras.utils.img_to_array`.

    Args:
        data_format, dtype: By default Keras's global image_data_format and floatx.
    """
    array: NDArray[Any] = keras.utils.img_to_array(img, data_format=data_format, dtype=dtype)
    return array


def array_to_img(
    x: Any, data_format: str | None = None, scale: bool = True, dtype: Any = None
) -> Any:
    """Turn an array of rank 3 into a Pillow image; `keras.utils.array_to_img`.

    Args:
        scale: Stretch minimum..maximum to 0..255.
        data_format, dtype: By default Keras's global image_data_format and floatx.

    Raises:
        ValueError: It is not of rank 3 or has not 1, 3 or 4 channels.
    """
    return keras.utils.array_to_img(x, data_format=data_format, scale=scale, dtype=dtype)


def save_img(
    path: str | Path | IO[bytes],
    x: Any,
    data_format: str | None = None,
    file_format: str | None = None,
    scale: bool = True,
    **kwargs: Any,
) -> None:
    """Write an array of rank 3 into a picture file; `keras.utils.save_img`.

    Args:
        file_format: By default what the path's extension says.
        scale: Stretch minimum..maximum to 0..255.
        **kwargs: For Pillow's `Image.save`.
    """
    keras.utils.save_img(
        path, x, data_format=data_format, file_format=file_format, scale=scale, **kwargs
    )


def list_pictures(
    directory: str | os.PathLike[str], ext: str | Sequence[str] = EXTENSIONS
) -> list[str]:
    """List the picture files in a folder and below, as Keras 2 did.

    Args:
        ext: Extensions without their dots, in small letters; a file's own may have large ones.

    Returns:
        Paths, folder by folder in the order of `os.walk`.
    """
    extensions = (ext,) if isinstance(ext, str) else tuple(ext)
    endings = tuple(f".{extension}" for extension in extensions)
    return [
        os.path.join(root, name)
        for root, _, names in os.walk(directory)
        for name in names
        if name.lower().endswith(endings)
    ]
