"""A slot changes hands by the table alone, and its header tells whose batch it carries."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from augproto.errors import SlotError
from augproto.layout import SLOT_HEADER_BYTES, Layout
from augproto.ring import TRANSITIONS, Header, Ring, SlotState, SlotTable

LAYOUT = Layout.of(4, [("x", "f4", (2,)), ("y", "i8", ())])
HEADER = Header(stream=3, epoch=2, step=1, sequence=9, count=4)
VERBS = ("commit", "abort", "lease", "release")


@pytest.fixture
def ring() -> Ring:
    return Ring(np.zeros(LAYOUT.segment_bytes(3), np.uint8), LAYOUT, 3)


def brought_to(state: SlotState) -> tuple[SlotTable, int, int]:
    """A table of one slot, and that slot, in this state."""
    table = SlotTable(1)
    slot, sequence = table.claim()
    for verb, then in (
        ("commit", SlotState.COMMITTED),
        ("lease", SlotState.LEASED),
        ("release", SlotState.FREE),
    ):
        if table.count(state):
            break
        getattr(table, verb)(slot, sequence)
        assert table.count(then) == 1
    return table, slot, sequence


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", list(SlotState))
def test_the_table_decides_which_verb_is_allowed(state: SlotState, verb: str) -> None:
    table, slot, sequence = brought_to(state)
    then = TRANSITIONS[state].get(verb)
    if then is None:
        wanted = ", ".join(TRANSITIONS[state])
        with pytest.raises(SlotError, match=f"{verb}: slot 0 is {state.value}; wanted {wanted}"):
            getattr(table, verb)(slot, sequence)
        then = state
    else:
        getattr(table, verb)(slot, sequence)
    assert table.count(then) == 1
    assert table.free == (then is SlotState.FREE)


@pytest.mark.parametrize("off", [-1, 1, 2**64])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", list(SlotState))
def test_a_stale_sequence_moves_nothing(state: SlotState, verb: str, off: int) -> None:
    table, slot, sequence = brought_to(state)
    with pytest.raises(SlotError, match=f"{verb}: slot 0 at sequence {sequence + off}"):
        getattr(table, verb)(slot, sequence + off)
    assert table.count(state) == 1


def test_a_release_of_the_last_round_does_not_free_this_rounds_batch() -> None:
    table, slot, first = brought_to(SlotState.FREE)
    slot, second = table.claim()
    table.commit(slot, second)
    table.lease(slot, second)
    with pytest.raises(SlotError, match=r"at sequence 1, but it is at 2 \(leased\)"):
        table.release(slot, first)
    assert table.free == 0


def test_a_ring_without_a_free_slot_says_so() -> None:
    table = SlotTable(2)
    assert {table.claim()[0] for _ in range(2)} == {0, 1}
    with pytest.raises(SlotError, match="none of 2 slots is free"):
        table.claim()


@pytest.mark.parametrize("slot", [-1, 2, 10**9])
def test_a_slot_that_the_ring_does_not_have_is_refused(slot: int) -> None:
    with pytest.raises(SlotError, match=f"slot {slot} of a ring of 2"):
        SlotTable(2).release(slot, 0)


def test_sequences_grow_for_ever_whatever_becomes_of_the_slots() -> None:
    rng = random.Random(1)
    table = SlotTable(3)
    held: list[tuple[int, int]] = []
    given: list[int] = []
    for _ in range(500):
        if table.free and (not held or rng.random() < 0.5):
            held.append(table.claim())
            given.append(held[-1][1])
        else:
            table.abort(*held.pop(rng.randrange(len(held))))
        assert len({slot for slot, _ in held}) == len(held)
        assert table.free == 3 - len(held) == table.count(SlotState.FREE)
    assert given == list(range(1, len(given) + 1))


def test_the_header_lies_as_it_is_drawn(ring: Ring) -> None:
    ring.claim(1, HEADER)
    ring.commit(1, HEADER)
    raw = ring.slot(1)[:SLOT_HEADER_BYTES].tobytes()
    assert raw[0:8] == b"augbatch"
    assert struct.unpack("<QQQQ", raw[8:40]) == (3, 2, 1, 9)
    assert struct.unpack("<II", raw[40:48]) == (4, 0)
    assert raw[48:64] == bytes(16)


def test_a_batch_is_claimed_written_committed_and_found(ring: Ring) -> None:
    memory = ring.claim(2, HEADER)
    assert memory.nbytes == LAYOUT.slot_bytes
    assert np.shares_memory(memory, ring.memory)
    LAYOUT.arrays(memory, 4)["x"][:] = 7
    with pytest.raises(SlotError, match="carries b'augclaim'"):
        ring.check(2, HEADER)
    ring.commit(2, HEADER)
    ring.check(2, HEADER)
    assert ring.read(2) == (b"augbatch", HEADER)
    assert LAYOUT.arrays(ring.slot(2), 4)["x"].min() == 7


def test_a_slot_s_arrays_are_made_once_and_are_the_layout_s(ring: Ring) -> None:
    whole = ring.arrays(1, LAYOUT.batch_size)
    assert ring.arrays(1, LAYOUT.batch_size) is whole
    for count in (1, 2, LAYOUT.batch_size):
        wanted = LAYOUT.arrays(ring.slot(1), count)
        got = ring.arrays(1, count)
        assert list(got) == list(wanted)
        for name, array in wanted.items():
            assert got[name].__array_interface__ == array.__array_interface__


def test_a_batch_may_turn_out_shorter_than_it_was_claimed(ring: Ring) -> None:
    ring.claim(1, HEADER)
    ring.commit(1, HEADER, HEADER.count - 1)
    assert ring.read(1) == (b"augbatch", replace(HEADER, count=HEADER.count - 1))


def test_a_claim_touches_no_other_slot(ring: Ring) -> None:
    ring.claim(1, HEADER)[:] = 255
    assert not ring.slot(0).any()
    assert not ring.slot(2).any()
    assert not ring.memory[: LAYOUT.slot_offset(0)].any()


def test_a_slot_is_committed_once(ring: Ring) -> None:
    ring.claim(0, HEADER)
    ring.commit(0, HEADER)
    with pytest.raises(
        SlotError, match=r"commit: slot 0 at sequence 9, but it carries b'augbatch'"
    ):
        ring.commit(0, HEADER)


def test_a_slot_that_was_never_claimed_is_not_committed(ring: Ring) -> None:
    with pytest.raises(SlotError, match="commit: slot 0 at sequence 9"):
        ring.commit(0, HEADER)


def test_a_writer_whose_slot_moved_on_cannot_commit(ring: Ring) -> None:
    ring.claim(0, HEADER)
    ring.claim(0, replace(HEADER, sequence=10))
    with pytest.raises(SlotError, match=r"at sequence 9, but it carries b'augclaim' at 10"):
        ring.commit(0, HEADER)
    ring.commit(0, replace(HEADER, sequence=10))


@pytest.mark.parametrize("field", ["stream", "epoch", "step", "sequence", "count", "flags"])
def test_a_batch_that_is_another_in_any_respect_is_refused(ring: Ring, field: str) -> None:
    ring.claim(0, HEADER)
    ring.commit(0, HEADER)
    other = replace(HEADER, **{field: getattr(HEADER, field) + 1})
    with pytest.raises(SlotError, match="lease: slot 0 was announced as"):
        ring.check(0, other)


@pytest.mark.parametrize("at", range(48))
def test_a_torn_header_is_noticed_whichever_byte_it_is(ring: Ring, at: int) -> None:
    ring.claim(0, HEADER)
    ring.commit(0, HEADER)
    ring.slot(0)[at] ^= 0x40
    with pytest.raises(SlotError, match="slot 0 was announced as"):
        ring.check(0, HEADER)


@pytest.mark.parametrize("sample", [0, 13, 2**40])
def test_the_sample_at_work_is_noted_and_forgotten_with_the_next_claim(
    ring: Ring, sample: int
) -> None:
    ring.claim(1, HEADER)
    assert ring.noted(1) is None
    ring.note(1, sample)
    assert ring.noted(1) == sample
    assert ring.noted(0) is ring.noted(2) is None
    ring.commit(1, HEADER)
    ring.check(1, HEADER)  # of a batch that is whole it means nothing
    ring.claim(1, HEADER)
    assert ring.noted(1) is None


@pytest.mark.parametrize("slot", [-1, 3, 2**40])
def test_a_slot_outside_the_segment_is_refused(ring: Ring, slot: int) -> None:
    for look in (ring.slot, ring.read):
        with pytest.raises(SlotError, match=f"slot {slot} of a ring of 3"):
            look(slot)


def test_a_buffer_too_small_for_the_ring_is_refused_at_the_door() -> None:
    short: npt.NDArray[np.uint8] = np.zeros(LAYOUT.segment_bytes(3) - 1, np.uint8)
    with pytest.raises(SlotError, match=f"needs {LAYOUT.segment_bytes(3)} bytes"):
        Ring(short, LAYOUT, 3)


def test_a_read_only_ring_is_read_and_not_written(ring: Ring) -> None:
    ring.claim(0, HEADER)
    ring.commit(0, HEADER)
    ring.memory.flags.writeable = False
    looked_at = Ring(ring.memory, LAYOUT, 3)
    looked_at.check(0, HEADER)
    with pytest.raises(TypeError):
        looked_at.claim(0, HEADER)
    looked_at.check(0, HEADER)
