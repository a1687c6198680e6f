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

import numpy as np
import numpy.typing as npt

from augproto.errors import SlotError
from augproto.layout import SLOT_HEADER_BYTES, Layout

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
        self._sequences[slot] = self._next_sequence
        self._next_sequence += 1
        self._move(slot, self._sequences[slot], "claim")
        return slot, self._sequences[slot]

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
        if verb not in TRANSITIONS[state]:
            allowed = ", ".join(TRANSITIONS[state])
            raise SlotError(f"{verb}: slot {slot} is {state.value}; wanted {allowed}")
        self._states[slot] = TRANSITIONS[state][verb]


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

    def slot(self, slot: int) -> npt.NDArray[np.uint8]:
        """The bytes of one slot."""
        if not 0 <= slot < self.slots:
            raise SlotError(f"slot {slot} of a ring of {self.slots}")
        start = self.layout.slot_offset(slot)
        return self.memory[start : start + self.layout.slot_bytes]

    def claim(self, slot: int, header: Header) -> npt.NDArray[np.uint8]:
        """Stamp the slot as being written; returns its bytes to write the batch into."""
        memory = self.slot(slot)
        self._stamp(memory, _CLAIMED, header)
        _SAMPLE.pack_into(memory.data, _SAMPLE_OFFSET, 0)
        return memory

    def note(self, slot: int, sample: int) -> None:
        """Say which sample is at work, so that a death can be laid at its door.

        Like the magic it is evidence: of a batch that is whole it means nothing.
        """
        offset = self.layout.slot_offset(slot) + _SAMPLE_OFFSET
        _SAMPLE.pack_into(self.memory.data, offset, sample + 1)

    def noted(self, slot: int) -> int | None:
        """The sample that was at work last; None if none was noted since the claim."""
        (noted,) = _SAMPLE.unpack_from(self.slot(slot).data, _SAMPLE_OFFSET)
        return noted - 1 if noted else None

    def commit(self, slot: int, header: Header) -> None:
        """Stamp the slot as whole; it must carry the claim's own sequence."""
        memory = self.slot(slot)
        magic, stamped = self.read(slot)
        if magic != _CLAIMED or stamped.sequence != header.sequence:
            raise SlotError(
                f"commit: slot {slot} at sequence {header.sequence}, "
                f"but it carries {magic!r} at {stamped.sequence}"
            )
        self._stamp(memory, _COMMITTED, header)

    def read(self, slot: int) -> tuple[bytes, Header]:
        """The slot's magic and header as they are."""
        magic, *fields = _HEADER.unpack_from(self.slot(slot)[:SLOT_HEADER_BYTES].data)
        return magic, Header(*fields)

    def being_written(self, slot: int, sequence: int) -> bool:
        """Whether the slot was claimed at this sequence and not committed."""
        magic, found = self.read(slot)
        return magic == _CLAIMED and found.sequence == sequence

    def check(self, slot: int, wanted: Header) -> None:
        """Refuse a slot that does not carry the batch that was announced."""
        magic, found = self.read(slot)
        if magic != _COMMITTED or found != wanted:
            raise SlotError(
                f"lease: slot {slot} was announced as {wanted}, but it carries {magic!r} {found}"
            )

    @staticmethod
    def _stamp(memory: npt.NDArray[np.uint8], magic: bytes, header: Header) -> None:
        _HEADER.pack_into(
            memory[:SLOT_HEADER_BYTES].data,
            0,
            magic,
            header.stream,
            header.epoch,
            header.step,
            header.sequence,
            header.count,
            header.flags,
        )
