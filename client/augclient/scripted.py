"""Batches that their consumer describes one by one, instead of taking them as they come.

For what cannot be foreseen: samples in an order of the caller's own, draws that go on from a state
of np.random, work on pictures that are sent along. A script is made at once, by any worker, and
again if that one dies; nothing is made ahead of it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from augclient.consumer import Batch, Consumer
from augclient.demand import Key
from augproto.errors import ConfigError
from augproto.messages import Script
from augproto.twister import State, pack, unpack

Array = npt.NDArray[Any]


def of_samples(indexes: npt.ArrayLike, state: State) -> Script:
    """A script: these samples, their parameters drawn from a state of np.random as Keras does.

    Args:
        indexes: (n,) whole numbers, in the dataset.
        state: As `np.random.get_state()` gives it.
    """
    return Script(0, 0, indexes=np.asarray(indexes, "<i8").tobytes(), state=pack(state))


class Scripted(Consumer):
    """A stream whose batches come by scripts; for its arguments see `Consumer`.

    Its spec has scheme "keras" (scripts name samples and a state) or "given" (scripts bring
    matrices, and perhaps pictures).
    """

    _scripted = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._numbers = itertools.count()

    def make(self, script: Script) -> tuple[Batch, State | None]:
        """The batch that a script describes, and the state that its draws have left, if any.

        Raises:
            WorkerError: It cannot be made.
            BatchTimeout, ServerLost: It did not come.
        """
        return self._take(self._give(script))

    def make_all(
        self, scripts: Iterable[Script]
    ) -> Generator[tuple[Batch, State | None], None, None]:
        """The batches of all scripts, in their order; some are made while others are taken."""
        ahead = max(1, (self.slots or 3) - 2)
        given: deque[Key] = deque()
        try:
            for script in scripts:
                given.append(self._give(script))
                if len(given) > ahead:
                    yield self._take(given.popleft())
            while given:
                yield self._take(given.popleft())
        finally:
            for key in given:
                self._source.take_back(key)

    def get(self, epoch: int, step: int, *, timeout: float | None = None) -> Batch:
        """Not of this stream.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("get: a scripted stream has no steps of its own; wanted make(script)")

    def _give(self, script: Script) -> Key:
        epoch, step = divmod(next(self._numbers), self.steps)
        self._source.give(script._replace(epoch=epoch, step=step))
        return epoch, step

    def _take(self, key: Key) -> tuple[Batch, State | None]:
        try:
            batch = super().get(*key)
        except BaseException:
            self._source.take_back(key)
            raise
        state = self._source.after(key)
        return batch, unpack(state) if state else None
