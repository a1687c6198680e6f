"""At the server's door: whatever is asked, the answer is a typed error to that consumer alone."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from besieged import Besieged, besieged
from processes import wait_until

from augproto.codec import MAX_ELEMENTS, decode, encode
from augproto.messages import (
    MAX_FRAME_BYTES,
    MAX_LIST,
    VERSION,
    Announce,
    Close,
    Enlist,
    Fault,
    Heartbeat,
    Hello,
    Message,
    Open,
    Opened,
    Release,
    Run,
    Status,
    Want,
    Welcome,
)
from augproto.segment import Holder
from augproto.spec import MAX_EPOCH

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    with besieged(tmp_path_factory.mktemp("door")) as server:
        yield server


class Visitor:
    """Says anything, and hears what comes."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.connect(address)

    def say(self, *said: Message | bytes | list[bytes]) -> None:
        for one in said:
            frames = one if isinstance(one, list) else [one]
            self._dealer.send_multipart(
                [f if isinstance(f, bytes) else encode(f) for f in frames], zmq.NOBLOCK
            )

    def hear(self) -> Any:
        assert self._dealer.poll(30_000), "no answer"
        return decode(self._dealer.recv_multipart(zmq.NOBLOCK)[-1])

    def asks(self, *said: Message | bytes | list[bytes]) -> Any:
        """The answer to the last of these, which is the only one with one."""
        self.say(*said)
        return self.hear()

    def close(self) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self.say(Close())
        self._context.destroy(linger=500)


@pytest.fixture
def visitor(server: Besieged) -> Iterator[Visitor]:
    visitor = Visitor(server.ipc)
    yield visitor
    visitor.close()
    server.check()  # the next one is served, with the right bytes


HELLO = Hello(VERSION, "visitor", 1)


def greeted(visitor: Visitor) -> Visitor:
    assert isinstance(visitor.asks(HELLO), Welcome)
    return visitor


def opened(visitor: Visitor, slots: int = 4) -> Opened:
    answer = greeted(visitor).asks(Open("numbers", None, slots))
    assert isinstance(answer, Opened), answer
    return answer


def paths(server: Besieged) -> dict[str, tuple[str, str]]:
    """Paths that lead out of the roots, or to no file, and the kind of their refusal."""
    folder = Path(server.path).parent
    with contextlib.suppress(FileExistsError):
        (folder / "link.npz").symlink_to("/etc/passwd")
        (folder / "folder").symlink_to("/etc")
        (folder / "loop.npz").symlink_to(folder / "loop.npz")
        os.mkfifo(folder / "pipe.npz")
        (folder / "text.npz").write_text("no archive")
    return {
        "elsewhere": ("/etc/passwd", "NotAllowed"),
        "dots": (f"{folder}/../../../../../../etc/passwd", "NotAllowed"),
        "a link": (f"{folder}/link.npz", "NotAllowed"),
        "a linked folder": (f"{folder}/folder/passwd", "NotAllowed"),
        "the process's own root": (f"/proc/self/root{folder}/../../../etc/passwd", "NotAllowed"),
        "the process's memory": ("/proc/self/mem", "NotAllowed"),
        "a relative path": ("numbers.npz", "NotAllowed"),
        "a home": ("~/x.npz", "NotAllowed"),
        "nothing": ("", "ConfigError"),
        "a nul byte": (f"{folder}/a\0.npz", "ConfigError"),
        "too long": (f"{folder}/{'a/' * 3000}x.npz", "ConfigError"),
        "a long name": (f"{folder}/{'a' * 300}.npz", "ConfigError"),
        "a loop": (f"{folder}/loop.npz", "ConfigError"),
        "a pipe": (f"{folder}/pipe.npz", "ConfigError"),
        "a folder": (f"{folder}", "ConfigError"),
        "no archive": (f"{folder}/text.npz", "ConfigError"),
        "missing": (f"{folder}/missing.npz", "ConfigError"),
        "handed over": ("handed:x", "NotAllowed"),
    }


def test_a_path_outside_the_roots_or_to_no_file_is_refused(
    server: Besieged, visitor: Visitor
) -> None:
    greeted(visitor)
    for what, (path, kind) in paths(server).items():
        answer = visitor.asks(Open(None, {"data": [path], "x": "x"}, None))
        assert isinstance(answer, Fault), (what, answer)
        assert (answer.kind, answer.number) == (kind, 0), (what, answer)
        assert answer.message


BAD_FIELDS: dict[str, list[Any]] = {
    "data": [None, [], [""], {}, 1, ["x"] * 2000],
    "x": [None, "", [], {}, 1, ["nothing"], {"a": "nothing"}, ["x"] * 300],
    "y": ["nothing", [[]], 1.5],
    "sample_weight": ["nothing", b"x"],
    "images": ["y", ["nothing"], 1],
    "batch_size": [0, -1, 2**64 - 1, 1.5, "4", None, True, [4]],
    "shuffle": [1, "yes", None, []],
    "seed": [-1, 1.5, "1", True],
    "shard": [[0], [1, 1], [-1, 2], [0, 0], "01", [0, 2**64 - 1], [True, 2]],
    "drop_remainder": [1, None],
    "validation_split": [-0.1, 1.0, "x", 1e300, float("nan"), float("inf")],
    "subset": ["other", "training", 1, []],
    "target_size": [[0, 1], [1], "11", [1 << 16, 1], [1 << 15, 1 << 15], [1.5, 1], {}],
    "interpolation": ["other", 1, None, []],
    "data_format": ["other", None],
    "dtype": ["complex64", "O", None, 1],
    "transforms": [1, [], {"unknown": 1}, {1: 1}, {"rotation_range": "x"},
                   {"rotation_range": float("nan")}, {"zoom_range": [1]}, {"zoom_range": [1, "x"]},
                   {"brightness_range": [1]}, {"fill_mode": []}, {"interpolation_order": 7},
                   {"width_shift_range": []}, {"width_shift_range": 1 << 30},
                   {"rescale": float("inf")}, {"function": "os:system"}, {"function": 1},
                   {"function": "handed:f"}, {"featurewise_mean": {"dtype": "O"}},
                   {"featurewise_mean": {"dtype": "O", "shape": [1], "data": b"12345678"}},
                   {"featurewise_std": {"dtype": "f4", "shape": [2**64 - 1], "data": b""}},
                   {"featurewise_std": {"dtype": "i4,i4", "shape": [1], "data": b"12345678"}},
                   {"featurewise_std": {"dtype": [], "shape": [], "data": 1}}],
    "unknown": [1],
}  # fmt: skip


def test_every_bad_field_of_a_spec_is_refused_by_its_name(
    server: Besieged, visitor: Visitor
) -> None:
    greeted(visitor)
    good: dict[str, object] = {"data": [server.path], "x": "x", "y": "y"}
    for field, values in BAD_FIELDS.items():
        for value in values:
            answer = visitor.asks(Open(None, good | {field: value}, None))
            assert isinstance(answer, Fault), (field, value, answer)
            assert answer.kind in ("ConfigError", "NotAllowed"), (field, value, answer)
    assert isinstance(visitor.asks(Open(None, good, 2)), Opened)


@pytest.mark.parametrize(
    ("wish", "kind"),
    [
        (Open("nobody", None, None), "UnknownStream"),
        (Open(None, None, None), "ConfigError"),
        (Open("numbers", {}, None), "ConfigError"),
        (Open("numbers", None, 1), "ConfigError"),
        (Open("numbers", None, 2**64 - 1), "ConfigError"),
        (Open("numbers", None, None, {"data": "/etc/passwd"}), "NotAllowed"),
        (Open("numbers", None, None, {"transforms": {}}), "NotAllowed"),
        (Open("numbers", None, None, {"batch_size": 0}), "ConfigError"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(visitor: Visitor, wish: Open, kind: str) -> None:
    answer = greeted(visitor).asks(wish)
    assert isinstance(answer, Fault), answer
    assert answer.kind == kind
    assert isinstance(visitor.asks(Heartbeat()), Heartbeat), "the conversation goes on"


def test_another_version_is_refused(visitor: Visitor) -> None:
    for version in ((2, 0), (), (2**64 - 1,), tuple(range(60_000))):
        answer = visitor.asks(Hello(version, "visitor", 1))
        assert answer.kind == "VersionMismatch", answer
    greeted(visitor)


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\0", b"\xc1", b"\x90", b"\x91\x01", b"\x94\x01\x92\x01\x01\xa1x", b"\x99" * 9,
        b"\x94\x03\xc0\x81\xa1x" + b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff",
        b"\x95\x03\xdb\xff\xff\xff\xff",
        b"\x94\x05\xdd" + struct.pack(">I", MAX_ELEMENTS) + b"\x90",
        b"\x94\x05\xdc\xff\xff" + b"\x90" * 65535, encode(HELLO) + b"x", encode(HELLO) * 1000,
        b"\xa1" * 8_000_000, b"\x90" * 8_000_000, b"\xdd\x00\x7a\x12\x00" + b"\x90" * 8_000_000,
    ],
    ids=lambda frame: f"{frame[:8]!r} of {len(frame)}",
)  # fmt: skip
def test_a_frame_that_is_no_message_is_answered_and_forgotten(
    visitor: Visitor, frame: bytes
) -> None:
    greeted(visitor)
    answer = visitor.asks(frame)
    assert isinstance(answer, Fault), answer
    assert answer.kind == "RemoteProtocolError"
    assert isinstance(visitor.asks(Heartbeat()), Heartbeat)


def test_a_message_of_several_parts_is_ignored(visitor: Visitor) -> None:
    greeted(visitor).say([b"", encode(Heartbeat())], [encode(Heartbeat())] * 300)
    assert isinstance(visitor.asks(Open("nobody", None, None)), Fault), "the first that counts"


def test_what_is_said_twice_or_out_of_turn_is_refused(visitor: Visitor) -> None:
    assert visitor.asks(Open("numbers", None, None)).kind == "SessionLost"
    assert visitor.asks(Want((), 0, ())).kind == "SessionLost"
    greeted(visitor)
    assert visitor.asks(HELLO).kind == "RemoteProtocolError"
    assert visitor.asks(Want((), 0, ())).kind == "RemoteProtocolError"
    assert visitor.asks(Announce(1, ())).kind == "RemoteProtocolError"
    assert isinstance(visitor.asks(Open("numbers", None, 2)), Opened)
    assert visitor.asks(Open("numbers", None, 2)).kind == "RemoteProtocolError"


def test_numbers_beyond_all_bounds_in_a_want_harm_nobody(visitor: Visitor) -> None:
    mine = opened(visitor)
    holder = Holder(mine.segment)
    most = 2**64 - 1
    try:
        for epoch in (MAX_EPOCH + 1, 2**32, most):
            answer = visitor.asks(Want((Run(epoch, 0, 1),), 0, ()))
            assert (answer.kind, answer.number) == ("RemoteProtocolError", 0)
        foreign = tuple(Release(slot, seq) for slot in (0, 3, 4, most) for seq in (0, 1, most))
        visitor.say(Want((Run(0, most, most), Run(0, 10_000, 5)), most, foreign))
        answer = visitor.asks(Want((), 0, (Release(most, most),) * MAX_LIST))
        assert (answer.kind, answer.number) == ("RemoteProtocolError", 0)
        visitor.say(Want((Run(0, 0, most),) * MAX_LIST, 0, (Release(most, most),) * 4096))
        visitor.say(Want(tuple(Run(e, 0, most) for e in range(MAX_LIST)), 0, ()))
        assert isinstance(visitor.asks(Want((Run(MAX_EPOCH, 0, 1),), 0, ())), Announce)
    finally:
        holder.close()


def test_one_too_many_is_told_so_and_somebody_who_leaves_makes_room(server: Besieged) -> None:
    visitors: list[Visitor] = []
    try:
        answer: Any = None
        for _ in range(30):
            visitors.append(Visitor(server.tcp))
            greeted(visitors[-1])
            answer = visitors[-1].asks(Open("numbers", None, 2))
            if isinstance(answer, Fault):
                break
        assert answer.kind == "ConfigError"
        assert "max_consumers" in answer.message
        visitors.pop(0).close()
        while isinstance(answer, Fault):  # its Close is on its way
            answer = visitors[-1].asks(Open("numbers", None, 2))
    finally:
        for visitor in visitors:
            visitor.close()
    server.settle()
    server.check()


def test_conversations_that_open_nothing_have_a_bound_and_are_forgotten(server: Besieged) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealers = []
    answers = []
    try:
        for _ in range(130):
            dealers.append(context.socket(zmq.DEALER))
            dealers[-1].connect(server.ipc)
            dealers[-1].send(encode(HELLO), zmq.NOBLOCK)
        for dealer in dealers:
            assert dealer.poll(30_000)
            answers.append(decode(dealer.recv(zmq.NOBLOCK)))
        refused = [answer for answer in answers if isinstance(answer, Fault)]
        assert refused
        assert "too many conversations" in refused[0].message
    finally:
        context.destroy(linger=0)
    server.settle()  # asks for the status: after a while there is room again
    server.check()


def test_hundreds_of_streams_one_after_another_leave_nothing(server: Besieged) -> None:
    visitor = Visitor(server.ipc)
    try:
        before = server.memory()
        for number in range(300):
            spec: dict[str, object] = {"data": [server.path], "x": "x", "seed": number}
            answer = greeted(visitor).asks(Open(None, spec, 2))
            assert isinstance(answer, Opened), answer
            visitor.say(Close())
        server.settle()
        after = server.memory()
        assert after["server"] - before["server"] < 8.0, (before, after)
        assert after["descriptors"] <= before["descriptors"] + 2
        status = greeted(visitor).asks(b"\x91\x0b")
        assert isinstance(status, Status)
    finally:
        visitor.close()
    server.check()


def test_a_worker_at_the_consumers_door_is_told_which_one_is_its_own(server: Besieged) -> None:
    visitor = Visitor(server.ipc)
    said = visitor.asks(Enlist(VERSION, "0" * 32, "host", 1, "machine", 0))
    assert (said.kind, "workers dial one of the server's `listen_workers`" in said.message) == (
        "NotAllowed", True,
    )  # fmt: skip
    visitor.close()


#: What a DEALER without a key says first, by ZMTP 3.1 (RFC 37): its greeting and READY.
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity" + bytes(4)
ZMTP = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48) + bytes([4, len(_READY)]) + _READY


@pytest.mark.parametrize("size", [4 << 30, MAX_FRAME_BYTES + 1])
def test_a_frame_that_is_too_long_ends_its_connection_and_is_in_the_log(
    server: Besieged, size: int
) -> None:
    host, _, port = server.tcp.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as stranger:
        stranger.sendall(ZMTP)
        heard = b""
        while b"READY" not in heard:
            heard += stranger.recv(4096)
        stranger.sendall(b"\x02" + struct.pack(">Q", size))
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(4096):
                pass
    wait_until(lambda: "for a frame that is too long" in server.log(), "the reason in the log", 30)
    server.check()
