"""How functions are compiled: by numba, to run without Python's lock, and kept on disk.

No fastmath: each number is computed as it is written down. Only modules of kernels import this.

What is kept only saves time, so nothing that is wrong with it stops a kernel: files that cannot be
read are written anew, and where nothing can be written each process compiles for itself.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from numba import njit, types

_log = logging.getLogger("augserver.compiling")

_NOT_KEPT = (
    "compiled kernels cannot be kept (%s): each process that starts workers takes seconds to "
    "compile them; set NUMBA_CACHE_DIR to a folder that can be written to and has some MB left"
)
_DAMAGED = (
    "kernels that were kept in %s cannot be read (%s): they are compiled anew; if this is said "
    "again at the next start, remove that folder"
)
_COMPILING = "compiling kernels, once for this machine; this takes about ten seconds"

#: What this process has said: there are several kernels, and what holds for one holds for all.
_said: set[str] = set()
#: Where this process's kernels are kept, and why some are not.
_folders: set[Path] = set()
_reasons: list[str] = []


def folders() -> list[Path]:
    """Where the kernels that this process has compiled, or fetched, are kept."""
    return sorted(_folders)


def reason() -> str | None:
    """Why kernels that this process has compiled could not be kept; None if all are."""
    return _reasons[0] if _reasons else None


def kept(function: Callable[..., Any], *signature: Any, **options: Any) -> Any:
    """Compile a function; what is compiled is kept in numba's cache where that can be.

    Args:
        signature: For which types, at once; or nothing, for those of the first call.
        options: Of numba's njit.
    """
    compiled: Any = njit  # whose overloads know no such call
    dispatcher = compiled(nogil=True, **options)(function)
    if not hasattr(dispatcher, "enable_caching"):
        return dispatcher  # NUMBA_DISABLE_JIT: it is the function itself
    try:
        dispatcher.enable_caching()
    except (RuntimeError, OSError) as error:
        _not_kept(f"{error}")
    else:
        # Its files are read and written when it compiles, so that is where they have to be guarded.
        if hasattr(dispatcher, "_cache"):
            dispatcher._cache = _Guarded(dispatcher._cache)
    for each in signature:
        dispatcher.compile(each)
    if signature:
        dispatcher.disable_compile()
    return dispatcher


class _Guarded:
    """A cache of numba's for one function, in which whatever fails is a kernel that is not there.

    numba lets everything through that reading a damaged file or writing to a full disk raises.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, *what: Any) -> Any:
        """What is kept for these types; None if that is nothing, or nothing that can be read."""
        found = None
        try:
            found = self._cache.load_overload(*what)
        except Exception as error:  # of pickle: whatever the bytes make of it
            _say(_DAMAGED, self._cache.cache_path, f"{type(error).__name__}: {error}")
            with contextlib.suppress(Exception):
                self._cache.flush()  # a new index, or saving would stumble over this one
        if found is None:
            _say(_COMPILING)
        else:
            _folders.add(Path(self._cache.cache_path))
        return found

    def save_overload(self, *what: Any) -> None:
        """Keep what was compiled for these types, if that can be."""
        try:
            self._cache.save_overload(*what)
        except Exception as error:
            _not_kept(f"{self._cache.cache_path}: {error}")
        else:
            _folders.add(Path(self._cache.cache_path))


def _not_kept(why: str) -> None:
    _reasons.append(why)
    _say(_NOT_KEPT, why)


def _say(text: str, *values: object) -> None:
    if text not in _said:
        _said.add(text)
        _log.warning(text, *values)


def stamp(*modules: ModuleType) -> int:
    """A number for the text of what a kernel is made of.

    numba compares its cache with the file of the cached function alone, and would go on using a
    kernel whose parts have changed since. What a function finds in its closure is part of the key,
    if it is used there: kernels of several files ask whether this is below 0, which it never is.
    """
    files = [str(module.__file__) for module in modules]
    return zlib.crc32(b"".join(Path(file).read_bytes() for file in files))


def kernel(*arguments: Any) -> Callable[[Any], Any]:
    """Compile a function for these types of numba's at once."""
    signature = types.void(*arguments)
    return lambda function: kept(function, signature)
