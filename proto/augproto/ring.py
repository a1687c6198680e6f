"""Claim, commit, abort, lease, release: the life of a slot.

Two halves that never meet in one process by design:

* `SlotTable` is the truth. It lives in the server process alone, and slot states change there and
  nowhere else; everybody else learns of a change by a message.
* `Ring` works on the bytes of a segment (any writable or read-only buffer). It stamps a header
  into a slot when it is claimed and when it is committed, and checks that header when it is
  leased. The header is evidence, never a lock: no process waits on it or decides by it alone.

A slot's *sequence* grows for ever and is given out at every claim, so that a late release or a
stale announcement names a sequence that no longer matches and is refused, instead of freeing or
reading somebody else's batch.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import SlotError
from augproto.layout import Layout
from augproto.messages import Entry

#: A ring below this makes no sense: one slot is written while one is looked at.
MIN_SLOTS = 2
MAX_SLOTS = 4096


class SlotState(enum.Enum):
    """Where a slot is in its life."""

    FREE = "free"  #: nobody's; may be claimed
    CLAIMED = "claimed"  #: a worker writes it
    COMMITTED = "committed"  #: whole, not yet announced
    LEASED = "leased"  #: announced; the consumer may look at it until it releases


#: The whole grammar of a slot. An absent key is a SlotError.
TRANSITIONS: dict[SlotState, dict[str, SlotState]] = {
    SlotState.FREE: {"claim": SlotState.CLAIMED},
    SlotState.CLAIMED: {"commit": SlotState.COMMITTED, "abort": SlotState.FREE},
    SlotState.COMMITTED: {"lease": SlotState.LEASED},
    SlotState.LEASED: {"release": SlotState.FREE},
}


#: The same by verb, each of which leads from one state to one other.
_VERBS = {
    verb: (before, after) for before, moves in TRANSITIONS.items() for verb, after in moves.items()
}


class SlotTable:
    """The states of one ring's slots, in the only process that may change them."""

    def __init__(self, slots: int) -> None:
        self._states = [SlotState.FREE] * slots
        self._sequences = [0] * slots
        self._free = list(range(slots - 1, -1, -1))
        self._next_sequence = 1

    def __len__(self) -> int:
        return len(self._states)

    @property
    def free(self) -> int:
        """How many slots may be claimed now."""
        return len(self._free)

    def count(self, state: SlotState) -> int:
        """How many slots are in a state."""
        return self._states.count(state)

    def claim(self) -> tuple[int, int]:
        """Take a free slot; returns (slot, sequence)."""
        if not self._free:
            raise SlotError(f"claim: none of {len(self)} slots is free")
        slot = self._free.pop()
        self._sequences[slot] = sequence = self._next_sequence
        self._next_sequence += 1
        self._states[slot] = SlotState.CLAIMED
        return slot, sequence

    def commit(self, slot: int, sequence: int) -> None:
        """Its writer says that the batch is whole."""
        self._move(slot, sequence, "commit")

    def abort(self, slot: int, sequence: int) -> None:
        """Its writer has failed or is dead *and reaped*; the slot is free again."""
        self._move(slot, sequence, "abort")
        self._free.append(slot)

    def lease(self, slot: int, sequence: int) -> None:
        """The slot is announced: from here it belongs to the consumer."""
        self._move(slot, sequence, "lease")

    def release(self, slot: int, sequence: int) -> None:
        """The consumer's last view is gone."""
        self._move(slot, sequence, "release")
        self._free.append(slot)

    def _move(self, slot: int, sequence: int, verb: str) -> None:
        if not 0 <= slot < len(self._states):
            raise SlotError(f"{verb}: slot {slot} of a ring of {len(self)}")
        state = self._states[slot]
        if sequence != self._sequences[slot]:
            raise SlotError(
                f"{verb}: slot {slot} at sequence {sequence}, "
                f"but it is at {self._sequences[slot]} ({state.value})"
            )
        before, after = _VERBS[verb]
        if state is not before:
            allowed = ", ".join(TRANSITIONS[state])
            raise SlotError(f"{verb}: slot {slot} is {state.value}; wanted {allowed}")
        self._states[slot] = after


_HEADER = struct.Struct("<8sQQQQII")
_SAMPLE = struct.Struct("<Q")
_SAMPLE_OFFSET = _HEADER.size
_CLAIMED = b"augclaim"
_COMMITTED = b"augbatch"


@dataclass(frozen=True, slots=True)
class Header:
    """What a slot says of itself: 56 of its first 64 bytes, little-endian.

    ::

        0        8        16       24       32         40      44      48       56    64
        | magic  | stream | epoch  | step   | sequence | count | flags | sample | 0 ..|

    `sample` is the one at work, plus 1 (see `Ring.note`), and no part of this value.
    """

    stream: int
    epoch: int
    step: int
    sequence: int
    count: int
    flags: int = 0


def carries(memory: memoryview, start: int, stream: int, entry: Entry) -> bool:
    """Whether a slot that starts there holds the batch that was announced, whole."""
    return _HEADER.unpack_from(memory, start) == (
        _COMMITTED, stream, entry.epoch, entry.step, entry.sequence, entry.samples, 0,
    )  # fmt: skip


def mismatch(slot: npt.NDArray[np.uint8], stream: int, entry: Entry) -> SlotError:
    """What a slot's bytes carry instead of the batch that was announced, as an error."""
    wanted = Header(stream, entry.epoch, entry.step, entry.sequence, entry.samples)
    if slot.nbytes < _HEADER.size:
        return _mismatch(entry.slot, wanted, "nothing")
    magic, *fields = _HEADER.unpack_from(slot.data)
    return _mismatch(entry.slot, wanted, f"{magic!r} {Header(*fields)}")


def _mismatch(slot: int, wanted: Header, found: str) -> SlotError:
    return SlotError(f"lease: slot {slot} was announced as {wanted}, but it carries {found}")


class Ring:
    """The slots of one segment, over any buffer: an mmap, or a plain array in a test."""

    def __init__(self, memory: npt.NDArray[np.uint8], layout: Layout, slots: int) -> None:
        if memory.nbytes < layout.segment_bytes(slots):
            raise SlotError(
                f"a ring of {slots} slots needs {layout.segment_bytes(slots)} bytes; "
                f"got a buffer of {memory.nbytes}"
            )
        self.memory = memory
        self.layout = layout
        self.slots = slots
        self._bytes = memory.data  # headers are read and written in place: no array for each
        self._arrays: dict[int, dict[str, npt.NDArray[Any]]] = {}

    def slot(self, slot: int) -> npt.NDArray[np.uint8]:
        """The bytes of one slot."""
        start = self._start(slot)
        return self.memory[start : start + self.layout.slot_bytes]

    def arrays(self, slot: int, count: int) -> dict[str, npt.NDArray[Any]]:
        """A slot's fields to write `count` samples into: `Layout.arrays`, made once for each slot.

        They live as long as the ring does, so they are for whoever fills slots. Who hands arrays
        out wants new ones, whose end says that the slot is free.
        """
        arrays = self._arrays.get(slot)
        if arrays is None:
            arrays = self.layout.arrays(self.slot(slot), self.layout.batch_size)
            self._arrays[slot] = arrays
        if count == self.layout.batch_size:
            return arrays
        return {name: array[:count] for name, array in arrays.items()}

    def claim(self, slot: int, header: Header) -> npt.NDArray[np.uint8]:
        """Stamp the slot as being written; returns its bytes to write the batch into."""
        start = self._start(slot)
        self._stamp(start, _CLAIMED, header, header.count)
        _SAMPLE.pack_into(self._bytes, start + _SAMPLE_OFFSET, 0)
        return self.memory[start : start + self.layout.slot_bytes]

    def note(self, slot: int, sample: int) -> None:
        """Say which sample is at work, so that a death can be laid at its door.

        Like the magic it is evidence: of a batch that is whole it means nothing.
        """
        _SAMPLE.pack_into(self._bytes, self._start(slot) + _SAMPLE_OFFSET, sample + 1)

    def noted(self, slot: int) -> int | None:
        """The sample that was at work last; None if none was noted since the claim."""
        (noted,) = _SAMPLE.unpack_from(self._bytes, self._start(slot) + _SAMPLE_OFFSET)
        return noted - 1 if noted else None

    def commit(self, slot: int, header: Header, count: int | None = None) -> None:
        """Stamp the slot as whole; it must carry the claim's own sequence.

        Args:
            count: Samples, where they are not so many as the header says.
        """
        start = self._start(slot)
        magic, _, _, _, sequence, _, _ = _HEADER.unpack_from(self._bytes, start)
        if magic != _CLAIMED or sequence != header.sequence:
            raise SlotError(
                f"commit: slot {slot} at sequence {header.sequence}, "
                f"but it carries {magic!r} at {sequence}"
            )
        self._stamp(start, _COMMITTED, header, header.count if count is None else count)

    def read(self, slot: int) -> tuple[bytes, Header]:
        """The slot's magic and header as they are."""
        magic, *fields = _HEADER.unpack_from(self._bytes, self._start(slot))
        return magic, Header(*fields)

    def being_written(self, slot: int, sequence: int) -> bool:
        """Whether the slot was claimed at this sequence and not committed."""
        magic, _, _, _, found, _, _ = _HEADER.unpack_from(self._bytes, self._start(slot))
        return bool(magic == _CLAIMED and found == sequence)

    def carries(self, slot: int, stream: int, entry: Entry) -> bool:
        """Whether the slot holds the batch that was announced, whole."""
        return carries(self._bytes, self._start(slot), stream, entry)

    def check(self, slot: int, wanted: Header) -> None:
        """Refuse a slot that does not carry the batch that was announced."""
        magic, found = self.read(slot)
        if magic != _COMMITTED or found != wanted:
            raise _mismatch(slot, wanted, f"{magic!r} {found}")

    def _start(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise SlotError(f"slot {slot} of a ring of {self.slots}")
        return self.layout.slot_offset(slot)

    def _stamp(self, start: int, magic: bytes, header: Header, count: int) -> None:
        _HEADER.pack_into(
            self._bytes,
            start,
            magic,
            header.stream,
            header.epoch,
            header.step,
            header.sequence,
            count,
            header.flags,
        )
