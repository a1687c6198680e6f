"""Pictures of delivered batches as files, for a look at what augmentation does (`save_to_dir`)."""

from __future__ import annotations

import os
from typing import Any

from augclient.image.pictures import array_to_img
from augclient.image.plan import Array, Indexes

#: Keras draws a number below this for each saved picture: of arrays, and of files.
ARRAY_HASHES = 10_000
FILE_HASHES = 10_000_000


def save(
    pictures: Array,
    indexes: Indexes,
    hashes: Indexes,
    *,
    folder: str | os.PathLike[str],
    prefix: str,
    file_format: str,
    data_format: str,
) -> None:
    """Write `{prefix}_{index}_{hash}.{format}` for each picture, stretched to 0..255.

    Args:
        pictures: (n, *picture).
        indexes: Of the samples, (n,).
        hashes: A number for each, (n,); Keras draws them so that augmented versions of one sample
            seldom overwrite each other.
        folder: Must exist.
    """
    for picture, index, number in zip(pictures, indexes, hashes.tolist(), strict=True):
        image: Any = array_to_img(picture, data_format, scale=True)
        image.save(os.path.join(folder, f"{prefix}_{index}_{number}.{file_format}"))
