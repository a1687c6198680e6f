"""Keras's `Iterator`: batches by `next`, by index and under `fit`, in either of two orders."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, TypeVar

import keras
import numpy as np

from augclient import interrupt
from augclient.image import saving
from augclient.image.plan import FeedPlan, Indexes
from augclient.image.stream import Stream, step_on
from augclient.image.supply import Supply

_Method = TypeVar("_Method", bound=Callable[..., Any])
#: Whoever overrides one of these counts on np.random being as Keras has it.
_HOOKS = ("_get_batches_of_transformed_samples", "_set_index_array", "_flow_index")


def own(method: _Method) -> _Method:
    """Mark a method as this package's, to be told from one that overrides it."""
    method.__dict__["augserver_own"] = True
    return method


class Iterator(keras.utils.PyDataset):  # type: ignore[misc] # keras carries no types
    """Base class of the iterators over pictures, with the names and the meaning of Keras's
    (keras 3.15, keras/src/legacy/preprocessing/image.py: `Iterator`).

    A class of your own that implements `_get_batches_of_transformed_samples` works as with Keras,
    on np.random. For the iterators of this package, `ImageDataGenerator(order=...)` says which
    batch `next(it)`, `it[i]` and `fit` give:

    - "stream": the k-th batch taken is the one that Keras's k-th `next` gives with the same seed.
      np.random is not touched, and batches are made ahead. Under `fit`, where Keras's class
      depends on the order in which it is asked, the k-th batch of a pass is the k-th `next` after
      a `reset`; what Keras only looks at is not counted.
    - "keras": np.random is seeded and drawn from as Keras does it, call for call. No batch can be
      made ahead.

    Args:
        n: Samples in the dataset.
        batch_size: Samples in a batch.
        shuffle: Whether every epoch has an order of its own.
        seed: An int, or None: drawn from np.random at the first batch.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of Keras's PyDataset.

    Attributes:
        batch_index: The step of the next batch by `next`; 0 begins a new order.
        total_batches_seen: How many batches were taken.
        index_array: int64 (n,): the order of the epoch; None before the first batch.
        index_generator: Gives the index arrays of `next`.
        lock: Held while `next` takes an index array.
    """

    white_list_formats = ("png", "jpg", "jpeg", "bmp", "ppm", "tif", "tiff")
    # Of the iterators that derive from this.
    image_data_generator: Any = None
    save_to_dir: Any = None
    save_prefix: Any = ""
    save_format: Any = "png"
    data_format: Any = None
    dtype: Any = None

    def __init__(self, n: int, batch_size: int, shuffle: bool, seed: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self._is_served:
            for name, default in (("workers", 1), ("use_multiprocessing", False)):
                if kwargs.get(name, default) != default:
                    _warn_ignored(name, kwargs[name])
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.batch_index = 0
        self.total_batches_seen = 0
        self.lock = threading.Lock()
        self.index_array: Any = None
        self.index_generator = self._flow_index()
        self._stream = Stream()
        self._supply = Supply()

    def __len__(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return int((self.n + self.batch_size - 1) // self.batch_size)

    def __getitem__(self, idx: int) -> Any:
        """A batch by index: x, (x, y) or (x, y, sample_weight).

        Where Keras asks within a pass of `fit`, `evaluate` or `predict`, pictures are views of
        shared memory; otherwise they are the caller's own.

        Raises:
            ValueError: There are not so many batches.
        """
        if idx >= len(self):
            raise ValueError(
                f"Asked to retrieve element {idx}, but the Sequence has length {len(self)}"
            )
        if self._in_keras_order:
            self._seed_np_random()
            self.total_batches_seen += 1
            if self.index_array is None:
                self._set_index_array()
            rows = self.index_array[self.batch_size * idx : self.batch_size * (idx + 1)]
        else:
            rows = self._stream.direct(self, idx)
            if rows is None:
                rows = self._stream.of_pass(self, idx)
        return self._get_batches_of_transformed_samples(rows)

    def __iter__(self) -> Iterator:
        """Itself: `next` never ends."""
        return self

    def __next__(self) -> Any:
        """The next batch, in arrays of the caller's own."""
        with self.lock:
            rows = next(self.index_generator)
        # Outside the lock, so that several threads get their batches at once.
        return self._get_batches_of_transformed_samples(rows)

    def next(self) -> Any:
        """The next batch, as Keras 2 spelled it."""
        return self.__next__()

    def reset(self) -> None:
        """The next `next` begins an epoch."""
        self.batch_index = 0

    def on_epoch_begin(self) -> None:
        """Called by Keras."""
        self._stream.epoch_begins()

    def on_epoch_end(self) -> None:
        """Draw an order for the batches that are asked for by index from now on."""
        self._set_index_array()
        self._stream.epoch_ends()

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; Keras reads it before a pass."""
        if not self._in_keras_order:
            interrupt.listen()
            self._stream.num_batches_read(self)
        return len(self)

    def close(self) -> None:
        """Let go of the server's stream; the next batch opens it again."""
        self._supply.close()

    def _get_batches_of_transformed_samples(self, index_array: Indexes) -> Any:
        """A batch of these samples; to be implemented.

        Args:
            index_array: int64 (n,).
        """
        raise NotImplementedError

    @own
    def _set_index_array(self) -> None:
        """Draw an epoch's order."""
        if not self._in_keras_order:
            self._stream.draw(self)
        else:
            self.index_array = np.random.permutation(self.n) if self.shuffle else np.arange(self.n)

    @own
    def _flow_index(self) -> Generator[Indexes, None, None]:
        """Index arrays, one after the other, without end."""
        return _flow(weakref.ref(self))

    def _next_rows(self) -> Indexes:
        if not self._in_keras_order:
            return self._stream.next(self)
        self._seed_np_random()
        if self.batch_index == 0:
            self._set_index_array()
        self.total_batches_seen += 1
        return step_on(self)

    def _seed_np_random(self) -> None:
        if self.seed is not None:
            np.random.seed(self.seed + self.total_batches_seen)

    @property
    def _is_served(self) -> bool:
        """Whether nobody has overridden what batches are made of."""
        return all(hasattr(getattr(self, name), "augserver_own") for name in _HOOKS)

    @property
    def _in_keras_order(self) -> bool:
        order = getattr(self.image_data_generator, "order", "stream")
        return order == "keras" or not self._is_served

    def _plan(self) -> FeedPlan:
        """The pictures, as the iterator's attributes are now."""
        raise NotImplementedError

    def _pictures(self, index_array: Indexes, shape: tuple[int, ...]) -> tuple[Any, bool]:
        """Finished pictures of these samples, and whether they are leased.

        Args:
            shape: Of a picture.
        """
        plan, place = self._plan(), self._stream.place(index_array)
        if place is not None and self.n != plan.samples:  # the user's own
            place = replace(place, origin=None)
        if place is not None and not self._is_served:  # an override may write into it
            place = replace(place, leased=False)
        batch = self._supply.batch(
            plan, self.image_data_generator, index_array, place, shape=shape, dtype=self.dtype
        )
        if batch.hashes is not None and (place is None or place.saved):
            saving.save(
                batch.x,
                index_array,
                batch.hashes,
                folder=self.save_to_dir,
                prefix=self.save_prefix,
                file_format=self.save_format,
                data_format=self.data_format,
            )
        if batch.leased and keras.backend.backend() == "torch":
            return _tensor(batch.x), True
        return batch.x, batch.leased

    # Keras reads these two. What a server makes, Keras's own workers would only pickle; an
    # override's batches are made in this process, and they may help.

    @property
    def workers(self) -> int:
        """Of Keras: 1, unless a method of the user's own makes the batches."""
        return 1 if self._is_served else int(super().workers)

    @workers.setter
    def workers(self, value: int) -> None:
        if value != 1 and self._is_served:
            _warn_ignored("workers", value)
        self._workers = value

    @property
    def use_multiprocessing(self) -> bool:
        """Of Keras: False, unless a method of the user's own makes the batches."""
        return not self._is_served and bool(super().use_multiprocessing)

    @use_multiprocessing.setter
    def use_multiprocessing(self, value: bool) -> None:
        if value and self._is_served:
            _warn_ignored("use_multiprocessing", value)
        self._use_multiprocessing = value


def _flow(iterator: weakref.ref[Iterator]) -> Generator[Indexes, None, None]:
    # An iterator has its generator. If that had the iterator, too, a forgotten one would keep its
    # stream's memory until Python looks for cycles.
    _alive(iterator).reset()
    while True:
        yield _alive(iterator)._next_rows()


def _alive(iterator: weakref.ref[Iterator]) -> Iterator:
    alive = iterator()
    if alive is None:
        raise ReferenceError("the iterator of this index_generator is gone; keep it as well")
    return alive


def _warn_ignored(name: str, value: object) -> None:
    warnings.warn(
        f"{name}={value!r} is ignored: a server's worker processes make the batches (their number "
        "is ImageDataGenerator(workers=...)), and Keras's own would only pickle them",
        stacklevel=3,
    )


def _tensor(array: Any) -> Any:
    """A PyTorch tensor over the same memory, which Keras does not copy as it copies arrays."""
    import torch

    # Of a read-only array it would be one that an operation in place kills the program with.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
