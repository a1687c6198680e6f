"""The one worker program: takes assignments, fills slots, reports.

It holds no state that matters: a stream's definition makes a recipe, an assignment names batches
and slots, and everything else follows. What it is told and what it tells goes through a *channel*,
so that the same code serves a local process (a pipe), a server without workers (a call), and, by
its parts, for a server far away (`augserver.distant`).
"""

from __future__ import annotations

import os
import time
import traceback
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Protocol

from augproto.codec import decode, encode
from augproto.errors import AugError
from augproto.messages import (
    MAX_PIPE_BYTES,
    MAX_TEXT,
    After,
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
    Probe,
    Probed,
    Ready,
    Script,
)
from augproto.ring import Header, Ring
from augproto.segment import attach as attach_segment
from augproto.spec import Spec
from augserver.datasets.arrays import attach
from augserver.datasets.cache import DecodedCache
from augserver.desk import Desk, recipe_of
from augserver.functions import resolve
from augserver.probe import digest, machine
from augserver.recipe import Need, Note, Recipe
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
    recipe: Recipe | Desk
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
            case Probe():
                self._probe(message.stream)
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
            data = attach(message.sources)
            cache = DecodedCache.attach(message.cache)
            recipe = recipe_of(
                spec, message.seed, data, function, message.roots, cache, message.span
            )
            memory = attach_segment(message.segment, writable=True)
            return _Work(recipe, Ring(memory, recipe.layout, message.slots))
        except Exception as error:
            return error

    def _work(self, stream: int) -> _Work:
        """What a stream's batches are made with.

        Raises:
            Exception: Whatever keeps it from being made, every time.
        """
        work = self._streams.get(stream)
        if work is None:
            raise AugError(f"stream {stream} was never defined here")
        if isinstance(work, Define):
            work = self._streams[stream] = self._define(work)
        if isinstance(work, Exception):
            raise work
        return work

    def _probe(self, stream: int) -> None:
        found, reason = digest(lambda: self._work(stream).recipe, None)
        self._channel.send(Probed(stream, found, machine(), sendable(reason)[:MAX_TEXT]))

    def _make(self, message: Assign) -> None:
        entries: list[Entry] = []
        bad: list[Bad] = []
        after: list[After] = []
        scripts = {script[:2]: script for script in message.scripts}
        started = time.perf_counter()
        for place in message.places:
            try:
                work = self._work(message.stream)
                entry, without, state = _fill(work, message.stream, place, scripts.get(place[:2]))
                entries.append(entry)
                bad += without
                if state:
                    after.append(After(place.epoch, place.step, state))
            except BaseException as error:  # also a function's sys.exit()
                known = self._streams.get(message.stream)
                span = known.recipe.span if isinstance(known, _Work) else 1
                self._channel.send(failure(message.stream, place, span, error))
        if entries:
            seconds = time.perf_counter() - started
            done = Done(message.stream, tuple(entries), seconds, tuple(bad), tuple(after))
            self._channel.send(done)


def _fill(
    work: _Work, stream: int, place: Place, script: Script | None
) -> tuple[Entry, list[Bad], bytes]:
    return fill(
        work.recipe,
        work.ring,
        place.slot,
        stream,
        place,
        script,
        partial(work.ring.note, place.slot),
    )


def fill(
    recipe: Recipe | Desk,
    ring: Ring,
    slot: int,
    stream: int,
    place: Place,
    script: Script | None,
    note: Note,
    need: Need | None = None,
) -> tuple[Entry, list[Bad], bytes]:
    """Make a batch in a slot of a ring, which is the place's own or another one.

    Args:
        note, need: See `Recipe.fill`.

    Returns:
        What is to be reported: the batch, the samples that it had to do without, and the state that
        its script has left.
    """
    samples = recipe.count(place.epoch, place.step, script)
    header = Header(stream, place.epoch, place.step, place.sequence, samples)
    ring.claim(slot, header)
    arrays = ring.arrays(slot, samples)
    made = recipe.fill(place.epoch, place.step, arrays, note, script, need)
    ring.commit(slot, header, made.samples)
    bad = [
        Bad(place.epoch, place.step, b.sample, sendable(b.path), sendable(b.reason)[:MAX_REASON])
        for b in made.bad[:MAX_REPORTED]
    ]
    return Entry(*place, made.samples), bad, made.state


def failure(stream: int, place: Place, span: int, error: BaseException) -> Failed:
    """What is to be reported of a batch that cannot be made."""
    where = f"epoch {place.epoch}, step {place.step * span}"
    text = sendable("".join(traceback.format_exception(error)))[-MAX_TEXT:]
    if isinstance(error, SampleError):
        message = sendable(f"{where}, {error}")[:MAX_TEXT]
        return Failed(stream, place, message, error.sample, text, sendable(error.path))
    message = sendable(f"{where}: {type(error).__name__}: {error}")[:MAX_TEXT]
    return Failed(stream, place, message, None, text)


def sendable(text: str) -> str:
    """Text without what UTF-8 cannot carry (lone surrogates, as in names of strange files)."""
    return text.encode(errors="backslashreplace").decode()


def attend(pipe: Connection, word: str) -> None:
    """Serve until the server is gone."""
    channel = PipeChannel(pipe)
    worker = Worker(channel)
    channel.send(Ready(os.getpid()))
    while (message := channel.receive()) is not None:
        worker.take(message)
