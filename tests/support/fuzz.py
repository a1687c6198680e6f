"""Hostile peers, seeded: valid conversations are generated, broken, and said to both ends.

Everything here is a function of a seed, so that an input that breaks something is found again by
its seed and number, and is printed.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import zmq

from augproto.codec import decode, encode
from augproto.messages import (
    VERSION,
    Announce,
    AreFiles,
    ArraySpec,
    AskStatus,
    Bye,
    Close,
    Entry,
    Fault,
    FilesAre,
    Filled,
    Folder,
    Function,
    Heartbeat,
    Hello,
    Message,
    Offer,
    Open,
    Opened,
    Release,
    Room,
    Run,
    Scale,
    Source,
    Status,
    Taken,
    Upload,
    Walk,
    Walked,
    Want,
    Welcome,
    Withdraw,
)

#: Values that are whole, of the right kind, and absurd; and some that are of the wrong kind.
ABSURD: tuple[Any, ...] = (
    0, 1, -1, 2, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**53, 2**62,
    2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 0.5, 1e-300, 1e300, -1e300, math.inf,
    -math.inf, math.nan, True, False, None, "", "x", "\0", "a" * 300, "b" * 70_000,
    "\u2028\x1b[31m", "/etc/passwd", "/../../etc/passwd", "/proc/self/mem", "handed:x",
    "augserver-", "../x", "os:system", b"", b"\0" * 100, [], [[]], {}, {"": ""},
    {"x": {"x": {"x": []}}}, [0] * 1000, [[0, 0, 0]] * 100, ["x"] * 300,
)  # fmt: skip


class Mutator:
    """Breaks frames, each in one of many ways."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def broken(self, frame: bytes) -> bytes:
        """Something that is near the frame, but is rarely one."""
        rng = self._rng
        ways = (self._bits, self._cut, self._twice, self._bytes, self._tree, self._tree, self._tree)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            frame = rng.choice(ways)(frame)
        if rng.random() < 0.02:
            frame = rng.choice((_deep, _wide, _huge_length))(rng)
        return frame

    def _bits(self, frame: bytes) -> bytes:
        out = bytearray(frame)
        for _ in range(self._rng.randint(1, 4) if out else 0):
            out[self._rng.randrange(len(out))] ^= 1 << self._rng.randrange(8)
        return bytes(out)

    def _cut(self, frame: bytes) -> bytes:
        return frame[: self._rng.randint(0, len(frame))]

    def _twice(self, frame: bytes) -> bytes:
        at = self._rng.randint(0, len(frame))
        return frame[:at] + frame[self._rng.randint(0, at) :]

    def _bytes(self, frame: bytes) -> bytes:
        at = self._rng.randint(0, len(frame))
        return frame[:at] + self._rng.randbytes(self._rng.randint(1, 9)) + frame[at:]

    def _tree(self, frame: bytes) -> bytes:
        """Another value at some place of what the frame holds."""
        try:
            tree = msgpack.unpackb(frame, strict_map_key=False)
        except Exception:
            return frame
        places = list(_places(tree))
        if not places:
            return frame
        holder, key = self._rng.choice(places)
        how = self._rng.random()
        if how < 0.7:
            holder[key] = self._rng.choice(ABSURD)
        elif isinstance(holder, list):
            if how < 0.85:
                del holder[key]
            else:
                holder.insert(key, self._rng.choice(ABSURD))
        else:
            holder[self._rng.choice(("", "x", "unknown", 1, key))] = holder.pop(key)
        try:
            packed: bytes = msgpack.packb(tree)
        except Exception:
            return frame
        return packed


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = range(len(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _deep(rng: random.Random) -> bytes:
    return b"\x94\x03\xc0\x81\xa1x" + b"\x91" * rng.choice((500, 2000, 100_000)) + b"\xc0\xc0"


def _wide(rng: random.Random) -> bytes:
    count = rng.choice((70_000, 500_000, 2_000_000))
    return b"\x94\x05\xdd" + struct.pack(">I", count) + rng.choice((b"\x90", b"\0")) * count


def _huge_length(rng: random.Random) -> bytes:
    kind = rng.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"))
    return b"\x95\x03" + kind + struct.pack(">I", rng.choice((2**31, 2**32 - 1)))


def spec(rng: random.Random, path: str) -> dict[str, Any]:
    """A stream over arrays of a file, absurd at some places."""
    some: dict[str, Any] = {"data": [path], "x": "x", "y": "y", "seed": rng.randrange(2**64)}
    if rng.random() < 0.5:
        some["batch_size"] = rng.choice((1, 4, 7, 1 << 20))
    options: dict[str, tuple[Any, ...]] = {
        "rotation_range": (1e-300, 90, 1e300), "shear_range": (90, 1e300),
        "width_shift_range": (0.1, 1e300, 1 << 20, [0.1, 1e300], -1.0),
        "zoom_range": (0.5, 1.0, [0, 0], [-1, 1], [1e300, 1e300], 1e-300),
        "channel_shift_range": (1.0, 1e300), "brightness_range": ([0, 0], [0.5, 1e300]),
        "fill_mode": ("wrap", "reflect", "constant"), "cval": (1e300, -5.0),
        "rescale": (0.0, 1e300, 1e-300), "offset": (1e300,), "horizontal_flip": (True,),
        "samplewise_center": (True,), "samplewise_std_normalization": (True,),
    }  # fmt: skip
    chosen = rng.sample(sorted(options), rng.randint(0, 4))
    if chosen:
        some["transforms"] = {name: rng.choice(options[name]) for name in chosen}
    if rng.random() < 0.2:
        some["target_size"] = rng.choice(([1, 1], [3, 64], [1 << 15, 1 << 15], [1 << 15, 1]))
    return some


def consumer_says(rng: random.Random, path: str) -> list[Message]:
    """A consumer's side of a valid conversation."""
    said: list[Message] = [Hello(VERSION, "fuzz", rng.randrange(2**32))]
    if rng.random() < 0.3:
        said.append(AskStatus())
    if rng.random() < 0.3:
        said += brought(rng)
    if rng.random() < 0.3:
        folder = os.fsencode(os.path.dirname(path))
        said.append(Walk(folder, rng.random() < 0.5, rng.random() < 0.5, rng.choice((0, 0, 1))))
        said.append(AreFiles((os.fsencode(path), folder)[: rng.randint(0, 2)]))
    slots = rng.choice((None, None, 2, 3, 8, 4096, 2**64 - 1))
    if rng.random() < 0.5:
        changes: dict[str, object] = {"batch_size": rng.choice((1, 3, 8))}
        changes["seed"] = rng.randrange(2**64)
        said.append(Open("numbers", None, slots, changes))
    else:
        said.append(Open(None, spec(rng, path), slots))
    for _ in range(rng.randint(0, 4)):
        epochs = (0, 1, 2**32 - 2, 2**32 - 1, 2**64 - 1)
        runs = tuple(
            Run(rng.choice(epochs), rng.choice((0, 1, 5, 2**64 - 1)), rng.choice((1, 3, 2**64 - 1)))
            for _ in range(rng.choice((0, 1, 3, 100)))
        )
        releases = tuple(
            Release(rng.choice((0, 1, 2, 2**64 - 1)), rng.choice((1, 2, 3, 2**64 - 1)))
            for _ in range(rng.choice((0, 1, 3)))
        )
        said.append(Want(runs, rng.choice((0, 1, 2**64 - 1)), releases))
        said.append(rng.choice((Heartbeat(), AskStatus(), Heartbeat())))
    if rng.random() < 0.95:
        said.append(Close())
    return said


def brought(rng: random.Random) -> list[Message]:
    """A small hand-over by message; what is large is refused before it takes memory."""
    rows = rng.choice((1, 16, 1000))
    name, owner = rng.choice(("a", "b")), rng.choice(("o", "p")) * rng.choice((15, 16, 300))
    arrays: tuple[ArraySpec, ...] = (ArraySpec("x", "|u1", (rows,)),)
    if rng.random() < 0.3:
        arrays = (ArraySpec("files.paths", "|u1", (rows,)), ArraySpec("files.ends", "<i8", (1,)))
    if rng.random() < 0.2:
        arrays = (ArraySpec("x", "|u1", (2**40,)),)
    size = -(-rows // 64) * 64 + 64 * (len(arrays) - 1)
    said: list[Message] = [Offer(name, arrays, owner, rng.choice(("", "", "00" * 32)))]
    cut = rng.randint(0, size)
    said += [Upload(name, 0, b"/" * cut), Upload(name, cut, b"\0" * (size - cut)), Filled(name)]
    if rng.random() < 0.5:
        said.append(Open(None, {"data": [f"handed:{name}"], "x": "x"}, 2))
    return said


def said_to_a_server(rng: random.Random, path: str) -> list[list[bytes]]:
    """Messages, as frames, of one conversation in which some are broken, twice or out of turn."""
    mutator = Mutator(rng)
    frames = [encode(message) for message in consumer_says(rng, path)]
    if rng.random() < 0.3:
        at, other = rng.randrange(len(frames)), rng.randrange(len(frames))
        frames[at], frames[other] = frames[other], frames[at]
    if rng.random() < 0.3:
        frames.insert(rng.randrange(len(frames)), rng.choice(frames))
    messages = []
    for frame in frames:
        if rng.random() < 0.4:
            messages.append([mutator.broken(frame)])
        messages.append([frame] if rng.random() < 0.97 else [frame, b"", mutator.broken(frame)])
    return messages


#: Codes whose answer is waited for: Open, Offer, Upload and Filled, Walk and AreFiles.
AWAITED = (b"\x03", b"\x31", b"\x0d", b"\x33", b"\x0f", b"\x11")


def attack_router(address: str, path: str, seed: int, count: int) -> int:
    """Say `count` messages to a server through DEALERs; returns how many answers came.

    What comes back must be messages of the protocol, whatever was said.
    """
    rng = random.Random(seed)
    answers = said = 0
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        while said < count:
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 500)
                dealer.connect(address)
                for message in said_to_a_server(rng, path):
                    dealer.send_multipart(message, zmq.NOBLOCK)
                    said += 1
                    if message[0][1:2] in AWAITED:  # what is answered decides what may follow
                        dealer.poll(20)
                    with contextlib.suppress(zmq.Again):
                        while rng.random() < 0.9:
                            decode(dealer.recv_multipart(zmq.NOBLOCK)[-1])
                            answers += 1
                if rng.random() < 0.5 and dealer.poll(50):
                    decode(dealer.recv_multipart(zmq.NOBLOCK)[-1])
                    answers += 1
    finally:
        context.destroy(linger=500)
    return answers


# -- below ZeroMQ -------------------------------------------------------------------------------

_GREETING = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32


def _ready(kind: bytes) -> bytes:
    body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    body += b"\x08Identity" + struct.pack(">I", 0)
    return b"\x04" + bytes([len(body)]) + body


def raw_bytes(rng: random.Random) -> bytes:
    """What a peer that is no ZeroMQ, or a broken one, sends."""
    hello = encode(Hello(VERSION, "raw", 1))
    kinds = (b"DEALER", b"REQ", b"ROUTER", b"PUB", b"", b"X" * 200)
    parts = [_GREETING, _ready(rng.choice(kinds)), b"\0" + bytes([len(hello)]) + hello]
    if rng.random() < 0.3:
        length = rng.choice((2**63, 2**64 - 1, 2**31, 9 << 20, 0))
        parts.append(bytes([rng.choice((2, 3, 6))]) + struct.pack(">Q", length) + hello)
    data = b"".join(parts[: rng.randint(1, len(parts))])
    mutator = Mutator(rng)
    way = rng.random()
    if way < 0.2:
        return rng.randbytes(rng.randint(0, 300))
    if way < 0.3:
        return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    return mutator._bits(data) if way < 0.7 else mutator._cut(data)


def attack_raw(address: str, seed: int, count: int) -> None:
    """Open `count` connections below ZeroMQ and say nonsense, several at a time."""
    rng = random.Random(seed)
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            held.append(raw_connection(address))
            with contextlib.suppress(OSError):  # it may have been hung up on
                held[-1].send(raw_bytes(rng), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            if len(held) > rng.randint(0, 20):
                held.pop(rng.randrange(len(held))).close()
    finally:
        for connection in held:
            connection.close()


def raw_connection(address: str) -> socket.socket:
    """A connection to a ZeroMQ address without ZeroMQ."""
    if address.startswith("ipc://"):
        connection = socket.socket(socket.AF_UNIX)
        where: Any = address.removeprefix("ipc://")
    else:
        connection = socket.socket(socket.AF_INET)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        where = (host, int(port))
    connection.settimeout(30.0)
    for _ in range(1000):
        try:
            connection.connect(where)
            break
        except (BlockingIOError, ConnectionRefusedError):  # its backlog is full
            time.sleep(0.005)
    return connection


# -- to a client --------------------------------------------------------------------------------


def server_says(rng: random.Random, segment: str) -> list[Message]:
    """A server's side of a valid conversation, over a segment of a ring of 4 slots of 4 floats."""
    opened = Opened(
        stream=1, segment=segment, slots=4, batch_size=4, arrays=(ArraySpec("x", "<f4", (1,)),),
        structure={"x": "x"}, steps=10, samples=40, shuffle=False, seed=1, fingerprint="f",
    )  # fmt: skip
    said: list[Message] = [Welcome(VERSION, 1, 30.0), opened]
    for number in range(1, rng.randint(1, 4)):
        entries = tuple(
            Entry(0, rng.randrange(10), rng.choice((0, 1, 3, 4, 2**64 - 1)), number, 4)
            for _ in range(rng.randint(0, 3))
        )
        said.append(
            rng.choice(
                (
                    Announce(number, entries), Announce(number, entries), Heartbeat(),
                    Fault("WorkerError", "no", number, 0, rng.randrange(10)),
                    Fault(rng.choice(("SessionLost", "NoRoom", "AugError", "ProtocolError")), "no"),
                    Status(("s",), 1, 1, 1, 1, 0), Bye("over"), Taken("f", 2**63),
                    Room("f", (Source("x", "|u1", (4,), segment, 2**63),)), Room("f", ()),
                    Walked((Folder(b"/", (b"a",), ()),), True), FilesAre((True,)),
                )
            )
        )  # fmt: skip
    return said


def said_to_a_client(rng: random.Random, segment: str) -> list[bytes]:
    """Frames of one conversation; nearly always one of them is broken."""
    mutator = Mutator(rng)
    frames = [encode(message) for message in server_says(rng, segment)]
    if rng.random() < 0.95:
        at = rng.randrange(len(frames))
        frames[at] = mutator.broken(frames[at])
    if rng.random() < 0.1:
        frames.insert(rng.randrange(len(frames)), rng.choice(frames))
    return frames


# -- to a private server's lifeline -------------------------------------------------------------


def program_says(rng: random.Random) -> Message:
    """Something that a program says to its private server."""
    shape = rng.choice(((4,), (4, 2), (0,), (2**63,), (2**40, 2**40), (2**32, 2**32)))
    name = rng.choice(("a", "b", "c"))
    arrays = (ArraySpec("x", rng.choice(("<f4", "|u1", "|O", "<U4", "nonsense")), shape),)
    messages: tuple[Message, ...] = (
        Offer(name, arrays), Filled(name), Withdraw(name), Scale(1), Scale(2**64 - 1),
        Function("handed:f", rng.randbytes(20), ("/nowhere",)), Heartbeat(),
    )  # fmt: skip
    return rng.choice(messages)


def said_to_a_lifeline(rng: random.Random) -> bytes:
    """A frame for the lifeline; never one that asks for many workers or for much memory."""
    frame = encode(program_says(rng))
    broken = Mutator(rng).broken(frame) if rng.random() < 0.6 else frame
    try:
        message = decode(broken)
    except Exception:
        return broken
    many = isinstance(message, Scale) and 2 < message.workers <= 1024
    large = isinstance(message, Offer) and any(
        1 << 16 < math.prod(array.shape) < 1 << 44 for array in message.arrays
    )
    return frame if many or large else broken


def attack_lifeline(pair: socket.socket, seed: int, count: int) -> int:
    """Say `count` frames to a private server through its pair; every question has one answer."""
    rng = random.Random(seed)
    answers = 0
    for number in range(count):
        frame = said_to_a_lifeline(rng)
        pair.sendall(struct.pack("!i", len(frame)) + frame)
        if _is_answered(frame):
            assert select.select([pair], [], [], 30.0)[0], f"no answer to {number}: {frame!r:.300}"
            hear(pair)
            answers += 1
    return answers


def hear(pair: socket.socket) -> Message:
    """What the server says next."""
    (length,) = struct.unpack("!i", _exactly(pair, 4))
    return decode(_exactly(pair, length))


def _is_answered(frame: bytes) -> bool:
    try:
        return not isinstance(decode(frame), Withdraw)
    except Exception:
        return True


def _exactly(pair: socket.socket, count: int) -> bytes:
    out = b""
    while len(out) < count:
        chunk = pair.recv(count - len(out))
        assert chunk, "the server has ended"
        out += chunk
    return out
