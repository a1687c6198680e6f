"""What a dataset is, without its contents: names, dtypes and shapes out of the files' own headers.

For whoever has to say what would be served and serves nothing: no memory is taken for it, and
gigabytes take no longer than kilobytes. What is damaged beyond the headers is not found here.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from augproto.errors import AugError, ConfigError
from augproto.layout import DTYPE_KINDS
from augproto.spec import Spec
from augserver.datasets.listing import list_files

Array = npt.NDArray[Any]


def outline(spec: Spec) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The arrays of a stream's dataset, and the names of its classes if it is one of files.

    Of files of arrays each array is one element, seen as often as its shape says.

    Raises:
        ConfigError: A file is missing, is none of those that are read, or has such a header.
    """
    if spec.pictures is not None:
        listing = list_files(spec.data[0], spec.pictures)
        return listing.arrays, listing.class_names
    arrays: dict[str, Array] = {}
    for path in spec.data:
        for name, array in _of_file(path).items():
            if name in arrays:
                raise ConfigError(
                    f"data: {path!r} brings a second array named {name!r}; rename one"
                )
            arrays[name] = array
    return arrays, ()


def unreadable(paths: Sequence[str]) -> list[str]:
    """Those of these paths that this process cannot read, at least not yet."""
    return [path for path in paths if not os.access(path, os.R_OK)]


def _of_file(path: str) -> dict[str, Array]:
    try:
        if path.endswith(".npz"):
            with zipfile.ZipFile(path) as archive:
                headers = {}
                for name in archive.namelist():
                    with archive.open(name) as file:
                        headers[name.removesuffix(".npy")] = _header(file)
            kinds = {name: dtype.kind for name, (_, dtype) in headers.items()}
            # Text may lie beside the pictures; a server refuses what it could not even read.
            headers = {n: header for n, header in headers.items() if kinds[n] not in "SU"}
        elif path.endswith(".npy"):
            with open(path, "rb") as file:
                headers = {Path(path).stem: _header(file)}
        else:
            raise ConfigError(f"data: got {path!r}; wanted the path of a .npz or .npy file")
    except AugError:
        raise
    except Exception as error:  # zip, zlib and numpy raise a dozen kinds on damaged files
        raise ConfigError(
            f"data: {path!r} cannot be read: {type(error).__name__}: {error}"
        ) from error
    for name, (_, dtype) in headers.items():
        if dtype.kind not in DTYPE_KINDS:
            raise ConfigError(f"array {name!r}: got dtype {dtype}; wanted numbers or booleans")
    return {n: np.broadcast_to(np.zeros((), dtype), shape) for n, (shape, dtype) in headers.items()}


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    # Versions 2 and 3 differ in the encoding of names of fields, which no array of ours has.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
