"""The worker program where the server is another machine: it shares no memory and no files with it.

The same recipes make the same batches. Only what they are made of comes by message, before each
assignment, and what was made goes back by message, each batch at once. What a batch needs beyond
that, in the place of bad samples, is asked for while it is being made.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from augproto.errors import AugError, NotAllowed, RemoteProtocolError
from augproto.layout import SEGMENT_HEADER_BYTES, Layout, aligned_empty
from augproto.messages import (
    MAX_TEXT,
    After,
    Assign,
    Define,
    Done,
    Entry,
    Forget,
    Lack,
    Message,
    Place,
    Probe,
    Probed,
    Script,
)
from augproto.ring import Ring
from augproto.spec import HANDED, LABEL, Spec
from augproto.transforms import NAMED
from augserver.datasets.sparse import Indexes, SparseArrays
from augserver.dealer import Sent
from augserver.desk import Desk, recipe_of
from augserver.functions import resolve
from augserver.intake import Arrived
from augserver.keeping import Event, Fresh
from augserver.probe import digest, machine
from augserver.recipe import Recipe
from augserver.worker import failure, fill, sendable

#: Seconds for the inputs that a batch lacks; then it is given up.
LACK_SECONDS = 30.0
#: Seconds for a batch to leave; then others are made in other memory.
SEND_SECONDS = 30.0
#: Batches of a stream that are on their way out, or being made.
SLOTS = 3
#: Where inputs are sent that belong to no batch: whole arrays, and those of a probe.
NOWHERE = Place(0, 0, 0, 0)


class Wire(Protocol):
    """What a distant worker is told and tells through: a `Line`, or a test's."""

    begun: int

    def receive(self, seconds: float) -> Event | None:
        """What has come, or None after so many seconds."""

    @property
    def stale(self) -> bool:
        """Whether what is being made is not wanted any more."""

    def send(self, message: Message) -> None:
        """Tell the server."""

    def send_batch(self, stream: int, place: Place, slot: memoryview) -> Sent | None:
        """Send a slot's bytes; tells when it may be written again, or that it may (None)."""


class _Abandoned(BaseException):
    """The server has forgotten what is being made; no function of a user's should swallow that."""


class _Slot:
    """A ring of one slot, of this worker's own memory, and what was sent of it last."""

    def __init__(self, layout: Layout) -> None:
        memory = aligned_empty(layout.segment_bytes(1))
        memory[:] = 0  # what is sent beside the rows of a short batch is nothing of ours
        self.ring = Ring(memory, layout, 1)
        self.sent: Sent | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """What a stream's batches are made with; while one is on its way the next gets another slot."""

    data: SparseArrays
    recipe: Recipe | Desk
    slots: deque[_Slot] = field(default_factory=deque)

    def slot(self) -> _Slot:
        """The one that was written longest ago, as soon as it may be written again."""
        if len(self.slots) < SLOTS:
            self.slots.append(_Slot(self.recipe.layout))
            return self.slots[-1]
        self.slots.rotate(-1)
        sent = self.slots[-1].sent
        if sent is not None and not sent.wait(SEND_SECONDS):
            # Nobody reads; what ZeroMQ still holds stays as it is.
            self.slots[-1] = _Slot(self.recipe.layout)
        return self.slots[-1]


@dataclass(slots=True)
class _Stream:
    """What is known of a stream, and what has come for it and is not laid yet."""

    definition: Define
    arrived: dict[Place, list[Arrived]] = field(default_factory=dict)
    work: _Work | Exception | None = None


class DistantWorker:
    """Streams that this worker knows, and how it answers each message.

    Args:
        wire: To the server.
        allow: Import paths of functions that may be run here: who names one is another machine.
    """

    def __init__(self, wire: Wire, allow: Collection[str]) -> None:
        self._wire = wire
        self._allow = frozenset(allow)
        self._streams: dict[int, _Stream] = {}
        self._backlog: deque[Event] = deque()

    def next(self, seconds: float) -> Event | None:
        """What is to be taken next, or None after so many seconds."""
        return self._backlog.popleft() if self._backlog else self._wire.receive(seconds)

    def take(self, event: Event) -> None:
        """Do what the server says."""
        match event:
            case Fresh():
                self._streams.clear()
                self._backlog.clear()
            case Define():
                self._streams[event.stream] = _Stream(event)
            case Forget():
                self._streams.pop(event.stream, None)
            case Arrived():
                stream = self._streams.get(event.inputs.stream)
                if stream is not None:
                    stream.arrived.setdefault(event.inputs.place, []).append(event)
            case Probe() | Assign():
                with contextlib.suppress(_Abandoned):
                    self._work_on(event)
            case _:
                pass  # a later server's message is no reason to die

    def _work_on(self, message: Probe | Assign) -> None:
        if isinstance(message, Probe):
            self._probe(message.stream)
            return
        scripts = {script[:2]: script for script in message.scripts}
        for place in message.places:
            if self._wire.stale:
                raise _Abandoned
            self._make(message.stream, place, scripts.get(place[:2]))

    def _probe(self, number: int) -> None:
        found, reason = digest(
            lambda: self._work(number, NOWHERE).recipe, partial(self._need, number, NOWHERE)
        )
        self._tidy(number)
        self._wire.send(Probed(number, found, machine(), sendable(reason)[:MAX_TEXT]))

    def _make(self, number: int, place: Place, script: Script | None) -> None:
        """Make one batch, send it and report it, or that it cannot be made."""
        started = time.perf_counter()
        self._wire.begun += 1
        try:
            work = self._work(number, place)
            slot = work.slot()
            entry, bad, state = fill(
                work.recipe,
                slot.ring,
                0,
                number,
                place,
                script,
                self._note,
                partial(self._need, number, place),
            )
        except _Abandoned:
            raise
        except BaseException as error:  # also a function's sys.exit()
            stream = self._streams.get(number)
            span = stream.definition.span if stream is not None else 1
            self._wire.send(failure(number, place, span, error))
            return
        finally:
            self._tidy(number)
        seconds = time.perf_counter() - started
        slot.sent = self._wire.send_batch(number, place, _used(slot.ring, entry))
        after = (After(place.epoch, place.step, state),) if state else ()
        self._wire.send(Done(number, (entry,), seconds, tuple(bad), after))

    def _note(self, sample: int) -> None:
        self._wire.begun += 1

    def _tidy(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None and isinstance(stream.work, _Work):
            stream.work.data.tidy()

    def _work(self, number: int, place: Place) -> _Work:
        """What a batch is made with, and what has come for it laid where it belongs.

        Raises:
            Exception: Whatever keeps the stream's batches from being made, every time; or this one.
        """
        stream = self._streams.get(number)
        if stream is None:
            raise AugError(f"stream {number} was never defined here")
        if stream.work is None:
            # An error here belongs to every batch of the stream, so it is kept and told there.
            try:
                stream.work = self._define(stream)
            except Exception as error:
                stream.work = error
        if isinstance(stream.work, Exception):
            raise stream.work
        _lay(stream, stream.work.data, place)
        return stream.work

    def _define(self, stream: _Stream) -> _Work:
        definition = stream.definition
        spec = Spec.from_wire(definition.spec)
        function = self._function(spec.transforms.function)
        data = SparseArrays(definition.sources)
        _lay(stream, data, NOWHERE)
        lacking = _wanted_whole(spec, data.arrays) - data.whole
        if lacking:
            raise RemoteProtocolError(
                f"the arrays {', '.join(sorted(lacking))} are needed as a whole, and were not sent"
            )
        recipe = recipe_of(
            spec,
            definition.seed,
            data.arrays,
            function,
            span=definition.span,
            brought=data.files if spec.pictures is not None else None,
        )
        return _Work(data, recipe)

    def _function(self, name: str | None) -> Any:
        if name is None:
            return None
        if name.startswith(HANDED):
            raise NotAllowed(
                "transforms.function: a function that a program has handed over stays on its "
                "machine; wanted an import path that remote workers allow, or local workers alone"
            )
        if not name.startswith(NAMED) and name not in self._allow:
            raise NotAllowed(
                f"transforms.function: {name!r:.200} is not in this remote worker's "
                f"allow-transforms: {', '.join(sorted(self._allow)) or 'none'}; start it with "
                f"--allow-transforms {name:.200}, if that module is yours"
            )
        return resolve(name, {})

    def _need(self, number: int, place: Place, samples: Indexes) -> None:
        """Have the samples here: ask for those that are not, and wait, but not for ever.

        Raises:
            AugError: They do not come.
        """
        data = self._work(number, place).data
        lacking = data.missing(samples)
        if not len(lacking):
            return
        self._wire.send(Lack(number, place, lacking.astype("<i8").tobytes()))
        deadline = time.monotonic() + LACK_SECONDS
        while len(lacking):
            if self._wire.stale:
                raise _Abandoned
            left = deadline - time.monotonic()
            event = self._wire.receive(min(1.0, left)) if left > 0 else None
            if isinstance(event, Arrived) and (event.inputs.stream, event.inputs.place) == (
                number,
                place,
            ):
                data.lay(event.inputs, event.loads)
                lacking = data.missing(samples)
            elif isinstance(event, Fresh):
                self._backlog.clear()
                self._backlog.append(event)
                raise _Abandoned
            elif event is not None:
                self._backlog.append(event)
            elif left <= 0:
                raise AugError(
                    f"the server has not sent samples {lacking[:8].tolist()} within "
                    f"{LACK_SECONDS:g} s of being asked"
                )


def _lay(stream: _Stream, data: SparseArrays, place: Place) -> None:
    """Put what has come for a place where it belongs."""
    for arrived in stream.arrived.pop(place, ()):
        data.lay(arrived.inputs, arrived.loads)


def _used(ring: Ring, entry: Entry) -> memoryview:
    """The bytes of a slot up to the end of what the last field has of a batch."""
    layout = ring.layout
    last = layout.fields[-1]
    size = last.offset + entry.samples * last.sample_bytes
    if entry.samples == layout.batch_size:
        size = layout.slot_bytes
    return ring.memory.data[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + size]


def _wanted_whole(spec: Spec, arrays: Collection[str]) -> set[str]:
    """Names of arrays that say something of all samples at once."""
    names = {spec.whitening} if spec.whitening is not None else set()
    classified = spec.pictures is not None and spec.pictures.classified
    if classified and spec.subset is not None and LABEL in arrays:
        names.add(LABEL)
    return names
