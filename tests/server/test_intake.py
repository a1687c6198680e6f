"""Inputs that come piece by piece, and what is no piece of them."""

from __future__ import annotations

import pytest

from augproto.errors import RemoteProtocolError
from augproto.messages import Inputs, Load, Piece, Place
from augserver.intake import MAX_INPUT_BYTES, Arrived, Intake

PLACE, OTHER = Place(0, 1, 0, 5), Place(0, 2, 0, 6)


def inputs(*loads: tuple[str, int], place: Place = PLACE) -> Inputs:
    return Inputs(1, place, b"", tuple(Load(*load) for load in loads))


def add(
    intake: Intake, name: str, offset: int, size: int, data: bytes, place: Place = PLACE
) -> Arrived | None:
    return intake.add(Piece(1, place, name, offset, size), memoryview(data))


def test_what_has_no_bytes_is_whole_at_once() -> None:
    arrived = Intake().begin(inputs(("x", 0)))
    assert arrived is not None
    assert arrived.loads == {"x": b""}


def test_pieces_of_two_places_may_cross() -> None:
    intake = Intake()
    assert intake.begin(inputs(("x", 4), ("y", 1))) is None
    assert intake.begin(inputs(("x", 2), place=OTHER)) is None
    assert add(intake, "x", 0, 4, b"ab") is None
    other = add(intake, "x", 0, 2, b"AB", OTHER)
    assert other is not None
    assert other.inputs.place == OTHER
    assert other.loads == {"x": b"AB"}
    assert add(intake, "y", 0, 1, b"!") is None
    whole = add(intake, "x", 2, 4, b"cd")
    assert whole is not None
    assert whole.loads == {"x": b"abcd", "y": b"!"}


def test_a_piece_of_nothing_is_left_alone() -> None:
    intake = Intake()
    assert add(intake, "x", 0, 4, b"abcd") is None
    intake.begin(inputs(("x", 4)))
    intake.clear()
    assert add(intake, "x", 0, 4, b"abcd") is None


@pytest.mark.parametrize(
    ("name", "offset", "size", "data"),
    [
        ("y", 0, 4, b"ab"),
        ("x", 1, 4, b"ab"),
        ("x", 0, 5, b"ab"),
        ("x", 0, 4, b"abcde"),
    ],
)
def test_a_piece_that_does_not_continue_is_refused(
    name: str, offset: int, size: int, data: bytes
) -> None:
    intake = Intake()
    intake.begin(inputs(("x", 4)))
    with pytest.raises(RemoteProtocolError, match="wanted the next ones"):
        add(intake, name, offset, size, data)


def test_too_much_is_refused_when_it_is_announced() -> None:
    with pytest.raises(RemoteProtocolError, match="wanted at most"):
        Intake().begin(inputs(("x", MAX_INPUT_BYTES), ("y", 1)))
    with pytest.raises(RemoteProtocolError, match="a name of its own"):
        Intake().begin(inputs(("x", 1), ("x", 1)))
