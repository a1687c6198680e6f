"""Slots that come by message: in one piece, in several, in the wrong order, and kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from augclient.access import checked
from augclient.frames import Frames
from augproto.errors import ConfigError, RemoteProtocolError, SlotError
from augproto.layout import Layout
from augproto.messages import ArraySpec, Entry, Opened, Piece, Place
from augproto.ring import Header, Ring
from augserver import shipping

SLOTS, SAMPLES = 4, 6
LAYOUT = Layout.of(SAMPLES, [("x", "<f4", (100,)), ("y", "<i8", ())])
OPENED = Opened(
    5, "", SLOTS, SAMPLES, (ArraySpec("x", "<f4", (100,)), ArraySpec("y", "<i8", ())),
    {"x": "x", "y": "y"}, 10, 60, True, 1, "f", frames=True,
)  # fmt: skip


@pytest.fixture
def ring() -> Ring:
    return Ring(np.zeros(LAYOUT.segment_bytes(SLOTS), np.uint8), LAYOUT, SLOTS)


def made(ring: Ring, step: int, slot: int, samples: int = SAMPLES) -> Entry:
    """A batch in a slot, as a worker leaves it."""
    sequence = 100 + step
    header = Header(5, 0, step, sequence, samples)
    ring.claim(slot, header)
    for name, array in ring.arrays(slot, samples).items():
        array[...] = step + (0.5 if name == "x" else 0)
    ring.commit(slot, header)
    return Entry(0, step, slot, sequence, samples)


def sent(ring: Ring, entry: Entry, frames: Frames, buffer: Any = bytearray) -> int:
    """Ship it; returns the number of pieces."""
    count = 0
    for piece, data in shipping.pieces(5, ring, [entry]):
        frames.arrived(piece, buffer(data))
        count += 1
    return count


def take(frames: Frames, entry: Entry) -> dict[str, npt.NDArray[Any]]:
    ready = {entry[:2]: entry}
    span = frames.take(ready, entry[:2])
    assert span is not None
    assert not ready
    arrays = span.hand_out(entry[:2])
    assert arrays is not None
    return arrays


def test_a_slot_of_one_piece_is_handed_out_as_it_was_received(ring: Ring) -> None:
    frames = Frames(OPENED, writable=False)
    entry = made(ring, 3, slot=2)
    received = bytearray(LAYOUT.extent(SAMPLES))
    pieces = list(shipping.pieces(5, ring, [entry]))
    assert [piece for piece, _ in pieces] == [Piece(5, Place(0, 3, 2, 103), "", 0, len(received))]
    received[:] = pieces[0][1]
    frames.arrived(pieces[0][0], received)
    arrays = take(frames, entry)
    assert (arrays["x"] == 3.5).all()
    assert (arrays["y"] == 3).all()
    assert not arrays["x"].flags.writeable
    received[LAYOUT.fields[1].offset] = 77
    assert arrays["y"][0] == 77, "the very bytes that came"


@pytest.mark.parametrize("size", [1000, 64, 2400])
def test_of_several_pieces_one_aligned_slot_is_made(
    ring: Ring, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "MAX_PIECE_BYTES", size)
    frames = Frames(OPENED, writable=True)
    entry = made(ring, 4, slot=0)
    assert sent(ring, entry, frames) == -(-LAYOUT.extent(SAMPLES) // size)
    arrays = take(frames, entry)
    assert arrays["x"].ctypes.data % 64 == 0
    assert (arrays["x"] == 4.5).all()
    arrays["x"][...] = 0


def test_a_writable_consumer_gets_a_copy_of_what_cannot_be_written_to(ring: Ring) -> None:
    frames = Frames(OPENED, writable=True)
    entry = made(ring, 4, slot=0)
    sent(ring, entry, frames, bytes)
    take(frames, entry)["y"][...] = 9


def test_a_slot_that_came_at_an_odd_address_is_moved(ring: Ring) -> None:
    frames = Frames(OPENED, writable=False)
    entry = made(ring, 4, slot=0)
    room = np.zeros(LAYOUT.extent(SAMPLES) + 8, np.uint8)
    odd = room[(1 - room.ctypes.data) % 8 :][: LAYOUT.extent(SAMPLES)]
    assert odd.ctypes.data % 8 == 1
    ((piece, data),) = shipping.pieces(5, ring, [entry])
    odd[...] = data
    frames.arrived(piece, odd)
    arrays = take(frames, entry)
    assert arrays["x"].flags.aligned
    assert (arrays["x"] == 4.5).all()


def test_of_a_batch_of_few_samples_no_more_than_these_travel(ring: Ring) -> None:
    frames = Frames(OPENED, writable=False)
    entry = made(ring, 9, slot=1, samples=2)
    ((piece, data),) = shipping.pieces(5, ring, [entry])
    assert piece.size == data.nbytes == LAYOUT.fields[1].offset + 2 * 8
    frames.arrived(piece, data)
    assert take(frames, entry)["y"].tolist() == [9, 9]


def test_a_lease_is_over_with_the_last_view_and_its_memory_is_let_go(ring: Ring) -> None:
    frames = Frames(OPENED, writable=False)
    entry = made(ring, 1, slot=1)
    sent(ring, entry, frames)
    arrays = take(frames, entry)
    assert frames.returns.leased == 1
    view = arrays["x"][1:]
    del arrays
    assert frames.returns.leased == 1
    del view
    assert frames.returns.leased == 0
    released = frames.returns.take()
    assert [tuple(release) for release in released] == [(1, 101)]
    frames.given_back(released)
    with pytest.raises(SlotError, match=r"was announced as .* but it carries nothing"):
        take(frames, entry)


def test_where_a_lease_would_take_the_last_slot_the_batch_is_kept_without_one(ring: Ring) -> None:
    frames = Frames(OPENED, writable=False)
    kept = []
    for step in range(20):
        slot = min(step, SLOTS - 1)
        entry = made(ring, step, slot)
        sent(ring, entry, frames)
        kept.append(take(frames, entry))
        if step >= SLOTS - 1:
            released = frames.returns.take()
            assert [tuple(release) for release in released] == [(slot, 100 + step)]
            frames.given_back(released)
    assert [int(arrays["y"][0]) for arrays in kept] == list(range(20))
    assert frames.returns.leased == SLOTS - 1
    assert frames.copies == 0


def test_a_slot_that_was_announced_and_did_not_come_is_refused_and_given_back(ring: Ring) -> None:
    frames = Frames(OPENED, writable=False)
    sent(ring, made(ring, 1, slot=1), frames)
    other = Entry(0, 2, 1, 102, SAMPLES)
    with pytest.raises(SlotError, match="slot 1 was announced as"):
        take(frames, other)
    assert [tuple(release) for release in frames.returns.take()] == [(1, 102)]


@pytest.mark.parametrize(
    "piece",
    [
        Piece(6, Place(0, 1, 1, 101), "", 0, 500),  # of another stream
        Piece(5, Place(0, 1, SLOTS, 101), "", 0, 500),  # of no slot
        Piece(5, Place(0, 1, 1, 101), "x", 0, 500),  # of an input
        Piece(5, Place(0, 1, 1, 101), "", 0, LAYOUT.slot_bytes + 1),  # larger than a slot
        Piece(5, Place(0, 1, 1, 101), "", 0, 63),  # smaller than a header
        Piece(5, Place(0, 1, 1, 101), "", 450, 500),  # beyond its end
        Piece(5, Place(0, 1, 1, 101), "", 100, 500),  # without the first one
        Piece(5, Place(0, 1, 0, 999), "", 100, 500),  # of another sequence than the first one
        Piece(5, Place(0, 1, 0, 100), "", 200, 500),  # with a gap
        Piece(5, Place(0, 1, 0, 100), "", 100, 600),  # of another size
    ],
)
def test_a_piece_that_does_not_follow_is_refused(piece: Piece) -> None:
    frames = Frames(OPENED, writable=False)
    frames.arrived(Piece(5, Place(0, 1, 0, 100), "", 0, 500), bytes(100))
    with pytest.raises(RemoteProtocolError, match="Piece: got"):
        frames.arrived(piece, bytes(100))


@pytest.mark.parametrize("memory", ["mine", "", None, 3])
def test_another_word_for_the_way_of_batches_is_refused(memory: object) -> None:
    with pytest.raises(ConfigError, match=r"memory: got .*; wanted 'auto', 'shared' or 'frames'"):
        checked(memory)
