"""One worker that has dialled in: what it is sent, and what comes of it.

It is known by a name of its own while its process lives; connections come and go. Whatever it says
is checked against what it was given: a piece is written only into a place that is its own by now,
and what is late is left aside without a word.
"""

from __future__ import annotations

import enum
import logging
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from augproto.codec import encode
from augproto.errors import AugError, ConfigError, RemoteProtocolError
from augproto.messages import (
    MAX_TEXT,
    Assign,
    Bad,
    Done,
    Entry,
    Failed,
    Lack,
    Message,
    Piece,
    Place,
    Probe,
    Probed,
)
from augserver.afar import FIRST_REMOTE
from augserver.conversation import Ringed
from augserver.dispatcher import Dispatcher
from augserver.feeder import NOWHERE, Feeder, Portion
from augserver.receipt import Receipt
from augserver.sharing import Assignment
from augserver.standing import Standings
from augserver.supply import At, Errand, Ready, Supply
from augserver.transforms import SampleError
from augserver.worker import MAX_REASON, MAX_REPORTED

#: Answers that a worker may wait for at once; it waits for one.
MAX_ANSWERS = 16

_log = logging.getLogger("augserver.server")


class Presence(enum.Enum):
    """Whether a worker is there."""

    PRESENT = "present"
    SILENT = "silent"
    LEFT = "left"
    DISMISSED = "dismissed"


@dataclass(frozen=True, slots=True)
class House:
    """What a worker's doings concern.

    Attributes:
        tell: Tells a stream's consumer.
        note_bad: Is told of a stream's samples that batches had to do without.
        say: Puts frames on the wire to a worker; False if they did not get there, and then it has
            left.
    """

    dispatcher: Dispatcher
    standings: Standings
    feeder: Feeder
    tell: Callable[[int, Message | None], None]
    note_bad: Callable[[int, Iterable[Bad]], None]
    say: Callable[..., bool]


@dataclass(slots=True)
class Remote:
    """A worker on another host, or one that was there a short time ago.

    Attributes:
        name: Its own.
        number: The dispatcher's.
        identity: Of its connection.
        host, pid, machine, origin: As it says.
        heard: When it was heard last.
        begun: Samples that it has begun, as it says.
        moved: When it was seen to get on with something.
        batches: That it has made.
        proven: Whether it has ever made anything.
        lost: What it had not finished when it left, in order; and when that was.
        mourned: Whether an heir has told of its death.
    """

    house: House
    name: str
    number: int
    identity: bytes
    host: str = ""
    pid: int = 0
    machine: str = ""
    origin: str = ""
    presence: Presence = Presence.LEFT
    heard: float = 0.0
    begun: int = 0
    moved: float = 0.0
    batches: int = 0
    proven: bool = False
    lost: list[At] = field(default_factory=list)
    left: float = 0.0
    mourned: bool = False
    supply: Supply = field(init=False)
    _receipts: dict[At, Receipt] = field(default_factory=dict)
    _probing: dict[int, Ringed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.supply = Supply(self.house.feeder)

    def __str__(self) -> str:
        return f"remote worker {self.number - FIRST_REMOTE} ({self.host}, pid {self.pid})"

    @property
    def holds(self) -> bool:
        """Whether it has something to do."""
        return bool(self._probing) or self.house.dispatcher.load(self.number) > 0

    def forget(self) -> None:
        """Begin anew: whatever it was given means nothing any more."""
        self.supply = Supply(self.house.feeder)
        self._receipts.clear()
        self._probing.clear()

    # -- what it is sent ------------------------------------------------------------------------

    def define(self, ringed: Ringed) -> None:
        """Tell it of a stream, without what is this machine's alone."""
        sources = tuple(s._replace(path="", offset=0) for s in ringed.define.sources)
        told = replace(ringed.define, segment="", sources=sources, roots=(), cache=())
        self.house.say(self, encode(told))

    def probe(self, ringed: Ringed, now: float) -> None:
        """Have it make a stream's first batch, to be compared with ours."""
        stream, recipe = ringed.opened.stream, ringed.recipe
        if not self.holds:
            self.moved = now
        self._probing[stream] = ringed
        if recipe.whole:
            whole = Portion(recipe, stream, NOWHERE, recipe.whole, None)
            self.supply.order(Errand(whole, list))
        inputs = self._portion(ringed, NOWHERE, _samples(ringed, NOWHERE, None))
        self.supply.order(Errand(inputs, lambda: [Probe(stream)]))

    def assign(self, assignment: Assignment, ringed: Ringed, now: float) -> None:
        """Give it batches, and before them what they are made of."""
        stream = assignment.stream
        if not self._receipts and not self._probing:
            self.moved = now
        scripts = {script[:2]: script for script in assignment.scripts}
        plain = tuple(place for place in assignment.places if place[:2] not in scripts)
        for place in assignment.places:
            script = scripts.get(place[:2])
            self._receipts[stream, place] = Receipt(ringed, place, script)
            inputs = self._portion(ringed, place, _samples(ringed, place, script))
            then: Callable[[], list[Message]] = list
            if script is not None:  # each may fill a frame
                then = partial(self._assign, Assignment(self.number, stream, (place,), (script,)))
            elif place == plain[-1]:
                then = partial(self._assign, Assignment(self.number, stream, plain))
            self.supply.order(Errand(inputs, then))

    def drop(self, stream: int) -> None:
        """A stream is over."""
        self.supply.drop(stream)
        self._probing.pop(stream, None)
        self._receipts = {at: r for at, r in self._receipts.items() if at[0] != stream}

    def send_ready(self) -> None:
        """Send what has been read."""
        for ready in self.supply.ready():
            at = ready.errand.at
            if ready.error is not None and at is not None:
                self._spoilt(at, ready.error)
                if at[1] == NOWHERE:
                    continue
            elif at is not None and not self._send_inputs(at, ready):
                return
            for message in ready.errand.then():
                if not self.house.say(self, encode(message)):
                    return

    def _send_inputs(self, at: At, ready: Ready) -> bool:
        if at[1] != NOWHERE and not self.house.dispatcher.owns(self.number, *at):
            return True  # somebody else has it by now
        if ready.fed is not None and at in self._receipts:
            self._receipts[at].reasons.update(ready.fed.reasons)
        return all(self.house.say(self, *frames) for frames in ready.messages)

    def _assign(self, assignment: Assignment) -> list[Message]:
        stream, owned = assignment.stream, []
        for place in assignment.places:
            if self.house.dispatcher.owns(self.number, stream, place):
                owned.append(place)
            else:  # it was never told, so it will never tell
                self.house.dispatcher.give_back(self.number, stream, place)
                self._settle((stream, place))
        return [Assign(stream, tuple(owned), assignment.scripts)] if owned else []

    def _spoilt(self, at: At, error: Exception) -> None:
        """What it needs cannot be read: as where a local worker finds that out."""
        stream, place = at
        sample = error.sample if isinstance(error, SampleError) else None
        if place == NOWHERE:
            # So it is here as well, if it is no accident of the moment.
            blame = f"sample {sample}" if sample is not None else type(error).__name__
            self._probed(Probed(stream, f"failed: {blame}", self.machine, str(error)[:MAX_TEXT]))
            return
        span = self._receipts[at].ringed.recipe.span if at in self._receipts else 1
        where = f"epoch {place.epoch}, step {place.step * span}"
        words = f", {error}" if sample is not None else f": {type(error).__name__}: {error}"
        text = "".join(traceback.format_exception(error))[-MAX_TEXT:]
        path = error.path if isinstance(error, SampleError) else ""
        failed = Failed(stream, place, (where + words)[:MAX_TEXT], sample, text, path)
        self._failed(failed, path)

    def _portion(
        self, ringed: Ringed, place: Place, samples: np.ndarray[Any, np.dtype[np.int64]]
    ) -> Portion | None:
        if not len(samples):
            return None  # a script brings its own pictures, or is none; the worker says so itself
        recipe, define = ringed.recipe, ringed.define
        return Portion(recipe, define.stream, place, recipe.inputs, samples, define.roots)

    # -- what it says ---------------------------------------------------------------------------

    def take(self, message: Message, payload: memoryview | None, now: float) -> None:
        """Take what it says.

        Raises:
            AugError: It is none of what it may say.
        """
        match message:
            case Piece() if payload is not None:
                self._piece(message, payload, now)
            case Done():
                self.moved = now
                for entry in message.entries:
                    self._done(message, entry, now)
            case Failed():
                self.moved = now
                self._failed(message, self._path(message.stream, message.place, message.sample))
            case Probed():
                self.moved = now
                self._probed(message)
            case Lack():
                self._lack(message)
            case _:
                raise RemoteProtocolError(
                    f"got {type(message).__name__} from a remote worker; wanted Enlist, Piece, "
                    "Done, Failed, Probed, Lack or Resign"
                )

    def _piece(self, piece: Piece, payload: memoryview, now: float) -> None:
        at = piece.stream, piece.place
        receipt = self._receipts.get(at)
        if receipt is None or not self.house.dispatcher.owns(self.number, *at):
            return  # late
        if piece.name:
            raise RemoteProtocolError(f"Piece.name: got {piece.name!r:.80}; wanted none")
        try:
            receipt.take(piece, payload)
        except AugError as error:
            self._untrue(at, error)
        self.moved = now

    def _done(self, done: Done, entry: Entry, now: float) -> None:
        at = done.stream, Place(*entry[:4])
        receipt, owns = self._receipts.get(at), self.house.dispatcher.owns(self.number, *at)
        if receipt is None:
            return  # of a time before it began anew, or said twice
        if owns:
            try:
                receipt.finish(done.stream, entry)
            except AugError as error:
                self._untrue(at, error)
                return
        self.proven = True
        bad = self._bad(done, entry, receipt) if owns else ()
        after = tuple(a for a in done.after if a[:2] == entry[:2])
        seconds = done.seconds / len(done.entries)
        announce = self.house.dispatcher.done(
            self.number, done.stream, (entry,), seconds, bad, after, now
        )
        self._settle(at)
        if announce is not None:
            opened = receipt.ringed.opened
            self.batches += min(opened.span, opened.steps - entry.step * opened.span)
        self.house.note_bad(done.stream, bad)
        self.house.tell(done.stream, announce)

    def _bad(self, done: Done, entry: Entry, receipt: Receipt) -> tuple[Bad, ...]:
        return tuple(
            Bad(
                b.epoch,
                b.step,
                b.sample,
                self._path(done.stream, Place(*entry[:4]), b.sample),
                receipt.reasons.get(b.sample, b.reason)[:MAX_REASON],
            )
            for b in done.bad[:MAX_REPORTED]
            if b[:2] == entry[:2]
        )

    def _failed(self, failed: Failed, path: str) -> None:
        at = failed.stream, failed.place
        fault = self.house.dispatcher.failed(
            self.number,
            failed.stream,
            failed.place,
            message=failed.message,
            sample=failed.sample,
            traceback=failed.traceback,
            path=path,
        )
        self._settle(at)
        self.house.tell(failed.stream, fault)

    def _probed(self, probed: Probed) -> None:
        if self._probing.pop(probed.stream, None) is not None:
            self.proven = True
            self.supply.settled((probed.stream, NOWHERE))
            self.house.standings.probed(self.number, replace(probed, machine=self.machine))

    def _lack(self, lack: Lack) -> None:
        at = lack.stream, lack.place
        receipt = self._receipts.get(at)
        ringed = receipt.ringed if receipt is not None else None
        if receipt is not None and not self.house.dispatcher.owns(self.number, *at):
            return  # late: whoever has it by now asks for itself
        if lack.place == NOWHERE:
            ringed = self._probing.get(lack.stream)
        if ringed is None:
            return
        length, most = ringed.recipe.length, ringed.recipe.layout.batch_size
        if len(lack.samples) % 8 or not 0 < len(lack.samples) <= 8 * most:
            raise RemoteProtocolError(
                f"Lack.samples: got {len(lack.samples)} bytes; wanted eight for each of 1 to "
                f"{most} samples"
            )
        samples = np.frombuffer(lack.samples, "<i8").astype(np.int64)
        if samples.min() < 0 or samples.max() >= length:
            raise RemoteProtocolError(
                f"Lack.samples: got {samples[:8].tolist()} first; wanted 0 to {length - 1}"
            )
        if self.supply.answers >= MAX_ANSWERS:
            raise RemoteProtocolError(
                f"Lack: got another before the answers to {MAX_ANSWERS}; wanted one at a time"
            )
        portion = self._portion(ringed, lack.place, samples)
        self.supply.answer(Errand(portion, list))

    def _untrue(self, at: At, error: AugError) -> None:
        """It says what is not so, of a batch of its own: somebody else makes that."""
        self._settle(at)
        self.house.dispatcher.give_back(self.number, *at)
        self.house.dispatcher.exclude(self.number, at[0])
        self.house.standings.refuse(self.number, at[0], str(error))
        raise error

    def _settle(self, at: At) -> None:
        self._receipts.pop(at, None)
        self.supply.settled(at)

    def _path(self, stream: int, place: Place, sample: int | None) -> str:
        receipt = self._receipts.get((stream, place))
        if receipt is None or sample is None:
            return ""
        return receipt.ringed.recipe.path(sample)


def _samples(ringed: Ringed, place: Place, script: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """What a batch is made of; nothing where the script is none, as the worker will say."""
    try:
        samples = ringed.recipe.samples(place.epoch, place.step, script)
    except ConfigError:
        return np.empty(0, np.int64)
    return samples[(samples >= 0) & (samples < ringed.recipe.length)]
