"""The argument `pool` of an earlier version of this package: a pool of processes to work in."""

from __future__ import annotations

import warnings
from enum import Enum
from typing import Any


class _NotGiven(Enum):
    NOT_GIVEN = "not given"


#: None means something: no processes.
NOT_GIVEN = _NotGiven.NOT_GIVEN


def workers_of(pool: Any, workers: int | None) -> int | None:
    """How many workers a pool stands for; warns, for it is not used otherwise.

    Args:
        pool: A pool of multiprocessing or concurrent.futures, or None for no processes.
        workers: What was asked for besides; it wins.
    """
    size = 0 if pool is None else getattr(pool, "_processes", getattr(pool, "_max_workers", None))
    chosen = size if workers is None else workers
    # A DeprecationWarning would be shown to nobody whose generator is made in a module.
    warnings.warn(
        f"pool={pool!r} is deprecated; only its size counts, for a server's processes make the "
        f"pictures. This is workers={chosen} now: pass that instead",
        FutureWarning,
        stacklevel=3,
    )
    return chosen
