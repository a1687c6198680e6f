"""For TensorFlow: a `tf.data.Dataset` over a consumer's batches, without a copy.

Of the ways to call Python from tf.data, `numpy_function` in a `map` is the cheapest: about half of
what `from_generator` costs, and its tensors alias arrays that start at a multiple of 64 bytes, as
all of ours do. A batch's slot is free again when TensorFlow has dropped the last such tensor.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from augclient import interrupt
from augclient.consumer import Consumer
from augproto import checks
from augproto.errors import ConfigError
from augproto.ring import MAX_SLOTS
from augproto.spec import MAX_EPOCH
from augproto.structure import leaves, rebuild

#: Batches that TensorFlow fetches ahead of the one that it works on.
PREFETCH = 2
_KEPT = 64  # iterations of one dataset that may go on at the same time


def as_dataset(consumer: Consumer, *, epoch: int = 0, prefetch: int = PREFETCH) -> tf.data.Dataset:
    """A dataset whose every iteration is an epoch of the stream.

    The first one is `epoch`, and each gives way to the next when all its batches were fetched; an
    iteration that is broken off before that is begun again, with the same batches. (What is
    prefetched is fetched: one that is left at its last batches is over.) Its elements are what
    `AugSequence` gives: (x,), (x, y) or (x, y, sample_weight), each an array, a tuple or a dict,
    with rows for samples. Its cardinality is the number of batches in an epoch.

    A batch that does not come ends the iteration with a `tf.errors.OpError` whose message has the
    consumer's error and its name in it.

    Args:
        consumer: It stays the caller's to close, after the last iteration.
        epoch: The first one.
        prefetch: Batches that are fetched ahead, each of which holds a slot of the ring; 0 fetches
            a batch when it is asked for.

    Raises:
        ConfigError: An argument is not what it should be.
    """
    if not isinstance(consumer, Consumer):
        raise ConfigError(
            f"as_dataset: got {type(consumer).__name__}; wanted a Consumer, or "
            "AugSequence(...).as_tf_dataset()"
        )
    epoch = checks.whole("epoch", epoch, 0, MAX_EPOCH)
    return _Stream(consumer, epoch).dataset(checks.whole("prefetch", prefetch, 0, MAX_SLOTS))


class _Stream:
    """A consumer's batches by what TensorFlow asks for: an epoch, and then its steps."""

    def __init__(self, consumer: Consumer, epoch: int) -> None:
        self._consumer = consumer
        self._epoch = epoch
        self._lock = threading.Lock()
        self._iterations: dict[int, _Iteration] = {}
        self._numbers = itertools.count()
        roles = ("x", "y", "sample_weight")
        self._structure = tuple(
            consumer.structure[role] for role in roles if role in consumer.structure
        )
        self._names = [name for part in self._structure for name in leaves(part)]
        self._specs = {
            array.name: tf.TensorSpec((None, *array.shape), np.dtype(array.dtype))
            for array in consumer.arrays
        }

    def dataset(self, prefetch: int) -> tf.data.Dataset:
        interrupt.listen()  # the main thread will stand still in TensorFlow
        steps = self._consumer.steps
        dataset = tf.data.Dataset.range(1).flat_map(self._of_epoch)
        if prefetch:
            # Not more than an epoch has: a look at one batch would fetch all of it.
            dataset = dataset.prefetch(min(prefetch, max(steps - 2, 1)))
        # TensorFlow would put a prefetch of its own behind ours, of up to 32 batches.
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        dataset = dataset.with_options(options)
        return dataset.apply(tf.data.experimental.assert_cardinality(steps))

    def _of_epoch(self, _: Any) -> tf.data.Dataset:
        number = tf.numpy_function(self._begin, [], tf.int64)
        steps = tf.data.Dataset.range(self._consumer.steps)
        return steps.map(lambda step: self._element(number, step))

    def _element(self, number: Any, step: Any) -> Any:
        dtypes = [self._specs[name].dtype for name in self._names]
        tensors = tf.numpy_function(self._fetch, [number, step], dtypes)
        shaped = {
            name: tf.ensure_shape(tensor, self._specs[name].shape)
            for name, tensor in zip(self._names, tensors, strict=True)
        }
        return tuple(rebuild(part, shaped.__getitem__) for part in self._structure)

    def _begin(self) -> np.int64:
        """A new iteration; returns its number."""
        with self._lock:
            number = next(self._numbers)
            self._iterations[number] = _Iteration(self._epoch)
            # Nobody says when an iteration is broken off.
            self._iterations.pop(number - _KEPT, None)
            return np.int64(number)

    def _fetch(self, number: np.int64, step: np.int64) -> list[npt.NDArray[Any]]:
        iteration = self._iterations.get(int(number))
        if iteration is None:
            raise ConfigError(
                f"a tf.data.Dataset: got {_KEPT} iterations begun after one that still goes on; "
                "wanted fewer of one dataset at the same time"
            )
        if iteration.error is not None:
            # TensorFlow goes on fetching ahead while the iterator is taken down, and waits for it.
            raise RuntimeError(f"this iteration has ended with {iteration.error}")
        try:
            batch = self._consumer.get(iteration.epoch, int(step))
        except BaseException as error:
            iteration.error = repr(error)
            raise
        if step == self._consumer.steps - 1:
            with self._lock:
                self._epoch = max(self._epoch, iteration.epoch + 1)
        return [array for part in batch.as_tuple() for array in leaves(part)]


class _Iteration:
    """Which epoch an iteration goes through, and what has ended it early."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.error: str | None = None
