"""Arrays over a slot whose lifetime holds the slot.

A slot is free again when the last view of it is gone: not earlier, or a training step reads a
batch that is being overwritten; not later, or the ring runs dry. numpy keeps an array's *base*
alive through every view, slice and reshape, and so do TensorFlow, JAX and PyTorch for tensors that
alias one. So the base of a batch's arrays is a small object, one for each lease, and what happens
when that object dies is the release.

The base must not be an ndarray: numpy shortens chains of ndarrays, and a finalizer on one in the
middle fires while views still live.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.messages import Release


class Wake:
    """A byte through a pipe: ends a poll in another thread, from anywhere, without a lock.

    Its descriptors close with the last reference, not before: a finalizer that comes late must
    not write into whatever file got the number next.
    """

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        weakref.finalize(self, _close, self.reader, self._writer).atexit = False
        self._rung = False

    def __call__(self) -> None:
        # A bell that was rung and not heard yet need not be rung again: whoever hears it looks at
        # everything that was there before.
        if self._rung:
            return
        self._rung = True
        try:
            os.write(self._writer, b"\0")
        except OSError:
            return  # full: whoever reads will wake anyway

    def clear(self) -> None:
        """Take all bytes out; then look at everything that a ringer may have changed."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.reader, 4096)) == 4096:
                pass
        # Only now: forgotten before the read, a ring in between would be read and remembered,
        # and every later one be swallowed.
        self._rung = False


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class Returns:
    """Where released slots of one ring gather until the link takes them to the server.

    Finalizers run in any thread, inside any allocation, perhaps while that thread holds the
    link's lock. So nothing here takes a lock: appending to a deque is atomic.
    """

    def __init__(self, wake: Wake, eager: int) -> None:
        self._wake = wake
        self._eager = eager
        self._owner = os.getpid()
        self._waiting: deque[Release] = deque()
        self._given = 0
        self._taken = 0
        self.hurry = False  #: somebody waits for a batch: every release counts

    @property
    def leased(self) -> int:
        """How many leases are alive."""
        return self._given - self._taken - len(self._waiting)

    @property
    def pending(self) -> int:
        """How many releases the server has not been told of."""
        return len(self._waiting)

    def give(self) -> None:
        """One lease more."""
        self._given += 1

    def end(self, release: Release) -> None:
        """The last view is gone (called by the finalizer)."""
        if os.getpid() != self._owner:
            return  # a forked child owns nothing
        self._waiting.append(release)
        if self.hurry or len(self._waiting) >= self._eager:
            self._wake()

    def drop(self, release: Release) -> None:
        """A slot that was never leased is not wanted."""
        self._given += 1
        self._waiting.append(release)

    def take(self) -> tuple[Release, ...]:
        """All releases to tell the server."""
        count = len(self._waiting)
        self._taken += count
        return tuple(self._waiting.popleft() for _ in range(count))


class Lease:
    """The base of a leased batch's arrays: numpy sees memory, Python sees a lifetime."""

    __slots__ = ("__array_interface__", "__weakref__", "_memory")

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self._memory = memory  # holds the mapping
        self.__array_interface__: dict[str, Any] = memory.__array_interface__


def lease(slot: npt.NDArray[np.uint8], release: Release, returns: Returns) -> npt.NDArray[np.uint8]:
    """The slot's bytes as an array whose last view, when it dies, releases the slot.

    Args:
        slot: The slot in the ring's mapping; read-only if that is.
    """
    base = Lease(slot)
    returns.give()
    weakref.finalize(base, returns.end, release).atexit = False
    return np.asarray(base)
