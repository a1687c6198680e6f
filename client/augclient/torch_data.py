"""For PyTorch: tensors over a consumer's batches, without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch.utils.data import IterableDataset, get_worker_info

from augclient.consumer import Batch, Consumer
from augproto import checks
from augproto.errors import ConfigError
from augproto.spec import MAX_EPOCH
from augproto.structure import Structure, rebuild

_IN_A_WORKER = (
    "TorchDataset in a worker of a DataLoader: got num_workers above 0; wanted DataLoader(dataset, "
    "batch_size=None, num_workers=0). The server's own processes make the batches, and what they "
    "write is in shared memory already"
)


class TorchDataset(IterableDataset[Any]):  # type: ignore[misc]  # mypy is not shown torch
    """Finished batches as tensors that lie in the ring, for a loop or a `DataLoader`.

    ::

        with Consumer(x, y, batch_size=64, writable=True) as consumer:
            loader = DataLoader(TorchDataset(consumer), batch_size=None, num_workers=0)
            for epoch in range(10):
                for x, y in loader:
                    ...

    Every iteration is an epoch of the stream; the next one follows when it was gone through, and
    one that is broken off is begun again, with the same batches. The tensors are writable, and a
    change stays in this batch. Its slot is free again when the last tensor over it is gone: keep
    what you need with `clone()`. What PyTorch has no dtype for stays an array.

    An element is a batch already: without batch_size=None a `DataLoader` takes each for a sample,
    copies it, and gives tensors of shape (1, batch_size, ...).

    Args:
        consumer: A writable one; it stays the caller's to close.
        epoch: The first one.

    Raises:
        ConfigError: That is no consumer, or no epoch; the consumer's memory is read-only, where
            PyTorch's operations in place would end the process; or the dataset is used by a worker
            of a DataLoader.
    """

    def __init__(self, consumer: Consumer, *, epoch: int = 0) -> None:
        if not isinstance(consumer, Consumer):
            raise ConfigError(
                f"TorchDataset: got {type(consumer).__name__}; wanted Consumer(x, y, ..., "
                "writable=True)"
            )
        if not consumer.writable:
            raise ConfigError(
                "TorchDataset: got a consumer of read-only memory; wanted Consumer(..., "
                "writable=True), since PyTorch knows no read-only tensors"
            )
        self._consumer = consumer
        self._epoch = checks.whole("epoch", epoch, 0, MAX_EPOCH)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._consumer.steps

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """One epoch: (x,), (x, y) or (x, y, sample_weight)."""
        if get_worker_info() is not None:
            raise ConfigError(_IN_A_WORKER)
        return self._batches(self._epoch)

    def _batches(self, epoch: int) -> Iterator[tuple[Any, ...]]:
        for step in range(self._consumer.steps):
            if step == self._consumer.steps - 1:
                self._epoch = max(self._epoch, epoch + 1)
            # No name for the batch: a suspended generator would keep it, and its slot.
            yield as_tensors(self._consumer.get(epoch, step))

    def __reduce__(self) -> NoReturn:
        raise ConfigError(_IN_A_WORKER)


def as_tensors(batch: Batch) -> tuple[Any, ...]:
    """PyTorch tensors over the same memory, as Keras takes them; Keras copies numpy arrays."""

    def tensor(array: Any) -> Any:
        try:
            return torch.from_numpy(array)
        except TypeError:
            return array  # PyTorch has no such dtype; its user decides what becomes of it

    def part(structure: Structure[Any] | None) -> Any:
        return None if structure is None else rebuild(structure, tensor)

    return Batch(
        batch.epoch, batch.step, part(batch.x), part(batch.y), part(batch.sample_weight)
    ).as_tuple()
