"""What a good engineer writes in an afternoon: two processes, OpenCV, shared memory by hand.

Each process has a ring of its own and fills it in order; two semaphores say what is full and what
is free again, once for several batches where batches are small. There is no recovery, no order
that does not depend on the number of processes, and no reference that keeps a batch alive: it is
valid until the next is asked for. That is what makes this loop the one to beat.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from peers.work import WORKERS, Array, Work, needs

#: What one signal stands for, at most: samples, and bytes (one batch, where that is more).
CHUNK, CHUNK_BYTES = 512, 8 << 20
#: How many such chunks a ring has.
CHUNKS = 4
#: Seconds after which nobody waits any longer.
TIMEOUT = 60


@dataclass(frozen=True)
class _Ring:
    """A ring in shared memory: chunks of batches, and their labels behind them."""

    name: str
    chunks: int
    batches: int  # in a chunk
    shape: tuple[int, ...]  # of a batch

    @classmethod
    def shaped(cls, work: Work) -> tuple[_Ring, int]:
        """A ring for a work, without a name yet, and its bytes."""
        batch = int(np.prod(work.shape)) * 4
        batches = max(1, min(CHUNK // work.batch_size, CHUNK_BYTES // batch))
        return cls("", CHUNKS, batches, work.shape), CHUNKS * batches * (
            batch + work.batch_size * 8
        )

    def arrays(self, memory: SharedMemory) -> tuple[Array, Array]:
        """Pictures (chunks, batches, samples, ...) and labels (chunks, batches, samples)."""
        shape = (self.chunks, self.batches, *self.shape)
        x: Array = np.ndarray(shape, np.float32, memory.buf)
        y: Array = np.ndarray(shape[:3], np.int64, memory.buf, offset=x.nbytes)
        return x, y


class _Source:
    """A work's pictures in shared memory: what is pickled for a process that dies at its start
    is never read, and the start never returns."""

    def __init__(self, work: Work) -> None:
        self.memory: SharedMemory | None = None
        self.work, self._shape = work, ()
        if work.x is not None:
            self.memory = SharedMemory(create=True, size=work.x.nbytes)
            self._shape = work.x.shape
            np.copyto(np.ndarray(self._shape, np.uint8, self.memory.buf), work.x)
            self.work = replace(work, x=None)

    def attached(self) -> Work:
        """The work as it was."""
        if self.memory is None:
            return self.work
        return replace(self.work, x=np.ndarray(self._shape, np.uint8, self.memory.buf))


def _fill(ring: _Ring, source: _Source, share: int, free: Any, full: Any, parent: int) -> None:
    """A worker process."""
    from peers.opencv import Augmented

    memory = SharedMemory(ring.name)
    x, y = ring.arrays(memory)
    augmented = Augmented(source.attached(), 1, share, WORKERS)
    chunk = 0
    while os.getppid() == parent:
        if free.acquire(timeout=1.0):
            augmented.fill(x[chunk], y[chunk])
            full.release()
            chunk = (chunk + 1) % ring.chunks


class ByHand:
    """Two processes that fill rings, and the loop over them."""

    def __init__(self, work: Work) -> None:
        needs("cv2")
        start = multiprocessing.get_context("spawn")
        self.processes: list[Any] = []
        self._rings: list[tuple[_Ring, SharedMemory, Any, Any]] = []
        self._source = _Source(work)
        try:
            for share in range(WORKERS):
                shaped, size = _Ring.shaped(work)
                memory = SharedMemory(create=True, size=size)
                ring = _Ring(memory.name, shaped.chunks, shaped.batches, shaped.shape)
                free, full = start.Semaphore(ring.chunks), start.Semaphore(0)
                self._rings.append((ring, memory, free, full))
                process = start.Process(
                    target=_fill,
                    args=(ring, self._source, share, free, full, os.getpid()),
                    daemon=True,
                )
                process.start()
                self.processes.append(process)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The worker processes."""
        return [process.pid for process in self.processes]

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """(x, y), for ever; each is valid until the next."""
        rings = [(ring.arrays(memory), free, full) for ring, memory, free, full in self._rings]
        chunks = self._rings[0][0].chunks
        chunk = 0
        while True:
            for (x, y), free, full in rings:
                self._wait(full)
                yield from zip(x[chunk], y[chunk], strict=True)
                free.release()
            chunk = (chunk + 1) % chunks

    def _wait(self, full: Any) -> None:
        for _ in range(TIMEOUT):
            if full.acquire(timeout=1.0):
                return
            if any(process.exitcode is not None for process in self.processes):
                raise RuntimeError("a process of the loop by hand has ended")
        raise TimeoutError(f"no batch by hand for {TIMEOUT} s")

    def close(self) -> None:
        """End the processes and the rings."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(TIMEOUT)
        memories = [memory for _, memory, _, _ in self._rings]
        for memory in [*memories, *filter(None, [self._source.memory])]:
            memory.unlink()
            with contextlib.suppress(BufferError):  # somebody still looks at a batch
                memory.close()


@contextlib.contextmanager
def by_hand(work: Work) -> Iterator[Iterator[Array]]:
    """The loop's pictures."""
    loop = ByHand(work)
    try:
        yield (x for x, _ in loop)
    finally:
        loop.close()
