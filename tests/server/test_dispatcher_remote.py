"""Workers on other hosts: more under way, no slot written, and nobody waits for the slow."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Iterable

import pytest

from augproto.messages import Announce, Entry, Fault, Place, Release, Run
from augproto.ring import SlotState
from augserver.afar import (
    FIRST_REMOTE,
    LEAST_HELD,
    LEAST_UNKNOWN,
    MOST_LAG,
    REMOTE_DEPTH,
    REMOTE_LASTS,
    TIMES_FASTEST,
    TIMES_LAG,
    Afar,
)
from augserver.dispatcher import MAX_ATTEMPTS, Dispatcher
from augserver.losses import Loss
from augserver.sharing import WORKER_DEPTH, Assignment

FAR, FARTHER = FIRST_REMOTE + 1, FIRST_REMOTE + 2
FAST = 1e-3


def dispatcher(*remote: int, local: int = 0, slots: int = 8, steps: int = 100) -> Dispatcher:
    made = Dispatcher()
    made.open(1, slots=slots, steps=steps)
    for worker in range(local):
        made.join(worker)
    for worker in remote:
        made.join(worker, remote=True)
        made.admit(worker, 1)
    return made


def want(d: Dispatcher, *steps: int, seen: int = 0, stream: int = 1) -> None:
    d.want(stream, [Run(0, step, 1) for step in steps], seen)


def steps_of(assignments: Iterable[Assignment]) -> list[int]:
    return [place.step for assignment in assignments for place in assignment.places]


def finish(
    d: Dispatcher, assignment: Assignment, now: float = 0.0, seconds: float = FAST
) -> Announce | None:
    entries = [Entry(*place, 8) for place in assignment.places]
    return d.done(assignment.worker, assignment.stream, entries, seconds, now=now)


def warmed_up(d: Dispatcher, each: float = FAST) -> None:
    """Let it know how long batches take."""
    for step in range(3):
        d.want(1, [Run(9, step, 1)], step)
        (assignment,) = d.assign(0.0)
        announce = finish(d, assignment, each, each)
        assert announce is not None
        assert d.release(1, [Release(e.slot, e.sequence) for e in announce.entries]) == []
    d.want(1, [], 3)


# -- what they are given ------------------------------------------------------------------------


def test_a_remote_worker_gets_nothing_of_a_stream_before_it_is_admitted() -> None:
    d = Dispatcher()
    d.open(1, slots=4, steps=10)
    d.open(2, slots=4, steps=10)
    d.join(FAR, remote=True)
    want(d, 0, 1)
    want(d, 5, stream=2)
    assert d.assign() == []
    d.admit(FAR, 2)
    assert [(a.stream, a.worker) for a in d.assign()] == [(2, FAR)]


def test_one_that_is_not_admitted_holds_up_nobody() -> None:
    d = Dispatcher()
    d.open(1, slots=4, steps=10)
    d.join(FAR, remote=True)
    d.join(0)
    want(d, 0, 1)
    assert {a.worker for a in d.assign()} == {0}


def test_a_remote_worker_has_more_under_way_than_a_local_one() -> None:
    d = dispatcher(FAR, local=1, slots=40)
    want(d, *range(40))
    assert Counter(a.worker for a in d.assign()) == {0: WORKER_DEPTH, FAR: REMOTE_DEPTH}


def test_what_it_is_given_lasts_longer() -> None:
    d = dispatcher(FAR, slots=100)
    warmed_up(d, each=0.01)
    want(d, *range(100), seen=3)
    assert [len(a.places) for a in d.assign()] == [round(REMOTE_LASTS / 0.01)] * REMOTE_DEPTH


def test_it_holds_no_more_of_a_ring_than_its_share() -> None:
    d = dispatcher(FAR, FARTHER, local=1, slots=12)
    warmed_up(d)
    want(d, *range(100), seen=3)
    held = Counter(dict.fromkeys((0, FAR, FARTHER), 0))
    for assignment in d.assign():
        held[assignment.worker] += len(assignment.places)
    assert max(held[FAR], held[FARTHER]) <= 4
    assert held[0] >= 4


def test_the_smallest_ring_is_no_reason_to_give_it_nothing() -> None:
    d = dispatcher(FAR, local=3, slots=2)
    for worker in range(3):
        d.leave(worker)
    want(d, 0, 1)
    assert steps_of(d.assign()) == [0, 1]


# -- how they go --------------------------------------------------------------------------------


def test_what_it_held_is_wanted_again_at_once_and_its_late_result_is_ignored() -> None:
    d = dispatcher(FAR, slots=4)
    want(d, 0, 1)
    lost = d.assign()
    assert d.leave(FAR, guess=False) == []
    assert d.table(1).free == 4, "it has never written a slot"
    d.join(0)
    again = d.assign()
    assert steps_of(again) == [0, 1]
    assert all(finish(d, assignment) is None for assignment in lost)
    announced = [finish(d, assignment) for assignment in again]
    assert [e.step for a in announced if a is not None for e in a.entries] == [0, 1]


def test_one_that_comes_back_works_again() -> None:
    d = dispatcher(FAR, slots=4)
    want(d, 0)
    (lost,) = d.assign()
    d.leave(FAR, guess=False)
    d.join(FAR, remote=True)
    assert d.assign() == [], "it has to show its bytes anew"
    d.admit(FAR, 1)
    (again,) = d.assign()
    assert again.places[0].sequence != lost.places[0].sequence
    assert finish(d, lost) is None
    assert finish(d, again) is not None


def test_the_loss_of_a_remote_worker_blames_nothing() -> None:
    d = dispatcher(slots=4)
    for number in range(2 * MAX_ATTEMPTS):
        d.join(FAR + number, remote=True)
        d.admit(FAR + number, 1)
        want(d, 0)
        assert steps_of(d.assign()) == [0]
        assert d.leave(FAR + number, guess=False) == []
    assert not d._streams[1].losses


def test_what_heirs_tell_counts_as_local_deaths_do() -> None:
    d = dispatcher(slots=4)
    faults: list[tuple[int, Fault]] = []
    for number in range(MAX_ATTEMPTS):
        d.join(FAR + number, remote=True)
        d.admit(FAR + number, 1)
        want(d, 0)
        (assignment,) = d.assign()
        d.leave(FAR + number, guess=False)
        faults += d.blame(1, assignment.places[0], Loss("on host was killed", None, "tb"))
    ((stream, fault),) = faults
    assert (stream, fault.step, fault.traceback) == (1, 0, "tb")
    assert "3 times: on host was killed" in fault.message


def test_a_batch_that_was_made_since_is_not_blamed() -> None:
    d = dispatcher(FAR, slots=4)
    want(d, 0)
    (lost,) = d.assign()
    d.leave(FAR, guess=False)
    d.join(0)
    (again,) = d.assign()
    assert finish(d, again) is not None
    assert d.blame(1, lost.places[0], Loss()) == []
    assert not d._streams[1].losses
    assert d.blame(7, lost.places[0], Loss()) == [], "the stream is over"


def test_a_batch_that_somebody_is_at_again_is_not_given_up_before_that_is_known() -> None:
    d = dispatcher(FAR, slots=4)
    want(d, 0)
    (lost,) = d.assign()
    d.leave(FAR, guess=False)
    d.join(0)
    (again,) = d.assign()
    for _ in range(MAX_ATTEMPTS):
        assert d.blame(1, lost.places[0], Loss()) == []
    announce = finish(d, again)
    assert announce is not None
    assert not d._streams[1].losses
    assert d.table(1).count(SlotState.LEASED) == 1


def test_what_it_gives_back_is_wanted_again_and_what_it_is_refused_goes_to_others() -> None:
    d = dispatcher(FAR, slots=4)
    want(d, 0, 1)
    first, _ = d.assign()
    d.give_back(FAR, 1, first.places[0])
    assert d.load(FAR) == 1
    assert steps_of(d.assign()) == [0]
    d.exclude(FAR, 1)
    assert d.load(FAR) == 0
    assert d.table(1).free == 4
    assert d.assign() == []
    d.join(0)
    assert sorted(steps_of(d.assign())) == [0, 1]


def test_a_local_worker_s_place_is_never_taken_back_by_a_word() -> None:
    d = dispatcher(local=1)
    want(d, 0)
    (assignment,) = d.assign()
    with pytest.raises(AssertionError):
        d.give_back(0, 1, assignment.places[0])


def test_a_stream_that_closes_is_forgotten_with_all_that_remote_workers_hold_of_it() -> None:
    d = dispatcher(FAR)
    want(d, 0)
    d.assign()
    d.close(1)
    assert d.load(FAR) == 0
    assert d.leave(FAR, guess=False) == []


def test_who_has_remote_workers_does_not_wait_in_vain() -> None:
    d = dispatcher(FAR, slots=1)
    want(d, 0, 1)
    d.assign()
    assert d.tell_waiting(Loss("no worker")) == []
    d.leave(FAR, guess=False)
    assert [fault.step for _, fault in d.tell_waiting(Loss("no worker"))] == [0]


# -- stealing -----------------------------------------------------------------------------------


def test_what_is_held_for_too_long_goes_to_who_is_idle() -> None:
    d = dispatcher(FAR, slots=4)
    warmed_up(d)
    want(d, 0, seen=3)
    (held,) = d.assign(10.0)
    d.join(0)
    assert d.assign(10.0 + LEAST_HELD / 2) == []
    (stolen,) = d.assign(10.0 + 2 * LEAST_HELD)
    assert (stolen.worker, stolen.places) == (0, held.places), "the same slot and sequence"
    assert d.owns(0, 1, held.places[0])
    assert not d.owns(FAR, 1, held.places[0])
    assert finish(d, held, 11.0) is None, "the late result is ignored"
    assert finish(d, stolen, 11.0) is not None
    assert (d.load(FAR), d.load(0)) == (0, 0)
    assert d.table(1).count(SlotState.LEASED) == 1


def test_before_anything_is_known_it_has_longer() -> None:
    d = dispatcher(FAR, slots=4)
    want(d, 0)
    d.assign(0.0)
    d.join(0)
    assert d.assign(0.9 * LEAST_UNKNOWN) == []
    assert steps_of(d.assign(1.1 * LEAST_UNKNOWN)) == [0]


def test_the_oldest_goes_first_and_one_at_a_time() -> None:
    d = dispatcher(FAR, slots=8)
    want(d, 0)
    d.assign(0.0)
    want(d, 0, 1)
    d.assign(0.5)
    d.join(0)
    assert steps_of(d.assign(20.0)) == [0]
    d.join(1)
    assert steps_of(d.assign(20.0)) == [1]


def test_who_has_something_to_do_takes_nothing() -> None:
    d = dispatcher(FAR, local=1, slots=8)
    want(d, 0, 1)
    assert {a.worker for a in d.assign(0.0)} == {0, FAR}
    assert d.assign(50.0) == []


def test_a_local_worker_is_not_taken_from() -> None:
    d = dispatcher(local=1)
    want(d, 0)
    d.assign(0.0)
    d.join(1)
    d.join(FAR, remote=True)
    d.admit(FAR, 1)
    assert d.assign(1000.0) == []


def test_what_a_local_worker_has_taken_stays_with_it() -> None:
    d = dispatcher(FAR, local=0)
    want(d, 0)
    d.assign(0.0)
    d.join(0)
    (stolen,) = d.assign(5.0)
    d.join(1)
    d.join(FARTHER, remote=True)
    d.admit(FARTHER, 1)
    assert d.assign(1e6) == [], "it may write until it is reaped"
    assert finish(d, stolen) is not None


def test_a_remote_thief_has_to_be_admitted() -> None:
    d = dispatcher(FAR)
    want(d, 0)
    d.assign(0.0)
    d.join(FARTHER, remote=True)
    assert d.assign(100.0) == []
    d.admit(FARTHER, 1)
    assert [a.worker for a in d.assign(100.0)] == [FARTHER]


def test_between_two_slow_ones_a_batch_does_not_go_to_and_fro() -> None:
    d = dispatcher(FAR, FARTHER, slots=4)
    warmed_up(d)
    want(d, 0, seen=3)
    (held,) = d.assign(0.0)
    work = {held.worker: held}
    thefts: list[float] = []
    for tick in range(1, 4000):  # a hundred seconds; each reports when it was stolen from
        now = tick / 40
        for assignment in d.assign(now):
            thefts.append(now)
            for victim in list(work):
                assert finish(d, work.pop(victim), now) is None
            work[assignment.worker] = assignment
    gaps = [late - early for early, late in itertools.pairwise(thefts)]
    assert 3 <= len(thefts) <= 12, "twice as long each time"
    assert all(late > 1.5 * early for early, late in itertools.pairwise(gaps))
    (last,) = work.values()
    assert finish(d, last, 101.0) is not None


def test_a_suspect_is_not_taken_to_another_worker() -> None:
    d = dispatcher(FAR)
    want(d, 0)
    (assignment,) = d.assign(0.0)
    d.blame(1, assignment.places[0], Loss())
    d.join(0)
    assert d.assign(100.0) == []


def test_a_slow_link_is_no_slow_host() -> None:
    near, far = Afar(), Afar()
    for _ in range(20):
        near.answered(0.002, 0.001)
        far.answered(0.301, 0.001)
    assert near.patience(0.001, 4, 0) == LEAST_HELD
    assert far.patience(0.001, 4, 0) == pytest.approx(0.004 * TIMES_FASTEST + TIMES_LAG * 0.3)
    slow = Afar()
    slow.answered(5.0, 4.999)  # it says itself that it worked all the time
    assert slow.patience(0.001, 1, 0) == LEAST_HELD


def test_no_link_is_believed_to_be_slow_without_end() -> None:
    liar = Afar()
    liar.answered(1000.0, 0.0)
    assert liar.patience(0.001, 1, 0) < TIMES_LAG * MOST_LAG + 1


def test_the_end_is_not_waited_for_by_what_was_taken() -> None:
    d = dispatcher(FAR)
    want(d, 0)
    (held,) = d.assign(0.0)
    d.join(0)
    (stolen,) = d.assign(10.0)
    assert d.at_work
    finish(d, stolen)
    assert not d.at_work
    assert d.load(FAR) == 1, "it has not reported, so it is not idle"
    finish(d, held)
    assert d.load(FAR) == 0


# -- everything at once -------------------------------------------------------------------------


class World:
    """Local and remote workers that die, fall silent, come back, are slow and late.

    The model knows who may write each slot, and what became of each wish.
    """

    STEPS = 60

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.d = Dispatcher()
        self.slots = self.rng.choice((2, 3, 8, 24))
        self.d.open(1, slots=self.slots, steps=self.STEPS)
        self.now = 0.0
        self.next_local, self.next_far = 0, FIRST_REMOTE
        self.work: dict[int, deque[Assignment]] = {}
        self.late: list[Assignment] = []  #: of workers that have left, still on the wire
        self.made: Counter[int] = Counter()
        self.wire: deque[Announce | Fault] = deque()
        self.got: set[int] = set()
        self.seen = self.thefts = 0
        for _ in range(self.rng.randrange(0, 3)):
            self.join_local()
        for _ in range(self.rng.randrange(1, 4)):
            self.join_far()

    def join_local(self) -> None:
        self.d.join(self.next_local)
        self.work[self.next_local] = deque()
        self.next_local += 1

    def join_far(self, worker: int | None = None) -> None:
        if worker is None:
            worker = self.next_far = self.next_far + 1
        self.d.join(worker, remote=True)
        self.d.admit(worker, 1)
        self.work[worker] = deque()

    def local(self) -> list[int]:
        return [worker for worker in self.work if worker < FIRST_REMOTE]

    def far(self) -> list[int]:
        return [worker for worker in self.work if worker >= FIRST_REMOTE]

    def assign(self) -> None:
        for assignment in self.d.assign(self.now):
            for place in assignment.places:
                others = [w for w in self.local() if self.holds(w, place)]
                assert not others, "a local worker may be writing there"
                self.thefts += any(self.holds(w, place) for w in self.far())
                assert self.d.owns(assignment.worker, 1, place)
            self.work[assignment.worker].append(assignment)
        for worker, work in self.work.items():
            depth = REMOTE_DEPTH if worker >= FIRST_REMOTE else WORKER_DEPTH
            assert self.d.load(worker) == len(work) <= depth

    def holds(self, worker: int, place: Place) -> bool:
        return any(p.slot == place.slot for a in self.work[worker] for p in a.places)

    def report(self, assignment: Assignment) -> None:
        """A worker says that this is done; what it owned no more harms nothing."""
        owned = [p for p in assignment.places if self.d.owns(assignment.worker, 1, p)]
        announce = finish(self.d, assignment, self.now, self.rng.choice((0.001, 0.1)))
        entries = announce.entries if announce is not None else ()
        assert [Place(*e[:4]) for e in entries] == owned
        self.made.update(entry.step for entry in entries)
        if announce is not None:
            self.wire.append(announce)

    def finish(self) -> None:
        busy = [worker for worker, work in self.work.items() if work]
        if busy:
            self.report(self.work[self.rng.choice(busy)].popleft())

    def lose_local(self) -> None:
        if self.local():
            worker = self.rng.choice(self.local())
            del self.work[worker]
            self.wire += [fault for _, fault in self.d.leave(worker, guess=False)]
            self.join_local()

    def lose_far(self) -> None:
        if self.far():
            worker = self.rng.choice(self.far())
            self.late += self.work.pop(worker)
            assert self.d.leave(worker, guess=False) == []
            self.join_far(worker if self.rng.random() < 0.5 else None)

    def hear_late(self) -> None:
        if self.late:
            assignment = self.late.pop(self.rng.randrange(len(self.late)))
            # A worker that is back under its number reports what it held before it was lost.
            if not any(self.d.owns(assignment.worker, 1, p) for p in assignment.places):
                announce = finish(self.d, assignment, self.now)
                assert announce is None

    def hear(self) -> None:
        if self.wire:
            message = self.wire.popleft()
            assert message.number == self.seen + 1
            self.seen = message.number
            assert isinstance(message, Announce)
            self.got |= {entry.step for entry in message.entries}
            back = [Release(e.slot, e.sequence) for e in message.entries]
            assert self.d.release(1, back) == []

    def wish(self) -> None:
        want(self.d, *[s for s in range(self.STEPS) if s not in self.got], seen=self.seen)

    def happen(self) -> None:
        self.now += self.rng.choice((0.0, 0.01, 0.3, 3.0))
        for event, often in (
            (self.wish, 5), (self.assign, 8), (self.finish, 5), (self.hear, 6),
            (self.lose_local, 0.4), (self.lose_far, 0.6), (self.hear_late, 2),
        ):  # fmt: skip
            if self.rng.random() < often / 10:
                event()
        slots = self.d.table(1)
        assert slots.count(SlotState.CLAIMED) == len(self.d._streams[1].writing)
        assert slots.free + slots.count(SlotState.CLAIMED) + slots.count(SlotState.LEASED) == len(
            slots
        )


def test_whatever_remote_workers_do_each_batch_is_announced_once() -> None:
    thefts = 0
    for seed in range(300):
        world = World(seed)
        for _ in range(5000):
            world.happen()
            if len(world.got) == World.STEPS:
                break
        assert world.made == dict.fromkeys(range(World.STEPS), 1), f"seed {seed}"
        thefts += world.thefts
    assert thefts > 100, "or it has shown little"
