"""Where the pictures of an iterator's batches come from: a server's feed, or the caller's own loop.

A user may change the generator at any time (`datagen.mean = ...`, `fit` after `flow`), and the
iterator as well (`it.batch_size = 1`). Both are looked at before every batch; a feed that was
opened for other settings is closed and opened anew.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from augclient.image import own_loop
from augclient.image.order import Place
from augclient.image.plan import Array, Delivered, Feed, FeedPlan, Indexes
from augclient.image.watch import Watch
from augproto.errors import (
    AugError,
    BatchTimeout,
    ConsumerClosed,
    ForkedProcess,
    ServerLost,
    WorkerError,
)


class NotServed(Exception):
    """Only the caller can make these pictures; the text says why."""


def open_feed(plan: FeedPlan, generator: Any, where: Any) -> Feed:
    """Open a feed: the one place where iterators meet the server.

    Raises:
        NotServed: No server can do what this generator does.
    """
    # Only here: the generator's module imports this one.
    from augclient.image import feed, settings

    try:
        opened = feed.Feed(plan, generator, where)
    except settings.Unsaid as unsaid:
        raise NotServed(str(unsaid)) from unsaid
    settings.tell_unfitted(generator)
    return opened


def key_of(generator: Any) -> object:
    """All settings of a generator that change its pictures, as one value to compare."""
    from augclient.image import settings

    return settings.key_of(generator)


def where_of(generator: Any) -> Any:
    """The server that a generator means; None where it does not say."""
    return getattr(generator, "where", None)


@dataclass(frozen=True, slots=True)
class Batch:
    """Finished pictures.

    Attributes:
        x: (n, *picture); writable and nobody else's, unless leased.
        leased: It is a view of shared memory.
        hashes: (n,): numbers for names of files; None where nothing is saved.
    """

    x: Array
    leased: bool
    hashes: Indexes | None


class _Open:
    """At most one open feed, and what it was opened for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._feed: Feed | NotServed | None = None
        self._for: tuple[FeedPlan, Watch, object] | None = None

    def get(self, plan: FeedPlan, generator: Any, where: Any) -> Feed:
        with self._lock:
            if not self._fits(plan, generator, where):
                self._close()
                watch = Watch(generator, key_of)
                try:
                    self._feed = open_feed(plan, generator, where)
                except NotServed as reason:
                    self._feed = reason
                self._for = (plan, watch, where)
            feed = self._feed
        if isinstance(feed, NotServed):
            raise NotServed(str(feed))
        assert feed is not None, "it was opened"
        return feed

    def _fits(self, plan: FeedPlan, generator: Any, where: Any) -> bool:
        if self._for is None:
            return False
        opened, watch, there = self._for
        return opened.same(plan) and there == where and watch.holds(generator)

    def fetch(
        self, plan: FeedPlan, generator: Any, where: Any, indexes: Indexes, place: Place | None
    ) -> Delivered:
        """A batch, if need be from a new feed: a server that has ended, or that a forked process
        has no part in, is followed by another, which makes the same of it."""
        feed = self.get(plan, generator, where)
        try:
            return _fetch(feed, indexes, place)
        except (WorkerError, BatchTimeout):  # of this batch alone
            raise
        except (ServerLost, ConsumerClosed, ForkedProcess):
            self._discard(feed)
        except AugError:
            self._discard(feed)
            raise
        return _fetch(self.get(plan, generator, where), indexes, place)

    def _discard(self, feed: Feed) -> None:
        """Close a feed that is of no use any more, unless another thread has done so already."""
        with self._lock:
            if self._feed is feed:
                self._close()

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        feed, self._feed, self._for = self._feed, None, None
        if feed is not None and not isinstance(feed, NotServed):
            feed.close()


class Supply:
    """The pictures of one iterator's batches; as thread-safe as a feed is."""

    def __init__(self) -> None:
        self._finished = _Open()
        self._plain = _Open()
        self._warned = False

    def batch(
        self,
        plan: FeedPlan,
        generator: Any,
        indexes: Indexes,
        place: Place | None,
        *,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
    ) -> Batch:
        """Make or fetch a batch.

        Args:
            plan: Of the iterator, as it is now.
            generator: An ImageDataGenerator, or None: pictures stay as they are.
            indexes: The samples, (n,).
            place: Which of Keras's batches this is. None: any, with draws from np.random.
            shape: Of a picture.
            dtype: Of the batch.
        """
        indexes = np.asarray(indexes, np.int64)
        if not len(indexes):  # of an empty dataset, or a batch_size of 0: Keras gives these
            empty = None if plan.hashes is None else np.zeros(0, np.int64)
            return Batch(np.zeros((0, *shape), dtype), False, empty)
        if generator is None:
            return self._plain_batch(plan, indexes, place, dtype)
        try:
            where = where_of(generator)
            delivered = self._finished.fetch(plan, generator, where, indexes, place)
        except NotServed as reason:
            self._warn(str(reason))
            x = np.zeros((len(indexes), *shape), dtype)
            hashes = own_loop.make(
                self._samples(plan, generator, indexes, place),
                generator,
                x,
                hashes=plan.hashes,
                state=None if place is None else place.state(),
            )
            return Batch(x, False, hashes)
        return _batch(delivered.x, delivered.hashes, place, dtype)

    def close(self) -> None:
        """Close the feeds; the next batch opens one again."""
        self._finished.close()
        self._plain.close()

    def _samples(
        self, plan: FeedPlan, generator: Any, indexes: Indexes, place: Place | None
    ) -> Callable[[int], Array]:
        """The batch's untransformed pictures by row, each in memory of its own."""
        if plan.x is not None:
            rows = plan.x
            return lambda row: rows[indexes[row]].astype(plan.dtype)
        read = self._read(plan, where_of(generator), indexes, place)
        return lambda row: read[row].copy()

    def _plain_batch(
        self, plan: FeedPlan, indexes: Indexes, place: Place | None, dtype: npt.DTypeLike
    ) -> Batch:
        """Pictures as they are. Keras draws nothing for these but the names of files, and a stream
        draws for each sample: so names are drawn here."""
        hashes = None
        if plan.hashes is not None:
            source: own_loop.Source = np.random
            if place is not None:
                source = state = np.random.RandomState()
                state.set_state(place.state())
            hashes = own_loop.draw_hashes(source, plan.hashes, len(indexes))
        return _batch(self._read(plan, None, indexes, place), hashes, place, dtype)

    def _read(self, plan: FeedPlan, where: Any, indexes: Indexes, place: Place | None) -> Array:
        """Untransformed pictures, read and resized by a server, ahead where it knows the order."""
        plain = replace(plan, hashes=None, dtype=plan.floatx)
        if place is None:
            place = Place(0, 0, 0)  # what is drawn has no effect: any state will do
        return self._plain.fetch(plain, None, where, indexes, place).x

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "The batches of this iterator are made in this program, sample by sample, which "
                f"is slow: {why}. Servers make them if what is special is done by a "
                "preprocessing_function",
                stacklevel=6,
            )


def _batch(x: Array, hashes: Indexes | None, place: Place | None, dtype: npt.DTypeLike) -> Batch:
    leased = place is not None and place.leased and x.dtype == dtype
    return Batch(x if leased else np.array(x, dtype), leased, hashes)


def _fetch(feed: Feed, indexes: Indexes, place: Place | None) -> Delivered:
    if place is None:
        delivered, state = feed.of(indexes, np.random.get_state())
        np.random.set_state(state)
        return delivered
    if place.origin is not None:
        seed, origin = int(place.seed), place.origin
        ahead = feed.in_order(seed, place.step, origin, sure=place.leased)
        if ahead is not None:
            return ahead
    delivered, _ = feed.of(indexes, place.state())
    return delivered
