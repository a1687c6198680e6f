"""For Keras: `model.fit(AugSequence(...))` on TensorFlow, JAX and PyTorch, without a copy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Unpack

import keras

from augclient import interrupt
from augclient.access import AUTO
from augclient.consumer import TIMEOUT, Consumer
from augclient.passes import Passes
from augclient.request import Paths, SpecOptions


class AugSequence(keras.utils.PyDataset):  # type: ignore[misc] # keras carries no types
    """Augmented batches for `fit`, `evaluate` and `predict`.

    The arguments are those of `augclient.Consumer`, which documents them.

    Example:

    ```python
    train = AugSequence(x, y, batch_size=64, seed=1,
                        transforms=dict(rotation_range=15, horizontal_flip=True, rescale=1 / 255))
    model.fit(train, epochs=10)
    ```

    Notes:

    - What Keras gets are views of shared memory: a tensor that you keep keeps its slot. On PyTorch
      they are tensors already, and writable; on TensorFlow and JAX they are read-only arrays.
    - `workers` is the number of the server's processes, not of Keras's: Keras's own workers and
      its multiprocessing would pickle what is in shared memory already, and are ignored.
    - A new pass over the sequence is a new epoch of the stream, with new draws, if the pass before
      it was finished. With shuffle=False, index and step are the same thing.
    """

    def __init__(
        self,
        x: object = None,
        y: object = None,
        sample_weight: object = None,
        *,
        data: Paths | None = None,
        files: Iterable[str | os.PathLike[str]] | None = None,
        stream: str | None = None,
        dataset: str | None = None,
        address: str | None = None,
        workers: int | None = None,
        slots: int | None = None,
        timeout: float = TIMEOUT,
        use_multiprocessing: bool = False,
        max_queue_size: int | None = None,
        memory: str = AUTO,
        key: str | os.PathLike[str] | None = None,
        server_key: str | os.PathLike[str] | None = None,
        **options: Unpack[SpecOptions],
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        if use_multiprocessing:
            _warn_ignored("use_multiprocessing", use_multiprocessing)
        if max_queue_size is not None:
            _warn_ignored("max_queue_size", max_queue_size)
        self._torch = keras.backend.backend() == "torch"
        self.consumer = Consumer(
            x,
            y,
            sample_weight,
            data=data,
            files=files,
            stream=stream,
            dataset=dataset,
            address=address,
            workers=workers,
            slots=slots,
            timeout=timeout,
            writable=self._torch,
            memory=memory,
            key=key,
            server_key=server_key,
            **options,
        )
        self._passes = Passes(self.consumer.steps, shuffled=self.consumer.shuffle)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.consumer.steps

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; Keras reads it before a pass (see passes.py), in the main thread."""
        interrupt.listen()
        self._passes.num_batches_read()
        return self.consumer.steps

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """The batch that Keras means by this index: (x,), (x, y) or (x, y, sample_weight)."""
        if not 0 <= index < self.consumer.steps:
            raise IndexError(f"batch {index}: wanted 0 to {self.consumer.steps - 1}")
        batch = self.consumer.get(*self._passes.get(index))
        if self._torch:
            from augclient.torch_data import as_tensors  # imports PyTorch

            return as_tensors(batch)
        return batch.as_tuple()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """One epoch, for a loop of your own: `for x, y in sequence`."""
        self.on_epoch_end()
        self.on_epoch_begin()
        for index in range(self.num_batches):
            yield self[index]

    def as_tf_dataset(self, *, epoch: int = 0, prefetch: int | None = None) -> Any:
        """The same stream as a `tf.data.Dataset`: on TensorFlow `fit` spends less on each batch.

        Keras calls a sequence through a generator of its own; a dataset is called by TensorFlow.
        For small batches that is what a step costs. Every iteration is an epoch of its own count,
        from `epoch` on; for the rest see `augclient.tf_data.as_dataset`. Do not take batches from
        the sequence itself meanwhile: the ring serves one order at a time without waste.

        Args:
            epoch: The first one.
            prefetch: Batches that TensorFlow fetches ahead, each of which holds a slot.

        Returns:
            Elements are (x,), (x, y) or (x, y, sample_weight); cardinality is `len(self)`.
        """
        from augclient import tf_data

        ahead = tf_data.PREFETCH if prefetch is None else prefetch
        return tf_data.as_dataset(self.consumer, epoch=epoch, prefetch=ahead)

    def on_epoch_begin(self) -> None:
        """Called by Keras."""
        self._passes.epoch_begins()

    def on_epoch_end(self) -> None:
        """Called by Keras."""
        self._passes.epoch_ends()

    def close(self) -> None:
        """Let go of the stream; batches that are still alive stay readable."""
        self.consumer.close()

    # Keras reads these three; the server's processes have made them superfluous and, since views
    # of shared memory would be pickled, harmful (research on Keras 3.15: repeated batches, leaks).

    @property
    def workers(self) -> int:
        """Of Keras: always 1, in this process."""
        return 1

    @workers.setter
    def workers(self, value: int) -> None:
        if value != 1:
            _warn_ignored("workers", value)

    @property
    def use_multiprocessing(self) -> bool:
        """Of Keras: never."""
        return False

    @use_multiprocessing.setter
    def use_multiprocessing(self, value: bool) -> None:
        if value:
            _warn_ignored("use_multiprocessing", value)


def _warn_ignored(name: str, value: object) -> None:
    warnings.warn(
        f"{name}={value!r} is ignored: the server's worker processes make the batches (their "
        "number is AugSequence(workers=...)), and Keras's own would only pickle them",
        stacklevel=3,
    )
