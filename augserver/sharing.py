"""Who gets what: wishes, free slots and workers that have time become assignments. Sans-I/O.

Streams take turns, the idlest worker is asked first, and each is given what it does in a few
milliseconds (a remote one in somewhat more: a link's delay has to be hidden), but no more than its
share of a ring. Where there is nothing left to give, who is idle gets what a remote worker has held
for too long, so that no slow host holds an epoch's end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from augproto.messages import Place, Script
from augserver.afar import REMOTE_DEPTH, REMOTE_LASTS, Afar, Writing
from augserver.streams import Stream
from augserver.wishes import Key

#: Assignments that a worker holds at once: one at work, one waiting, so that it never idles.
WORKER_DEPTH = 2


@dataclass(frozen=True, slots=True)
class Assignment:
    """Batches for one worker, all of one stream."""

    worker: int
    stream: int
    places: tuple[Place, ...]
    scripts: tuple[Script, ...] = ()


class Sharing:
    """What the dispatcher does with those who are idle.

    Args:
        streams, workers, afar: The dispatcher's own: streams by number, what each worker holds,
            and which of them are remote.
    """

    def __init__(
        self,
        streams: dict[int, Stream],
        workers: dict[int, deque[Assignment]],
        afar: dict[int, Afar],
    ) -> None:
        self._streams = streams
        self._workers = workers
        self._afar = afar
        self._turn: deque[int] = deque()

    def opened(self, stream: int) -> None:
        """It takes its turn with the others."""
        self._turn.append(stream)

    def closed(self, stream: int) -> None:
        """It does not any more."""
        self._turn.remove(stream)

    def assign(self, now: float = 0.0) -> list[Assignment]:
        """All assignments that can be made now.

        Args:
            now: The time.
        """
        assignments: list[Assignment] = []
        for load in range(max(WORKER_DEPTH, REMOTE_DEPTH)):  # the idlest first
            for worker in [w for w, held in self._workers.items() if len(held) == load]:
                if not any(s.wishes.wanted and s.slots.free for s in self._streams.values()):
                    break
                if load < (REMOTE_DEPTH if worker in self._afar else WORKER_DEPTH):
                    self._give(self._next_for(worker, now), assignments)
        if any(self._workers[worker] for worker in self._afar):
            for worker in [w for w, held in self._workers.items() if not held]:
                self._give(self._steal_for(worker, now), assignments)
        return assignments

    def _give(self, assignment: Assignment | None, assignments: list[Assignment]) -> None:
        if assignment is not None:
            self._workers[assignment.worker].append(assignment)
            assignments.append(assignment)

    def _next_for(self, worker: int, now: float) -> Assignment | None:
        afar = self._afar.get(worker)
        for _ in range(len(self._turn)):
            stream = self._turn[0]
            self._turn.rotate(-1)
            s = self._streams[stream]
            if afar is not None and stream not in afar.streams:
                continue
            keys = self._next_keys(s, self._most(s, stream, worker))
            if not keys:
                continue
            places = []
            for epoch, step in keys:
                place = Place(epoch, step, *s.slots.claim())
                s.writing[epoch, step] = Writing(worker, place, now)
                places.append(place)
            return self._assignment(worker, stream, *places)
        return None

    def _assignment(self, worker: int, stream: int, *places: Place) -> Assignment:
        said = self._streams[stream].wishes.scripts
        scripts = tuple(said[place[:2]] for place in places if place[:2] in said)
        return Assignment(worker, stream, places, scripts)

    def _most(self, s: Stream, stream: int, worker: int) -> int:
        """Batches of a stream that a worker is given at once."""
        possible = min(len(s.wishes.wanted), s.slots.free)
        workers = max(1, len(self._workers) - len(self._afar) + s.remote)
        if worker not in self._afar:
            return s.share(possible, workers)
        # Much is under way to it and back, but no more of the ring than its share.
        holds = sum(len(a.places) for a in self._workers[worker] if a.stream == stream)
        share = -(-len(s.slots) // workers)
        return min(s.share(possible, workers, REMOTE_LASTS), share - holds)

    def _steal_for(self, worker: int, now: float) -> Assignment | None:
        """What a remote worker has held for the longest, and for too long.

        Its slot and sequence stay: the one before has never written it, and what it sends from now
        on is not taken. A suspect stays where it is.
        """
        afar = self._afar.get(worker)
        oldest: tuple[int, Writing] | None = None
        for stream, s in self._streams.items():
            if afar is not None and stream not in afar.streams:
                continue
            for key, writing in s.writing.items():
                holder = self._afar.get(writing.worker)
                if holder is None or writing.worker == worker or key in s.losses:
                    continue
                if oldest is not None and oldest[1].since <= writing.since:
                    continue
                holds = sum(len(a.places) for a in self._workers[writing.worker])
                patience = holder.patience(s.fastest, holds, writing.thefts)
                if now - writing.since > patience:
                    oldest = stream, writing
        if oldest is None:
            return None
        stream, writing = oldest
        key = writing.place[:2]
        s = self._streams[stream]
        s.writing[key] = Writing(worker, writing.place, now, writing.thefts + 1)
        return self._assignment(worker, stream, writing.place)

    def _next_keys(self, s: Stream, most: int) -> list[Key]:
        """The next wishes that one worker is to fulfil, taken off the list.

        A suspect, over which a worker has died, goes alone: what else a worker has at hand must
        not share the blame. And no two are at work at once, for where all workers die together
        (with their forkserver) each of their batches is suspected, and one of them was it.

        A stream over which a worker has died, and of which nothing has come since, occupies one
        worker at a time where there are others: its function may kill whoever touches it.
        """
        wishes = s.wishes
        most = min(most, len(wishes.wanted), s.slots.free)
        if most <= 0 or (s.distrusted and s.writing and len(self._streams) > 1):
            return []
        if not s.losses:
            return [wishes.wanted.popleft() for _ in range(most)]
        chosen: list[Key] = []
        free = s.slots.free
        for key in wishes.wanted:
            if key in s.losses and not chosen:
                if not self._suspect_at_work():
                    chosen = [key]
                    break
                free -= 1  # it was wished first: a slot is kept for it
            elif key not in s.losses:
                chosen.append(key)
            if len(chosen) >= min(free, most):
                break
        chosen = chosen[: max(free, 0)]
        wishes.wanted = deque(key for key in wishes.wanted if key not in chosen)
        return chosen

    def _suspect_at_work(self) -> bool:
        return any(key in s.losses for s in self._streams.values() for key in s.writing)
