"""What is offered, written, sent and said while arrays are handed over, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augclient import handing
from augclient.handing import HandOver
from augproto.errors import RemoteProtocolError, ServerLost
from augproto.fingerprint import fingerprint
from augproto.messages import Filled, Offer, Room, Source, Taken, Upload
from augproto.segment import HOME, Segment
from augserver.datasets.arrays import attach, places

ARRAYS: dict[str, Any] = {
    "x": np.arange(100, dtype=np.uint8).reshape(10, 10),
    "none": np.zeros((0, 3)),
    "y": np.arange(16.0),
    "last": np.array([True, False]),
}
NAME = fingerprint(ARRAYS)


@pytest.fixture
def segment() -> Iterator[Segment]:
    with Segment("augserver-test-handing", 1 << 16) as made:
        yield made


def offered(arrays: dict[str, Any] = ARRAYS) -> tuple[HandOver, Offer]:
    handing_over = HandOver(fingerprint(arrays), arrays, HOME)
    return handing_over, handing_over.offer("")


def said(handing_over: HandOver) -> list[Any]:
    """All that is said, with every Upload answered."""
    out: list[Any] = []
    while handing_over.busy:
        message = handing_over.work()
        if message is not None:
            out.append(message)
        if isinstance(message, Upload):
            assert not handing_over.busy, "one at a time"
            assert not handing_over.take(Taken(message.name, message.offset + len(message.data)))
    return out


@pytest.mark.parametrize("size", [7, 64, 1 << 20])
@pytest.mark.parametrize("names", [("x",), ("none",), ("y", "none"), tuple(ARRAYS)], ids=len)
def test_an_upload_is_the_bytes_of_the_room_from_the_first_to_the_last(
    names: tuple[str, ...], size: int, monkeypatch: pytest.MonkeyPatch, segment: Segment
) -> None:
    monkeypatch.setattr(handing, "UPLOAD_BYTES", size)
    arrays = {name: ARRAYS[name] for name in names}
    handing_over, offer = offered(arrays)
    sources, whole = places(offer.arrays, "")
    assert not handing_over.take(Room(offer.name, sources))
    *parts, last = said(handing_over)
    assert last == Filled(offer.name)
    assert all(0 < len(part.data) <= max(size, 64) for part in parts)
    data = b"".join(part.data for part in parts)
    ends = np.cumsum([len(part.data) for part in parts])
    assert [part.offset for part in parts] == [0, *ends[:-1].tolist()]
    assert len(data) == whole
    segment.map()[:whole] = np.frombuffer(data, np.uint8)
    found = attach(source._replace(path=str(segment.path)) for source in sources)
    assert fingerprint(found) == offer.name
    assert handing_over.take(Room(offer.name, ())), "all is handed over"
    assert not handing_over.busy


def test_what_can_be_written_is_written_and_a_turn_is_short(
    monkeypatch: pytest.MonkeyPatch, segment: Segment
) -> None:
    monkeypatch.setattr(handing, "COPY_BYTES", 30)
    handing_over, offer = offered()
    sources, _ = places(offer.arrays, segment.name)
    handing_over.take(Room(NAME, sources))
    turns = 0
    while handing_over.busy:
        message = handing_over.work()
        turns += 1
    assert message == Filled(NAME)
    assert turns > 8
    assert fingerprint(attach(s._replace(path=str(segment.path)) for s in sources)) == NAME


def test_the_key_is_what_stands_at_the_door_and_without_one_there_is_none(
    segment: Segment,
) -> None:
    segment.map()[:40] = np.arange(40, dtype=np.uint8)
    handing_over, _ = offered()
    assert handing_over.offer(segment.name).key == bytes(range(32)).hex()
    for door in ("", "augserver-nobody", "../etc/passwd", "augserver-test@1.2"):
        assert handing_over.offer(door).key == ""


def test_consumers_of_a_program_are_known_by_one_secret() -> None:
    assert offered()[1].owner == offered({"x": ARRAYS["x"]})[1].owner
    assert len(offered()[1].owner) >= 32


def test_memory_that_cannot_be_written_is_offered_to_anew(
    monkeypatch: pytest.MonkeyPatch, segment: Segment
) -> None:
    def read_only(*arguments: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    handing_over, offer = offered()
    monkeypatch.setattr(handing, "attach", read_only)
    sources, _ = places(offer.arrays, segment.name)
    handing_over.take(Room(NAME, sources))
    assert said(handing_over) == [offer], "without a key"
    handing_over.take(Room(NAME, tuple(source._replace(path="") for source in sources)))
    assert isinstance(said(handing_over)[0], Upload)


def test_arrays_handed_over_again_are_the_same_or_are_refused(segment: Segment) -> None:
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    handing_over, offer = offered(arrays)
    sources, _ = places(offer.arrays, segment.name)
    for _ in range(2):
        handing_over.take(Room(offer.name, sources))
        assert said(handing_over) == [Filled(offer.name)]
        handing_over.offer("")
    arrays["y"][3] = -1
    handing_over.take(Room(offer.name, sources))
    with pytest.raises(ServerLost, match="have been changed since"):
        said(handing_over)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "z"}, {"dtype": "<f4"}, {"shape": (5, 20)}, {"shape": ()},
    ],
    ids=str,
)  # fmt: skip
def test_room_for_other_arrays_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    handing_over, offer = offered({"x": ARRAYS["x"]})
    source = Source("x", "|u1", (10, 10), "", 0)._replace(**wrong)
    for sources in ((source,), (source, source)):
        with pytest.raises(RemoteProtocolError, match=r"Room\.sources"):
            handing_over.take(Room(offer.name, sources))
