"""A ring as its consumer sees it: slots become batches, and there is always one slot left.

*One slot always circulates.* A consumer that keeps every batch, or a framework that does so for a
while, would stop its own stream for ever; so when a lease would take the last slot, dead views are
collected first, and if none was dead the batch is handed out as a private copy.

Where the consumer maps the server's memory that is a `Shared` attachment. Where it cannot, the
slots' bytes come by message, and `frames` has what is different then.
"""

from __future__ import annotations

import abc
import contextlib
import gc
import logging
import sys
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from augclient.demand import Key
from augclient.lease import Hold, Returns, prepare, struct_of
from augclient.span import Span
from augproto.errors import RemoteProtocolError, ServerLost
from augproto.layout import MAX_SPAN, Layout, aligned_empty
from augproto.messages import Entry, Opened, Release
from augproto.ring import MAX_SLOTS, MIN_SLOTS, Ring, mismatch
from augproto.segment import Holder, attach
from augproto.structure import leaves, names_from_wire

#: A full garbage collection takes longer than the copy it saves: it gets this share of the time.
COLLECTION_SHARE = 0.05

_log = logging.getLogger("augclient.link")


class Attachment(abc.ABC):
    """The ring of one opening: its slots, its leases, and the proof that this process lives.

    Attributes:
        opened: What the server said of the stream.
        kind: What the slots' bytes come by, in a word: "shared" or "frames".
        returns: Where releases gather.
        eager: So many of them are worth a message.
        copies: Batches handed out as private copies because the ring ran dry.
        warned: Whether it was said that there are any.
    """

    kind: str

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        _check(opened)
        arrays = [(a.name, a.dtype, a.shape) for a in opened.arrays]
        self._layout = Layout.of(opened.batch_size * opened.span, arrays)
        self._collect_from = 0.0
        self.eager = max(1, opened.slots // 4)
        self._most = opened.slots - 1  # one always circulates
        self.returns = Returns()
        self.copies = 0
        self.warned = False

    @abc.abstractmethod
    def _carries(self, entry: Entry) -> bool:
        """Whether the slot holds what was announced, whole."""

    @abc.abstractmethod
    def _slot(self, slot: int) -> npt.NDArray[np.uint8]:
        """The slot's bytes, as far as they are there."""

    @abc.abstractmethod
    def _struct(self, slot: int) -> object:
        """The same as `struct_of` has it."""

    @abc.abstractmethod
    def _spare(self, slot: int) -> npt.NDArray[np.uint8] | None:
        """Bytes that stay when the slot is given back; None if a lease on it may be had after
        all."""

    @abc.abstractmethod
    def given_back(self, released: tuple[Release, ...]) -> None:
        """The server is told of these releases."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give up the proof of life; arrays that are still alive stay readable."""

    def check_follower(self, opened: Opened, address: str) -> None:
        """A stream is a pure function, so it goes on where it was, if it is the same stream."""
        if self.opened.fingerprint != opened.fingerprint:
            raise ServerLost(
                f"the server at {address} came back with another dataset "
                f"({opened.fingerprint:.16} instead of {self.opened.fingerprint:.16})"
            )

    @property
    def dry(self) -> bool:
        """Whether all slots but one are leased."""
        return self.returns.leased >= self._most

    def take(self, ready: dict[Key, Entry], key: Key) -> Span | None:
        """What is in a slot if it is ready: a lease on it, or a copy.

        The entry leaves `ready` and its slot changes hands in neighbouring statements without a
        call between, so that no signal finds it in both places, or in none.

        Raises:
            SlotError: The slot does not carry what was announced; it is given back.
        """
        entry = ready.get(key)
        if entry is None:
            return None
        returns, layout = self.returns, self._layout
        release = Release(entry.slot, entry.sequence)
        if not self._carries(entry):
            self._refuse(ready, entry)
        spare = self._spare(entry.slot) if returns.leased >= self._most else None
        if spare is not None:
            span = Span(self.opened, layout, entry, spare, leased=False)
            del ready[key]
            returns.dropped.append(release)
            return span
        hold: Hold | None = None  # set first, forgotten first; see `prepare`
        view, hold = prepare(self._struct(entry.slot), release, returns)
        span = Span(self.opened, layout, entry, view, leased=True)
        returns.held[release] = hold
        del ready[key]
        return span

    def _refuse(self, ready: dict[Key, Entry], entry: Entry) -> None:
        """Say what a slot carries instead of what was announced."""
        error = mismatch(self._slot(entry.slot), self.opened.stream, entry)
        del ready[entry[:2]]
        self.returns.dropped.append(Release(entry.slot, entry.sequence))
        raise error

    def collect(self) -> None:
        """If the ring is dry, make dead views release: frameworks keep some for later.

        jaxlib drops references at its next call or collection, PyTorch's may sit in cycles. Both
        were measured: without this, rings of two to four slots run dry for ever.

        Both ask for their batches in the main thread. TensorFlow asks in threads of its own,
        keeps nothing for later (measured), and a thread of its pool is no place to run the
        destructors of whatever the program has left lying about.
        """
        if not self.dry:
            return
        jaxlib = sys.modules.get("jaxlib._jax")
        with contextlib.suppress(AttributeError):
            if jaxlib is not None:
                jaxlib.collect_garbage()
        started = time.monotonic()
        main = threading.current_thread() is threading.main_thread()
        if self.dry and main and started >= self._collect_from:
            gc.collect()
            took = time.monotonic() - started
            self._collect_from = started + took / COLLECTION_SHARE


class Shared(Attachment):
    """A ring in memory that this process maps.

    Args:
        opened: What the server said of the stream.
        folder: Where its segments are found.
        writable: Map it read-write.

    Raises:
        ServerLost: The segment is gone.
        OSError: It cannot be mapped from here.
    """

    kind = "shared"

    def __init__(self, opened: Opened, folder: Path, *, writable: bool) -> None:
        super().__init__(opened)
        memory = attach(opened.segment, folder, writable=writable)
        self._ring = Ring(memory, self._layout, opened.slots)
        self._structs = [struct_of(self._ring.slot(slot)) for slot in range(opened.slots)]
        self._holder = Holder(opened.segment, folder)

    def _carries(self, entry: Entry) -> bool:
        return self._ring.carries(entry.slot, self.opened.stream, entry)

    def _slot(self, slot: int) -> npt.NDArray[np.uint8]:
        return self._ring.slot(slot)

    def _struct(self, slot: int) -> object:
        return self._structs[slot]

    def _spare(self, slot: int) -> npt.NDArray[np.uint8] | None:
        self.collect()
        if not self.dry:
            return None
        memory = self._ring.slot(slot)
        copy = aligned_empty(memory.nbytes)
        copy[...] = memory
        self._warn_of_copies()
        return copy

    def _warn_of_copies(self) -> None:
        if not self.warned:
            _log.warning(
                "all %d slots of the ring but one are in use, so batches are copied out from here "
                "on; unless you keep batches on purpose, ask for more slots (slots=)",
                self.opened.slots,
            )
        self.warned = True

    def given_back(self, released: tuple[Release, ...]) -> None:
        """Nothing else is to be done."""

    def close(self) -> None:
        """See `Attachment`."""
        self._holder.close()


def _check(opened: Opened) -> None:
    """Refuse what no server of ours says, before anything is made of it."""
    if not MIN_SLOTS <= opened.slots <= MAX_SLOTS or opened.steps < 1:
        raise RemoteProtocolError(
            f"Opened: got {opened.slots} slots and {opened.steps} steps; wanted {MIN_SLOTS} to "
            f"{MAX_SLOTS} slots and at least one step"
        )
    if not 1 <= opened.span <= MAX_SPAN:
        raise RemoteProtocolError(
            f"Opened: got {opened.span} batches in a slot; wanted 1 to {MAX_SPAN}, as was asked for"
        )
    known = {array.name for array in opened.arrays}
    roles = {role: names_from_wire(names, role) for role, names in opened.structure.items()}
    for role, names in roles.items():
        for name in leaves(names):
            if name not in known:
                raise RemoteProtocolError(f"Opened.structure: {role} names no array: {name!r:.80}")
    if "x" not in roles:
        raise RemoteProtocolError("Opened.structure: x is missing")
