"""torch's DataLoader with two worker processes, and OpenCV in them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from peers.work import WORKERS, Array, Work, needs

TIMEOUT = 60.0


@dataclass
class Whole:
    """A map-style dataset whose items are whole batches: one call for each, not for a sample."""

    work: Work
    made: Any = None

    def __len__(self) -> int:
        return self.work.samples // self.work.batch_size

    def __getitem__(self, step: int) -> Any:
        import torch

        from peers.opencv import Augmented

        if self.made is None:  # in the worker
            seed = torch.initial_seed() % 2**31
            self.made = Augmented(self.work, seed)
        # Filled in the memory that torch passes on, as its own collation does: no copy.
        memory: Any = torch.UntypedStorage
        storage = memory._new_shared(4 * math.prod(self.work.shape))
        x = torch.empty(0, dtype=torch.float32).set_(storage).view(self.work.shape)
        y = torch.empty(self.work.batch_size, dtype=torch.int64)
        self.made.fill(x.numpy()[None], y.numpy()[None])
        return x, y


@contextlib.contextmanager
def data_loader(work: Work) -> Iterator[Iterator[Array]]:
    """The pictures of batches that the loader's processes have made whole."""
    needs("torch", "pip install torch==2.13.0")
    needs("cv2")
    from torch.utils.data import DataLoader

    whole: Any = Whole(work)  # anything with a length and items is a dataset
    loader: Any = DataLoader(
        whole,
        batch_size=None,
        num_workers=WORKERS,
        prefetch_factor=4 if work.x is not None else 2,
        persistent_workers=True,
        multiprocessing_context="forkserver",
        timeout=TIMEOUT,
    )

    def batches() -> Generator[Array]:
        while True:
            for x, _ in loader:
                yield np.asarray(x)

    endless = batches()
    try:
        yield endless
    finally:
        endless.close()
        running = loader._iterator
        if running is not None:
            running._shutdown_workers()
