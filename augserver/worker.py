"""The one worker program: takes assignments, fills slots, reports.

It holds no state that matters: a stream's definition makes a recipe, an assignment names batches
and slots, and everything else follows. What it is told and what it tells goes through a *channel*,
so that the same code serves a local process (a pipe), a server without workers (a call), and later
a host far away.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Protocol

from augproto.errors import AugError
from augproto.messages import (
    MAX_PIPE_BYTES,
    MAX_TEXT,
    Assign,
    Bad,
    Define,
    Done,
    Entry,
    Failed,
    Forget,
    Function,
    Message,
    Place,
    Ready,
    decode,
    encode,
)
from augproto.ring import Header, Ring
from augproto.segment import attach as attach_segment
from augproto.spec import Spec
from augserver.datasets import arrays
from augserver.functions import resolve
from augserver.recipe import Recipe
from augserver.transforms import SampleError

#: Bad samples of one batch that are reported, and characters of each reason: a frame has bounds.
MAX_REPORTED = 1000
MAX_REASON = 500


class Channel(Protocol):
    """What a worker is told and tells through."""

    def receive(self) -> Message | None:
        """The next message; None when the server is gone."""

    def send(self, message: Message) -> None:
        """Tell the server."""


class PipeChannel:
    """A local worker's channel: msgpack through an inherited pipe, no pickle."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def receive(self) -> Message | None:
        """The next message; None when the server is gone.

        This wait needs no deadline of its own: the pipe ends with the server's process, and the
        kernel kills a worker whose forkserver dies.
        """
        try:
            return decode(self._pipe.recv_bytes(), limit=MAX_PIPE_BYTES)
        except (EOFError, OSError):
            return None

    def send(self, message: Message) -> None:
        """Tell the server; a server that is gone is noticed by the next receive."""
        try:
            self._pipe.send_bytes(encode(message))
        except OSError:
            return


@dataclass(frozen=True, slots=True)
class _Work:
    recipe: Recipe
    ring: Ring


class Worker:
    """Streams that this worker knows, and how it answers each message."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._streams: dict[int, Define | _Work | Exception] = {}
        self._functions: dict[str, Function] = {}

    def take(self, message: Message) -> None:
        """Do what the server says."""
        match message:
            case Define():
                # Only noted: what a stream's function does when it is imported, up to killing
                # this process, must happen over its own batches and not over those of others.
                self._streams[message.stream] = message
            case Assign():
                self._make(message)
            case Forget():
                self._streams.pop(message.stream, None)
            case Function():
                self._functions[message.name] = message
            case _:
                pass  # a later server's message is no reason to die

    def _define(self, message: Define) -> _Work | Exception:
        # An error here belongs to whoever asks for the stream, so it is kept and told there.
        try:
            spec = Spec.from_wire(message.spec)
            name = spec.transforms.function
            function = resolve(name, self._functions) if name else None
            data = arrays.attach(message.sources)
            recipe = Recipe(spec, message.seed, data, function, message.roots)
            memory = attach_segment(message.segment, writable=True)
            return _Work(recipe, Ring(memory, recipe.layout, message.slots))
        except Exception as error:
            return error

    def _make(self, message: Assign) -> None:
        work = self._streams.get(message.stream)
        entries: list[Entry] = []
        bad: list[Bad] = []
        started = time.perf_counter()
        for place in message.places:
            try:
                if work is None:
                    raise AugError(f"stream {message.stream} was never defined here")
                if isinstance(work, Define):
                    work = self._streams[message.stream] = self._define(work)
                if isinstance(work, Exception):
                    raise work
                entry, without = _fill(work, message.stream, place)
                entries.append(entry)
                bad += without
            except BaseException as error:  # also a function's sys.exit()
                self._channel.send(_failure(message.stream, place, error))
        if entries:
            seconds = time.perf_counter() - started
            self._channel.send(Done(message.stream, tuple(entries), seconds, tuple(bad)))


def _fill(work: _Work, stream: int, place: Place) -> tuple[Entry, list[Bad]]:
    recipe, ring = work.recipe, work.ring
    samples = recipe.count(place.epoch, place.step)
    header = Header(stream, place.epoch, place.step, place.sequence, samples)
    memory = ring.claim(place.slot, header)
    note = partial(ring.note, place.slot)
    made = recipe.fill(place.epoch, place.step, recipe.layout.arrays(memory, samples), note)
    ring.commit(place.slot, replace(header, count=made.samples))
    bad = [
        Bad(place.epoch, place.step, b.sample, _sendable(b.path), _sendable(b.reason)[:MAX_REASON])
        for b in made.bad[:MAX_REPORTED]
    ]
    return Entry(*place, made.samples), bad


def _failure(stream: int, place: Place, error: BaseException) -> Failed:
    where = f"epoch {place.epoch}, step {place.step}"
    text = _sendable("".join(traceback.format_exception(error)))[-MAX_TEXT:]
    if isinstance(error, SampleError):
        message = _sendable(f"{where}, {error}")[:MAX_TEXT]
        return Failed(stream, place, message, error.sample, text, _sendable(error.path))
    message = _sendable(f"{where}: {type(error).__name__}: {error}")[:MAX_TEXT]
    return Failed(stream, place, message, None, text)


def _sendable(text: str) -> str:
    """Text without what UTF-8 cannot carry (lone surrogates, as in names of strange files)."""
    return text.encode(errors="backslashreplace").decode()


def run(channel: Channel, pid: int) -> None:
    """Serve until the server is gone or says so."""
    worker = Worker(channel)
    channel.send(Ready(pid))
    while (message := channel.receive()) is not None:
        worker.take(message)
