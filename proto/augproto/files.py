"""A list of files as arrays, so that it lies in shared memory once and every worker reads it there.

Four arrays: `files.paths`, the bytes of all paths one after another; `files.ends`, where each of
them ends; `files.sizes` and `files.times` (nanoseconds), as they were when the list was made. A
million files are so some seventy megabytes that nobody has to unpack.

Sizes and times are part of who the dataset is: a file that has others when it is read is not the
file that was listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError

PATHS, ENDS, SIZES, TIMES = "files.paths", "files.ends", "files.sizes", "files.times"

Array = npt.NDArray[Any]


class File(NamedTuple):
    """A file as it was listed: path, bytes, time of the last change in nanoseconds."""

    path: str
    size: int
    time: int

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> File:
        """A file as it is now. (A time after the year 2262 is kept in 64 bits as it can be.)"""
        return cls(path, status.st_size, (status.st_mtime_ns + 2**63) % 2**64 - 2**63)


def pack_paths(paths: Iterable[str]) -> dict[str, Array]:
    """The first two arrays: all that is known where the files are another machine's."""
    encoded = [os.fsencode(path) for path in paths]
    return {
        PATHS: np.frombuffer(b"".join(encoded), np.uint8),
        ENDS: np.cumsum([len(path) for path in encoded], dtype=np.int64),
    }


def pack(files: Iterable[File]) -> dict[str, Array]:
    """The list as arrays; paths as the file system has them."""
    files = list(files)
    return pack_paths(file.path for file in files) | {
        SIZES: np.array([file.size for file in files], np.int64),
        TIMES: np.array([file.time for file in files], np.int64),
    }


class FileTable:
    """The list over its arrays.

    Args:
        arrays: `pack`'s four, perhaps among others.
        base: The folder that paths are relative to. Where it lies is no part of the dataset.

    Raises:
        ConfigError: These are no such arrays.
    """

    def __init__(self, arrays: Mapping[str, Array], base: str = "") -> None:
        self._base = base
        try:
            self._paths = arrays[PATHS]
            self._ends, self._sizes, self._times = (arrays[name] for name in (ENDS, SIZES, TIMES))
        except KeyError as error:
            raise ConfigError(
                f"pictures: the dataset has no array {error}; wanted a folder, a .csv, or files "
                "that were handed over (files=)"
            ) from None

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, sample: int) -> File:
        """The file of a sample."""
        start = int(self._ends[sample - 1]) if sample else 0
        path = os.fsdecode(self._paths[start : int(self._ends[sample])].tobytes())
        path = os.path.join(self._base, path)
        return File(path, int(self._sizes[sample]), int(self._times[sample]))
