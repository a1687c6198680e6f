"""`keras.preprocessing.image` as programs know it; the pictures come from a server's workers.

::

    from augclient.image import ImageDataGenerator  # and nothing else changes

Names, arguments, attributes, warnings and numbers are those of Keras's class. It needs Keras.
"""

from __future__ import annotations

from keras.preprocessing.image import smart_resize

from augclient.image.array_iterator import NumpyArrayIterator
from augclient.image.dataframe_iterator import DataFrameIterator
from augclient.image.file_iterators import BatchFromFilesMixin, DirectoryIterator
from augclient.image.functions import (
    apply_affine_transform,
    apply_brightness_shift,
    apply_channel_shift,
    flip_axis,
    random_brightness,
    random_channel_shift,
    random_rotation,
    random_shear,
    random_shift,
    random_zoom,
    transform_matrix_offset_center,
)
from augclient.image.generator import ImageDataGenerator
from augclient.image.iterator import Iterator
from augclient.image.listing import validate_filename
from augclient.image.pictures import (
    array_to_img,
    img_to_array,
    list_pictures,
    load_img,
    save_img,
)

__all__ = [
    "BatchFromFilesMixin",
    "DataFrameIterator",
    "DirectoryIterator",
    "ImageDataGenerator",
    "Iterator",
    "NumpyArrayIterator",
    "apply_affine_transform",
    "apply_brightness_shift",
    "apply_channel_shift",
    "array_to_img",
    "flip_axis",
    "img_to_array",
    "list_pictures",
    "load_img",
    "random_brightness",
    "random_channel_shift",
    "random_rotation",
    "random_shear",
    "random_shift",
    "random_zoom",
    "save_img",
    "smart_resize",
    "transform_matrix_offset_center",
    "validate_filename",
]
