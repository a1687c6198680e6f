"""The default order: Keras's batches by number, without np.random, and passes of `fit`.

Every batch that is taken has a number: how many were taken before. `next` and an index of the
user's own take one batch each, as with Keras. A pass of Keras's takes a whole epoch's numbers from
where it begins, as if `reset` had been called, whatever the order in which Keras asks for its
batches (see `augclient.passes`); what Keras only looks at takes none.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np

from augclient.image.order import Order, Place, Places
from augclient.image.plan import Indexes
from augclient.passes import Passes


class Counters(Protocol):
    """What Keras's iterators count in public, and users may set at any time."""

    n: int
    batch_size: int
    shuffle: bool
    seed: Any
    batch_index: int
    total_batches_seen: int
    index_array: Any

    def __len__(self) -> int:
        """Batches in an epoch."""

    def _set_index_array(self) -> None:
        """Draw an order."""


def step_on(it: Counters) -> Indexes:
    """The samples of the step that `batch_index` says, which is the next one afterwards."""
    step = it.batch_index
    first = (step * it.batch_size) % it.n if it.n else 0  # a dataset may be empty
    it.batch_index = step + 1 if it.n > first + it.batch_size else 0
    rows: Indexes = it.index_array[first : first + it.batch_size]
    return rows


class Stream:
    """What an iterator in the default order remembers beside its public counters.

    Its lock is its own: Keras's `lock` may be held by whoever calls anything else.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._drawn_seed: int | None = None
        self._order: Order | None = None
        self._places = Places()
        self._passes: Passes | None = None
        self._pass_order: Order | None = None
        self._origin = 0  # of the pass
        self._counted = True  # the pass is in total_batches_seen
        self._saved: set[int] = set()  # steps of the pass

    def place(self, rows: object) -> Place | None:
        """Which batch an index array is, if it is one that was taken here."""
        return self._places.of(rows)

    def draw(self, it: Counters) -> None:
        """Draw the order of an epoch that begins with the next batch."""
        with self._lock:
            self._order = self._draw(it, self._order)
            it.index_array = self._order.given

    def next(self, it: Counters) -> Indexes:
        """Take the batch that `batch_index` says."""
        with self._lock:
            self._count_pass(it)
            if it.batch_index == 0 or it.index_array is None:
                it._set_index_array()
            step = it.batch_index
            return self._take(it, step_on(it), step)

    def direct(self, it: Counters, step: int) -> Indexes | None:
        """Take a batch that a user asks for by index; None if it is Keras who asks."""
        with self._lock:
            if self._passes is not None and not self._passes.outside:
                return None
            self._count_pass(it)
            if it.index_array is None:
                it._set_index_array()
            rows = it.index_array[it.batch_size * step : it.batch_size * (step + 1)]
            return self._take(it, rows, step)

    def of_pass(self, it: Counters, index: int) -> Indexes:
        """The batch that Keras means by an index within a pass."""
        with self._lock:
            passes = self._passes
            assert passes is not None, "Keras has read num_batches"
            was_over, begun = passes.over, passes.begun
            _, step = passes.get(index)
            if passes.begun != begun:
                if was_over and not self._counted:
                    it.total_batches_seen += passes.steps
                self._begin(it)
            order = self._pass_order
            assert order is not None, "a pass has begun"
            rows = order.rows(step, it.batch_size)
            saved = step not in self._saved
            self._saved.add(step)
            number = self._origin + step
            self._note(rows, order.place(number, step, rows, it.batch_size, True, saved))
            if passes.finished and not self._counted:
                self._counted = True
                it.total_batches_seen += passes.steps
            return rows

    def num_batches_read(self, it: Counters) -> None:
        """Keras has read `num_batches`: a pass may begin."""
        with self._lock:
            passes, now = self._passes, (len(it), bool(it.shuffle))
            if passes is None or (passes.steps, passes.shuffled) != now:
                self._count_pass(it)
                self._passes = passes = Passes(now[0], shuffled=now[1], again=False)
            passes.num_batches_read()

    def epoch_begins(self) -> None:
        """Keras has called `on_epoch_begin`."""
        if self._passes is not None:
            self._passes.epoch_begins()

    def epoch_ends(self) -> None:
        """Keras, or the user, has called `on_epoch_end`."""
        if self._passes is not None:
            self._passes.epoch_ends()

    def _begin(self, it: Counters) -> None:
        """A pass begins."""
        if self._origin != it.total_batches_seen:
            self._saved.clear()
        self._origin = it.total_batches_seen
        self._counted = False
        # `batch_index` stays, as in Keras: `next` goes on where it was.
        self._pass_order = self._order = self._draw(it, self._order)
        it.index_array = self._order.given

    def _count_pass(self, it: Counters) -> None:
        """A pass that nobody will go on with has taken its numbers."""
        if self._passes is not None and self._passes.over and not self._counted:
            self._counted = True
            it.total_batches_seen += self._passes.steps

    def _seed(self, it: Counters) -> Any:
        if it.seed is not None:
            return it.seed
        if self._drawn_seed is None:
            self._drawn_seed = int(np.random.randint(1 << 31))
        return self._drawn_seed

    def _draw(self, it: Counters, before: Order | None) -> Order:
        seed, number, shuffle = self._seed(it), it.total_batches_seen, bool(it.shuffle)
        if before is not None and before.stands(seed, number, it.n, shuffle=shuffle):
            return before
        return Order(seed, number, it.n, shuffle=shuffle)

    def _take(self, it: Counters, rows: Indexes, step: int) -> Indexes:
        number = it.total_batches_seen
        it.total_batches_seen += 1
        order = self._order
        if order is None or order.given is not it.index_array:  # the user's own
            return self._note(rows, Place(self._seed(it), number, step))
        return self._note(rows, order.place(number, step, rows, it.batch_size))

    def _note(self, rows: Indexes, place: Place) -> Indexes:
        self._places.note(rows, place)
        return rows
