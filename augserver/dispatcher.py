"""Matches what consumers want with free slots and workers that have time. Sans-I/O.

Everything that can go wrong between a wish and a batch is decided here, in plain function calls:
fairness between streams, a worker that dies in mid-write, a wish that crossed its own answer on
the wire, a batch that kills every worker it is given to, a slow host that holds an epoch's end.
There is no clock and no socket; the server feeds events in, with the time where that matters, and
carries assignments and announcements out.

Terms: a *key* is (epoch, step). Every stream belongs to one consumer and has one ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from augproto.errors import SlotError
from augproto.messages import After, Announce, Bad, Entry, Fault, Place, Release, Run, Script
from augproto.ring import SlotTable
from augserver.afar import Afar
from augserver.losses import Loss, summed_up
from augserver.sharing import Assignment, Sharing
from augserver.streams import Stream
from augserver.wishes import Wishes

#: So many workers may die over one batch before it is given up as deadly.
MAX_ATTEMPTS = 3


class Dispatcher:
    """Wishes, slots and workers of all streams."""

    def __init__(self) -> None:
        self._streams: dict[int, Stream] = {}
        self._workers: dict[int, deque[Assignment]] = {}
        self._afar: dict[int, Afar] = {}
        self._quarantine: dict[int, list[tuple[int, Place]]] = {}
        self._sharing = Sharing(self._streams, self._workers, self._afar)
        self.batches = 0  #: made since the start

    # -- consumers ------------------------------------------------------------------------------

    def open(self, stream: int, *, slots: int, steps: int, span: int = 1) -> None:
        """A consumer has a ring of so many slots for epochs of so many batches, `span` in each."""
        self._streams[stream] = Stream(SlotTable(slots), Wishes(-(-steps // span)), steps, span)
        self._sharing.opened(stream)

    def close(self, stream: int) -> None:
        """The consumer is gone or gets another ring; what workers still write is ignored."""
        del self._streams[stream]
        self._sharing.closed(stream)
        for worker, afar in self._afar.items():
            afar.streams.discard(stream)
            load = self._workers[worker]
            self._workers[worker] = deque(a for a in load if a.stream != stream)

    def want(
        self, stream: int, runs: Iterable[Run], seen: int, scripts: Iterable[Script] = ()
    ) -> None:
        """Replace the stream's wish list.

        What a worker writes already stays; what was announced after `seen` has crossed the wish
        on the wire and is not made again.

        Args:
            scripts: What some of the batches are made of; kept until they are made.

        Raises:
            RemoteProtocolError: The scripts are too much to keep.
        """
        s = self._streams[stream]
        s.told = False
        crossed = {key for key, number, _ in s.announced.values() if number > seen}
        s.wishes.replace(runs, scripts, seen, crossed=crossed, writing=s.writing)

    def release(self, stream: int, released: Iterable[Release]) -> list[SlotError]:
        """Slots whose last views are gone. A stale one harms nothing and is returned."""
        s = self._streams[stream]
        stale = []
        for slot, sequence in released:
            try:
                s.slots.release(slot, sequence)
                s.announced.pop(slot, None)
            except SlotError as error:
                # Without the frames, which hold this list: a ring stays mapped by such a circle.
                stale.append(error.with_traceback(None))
        return stale

    def table(self, stream: int) -> SlotTable:
        """The stream's slot states."""
        return self._streams[stream].slots

    # -- workers --------------------------------------------------------------------------------

    def join(self, worker: int, *, remote: bool = False) -> None:
        """A worker is ready for assignments; a remote one where it is admitted."""
        self._workers[worker] = deque()
        if remote:
            self._afar[worker] = Afar()

    def admit(self, worker: int, stream: int) -> None:
        """A remote worker has shown that it makes the bytes of that stream."""
        if worker in self._afar and stream in self._streams:
            if stream not in self._afar[worker].streams:
                self._streams[stream].remote += 1
            self._afar[worker].streams.add(stream)

    def exclude(self, worker: int, stream: int) -> None:
        """A remote worker gets no more of that stream; what it holds of it is wanted again."""
        afar = self._afar.get(worker)
        if afar is not None and stream in afar.streams:
            afar.streams.remove(stream)
            self._streams[stream].remote -= 1
            for place in [place for of, place in self.held(worker) if of == stream][::-1]:
                self.give_back(worker, stream, place)

    def owns(self, worker: int, stream: int, place: Place) -> bool:
        """Whether it is this worker's to write that place now."""
        s = self._streams.get(stream)
        return s is not None and s.writing.get(place[:2], (None, None))[:2] == (worker, place)

    def give_back(self, worker: int, stream: int, place: Place) -> None:
        """A remote worker has not made this, and is not at it any more: it is wanted again."""
        assert worker in self._afar, "a local one may write until it is reaped"
        self._finish(worker, stream, {place})
        if self.owns(worker, stream, place):
            s = self._streams[stream]
            del s.writing[place[:2]]
            s.slots.abort(place.slot, place.sequence)
            s.wishes.again(place[:2])

    def idlest(self) -> int | None:
        """The local worker that holds the least; None if there is none."""
        local = [worker for worker in self._workers if worker not in self._afar]
        return min(local, key=self.load, default=None)

    def load(self, worker: int) -> int:
        """How many assignments a worker holds."""
        return len(self._workers.get(worker, ()))

    @property
    def backlog(self) -> int:
        """Batches that are wanted, have a slot, and are not finished: what workers are behind with.

        What is wanted beyond the free slots waits for its consumer, whom more workers do not help.
        """
        return sum(
            s.span * (len(s.writing) + min(s.slots.free, len(s.wishes.wanted)))
            for s in self._streams.values()
        )

    @property
    def busy(self) -> tuple[int, int]:
        """How many workers hold something: local ones, remote ones."""
        remote = sum(1 for worker in self._afar if self._workers[worker])
        return sum(map(bool, self._workers.values())) - remote, remote

    @property
    def at_work(self) -> bool:
        """Whether anything that was assigned is still to come."""
        return any(s.writing for s in self._streams.values())

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
        afar = self._afar.pop(worker, None)
        for stream in afar.streams if afar is not None else ():
            self._streams[stream].remote -= 1
        for stream, place in reversed(held):
            s = self._streams.get(stream)
            if s is not None and s.writing.get(place[:2], (None,))[0] == worker:
                del s.writing[place[:2]]
                if reaped:
                    s.slots.abort(place.slot, place.sequence)
                s.wishes.again(place[:2])
        if suspect is None and guess and held:
            suspect = held[0]
        return self._blame(*suspect, loss or Loss()) if suspect is not None else []

    def blame(self, stream: int, place: Place, loss: Loss) -> list[tuple[int, Fault]]:
        """A worker that had left is heard to have died over this, unless it was made since."""
        s = self._streams.get(stream)
        if s is None or (place[:2] not in s.writing and place[:2] not in s.wishes.wanted):
            return []
        return self._blame(stream, place, loss)

    def _blame(self, stream: int, place: Place, loss: Loss) -> list[tuple[int, Fault]]:
        s, key = self._streams.get(stream), place[:2]
        if s is None:
            return []
        s.distrusted = True
        losses = s.losses.setdefault(key, [])
        losses.append(loss)
        # What somebody is at again already is not given up before that is known.
        if len(losses) < MAX_ATTEMPTS or key in s.writing:
            return []
        del s.losses[key]
        s.wishes.wanted = deque(k for k in s.wishes.wanted if k != key)
        total = summed_up(losses)
        message = (
            f"{s.where(key)}: {len(losses)} workers died while making this batch; "
            f"it is given up. Of what they died: {total.cause}"
        )
        fault = s.refuse(
            key, message, sample=total.sample, traceback=total.traceback, path=total.path
        )
        return [(stream, fault)]

    def tell_waiting(self, loss: Loss) -> list[tuple[int, Fault]]:
        """There are no workers: each wish list is answered once, its most urgent batch refused.

        Streams of which remote workers make batches do not wait in vain.

        Args:
            loss: Why there are none.
        """
        told = []
        for stream, s in self._streams.items():
            if s.wishes.wanted and not s.told and not s.remote:
                s.told = True
                key = s.wishes.most_urgent()
                s.wishes.wanted.remove(key)
                message = f"{s.where(key)}: {loss.cause}"
                fault = s.refuse(key, message, traceback=loss.traceback)
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
            if s.quarantined and s.wishes.wanted and not s.writing and not s.slots.free
        ]

    def done(
        self,
        worker: int,
        stream: int,
        entries: Sequence[Entry],
        seconds: float,
        bad: Sequence[Bad] = (),
        after: Sequence[After] = (),
        now: float = 0.0,
    ) -> Announce | None:
        """A worker has finished batches; returns what the consumer is to be told.

        Args:
            bad: The samples that they had to do without.
            after: The states that scripts have left.
            now: The time.
        """
        finished = {Place(*entry[:4]) for entry in entries}
        s = self._streams.get(stream)
        if s is None:
            self._finish(worker, stream, finished)
            return None
        announced = []
        for entry in entries:
            key = entry[:2]
            writing = s.writing.get(key)
            # A worker in which a user's function runs may say anything, in the place of its own.
            if writing is None or writing[:2] != (worker, entry[:4]):
                continue
            del s.writing[key]
            if worker in self._afar:
                self._afar[worker].answered(now - writing.since, seconds)
            if s.losses:
                s.losses.pop(key, None)
            if s.wishes.scripts:
                s.wishes.scripts.pop(key, None)
            s.slots.commit(entry.slot, entry.sequence)
            s.slots.lease(entry.slot, entry.sequence)
            s.announced[entry.slot] = (key, s.number + 1, entry.sequence)
            announced.append(entry)
        self._finish(worker, stream, finished)
        if not announced:
            return None
        s.distrusted = False
        # An epoch's last slot may hold fewer than a span.
        self.batches += sum(min(s.span, s.steps - e.step * s.span) for e in announced)
        s.took(seconds, len(announced))
        s.number += 1
        if not bad and not after:
            return Announce(s.number, tuple(announced))
        keys = {entry[:2] for entry in announced}
        return Announce(
            s.number,
            tuple(announced),
            tuple(b for b in bad if b[:2] in keys),
            tuple(a for a in after if a[:2] in keys),
        )

    def failed(
        self, worker: int, stream: int, place: Place, *, message: str, sample: int | None,
        traceback: str, path: str = "",
    ) -> Fault | None:  # fmt: skip
        """A worker cannot make a batch, and lives; returns what the consumer is to be told."""
        self._finish(worker, stream, {place})
        s = self._streams.get(stream)
        if s is None or not self.owns(worker, stream, place):
            return None
        del s.writing[place[:2]]
        s.slots.abort(place.slot, place.sequence)
        return s.refuse(place[:2], message, sample=sample, traceback=traceback, path=path)

    def assign(self, now: float = 0.0) -> list[Assignment]:
        """All assignments that can be made now; see `Sharing`.

        Args:
            now: The time.
        """
        return self._sharing.assign(now)

    def _finish(self, worker: int, stream: int, places: set[Place]) -> None:
        """Take what is finished out of the worker's load."""
        load = self._workers.get(worker)
        if load is None:
            return
        for i, assignment in enumerate(load):
            if assignment.stream == stream and not places.isdisjoint(assignment.places):
                rest = tuple(p for p in assignment.places if p not in places)
                if rest:
                    load[i] = Assignment(worker, stream, rest)
                else:
                    del load[i]
                return
