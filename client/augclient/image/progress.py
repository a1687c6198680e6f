"""A progress bar for what takes long, and nothing for what does not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import keras
from numpy.typing import NDArray

#: Seconds for which nothing is shown.
PATIENCE = 2.0


class Progress:
    """Keras's own bar, in percent, from the third second on.

    Args:
        total: How much there is to do, in any unit.
    """

    def __init__(self, total: int, patience: float = PATIENCE) -> None:
        self._total = max(total, 1)
        self._done = 0
        self._shown_from = time.monotonic() + patience
        self._bar: Any = None

    def advance(self, count: int) -> None:
        """So much more was done."""
        self._done += count
        if time.monotonic() < self._shown_from:
            return
        if self._bar is None:
            self._bar = keras.utils.Progbar(100, unit_name="percent")
        self._bar.update(min(99, 100 * self._done // self._total), finalize=False)

    def over(self, arrays: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The same arrays; each that is taken advances by its values."""
        for array in arrays:
            yield array
            self.advance(array.size)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None and kind is None:
            self._bar.update(100, finalize=True)
