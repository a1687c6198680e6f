"""Which code computes: kernels that numba compiles, or numpy and scipy. Both give the same bytes.

Found out where something is computed and not before: a server that only describes streams has no
use for numba, which takes a third of a second to import.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from augproto.errors import ConfigError

#: What there is to choose from.
KERNELS = ("numba", "scipy")
#: The environment's word on it, for a process and its workers.
KERNELS_VARIABLE = "AUGSERVER_KERNELS"

_log = logging.getLogger("augserver.backend")


@cache
def backend() -> str:
    """Which kernels this process uses, "numba" or "scipy"; found out once.

    The environment variable AUGSERVER_KERNELS says; without it, numba where it can be imported.

    Raises:
        ConfigError: It says something else, or numba, which cannot be imported.
    """
    wanted = _wanted()
    if wanted == "scipy":
        return wanted
    try:
        import numba  # noqa: F401
    except ImportError as error:
        if wanted:
            raise _missing(f"{error}") from error
        _log.warning(
            "numba cannot be imported (%s): scipy makes the same pictures, some 50 times slower",
            error,
        )
        return "scipy"
    return "numba"


@cache
def compiled(module: str) -> ModuleType | None:
    """A module of kernels, imported when something is computed; None where numpy computes it."""
    return import_module(module) if backend() == "numba" else None


def check() -> None:
    """Whether what is demanded is there, without an import: for a server that is about to start.

    Raises:
        ConfigError: As `backend` does.
    """
    if _wanted() == "numba" and find_spec("numba") is None:
        raise _missing("it is not installed")


def _wanted() -> str:
    wanted = os.environ.get(KERNELS_VARIABLE, "")
    if wanted not in ("", *KERNELS):
        raise ConfigError(f"{KERNELS_VARIABLE}: got {wanted!r}; wanted one of {', '.join(KERNELS)}")
    return wanted


def _missing(why: str) -> ConfigError:
    return ConfigError(
        f"{KERNELS_VARIABLE}: got 'numba', but numba cannot be imported ({why}); "
        "wanted it installed (pip install numba), or scipy"
    )
