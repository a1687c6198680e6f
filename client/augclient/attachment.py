"""A ring as its consumer sees it: slots become batches, and there is always one slot left.

*One slot always circulates.* A consumer that keeps every batch, or a framework that does so for a
while, would stop its own stream for ever; so when a lease would take the last slot, dead views are
collected first, and if none was dead the batch is handed out as a private copy.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy.typing as npt

from augclient.demand import Key
from augclient.lease import Returns, prepare
from augproto.errors import RemoteProtocolError, ServerLost, SlotError
from augproto.layout import Layout, aligned_empty
from augproto.messages import Entry, Opened, Release
from augproto.ring import MAX_SLOTS, MIN_SLOTS, Header, Ring
from augproto.segment import Holder, attach
from augproto.structure import leaves, names_from_wire

#: A full garbage collection takes longer than the copy it saves: it gets this share of the time.
COLLECTION_SHARE = 0.05

_log = logging.getLogger("augclient.link")


class Attachment:
    """The ring of one opening: its mapping, its leases, and the proof that this process lives.

    Attributes:
        opened: What the server said of the stream.
        returns: Where releases gather.
        eager: So many of them are worth a message.
        copies: Batches handed out as private copies because the ring ran dry.
    """

    def __init__(self, opened: Opened, folder: Path, *, writable: bool) -> None:
        self.opened = opened
        _check(opened)
        arrays = [(a.name, a.dtype, a.shape) for a in opened.arrays]
        layout = Layout.of(opened.batch_size, arrays)
        memory = attach(opened.segment, folder, writable=writable)
        self._ring = Ring(memory, layout, opened.slots)
        self._holder = Holder(opened.segment, folder)
        self._collect_from = 0.0
        self.eager = max(1, opened.slots // 4)
        self.returns = Returns()
        self.copies = 0

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
        return self.returns.leased >= self.opened.slots - 1

    def take(self, ready: dict[Key, Entry], key: Key) -> dict[str, npt.NDArray[Any]] | None:
        """The arrays of a batch if it is ready: a lease on its slot, or a copy of it.

        The batch leaves `ready` and its slot changes hands in neighbouring statements without a
        call between, so that no signal finds it in both places, or in none.

        Raises:
            SlotError: The slot does not carry what was announced; it is given back.
        """
        entry = ready.get(key)
        if entry is None:
            return None
        returns, layout = self.returns, self._ring.layout
        header = Header(self.opened.stream, entry.epoch, entry.step, entry.sequence, entry.samples)
        release = Release(entry.slot, entry.sequence)
        try:
            self._ring.check(entry.slot, header)
        except SlotError:
            del ready[key]
            returns.dropped.append(release)
            raise
        slot = self._ring.slot(entry.slot)
        self.collect()
        if self.dry:
            copy = aligned_empty(slot.nbytes)
            copy[...] = slot
            arrays = layout.arrays(copy, entry.samples)
            del ready[key]
            returns.dropped.append(release)
            self._count_copy()
            return arrays
        view, hold = prepare(slot, release, returns)
        arrays = layout.arrays(view, entry.samples)
        returns.held[release] = hold
        del ready[key]
        return arrays

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

    def _count_copy(self) -> None:
        if self.copies == 0:
            _log.warning(
                "all %d slots of the ring but one are in use, so batches are copied out from here "
                "on; unless you keep batches on purpose, ask for more slots (slots=)",
                self.opened.slots,
            )
        self.copies += 1

    def close(self) -> None:
        """Give up the proof of life; arrays that are still alive stay readable."""
        self._holder.close()


def _check(opened: Opened) -> None:
    """Refuse what no server of ours says, before anything is made of it."""
    if not MIN_SLOTS <= opened.slots <= MAX_SLOTS or opened.steps < 1:
        raise RemoteProtocolError(
            f"Opened: got {opened.slots} slots and {opened.steps} steps; wanted {MIN_SLOTS} to "
            f"{MAX_SLOTS} slots and at least one step"
        )
    known = {array.name for array in opened.arrays}
    roles = {role: names_from_wire(names, role) for role, names in opened.structure.items()}
    for role, names in roles.items():
        for name in leaves(names):
            if name not in known:
                raise RemoteProtocolError(f"Opened.structure: {role} names no array: {name!r:.80}")
    if "x" not in roles:
        raise RemoteProtocolError("Opened.structure: x is missing")
