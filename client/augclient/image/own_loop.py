"""Batches made in the caller's process, sample by sample, by the generator's own methods.

For generators that no server can stand in for: a class with an `apply_transform` of its own, a
dtype that is not served. It is Keras's loop (keras 3.15,
keras/src/legacy/preprocessing/image.py: `_get_batches_of_transformed_samples`), and as slow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from augclient.image.plan import Array, Indexes, State

#: np.random belongs to the whole program: whoever lends it to a generator has it alone.
_np_random = threading.Lock()


class Source(Protocol):
    """What is drawn from: np.random, or a RandomState."""

    def randint(self, low: int, /) -> int:
        """0 to low - 1."""


def make(
    picture: Callable[[int], Array],
    generator: Any,
    out: Array,
    *,
    hashes: int | None,
    state: State | None,
) -> Indexes | None:
    """Fill a batch.

    Args:
        picture: Gives the sample of that row, in memory of its own.
        generator: Whose methods transform it.
        out: (n, *picture); written.
        hashes: Numbers below this are drawn afterwards, one for each sample, and returned.
        state: Of np.random for this batch; afterwards it is as it was before. None: as it is, and
            it moves on.
    """
    if state is None:
        return _make(picture, generator, out, hashes)
    with _np_random:
        before = np.random.get_state()
        np.random.set_state(state)
        try:
            return _make(picture, generator, out, hashes)
        finally:
            np.random.set_state(before)


def _make(
    picture: Callable[[int], Array], generator: Any, out: Array, hashes: int | None
) -> Indexes | None:
    for row in range(len(out)):
        x = picture(row)
        x = generator.apply_transform(x, generator.get_random_transform(x.shape))
        out[row] = generator.standardize(x)
    return None if hashes is None else draw_hashes(np.random, hashes, len(out))


def draw_hashes(source: Source, below: int, count: int) -> npt.NDArray[np.int64]:
    """Numbers as Keras draws them from np.random for the names of saved pictures."""
    # One at a time: what a call for several would draw is numpy's own affair.
    return np.array([source.randint(below) for _ in range(count)], np.int64)
