"""grain with two worker processes, and OpenCV in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peers.work import WORKERS, Array, Work, needs


@dataclass
class Batch:
    """Makes a whole batch for each element, in the worker."""

    work: Work
    made: dict[str, Any] = field(default_factory=dict)

    def __call__(self, step: int) -> Any:
        from peers.opencv import Augmented

        if not self.made:
            self.made["by"] = Augmented(self.work, int(step))
        x = np.empty(self.work.shape, np.float32)
        y = np.empty(self.work.batch_size, np.int64)
        self.made["by"].fill(x[None], y[None])
        return {"x": x, "y": y}


@contextlib.contextmanager
def grain_processes(work: Work) -> Iterator[Iterator[Array]]:
    """The pictures of batches from grain's processes, which pass them in shared memory."""
    needs("grain")
    needs("cv2")
    import sys

    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])
    made = (
        grain.MapDataset.range(work.samples // work.batch_size)
        .repeat()
        .map(Batch(work))
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        .mp_prefetch(grain.MultiprocessingOptions(num_workers=WORKERS, per_worker_buffer_size=4))
    )
    iterator = iter(made)
    try:
        yield (element["x"] for element in iterator)
    finally:
        closing = getattr(iterator, "close", None)
        if closing is not None:
            closing()
