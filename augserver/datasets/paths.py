"""A list of paths that a program hands over becomes a dataset of files of this machine.

The program names them; what they are (size and time, which are part of who the dataset is) only
the machine knows that will read them. Each lies below the server's roots, now and whenever it is
read (see decoding.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError
from augproto.files import ENDS, PATHS, SIZES, TIMES, File
from augproto.fingerprint import fingerprint
from augproto.messages import ArraySpec
from augserver.datasets.roots import Roots

#: Longest path that Linux takes.
MAX_PATH = 4096
#: Folders that are remembered as resolved: a list must not fill this process's memory.
MAX_FOLDERS = 10_000

Array = npt.NDArray[Any]


def is_list(arrays: Sequence[ArraySpec]) -> bool:
    """Whether arrays that are offered are a list of paths (and perhaps labels).

    Raises:
        ConfigError: They are nearly one.
    """
    own = {a.name: (np.dtype(a.dtype).str, len(a.shape)) for a in arrays if a.name[:6] == "files."}
    if own and own != {PATHS: ("|u1", 1), ENDS: ("<i8", 1)}:
        raise ConfigError(
            f"files: got the arrays {own!r:.200}; wanted {PATHS} (uint8) and {ENDS} (int64): sizes "
            "and times are the server's to find out"
        )
    return bool(own)


def list_paths(arrays: Mapping[str, Array], roots: Sequence[str]) -> tuple[str, dict[str, Array]]:
    """Look at every file of a list; returns the fingerprint and arrays of the dataset.

    Args:
        arrays: The paths, and labels that go with them.
        roots: Folders below which all files must lie.

    Raises:
        ConfigError: A path is relative, or leads to nothing.
        NotAllowed: One leads out of the roots.
    """
    # Copies first: these lie in memory that somebody else can still write.
    paths, ends = np.array(arrays[PATHS]), np.array(arrays[ENDS])
    sizes, times = np.empty(len(ends), np.int64), np.empty(len(ends), np.int64)
    known = Roots(roots)
    for number, path in enumerate(_each(paths, ends)):
        if not os.path.isabs(path) or "\0" in path:
            raise ConfigError(f"files: got {path!r:.200}; wanted a path from the root (/) on")
        if number % MAX_FOLDERS == 0:
            known = Roots(roots)
        known.check(path)
        try:
            file = File.of(path, os.stat(path))
        except OSError as error:
            raise ConfigError(
                f"files: {path!r:.200}: {error.strerror}, on the server's machine"
            ) from error
        sizes[number], times[number] = file.size, file.time
    own = {name: np.array(a) for name, a in arrays.items() if name not in (PATHS, ENDS)}
    whole = {PATHS: paths, ENDS: ends, SIZES: sizes, TIMES: times} | own
    return fingerprint(whole), whole


def _each(paths: Array, ends: Array) -> Iterator[str]:
    start = 0
    for end in ends.tolist():
        if not start < end <= min(len(paths), start + MAX_PATH):
            raise ConfigError(
                f"files: a path ends at byte {end} of {len(paths)}; wanted it after {start}, and "
                f"no path longer than {MAX_PATH}"
            )
        yield os.fsdecode(paths[start:end].tobytes())
        start = end
    if start != len(paths) or not len(ends):
        raise ConfigError(f"files: got {len(ends)} paths in {len(paths)} bytes; wanted all of them")
