"""Which samples are in which batch, and which of Keras's batches that is. Values; no I/O.

Keras numbers batches: before its k-th one it seeds np.random with seed + k, and where an epoch
begins it draws the epoch's order from that. Here a generator of the iterator's own takes the place
of np.random, so that an order is a function of (seed, number, samples).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from augclient.image.plan import Indexes, State

#: Index arrays whose places are remembered before the dead ones among them are looked for.
_KEPT = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Which of Keras's batches one is.

    Attributes:
        seed: In force; an integer wherever `origin` is not None.
        number: How many batches were taken before, in whatever way.
        step: Its place in its epoch.
        origin: The number at which its epoch began, where it is the epoch's batch of that step.
            None for any other choice of samples.
        permuted: How many indexes were permuted from the batch's own state before its parameters:
            Keras draws an epoch's order together with the first batch that needs it.
        leased: Whether views of shared memory may be handed out.
        saved: Whether its pictures are to be saved, where pictures are.
    """

    seed: Any
    number: int
    step: int
    origin: int | None = None
    permuted: int = 0
    leased: bool = False
    saved: bool = True

    def state(self) -> State:
        """np.random as Keras has it before the parameters are drawn.

        Raises:
            ValueError, TypeError: np.random takes no such seed.
        """
        state = np.random.RandomState(self.seed + self.number)
        if self.permuted:
            state.permutation(self.permuted)
        return state.get_state()


class Order:
    """An epoch's order.

    Args:
        seed: In force; whatever np.random takes.
        origin: The number of the epoch's first batch.
        samples: In the dataset.
        shuffle: Otherwise the order is the dataset's own.

    Attributes:
        given: The array that others see, and may change.

    Raises:
        ValueError, TypeError: np.random takes no such seed.
    """

    def __init__(self, seed: Any, origin: int, samples: int, *, shuffle: bool) -> None:
        self._seed, self._origin, self._samples, self._shuffle = seed, origin, samples, shuffle
        self._rows: Indexes = (
            np.random.RandomState(seed + origin).permutation(samples)
            if shuffle
            else np.arange(samples)
        )
        self.given: Indexes = self._rows.copy()

    def stands(self, seed: Any, origin: int, samples: int, *, shuffle: bool) -> bool:
        """Whether this is the order of these, and nobody has changed what was given."""
        return bool(
            (self._samples, self._shuffle) == (samples, shuffle)
            and (not shuffle or self._origin == origin)
            and np.array_equal(self._seed, seed)
            and np.array_equal(self.given, self._rows)
        )

    def rows(self, step: int, batch_size: int) -> Indexes:
        """The samples of one step."""
        return self._rows[batch_size * step : batch_size * (step + 1)]

    def place(
        self,
        number: int,
        step: int,
        rows: Indexes,
        batch_size: int,
        leased: bool = False,
        saved: bool = True,
    ) -> Place:
        """Which of Keras's batches these samples are, taken as the batch of that number."""
        seed = self._seed
        origin = number - step
        in_order = (
            origin >= 0
            and (origin == self._origin or not self._shuffle)
            and isinstance(seed, (int, np.integer))
            and np.array_equal(rows, self.rows(step, batch_size))
        )
        permuted = self._samples if self._shuffle and self._origin == number else 0
        place = Place(
            seed, number, step, origin if in_order else None, permuted, leased=leased, saved=saved
        )
        if in_order and not 0 <= seed + number < 1 << 32:
            place.state()  # numpy says what is wrong
        return place


class Places:
    """What is known of index arrays that were handed out, for as long as they live.

    Keras's iterators hand an index array from one method to another, and so do users' programs:
    `it._get_batches_of_transformed_samples(next(it.index_generator))`.
    """

    def __init__(self) -> None:
        self._noted: dict[int, tuple[weakref.ref[Indexes], Place]] = {}

    def note(self, rows: Indexes, place: Place) -> None:
        """This very array is that place's."""
        if len(self._noted) >= _KEPT:
            self._noted = {k: v for k, v in self._noted.copy().items() if v[0]() is not None}
        self._noted[id(rows)] = (weakref.ref(rows), place)

    def of(self, rows: object) -> Place | None:
        """The place of this very array."""
        noted = self._noted.get(id(rows))
        return noted[1] if noted is not None and noted[0]() is rows else None
