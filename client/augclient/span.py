"""What one slot holds: a batch, or several small ones that are handed out one by one.

The batches of a slot share its lease: it is over when the last view of any of them is gone, and
when all of them were handed out, or something else is asked for.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from augclient.demand import Key
from augproto.layout import Layout
from augproto.messages import Entry, Opened

#: References to a slot's memory that no batch has: the span's own, and getrefcount's argument.
_OWN = 2


class Span:
    """The batches of one slot.

    Args:
        opened: The stream.
        layout: Of a slot.
        entry: What lies in it.
        memory: Its bytes, which hold the lease; or a private copy of them.
        leased: Whether they hold a lease.
    """

    __slots__ = ("_epoch", "_first", "_layout", "_left", "_memory", "_size", "leased")

    def __init__(
        self,
        opened: Opened,
        layout: Layout,
        entry: Entry,
        memory: npt.NDArray[np.uint8],
        *,
        leased: bool,
    ) -> None:
        self._layout = layout
        self._memory = memory
        self.leased = leased
        self._epoch = entry.epoch
        self._first = entry.step * opened.span
        self._size = opened.batch_size
        batches = -(-entry.samples // opened.batch_size)
        # Of each batch that was not handed out yet, how many samples it has.
        self._left = {
            self._first + place: min(self._size, entry.samples - place * self._size)
            for place in range(batches)
        }

    def hand_out(self, key: Key) -> dict[str, npt.NDArray[Any]] | None:
        """The arrays of a batch of that name, once; None if it is not here (any more)."""
        if key[0] != self._epoch:
            return None
        samples = self._left.pop(key[1], None)
        if samples is None:
            return None
        return self._layout.arrays(self._memory, samples, (key[1] - self._first) * self._size)

    @property
    def over(self) -> bool:
        """Whether all of it was handed out."""
        return not self._left

    @property
    def idle(self) -> bool:
        """Whether nothing holds the lease but this: no view of any of its batches is alive."""
        return self.leased and sys.getrefcount(self._memory) <= _OWN
