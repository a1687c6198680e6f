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
import select
import weakref
from collections import deque

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

    def wait(self, seconds: float) -> None:
        """Until it is rung, but not for longer."""
        poller = select.poll()
        poller.register(self.reader, select.POLLIN)
        poller.poll(seconds * 1000)

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


class Hold(weakref.ref["Lease"]):
    """What is left of a lease when its last view is gone: the slot to release."""

    __slots__ = ("release",)
    release: Release


class Returns:
    """Where released slots of one ring gather until the link takes them to the server.

    Leases end in any thread, inside any allocation, perhaps while that thread holds the link's
    lock. So nothing here takes a lock: appending to a deque is atomic.

    Nor may a signal get in between. Ctrl-C is raised wherever Python calls or enters a function,
    and what is raised in a finalizer is printed and lost, with whatever the finalizer had yet to
    do. So the end of a lease runs no Python at all (a deque's own `append` is the weak reference's
    callback: measured, a finalizer that woke the link swallowed one Ctrl-C in five), and what is
    given or dropped is written down in statements without a call between them.

    Attributes:
        held: Leases that were given and not taken back; a lease counts from its entry here on.
        dropped: Slots that nobody has leased and nobody wants.
        hurry: Somebody waits for a batch: every release counts.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._ended: deque[Hold] = deque()
        self.held: dict[Release, Hold] = {}
        self.dropped: deque[Release] = deque()
        self.hurry = False

    @property
    def leased(self) -> int:
        """How many leases are alive."""
        return len(self.held) - len(self._ended)

    @property
    def pending(self) -> int:
        """How many releases the server has not been told of; a forked child owes none."""
        return len(self._ended) + len(self.dropped) if os.getpid() == self._owner else 0

    def hold(self, base: Lease, release: Release) -> Hold:
        """The lease's end will be noted, if this is in `held` by then."""
        hold = Hold(base, self._ended.append)
        hold.release = release
        return hold

    def drop(self, release: Release) -> None:
        """A slot that was never leased is not wanted."""
        self.dropped.append(release)

    def take(self) -> tuple[Release, ...]:
        """All releases to tell the server; called by the link's thread alone."""
        taken = [self.dropped.popleft() for _ in range(len(self.dropped))]
        for _ in range(len(self._ended)):
            release = self._ended.popleft().release
            if self.held.pop(release, None) is not None:  # or nobody had it yet
                taken.append(release)
        return tuple(taken)


class Lease:
    """The base of a leased batch's arrays: numpy sees memory, Python sees a lifetime."""

    __slots__ = ("__array_struct__", "__weakref__")

    def __init__(self, struct: object) -> None:
        self.__array_struct__ = struct


def struct_of(slot: npt.NDArray[np.uint8]) -> object:
    """What numpy makes an array of: a capsule that describes the slot and holds its mapping.

    It is made once for each slot and not for each lease: it is the lease that is new each time.
    """
    return slot.__array_struct__


def prepare(
    struct: object, release: Release, returns: Returns
) -> tuple[npt.NDArray[np.uint8], Hold]:
    """The slot's bytes as an array, and the hold that makes a lease of it (see `Returns.held`).

    Where Ctrl-C comes before the hold is held, a hold that is forgotten before its lease does not
    see the end of what nobody had. A tuple forgets its last element first, and a function the
    variables that were set first: so it is in this order here, and in the other one below.

    Args:
        struct: Of the slot (see `struct_of`).
    """
    hold: Hold | None = None
    base = Lease(struct)
    view = np.asarray(base)
    hold = returns.hold(base, release)
    return view, hold


def lease(slot: npt.NDArray[np.uint8], release: Release, returns: Returns) -> npt.NDArray[np.uint8]:
    """The slot's bytes as an array whose last view, when it dies, releases the slot.

    Args:
        slot: The slot in the ring's mapping; read-only if that is.
    """
    view, hold = prepare(struct_of(slot), release, returns)
    returns.held[release] = hold
    return view
