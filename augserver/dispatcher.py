"""Matches what consumers want with free slots and workers that have time. Sans-I/O.

Everything that can go wrong between a wish and a batch is decided here, in plain function calls:
fairness between streams, a worker that dies in mid-write, a wish that crossed its own answer on
the wire, a batch that kills every worker it is given to. There is no clock and no socket; the
server feeds events in and carries assignments and announcements out.

Terms: a *key* is (epoch, step). Every stream belongs to one consumer and has one ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice

from augproto.errors import SlotError
from augproto.messages import Announce, Bad, Entry, Fault, Place, Release, Run
from augproto.ring import SlotTable
from augserver.losses import Loss, summed_up

Key = tuple[int, int]

#: An assignment is cut to last about this long (seconds): long enough that messages cost little
#: beside the work, short enough that workers share a ring and a death loses little.
ASSIGNMENT_SECONDS = 0.005
#: ... and carries at most this many batches.
ASSIGNMENT_BATCHES = 16
#: Assignments that a worker holds at once: one at work, one waiting, so that it never idles.
WORKER_DEPTH = 2
#: So many workers may die over one batch before it is given up as deadly.
MAX_ATTEMPTS = 3
#: No wish list is followed further than this.
MAX_WANTED = 4096


@dataclass(frozen=True, slots=True)
class Assignment:
    """Batches for one worker, all of one stream."""

    worker: int
    stream: int
    places: tuple[Place, ...]


@dataclass(slots=True)
class _Stream:
    slots: SlotTable
    steps: int
    wanted: deque[Key] = field(default_factory=deque)
    writing: dict[Key, tuple[int, Place]] = field(default_factory=dict)
    announced: dict[int, tuple[Key, int, int]] = field(default_factory=dict)
    faulted: dict[Key, int] = field(default_factory=dict)
    losses: dict[Key, list[Loss]] = field(default_factory=dict)
    quarantined: int = 0
    distrusted: bool = False
    urgent: Key | None = None
    told: bool = False
    number: int = 0
    batch_seconds: float | None = None


class Dispatcher:
    """Wishes, slots and workers of all streams."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._workers: dict[int, deque[Assignment]] = {}
        self._quarantine: dict[int, list[tuple[int, Place]]] = {}
        self._turn: deque[int] = deque()
        self.batches = 0  #: made since the start

    # -- consumers ------------------------------------------------------------------------------

    def open(self, stream: int, *, slots: int, steps: int) -> None:
        """A consumer has a ring of so many slots for epochs of so many steps."""
        self._streams[stream] = _Stream(SlotTable(slots), steps)
        self._turn.append(stream)

    def close(self, stream: int) -> None:
        """The consumer is gone or gets another ring; what workers still write is ignored."""
        del self._streams[stream]
        self._turn.remove(stream)

    def want(self, stream: int, runs: Iterable[Run], seen: int) -> None:
        """Replace the stream's wish list.

        What a worker writes already stays; what was announced after `seen` has crossed the wish
        on the wire and is not made again.
        """
        s = self._streams[stream]
        s.told = False
        crossed = {key for key, number, _ in s.announced.values() if number > seen}
        s.faulted = {key: number for key, number in s.faulted.items() if number > seen}
        keys = (
            (run.epoch, step)
            for run in runs
            for step in range(run.first, min(run.first + run.steps, s.steps))
        )
        # Bounded in what is looked at, too: 65536 runs may name what is known again and again. And
        # what was refused is remembered until it was seen, so somebody who never sees gets no more.
        room = max(0, MAX_WANTED - len(s.faulted))
        answered = crossed | s.faulted.keys()
        looked_at = islice(keys, MAX_WANTED + len(answered) + len(s.writing))
        unanswered = (key for key in looked_at if key not in answered)
        s.urgent = next(unanswered, None)
        unmade = unanswered if s.urgent is None else chain([s.urgent], unanswered)
        fresh = islice((key for key in unmade if key not in s.writing), room)
        s.wanted = deque(dict.fromkeys(fresh))

    def release(self, stream: int, released: Iterable[Release]) -> list[SlotError]:
        """Slots whose last views are gone. A stale one harms nothing and is returned."""
        s = self._streams[stream]
        stale = []
        for slot, sequence in released:
            try:
                s.slots.release(slot, sequence)
                s.announced.pop(slot, None)
            except SlotError as error:
                stale.append(error)
        return stale

    def table(self, stream: int) -> SlotTable:
        """The stream's slot states."""
        return self._streams[stream].slots

    # -- workers --------------------------------------------------------------------------------

    def join(self, worker: int) -> None:
        """A worker is ready for assignments."""
        self._workers[worker] = deque()

    def load(self, worker: int) -> int:
        """How many assignments a worker holds."""
        return len(self._workers.get(worker, ()))

    @property
    def at_work(self) -> bool:
        """Whether any worker holds an assignment."""
        return any(self._workers.values())

    def held(self, worker: int) -> list[tuple[int, Place]]:
        """What a worker still owes: (stream, place), in the order in which it works."""
        return [
            (assignment.stream, place)
            for assignment in self._workers.get(worker, ())
            for place in assignment.places
        ]

    def leave(
        self,
        worker: int,
        suspect: tuple[int, Place] | None = None,
        loss: Loss | None = None,
        *,
        guess: bool = True,
    ) -> list[tuple[int, Fault]]:
        """The worker is dead *and reaped*: its slots are free and its batches wanted again.

        Args:
            suspect: What it was writing, as the slots' headers tell. Only that counts an attempt:
                after MAX_ATTEMPTS deaths its consumer gets a fault instead of another try.
            loss: Of what it died.
            guess: Suspect the first thing that it owed where the headers tell nothing.
        """
        for stream, place in self._quarantine.pop(worker, ()):
            s = self._streams.get(stream)
            if s is not None:
                s.slots.abort(place.slot, place.sequence)
                s.quarantined -= 1
        return self._lose(worker, suspect, loss, reaped=True, guess=guess)

    def quarantine(
        self, worker: int, suspect: tuple[int, Place] | None = None, loss: Loss | None = None
    ) -> list[tuple[int, Fault]]:
        """The worker cannot be killed: its batches are wanted again, but nobody gets its slots.

        They are free when it has left (`leave`), if it ever does; until then it may write.
        """
        self._quarantine[worker] = [
            (stream, place) for stream, place in self.held(worker) if stream in self._streams
        ]
        for stream, _ in self._quarantine[worker]:
            self._streams[stream].quarantined += 1
        return self._lose(worker, suspect, loss, reaped=False, guess=True)

    def _lose(
        self,
        worker: int,
        suspect: tuple[int, Place] | None,
        loss: Loss | None,
        *,
        reaped: bool,
        guess: bool,
    ) -> list[tuple[int, Fault]]:
        held = self.held(worker)
        self._workers.pop(worker, None)
        for stream, place in reversed(held):
            s = self._streams.get(stream)
            if s is not None and s.writing.get(place[:2], (None,))[0] == worker:
                del s.writing[place[:2]]
                if reaped:
                    s.slots.abort(place.slot, place.sequence)
                s.wanted.appendleft(place[:2])
                # What is waited for goes first, also among what others have died of: each of its
                # prefetched followers would else cost three workers before it is tried again.
                if s.urgent is not None and s.urgent in s.wanted:
                    s.wanted.remove(s.urgent)
                    s.wanted.appendleft(s.urgent)
        if suspect is None and guess and held:
            suspect = held[0]
        return self._blame(*suspect, loss or Loss()) if suspect is not None else []

    def _blame(self, stream: int, place: Place, loss: Loss) -> list[tuple[int, Fault]]:
        s, key = self._streams.get(stream), place[:2]
        if s is None:
            return []
        s.distrusted = True
        losses = s.losses.setdefault(key, [])
        losses.append(loss)
        if len(losses) < MAX_ATTEMPTS:
            return []
        del s.losses[key]
        s.wanted = deque(k for k in s.wanted if k != key)
        total = summed_up(losses)
        message = (
            f"epoch {key[0]}, step {key[1]}: {len(losses)} workers died while making this batch; "
            f"it is given up. Of what they died: {total.cause}"
        )
        fault = self._fault(
            s, key, message, sample=total.sample, traceback=total.traceback, path=total.path
        )
        return [(stream, fault)]

    def tell_waiting(self, loss: Loss) -> list[tuple[int, Fault]]:
        """There are no workers: each wish list is answered once, its most urgent batch refused.

        Args:
            loss: Why there are none.
        """
        told = []
        for stream, s in self._streams.items():
            if s.wanted and not s.told:
                s.told = True
                # What a dead worker owed comes first in the list, though it may be wished no more.
                urgent = s.urgent
                key = urgent if urgent is not None and urgent in s.wanted else s.wanted[0]
                s.wanted.remove(key)
                message = f"epoch {key[0]}, step {key[1]}: {loss.cause}"
                fault = self._fault(s, key, message, traceback=loss.traceback)
                told.append((stream, fault))
        return told

    def starved(self) -> list[int]:
        """Streams that may wait for ever, since a quarantine has left them no slot that circulates.

        A consumer counts on all slots of its ring when it decides what it may keep, so it cannot
        know that it should give something back. It needs another ring. (It may also just be slow,
        and the ring full for that; then the exchange costs it a few batches that are made again.)
        """
        if not self._quarantine:
            return []
        return [
            stream
            for stream, s in self._streams.items()
            if s.quarantined and s.wanted and not s.writing and not s.slots.free
        ]

    def done(
        self,
        worker: int,
        stream: int,
        entries: Iterable[Entry],
        seconds: float,
        bad: Iterable[Bad] = (),
    ) -> Announce | None:
        """A worker has finished batches; returns what the consumer is to be told.

        Args:
            bad: The samples that they had to do without.
        """
        entries = tuple(entries)
        s = self._streams.get(stream)
        if s is None:
            self._finish(worker, stream, {e[:2] for e in entries})
            return None
        announced = []
        for entry in entries:
            key = entry[:2]
            owner, place = s.writing.get(key, (None, None))
            # A worker in which a user's function runs may say anything, in the place of its own.
            if owner != worker or place != entry[:4]:
                continue
            del s.writing[key]
            s.losses.pop(key, None)
            s.slots.commit(entry.slot, entry.sequence)
            announced.append(entry)
        self._finish(worker, stream, {e[:2] for e in entries})
        if not announced:
            return None
        s.distrusted = False
        self.batches += len(announced)
        each = seconds / len(announced) if 0 <= seconds < 1e6 else 0.0  # nor is it sure to be one
        s.batch_seconds = each if s.batch_seconds is None else 0.7 * s.batch_seconds + 0.3 * each
        s.number += 1
        for entry in announced:
            s.slots.lease(entry.slot, entry.sequence)
            s.announced[entry.slot] = (entry[:2], s.number, entry.sequence)
        keys = {entry[:2] for entry in announced}
        return Announce(s.number, tuple(announced), tuple(b for b in bad if b[:2] in keys))

    def failed(
        self, worker: int, stream: int, place: Place, *, message: str, sample: int | None,
        traceback: str, path: str = "",
    ) -> Fault | None:  # fmt: skip
        """A worker cannot make a batch, and lives; returns what the consumer is to be told."""
        self._finish(worker, stream, {place[:2]})
        s = self._streams.get(stream)
        if s is None or s.writing.get(place[:2]) != (worker, place):
            return None
        del s.writing[place[:2]]
        s.slots.abort(place.slot, place.sequence)
        return self._fault(s, place[:2], message, sample=sample, traceback=traceback, path=path)

    def assign(self) -> list[Assignment]:
        """All assignments that can be made now, streams in turn, the idlest worker first."""
        assignments: list[Assignment] = []
        while True:
            ready = [w for w, load in self._workers.items() if len(load) < WORKER_DEPTH]
            if not ready:
                return assignments
            worker = min(ready, key=lambda w: len(self._workers[w]))
            assignment = self._next_for(worker)
            if assignment is None:
                return assignments
            self._workers[worker].append(assignment)
            assignments.append(assignment)

    def _next_for(self, worker: int) -> Assignment | None:
        for _ in range(len(self._turn)):
            stream = self._turn[0]
            self._turn.rotate(-1)
            s = self._streams[stream]
            keys = self._next_keys(s)
            if not keys:
                continue
            places = []
            for key in keys:
                place = Place(*key, *s.slots.claim())
                s.writing[key] = (worker, place)
                places.append(place)
            return Assignment(worker, stream, tuple(places))
        return None

    def _next_keys(self, s: _Stream) -> list[Key]:
        """The next wishes that one worker is to fulfil, taken off the list.

        A suspect, over which a worker has died, goes alone: what else a worker has at hand must
        not share the blame. And no two are at work at once, for where all workers die together
        (with their forkserver) each of their batches is suspected, and one of them was it.

        A stream over which a worker has died, and of which nothing has come since, occupies one
        worker at a time where there are others: its function may kill whoever touches it.
        """
        possible = min(len(s.wanted), s.slots.free)
        if possible == 0 or (s.distrusted and s.writing and len(self._streams) > 1):
            return []
        if not s.losses:
            return [s.wanted.popleft() for _ in range(min(possible, self._size(s, possible)))]
        chosen: list[Key] = []
        free = s.slots.free
        for key in s.wanted:
            if key in s.losses and not chosen:
                if not self._suspect_at_work():
                    chosen = [key]
                    break
                free -= 1  # it was wished first: a slot is kept for it
            elif key not in s.losses:
                chosen.append(key)
            if len(chosen) >= min(free, self._size(s, possible)):
                break
        chosen = chosen[: max(free, 0)]
        s.wanted = deque(key for key in s.wanted if key not in chosen)
        return chosen

    def _suspect_at_work(self) -> bool:
        return any(key in s.losses for s in self._streams.values() for key in s.writing)

    def _size(self, s: _Stream, possible: int) -> int:
        """Batches in one assignment: a few milliseconds' worth, but a fair share of the ring."""
        if s.batch_seconds is None:
            return 1
        lasting = int(ASSIGNMENT_SECONDS / max(s.batch_seconds, 1e-9))
        share = -(-possible // max(1, len(self._workers)))
        return max(1, min(lasting, share, ASSIGNMENT_BATCHES))

    def _finish(self, worker: int, stream: int, keys: set[Key]) -> None:
        """Take finished keys out of the worker's load."""
        load = self._workers.get(worker)
        if load is None:
            return
        for i, assignment in enumerate(load):
            if assignment.stream == stream and any(p[:2] in keys for p in assignment.places):
                rest = tuple(p for p in assignment.places if p[:2] not in keys)
                if rest:
                    load[i] = Assignment(worker, stream, rest)
                else:
                    del load[i]
                return

    @staticmethod
    def _fault(
        s: _Stream, key: Key, message: str, *, sample: int | None = None, traceback: str = "",
        path: str = "",
    ) -> Fault:  # fmt: skip
        s.number += 1
        s.faulted[key] = s.number
        return Fault("WorkerError", message, s.number, *key, sample, traceback, path)
