"""A server of remote workers that a test drives: it says what a server says, and keeps what comes.

It has the dataset and a recipe, so that it knows what each batch is made of. Nothing happens but
while the test waits for something (`until`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from processes import DEADLINE, wait_until

from augproto.codec import decode, encode
from augproto.messages import (
    MAX_PIECE_BYTES,
    VERSION,
    Assign,
    Bad,
    Bye,
    Define,
    Done,
    Enlist,
    Enlisted,
    Failed,
    Fault,
    Inputs,
    Lack,
    Load,
    Message,
    Piece,
    Place,
    Probe,
    Probed,
    Resign,
    Script,
    Source,
)
from augproto.spec import LABEL, Spec
from augserver.datasets.columns import Columns
from augserver.desk import Desk, recipe_of
from augserver.recipe import indexes_of

Array = np.ndarray[Any, Any]
NOWHERE = Place(0, 0, 0, 0)
#: Assignments of one batch that a worker holds.
AT_ONCE = 3


@dataclass
class Guest:
    """A worker that has dialled in."""

    identity: bytes
    enlist: Enlist
    heard: int = 1
    defined: set[int] = field(default_factory=set)
    holds: set[tuple[int, Place]] = field(default_factory=set)


@dataclass
class Stream:
    """A stream, and what it is made of."""

    define: Define
    spec: Spec
    arrays: Mapping[str, Array]
    recipe: Any

    def order(self, place: Place, script: Script | None) -> Array:
        if isinstance(self.recipe, Desk):
            assert script is not None
            return indexes_of(script)
        return np.asarray(self.recipe._order(place.epoch, place.step, script))


@dataclass(frozen=True)
class Result:
    """What has become of a batch: its fields, or why there is none."""

    fields: dict[str, Array] | None
    bad: tuple[Bad, ...] = ()
    failed: Failed | None = None
    state: bytes = b""


class Foreman:
    """The server; `address` is where workers dial.

    Attributes:
        guests: By name, as long as they are not silent or resigned.
        said: All messages but pieces, with the name of who has said them.
        withheld: Samples that are not sent with their batch, so that they will be lacked.
    """

    def __init__(self, context: zmq.Context[Any], address: str = "tcp://127.0.0.1:*") -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 200)
        wait_until(lambda: _bound(self._socket, address), f"{address} to be free")
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.guests: dict[str, Guest] = {}
        self.streams: dict[int, Stream] = {}
        self.said: list[tuple[str, Message]] = []
        self.results: dict[tuple[int, int, int], Result] = {}
        self.withheld: set[int] = set()
        self.version: tuple[int, ...] = VERSION
        self.answers = True
        self._slots: dict[Place, bytearray] = {}
        self._sequence = 0
        self._last = b""

    def close(self) -> None:
        """Be gone without a word."""
        self._socket.close()

    def farewell(self) -> None:
        """Say that it is over."""
        with contextlib.suppress(zmq.ZMQError):
            for guest in self.guests.values():
                self.say(guest, Bye("the test is over"))

    def define(
        self, number: int, spec: Spec, seed: int, arrays: Mapping[str, Array], span: int = 1
    ) -> Stream:
        """A stream, for all that work here from now on."""
        sources = tuple(Source(n, a.dtype.str, a.shape, "", 0) for n, a in arrays.items())
        define = Define(number, spec.to_wire(), seed, sources, "", 0, span=span)
        recipe = recipe_of(spec, seed, arrays, span=span, describes=True)
        self.streams[number] = stream = Stream(define, spec, arrays, recipe)
        return stream

    # -- what it says ----------------------------------------------------------------------------

    def say(self, guest: Guest, message: Message, data: Any = None) -> None:
        frames = [guest.identity, encode(message), *([] if data is None else [data])]
        self._socket.send_multipart(frames, zmq.NOBLOCK)

    def refuse(self, fault: Fault) -> None:
        """Say it to whoever has spoken last."""
        self._socket.send_multipart([self._last, encode(fault)], zmq.NOBLOCK)

    def probe(self, guest: Guest, number: int) -> Probed:
        """What comes of a worker's probe."""
        self._introduce(guest, number)
        self._send(guest, number, NOWHERE, self.streams[number].order(NOWHERE, None))
        self.say(guest, Probe(number))
        before = len(self.said)

        def found() -> list[Probed]:
            said = [m for _, m in self.said[before:] if isinstance(m, Probed)]
            return [m for m in said if m.stream == number]

        self.until(found, "a probe")
        return found()[0]

    def assign(self, guest: Guest, number: int, epoch: int, step: int, *scripts: Script) -> Place:
        """Have a batch made."""
        self._introduce(guest, number)
        self._sequence += 1
        place = Place(epoch, step, self._sequence % 7, self._sequence)
        script = scripts[0] if scripts else None
        guest.holds.add((number, place))
        self._send(guest, number, place, self.streams[number].order(place, script))
        self.say(guest, Assign(number, (place,), scripts))
        return place

    def _introduce(self, guest: Guest, number: int) -> None:
        if number in guest.defined:
            return
        guest.defined.add(number)
        stream = self.streams[number]
        self.say(guest, stream.define)
        whole = [name for name in (stream.spec.whitening,) if name is not None]
        if stream.spec.subset is not None and LABEL in stream.arrays:
            whole.append(LABEL)
        if whole:
            self._load(guest, number, NOWHERE, b"", {n: stream.arrays[n].tobytes() for n in whole})

    def _send(self, guest: Guest, number: int, place: Place, samples: Array) -> None:
        stream = self.streams[number]
        samples = np.array([s for s in samples.tolist() if s not in self.withheld], np.int64)
        samples = np.unique(samples)
        loads: dict[str, bytes] = {}
        ends = b""
        for name in _columns(stream):
            loads[name] = stream.arrays[name][samples].tobytes()
        if stream.spec.pictures is not None:
            table = Columns(stream.spec, stream.arrays)
            files = [Path(table.path(sample)).read_bytes() for sample in samples.tolist()]
            loads["files"] = b"".join(files)
            ends = np.cumsum([len(file) for file in files]).astype("<i8").tobytes()
        self._load(guest, number, place, samples.astype("<i8").tobytes(), loads, ends)

    def _load(
        self,
        guest: Guest,
        number: int,
        place: Place,
        samples: bytes,
        loads: Mapping[str, bytes],
        ends: bytes = b"",
    ) -> None:
        announced = tuple(Load(name, len(data)) for name, data in loads.items())
        self.say(guest, Inputs(number, place, samples, announced, ends))
        for name, data in loads.items():
            for offset in range(0, len(data), MAX_PIECE_BYTES):
                piece = Piece(number, place, name, offset, len(data))
                self.say(guest, piece, data[offset : offset + MAX_PIECE_BYTES])

    # -- what it hears ---------------------------------------------------------------------------

    def until(self, condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
        """Take and answer what comes, until something is so."""
        end = time.monotonic() + deadline
        while not condition():
            assert time.monotonic() < end, f"waited {deadline:.0f} s for: {what}"
            if self._socket.poll(20):
                with contextlib.suppress(zmq.Again):
                    while True:
                        identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
                        self._take(identity, frames)

    def enlisted(self, count: int = 1) -> list[Guest]:
        """So many workers, once they are there."""
        self.until(lambda: len(self.guests) >= count, f"{count} workers")
        return list(self.guests.values())

    def _take(self, identity: bytes, frames: list[bytes]) -> None:
        self._last = identity
        message = decode(frames[0])
        if isinstance(message, Enlist):
            self._enlist(identity, message)
            return
        name = next((n for n, g in self.guests.items() if g.identity == identity), "")
        if not name:
            return
        guest = self.guests[name]
        if isinstance(message, Piece):
            self._write(guest, message, frames[1])
            return
        self.said.append((name, message))
        match message:
            case Done():
                ((epoch, step, *_, samples),) = message.entries
                place = Place(*message.entries[0][:4])
                guest.holds.discard((message.stream, place))
                layout = self.streams[message.stream].recipe.layout
                slot = np.zeros(layout.slot_bytes, np.uint8)
                data = self._slots.pop(place)
                slot[: len(data)] = np.frombuffer(data, np.uint8)
                fields = layout.arrays(slot, samples)
                state = message.after[0].state if message.after else b""
                self.results[message.stream, epoch, step] = Result(fields, message.bad, None, state)
            case Failed():
                guest.holds.discard((message.stream, message.place))
                key = message.stream, *message.place[:2]
                self.results[key] = Result(None, failed=message)
            case Lack():
                withheld, self.withheld = self.withheld, set()
                lacking = np.frombuffer(message.samples, "<i8")
                self._send(guest, message.stream, message.place, lacking)
                self.withheld = withheld
            case Resign():
                del self.guests[name]

    def _enlist(self, identity: bytes, message: Enlist) -> None:
        self.said.append((message.worker, message))
        if not self.answers:
            return
        guest = self.guests.get(message.worker)
        fresh = guest is None or guest.identity != identity
        if guest is None or fresh:
            self.guests[message.worker] = guest = Guest(identity, message)
        guest.enlist = message
        guest.heard += 1
        self.say(guest, Enlisted(self.version, 3.0, fresh))

    def _write(self, guest: Guest, piece: Piece, data: bytes) -> None:
        if (piece.stream, piece.place) not in guest.holds:
            return
        slot = self._slots.setdefault(piece.place, bytearray())
        assert piece.offset == len(slot), "pieces come in order"
        assert len(data) <= MAX_PIECE_BYTES
        slot += data
        assert len(slot) <= piece.size

    # -- whole epochs ----------------------------------------------------------------------------

    def epoch(self, number: int, epoch: int) -> list[Result]:
        """Have every batch of an epoch made by whoever is there, and again where one is lost."""
        stream = self.streams[number]
        steps = -(-stream.recipe.sampler.steps // stream.define.span)

        def go_on() -> bool:
            missing = [s for s in range(steps) if (number, epoch, s) not in self.results]
            held = {(n, *p[:2]) for g in self.guests.values() for n, p in g.holds}
            for step in missing:
                free = [g for g in self.guests.values() if len(g.holds) < AT_ONCE]
                if free and (number, epoch, step) not in held:
                    self.assign(min(free, key=lambda g: len(g.holds)), number, epoch, step)
            return not missing

        self.until(go_on, f"epoch {epoch}", 120.0)
        return [self.results[number, epoch, step] for step in range(steps)]


def _bound(socket: Any, address: str) -> bool:
    """Whether that could be done: a socket that was closed may keep its port for a moment."""
    with contextlib.suppress(zmq.ZMQError):
        socket.bind(address)
        return True
    return False


def _columns(stream: Stream) -> set[str]:
    """Arrays of which a batch takes rows."""
    if isinstance(stream.recipe, Desk):
        return {str(stream.spec.x)}
    return {p.column for p in stream.recipe._parts.listed} & set(stream.arrays)


@contextlib.contextmanager
def foreman(address: str = "tcp://127.0.0.1:*") -> Iterator[Foreman]:
    """The server, until the end of the block; then it says Bye."""
    context: zmq.Context[Any] = zmq.Context()
    try:
        made = Foreman(context, address)
        yield made
        made.farewell()
    finally:
        context.destroy(linger=200)
