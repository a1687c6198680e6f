"""A worker that dials in, in a thread of the test: it does what it is told, or what a test wants.

It speaks the messages and computes with the recipe itself, out of nothing but what it is sent:
arrays begin as zeros, and files as nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zmq

from augproto.codec import decode, encode
from augproto.errors import AugError
from augproto.layout import aligned_empty
from augproto.messages import (
    MAX_PIECE_BYTES,
    VERSION,
    After,
    Assign,
    Bad,
    Bye,
    Define,
    Dismiss,
    Done,
    Enlist,
    Enlisted,
    Entry,
    Failed,
    Fault,
    Forget,
    Inputs,
    Lack,
    Message,
    Piece,
    Place,
    Probe,
    Probed,
    Resign,
)
from augproto.ring import Header, Ring
from augproto.spec import Spec
from augserver import probe
from augserver.datasets.reading import PictureFiles
from augserver.desk import Desk, recipe_of
from augserver.functions import resolve
from augserver.recipe import Recipe
from augserver.transforms import SampleError

#: Seconds between two Enlists, and for an answer to a Lack.
BEAT, ANSWER = 0.25, 20.0


class _Stream:
    """What is known of a stream, and the rows and files that have come."""

    def __init__(self, define: Define) -> None:
        self.define = define
        self.arrays = {s.name: np.zeros(s.shape, np.dtype(s.dtype)) for s in define.sources}
        self.files: dict[int, bytes] = {}
        self.came: set[int] = set()
        self.coming: dict[Place, Inputs] = {}
        self.bytes: dict[tuple[Place, str], bytearray] = {}
        self._recipe: Recipe | Desk | None = None

    def recipe(self) -> Recipe | Desk:
        if self._recipe is None:
            spec = Spec.from_wire(self.define.spec)
            name = spec.transforms.function
            function = resolve(name, {}) if name else None
            define = self.define
            self._recipe = recipe_of(
                spec, define.seed, self.arrays, function, (), None, define.span
            )
        return self._recipe

    def begin(self, inputs: Inputs) -> None:
        self.coming[inputs.place] = inputs
        for load in inputs.loads:
            self.bytes[inputs.place, load.name] = bytearray(load.size)
        self.settle(inputs)

    def piece(self, piece: Piece, payload: bytes) -> None:
        held = self.bytes[piece.place, piece.name]
        held[piece.offset : piece.offset + len(payload)] = payload
        if piece.offset + len(payload) == piece.size:
            self.settle(self.coming[piece.place], piece.name)

    def settle(self, inputs: Inputs, name: str = "") -> None:
        samples = np.frombuffer(inputs.samples, "<i8")
        for load in inputs.loads:
            data = self.bytes[inputs.place, load.name]
            if load.name != name and load.size:
                continue
            if load.name == "files":
                start = 0
                for sample, end in zip(samples, np.frombuffer(inputs.ends, "<i8"), strict=True):
                    self.files[int(sample)] = bytes(data[start:end])
                    start = int(end)
                continue
            array = self.arrays[load.name]
            rows = np.frombuffer(data, array.dtype).reshape(-1, *array.shape[1:])
            if len(samples):
                array[samples] = rows
            else:
                array[...] = rows.reshape(array.shape)
        if not inputs.loads or name == inputs.loads[-1].name or not inputs.loads[-1].size:
            self.came |= {int(sample) for sample in samples}


class Dialled:
    """One worker.

    Args:
        address: Of the server's door for workers.
        machine: What it says of itself.
        before: Called with each place before it is made, in the worker's thread; False skips it.
        spoil: Called with a batch's bytes before they are sent.
        repeats: How often each batch is sent.
    """

    def __init__(
        self,
        address: str,
        *,
        machine: str = "a machine",
        name: str = "",
        version: tuple[int, ...] = VERSION,
        heir: str = "",
        cause: str = "",
        before: Callable[[Place], bool] | None = None,
        probes: Callable[[str], str] | None = None,
        repeats: int = 1,
    ) -> None:
        self.name = name or uuid.uuid4().hex
        self.heard: list[Message] = []
        self.made: list[Place] = []
        self.lacked = 0
        self.error = ""
        self.cut = threading.Event()  #: while set it neither hears nor speaks
        self._address, self._machine, self._version = address, machine, version
        self._heir, self._cause = heir, cause
        self._before, self._probes, self._repeats = before, probes, repeats
        self._stop = threading.Event()
        self._dies = False
        self._begun = 0
        self._streams: dict[int, _Stream] = {}
        self._later: deque[list[bytes]] = deque()
        self.extra: deque[list[bytes]] = deque()  #: frames that a test wants sent
        self._thread = threading.Thread(target=self._run, name="dialled")

    def __enter__(self) -> Dialled:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, *, dies: bool = False) -> None:
        """Resign and end; or end without a word."""
        self._dies = dies
        self._stop.set()
        self.cut.clear()
        if self._thread.ident is not None:
            self._thread.join(30)
        assert not self._thread.is_alive()
        assert not self.error, self.error

    def said(self, kind: type) -> list[Any]:
        """What it was told of that kind."""
        return [message for message in list(self.heard) if isinstance(message, kind)]

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._dealer: Any = context.socket(zmq.DEALER)
            self._dealer.setsockopt(zmq.SNDHWM, 0)
            self._dealer.connect(self._address)
            self._said = 0.0
            while not self._stop.is_set():
                self._turn()
            if not self._dies:
                self._say(Resign("the test is over"))
        except Exception:
            self.error = traceback.format_exc()
        finally:
            context.destroy(linger=0 if self._dies else 200)

    def _turn(self) -> None:
        if self.cut.is_set():
            time.sleep(0.01)
            return
        self._beat()
        while self.extra:
            self._dealer.send_multipart(self.extra.popleft(), zmq.NOBLOCK)
        frames = self._later.popleft() if self._later else self._hear(20)
        if frames is not None:
            self._take(frames)

    def _beat(self) -> None:
        if time.monotonic() - self._said > BEAT:
            self._said = time.monotonic()
            self._say(
                Enlist(
                    self._version, self.name, "host", 7, self._machine, self._begun,
                    self._heir, self._cause,
                )
            )  # fmt: skip

    def _hear(self, milliseconds: int) -> list[bytes] | None:
        if not self._dealer.poll(milliseconds):
            return None
        return list(self._dealer.recv_multipart(zmq.NOBLOCK))

    def _say(self, message: Message, payload: Any = None) -> None:
        frames = [encode(message)] if payload is None else [encode(message), payload]
        self._dealer.send_multipart(frames, zmq.NOBLOCK)

    def _take(self, frames: list[bytes]) -> None:
        message = decode(frames[0])
        self.heard.append(message)
        match message:
            case Enlisted():
                if message.fresh:
                    self._streams.clear()
                    self._later.clear()
            case Define():
                self._streams[message.stream] = _Stream(message)
            case Forget():
                self._streams.pop(message.stream, None)
            case Inputs():
                self._streams[message.stream].begin(message)
            case Piece():
                self._streams[message.stream].piece(message, frames[1])
            case Probe():
                self._probe(message.stream)
            case Assign():
                for place in message.places:
                    self._make(message, place)
            case Fault() | Dismiss() | Bye():
                pass
            case _:
                raise AssertionError(f"a worker is told {message!r:.200}")

    def _probe(self, stream: int) -> None:
        with self._by_what_came(stream, Place(0, 0, 0, 0)):
            digest, reason = probe.digest(self._streams[stream].recipe, None)
        if self._probes is not None:
            digest = self._probes(digest)
        self._say(Probed(stream, digest, self._machine, reason))

    def _make(self, assign: Assign, place: Place) -> None:
        if assign.stream not in self._streams:
            return
        if self._before is not None and not self._before(place):
            return
        stream = self._streams[assign.stream]
        scripts = {script[:2]: script for script in assign.scripts}
        script = scripts.get(place[:2])
        started = time.perf_counter()
        try:
            recipe = stream.recipe()
            samples = recipe.count(place.epoch, place.step, script)
            ring = Ring(aligned_empty(recipe.layout.segment_bytes(1)), recipe.layout, 1)
            header = Header(assign.stream, place.epoch, place.step, place.sequence, samples)
            ring.claim(0, header)
            with self._by_what_came(assign.stream, place):
                made = recipe.fill(place.epoch, place.step, ring.arrays(0, samples), None, script)
            ring.commit(0, header, made.samples)
        except Exception as error:
            sample = error.sample if isinstance(error, SampleError) else None
            self._say(Failed(assign.stream, place, str(error), sample, "a traceback"))
            return
        self._begun += samples
        self.made.append(place)
        bad = tuple(Bad(*place[:2], b.sample, "", b.reason) for b in made.bad)
        after = (After(*place[:2], made.state),) if made.state else ()
        data = ring.slot(0)
        for _ in range(self._repeats):
            for offset in range(0, len(data), MAX_PIECE_BYTES // 4):
                payload = data[offset : offset + MAX_PIECE_BYTES // 4].tobytes()
                self._say(Piece(assign.stream, place, "", offset, len(data)), payload)
            entry = Entry(*place, made.samples)
            seconds = time.perf_counter() - started
            self._say(Done(assign.stream, (entry,), seconds, bad, after))

    @contextlib.contextmanager
    def _by_what_came(self, stream: int, place: Place) -> Iterator[None]:
        """Files are what has come; for others there is a Lack."""
        known = self._streams[stream]
        column = getattr(getattr(known.recipe(), "_columns", None), "_pictures", None)
        if isinstance(column, PictureFiles):
            decoder = column.decoder

            def read(sample: int, out: Any = None) -> Any:
                if sample not in known.came:
                    self._lack(stream, place, sample)
                try:
                    return decoder.decode(known.files[sample], out)
                except Exception as error:
                    raise SampleError(sample, f"{type(error).__name__}: {error}") from error

            column.read = read  # type: ignore[method-assign]
            column.read_ahead = lambda samples: None  # type: ignore[method-assign]
        yield

    def _lack(self, stream: int, place: Place, sample: int) -> None:
        self.lacked += 1
        self._say(Lack(stream, place, np.array([sample], "<i8").tobytes()))
        known, deadline = self._streams[stream], time.monotonic() + ANSWER
        while sample not in known.came:
            if time.monotonic() > deadline or self._stop.is_set():
                raise AugError(f"sample {sample} does not come")
            frames = self._hear(20)
            self._beat()
            if frames is None:
                continue
            message = decode(frames[0])
            if isinstance(message, (Inputs, Piece)) and message.place == place:
                self._take(frames)
            else:
                self._later.append(frames)
