"""Every batch that is wanted is made, once, into a slot of its own, whatever dies or crosses."""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter, deque
from collections.abc import Iterable

import pytest

from augproto.errors import RemoteProtocolError
from augproto.messages import MAX_LIST, After, Announce, Entry, Fault, Place, Release, Run, Script
from augproto.ring import SlotState
from augserver.dispatcher import MAX_ATTEMPTS, Dispatcher
from augserver.sharing import WORKER_DEPTH, Assignment
from augserver.streams import ASSIGNMENT_BATCHES
from augserver.wishes import MAX_SCRIPT_BYTES, MAX_WANTED, Key

FAST = 1e-4  #: seconds for a batch, of which many go into one assignment


def dispatcher(
    *, workers: int = 1, streams: int = 1, slots: int = 8, steps: int = 100
) -> Dispatcher:
    made = Dispatcher()
    for stream in range(1, streams + 1):
        made.open(stream, slots=slots, steps=steps)
    for worker in range(workers):
        made.join(worker)
    return made


def want(d: Dispatcher, keys: Iterable[Key], *, stream: int = 1, seen: int = 0) -> None:
    d.want(stream, [Run(epoch, step, 1) for epoch, step in keys], seen)


def steps(*numbers: int) -> list[Key]:
    return [(0, number) for number in numbers]


def keys_of(assignments: Iterable[Assignment]) -> list[Key]:
    return [place[:2] for assignment in assignments for place in assignment.places]


def finish(d: Dispatcher, assignment: Assignment, seconds: float = 1.0) -> Announce | None:
    entries = [Entry(*place, 8) for place in assignment.places]
    return d.done(assignment.worker, assignment.stream, entries, seconds)


def released(announce: Announce) -> list[Release]:
    return [Release(entry.slot, entry.sequence) for entry in announce.entries]


def warmed_up(d: Dispatcher, stream: int = 1) -> None:
    """Let it know that batches are made fast, so that many go into one assignment."""
    for step in range(4):
        want(d, [(9, step)], stream=stream, seen=step)
        (assignment,) = d.assign()
        announce = finish(d, assignment, FAST)
        assert announce is not None
        assert d.release(stream, released(announce)) == []
    want(d, [], stream=stream, seen=4)


# -- the way of a batch ------------------------------------------------------------------------


def test_a_batch_is_assigned_made_announced_and_released() -> None:
    d = dispatcher(slots=2)
    want(d, steps(0))
    (assignment,) = d.assign()
    assert assignment == Assignment(0, 1, (Place(0, 0, 0, 1),))
    assert d.table(1).count(SlotState.CLAIMED) == 1
    assert finish(d, assignment) == Announce(1, (Entry(0, 0, 0, 1, 8),))
    assert d.table(1).count(SlotState.LEASED) == 1
    assert d.release(1, [Release(0, 1)]) == []
    assert d.table(1).free == 2
    assert (d.batches, d.load(0)) == (1, 0)


def test_nothing_is_made_that_nobody_wants() -> None:
    d = dispatcher()
    assert d.assign() == []
    want(d, [])
    assert d.assign() == []


def test_wishes_are_followed_in_their_order() -> None:
    d = dispatcher(workers=3, slots=3)
    want(d, [(1, 0), (0, 7), (0, 3)])
    assert keys_of(d.assign()) == [(1, 0), (0, 7), (0, 3)]


def test_announcements_are_numbered_without_a_gap() -> None:
    d = dispatcher(workers=2, slots=8)
    want(d, steps(0, 1, 2, 3))
    numbers = []
    for assignment in d.assign():
        announce = finish(d, assignment)
        assert announce is not None
        numbers.append(announce.number)
    assert numbers == [1, 2, 3, 4]


def test_steps_beyond_the_epoch_and_wishes_beyond_all_measure_are_ignored() -> None:
    d = dispatcher(steps=10, slots=8)
    d.want(1, [Run(0, 8, 2**64 - 1), Run(0, 2**64 - 1, 2**64 - 1)], 0)
    assert keys_of(d.assign()) == steps(8, 9)
    long = dispatcher(steps=2**62, slots=8)
    long.want(1, [Run(0, 0, 2**64 - 1)], 0)
    assert len(long._streams[1].wishes.wanted) == MAX_WANTED


def test_wishes_are_ignored_beyond_the_limit_in_many_runs_too() -> None:
    d = dispatcher(steps=10**6, slots=8)
    d.want(1, [Run(0, n, 1) for n in range(MAX_WANTED + 1000)], 0)
    assert len(d._streams[1].wishes.wanted) == MAX_WANTED


def test_a_hostile_list_of_the_same_wishes_is_not_followed_to_its_end() -> None:
    looked_at = 0

    def runs() -> Iterable[Run]:
        nonlocal looked_at
        for _ in range(MAX_LIST):
            looked_at += 1
            yield Run(0, 0, MAX_WANTED - 1)

    d = dispatcher(steps=10**6, slots=8)
    d.want(1, runs(), 0)
    assert looked_at <= 2
    assert len(d._streams[1].wishes.wanted) == MAX_WANTED - 1


def test_a_wish_named_twice_is_one_wish() -> None:
    d = dispatcher()
    want(d, steps(1, 1, 0, 1))
    assert list(d._streams[1].wishes.wanted) == steps(1, 0)


def test_a_new_list_replaces_the_old_one_but_for_what_is_being_written() -> None:
    d = dispatcher(slots=8)
    want(d, steps(0, 1, 2, 3))
    writing = d.assign()
    assert keys_of(writing) == steps(0, 1)
    want(d, steps(1, 7))
    announced = [finish(d, assignment) for assignment in writing]
    assert all(announced), "what is written comes, wanted or not"
    assert keys_of(d.assign()) == steps(7)


# -- room and size -----------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_small_ring_is_filled_and_never_over_filled(slots: int) -> None:
    d = dispatcher(workers=4, slots=slots)
    want(d, steps(*range(10)))
    first = d.assign()
    assert keys_of(first) == steps(*range(slots))
    assert d.assign() == []
    announce = finish(d, first[0])
    assert d.assign() == [], "announced is not released"
    assert announce is not None
    d.release(1, released(announce))
    assert keys_of(d.assign()) == steps(slots)


def test_a_worker_holds_no_more_than_it_can_do_next() -> None:
    d = dispatcher(workers=2, slots=100)
    want(d, steps(*range(50)))
    assert Counter(a.worker for a in d.assign()) == {0: WORKER_DEPTH, 1: WORKER_DEPTH}
    assert (d.load(0), d.load(1), d.load(7)) == (WORKER_DEPTH, WORKER_DEPTH, 0)


def test_the_idlest_worker_is_asked_first() -> None:
    d = dispatcher(workers=3, slots=100)
    want(d, steps(0))
    busy = d.assign()[0].worker
    want(d, steps(1, 2))
    assert busy not in {a.worker for a in d.assign()}


def test_slow_batches_go_one_by_one_and_fast_ones_together() -> None:
    d = dispatcher(slots=100)
    warmed_up(d)
    want(d, steps(*range(50)), seen=4)
    assert [len(a.places) for a in d.assign()] == [ASSIGNMENT_BATCHES] * WORKER_DEPTH
    slow = dispatcher(slots=100)
    want(slow, steps(*range(50)))
    for assignment in slow.assign():
        assert len(assignment.places) == 1, "nothing is known yet"
        finish(slow, assignment, 0.5)
    assert {len(a.places) for a in slow.assign()} == {1}


def test_fast_batches_are_shared_out_among_the_workers() -> None:
    d = dispatcher(slots=8)
    warmed_up(d)
    for worker in (1, 2, 3):
        d.join(worker)
    want(d, steps(*range(8)), seen=4)
    shares = Counter[int]()
    for assignment in d.assign():
        shares[assignment.worker] += len(assignment.places)
    assert set(shares) == {0, 1, 2, 3}
    assert max(shares.values()) <= 3


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e9])
def test_any_time_that_a_worker_reports_gives_a_size(seconds: float) -> None:
    d = dispatcher(slots=100)
    for epoch in range(3):
        want(d, [(epoch, step) for step in range(20)], seen=epoch)
        for assignment in d.assign():
            assert 1 <= len(assignment.places) <= ASSIGNMENT_BATCHES
            announce = finish(d, assignment, seconds)
            assert announce is not None
            d.release(1, released(announce))


# -- fairness ----------------------------------------------------------------------------------


def test_two_streams_take_turns_however_much_one_wants() -> None:
    d = dispatcher(workers=1, streams=2, slots=100)
    want(d, steps(*range(100)), stream=1)
    want(d, steps(*range(5)), stream=2)
    served: list[int] = []
    for _ in range(10):
        for assignment in d.assign():
            served.append(assignment.stream)
            finish(d, assignment, 1.0)
    assert served[:10].count(1) == served[:10].count(2) == 5
    assert set(served[10:]) == {1}, "nobody waits for a stream that wants nothing"


def test_a_stream_whose_ring_is_full_holds_up_no_other() -> None:
    d = dispatcher(workers=1, streams=2, slots=2)
    want(d, steps(0, 1, 2, 3), stream=1)
    for _ in range(2):
        for assignment in d.assign():
            finish(d, assignment)
    want(d, steps(0, 1), stream=2)
    assert {a.stream for a in d.assign()} == {2}


def test_streams_that_come_and_go_keep_the_turns_fair() -> None:
    d = dispatcher(streams=3, slots=100)
    for stream in (1, 2, 3):
        want(d, steps(*range(50)), stream=stream)
    finish(d, d.assign()[0])
    d.close(2)
    served = []
    for _ in range(10):
        for assignment in d.assign():
            served.append(assignment.stream)
        for assignments in list(d._workers.values()):
            for assignment in list(assignments):
                finish(d, assignment)
    counts = Counter(served)
    assert set(counts) == {1, 3}
    assert abs(counts[1] - counts[3]) <= 1


# -- what crosses on the wire --------------------------------------------------------------------


def test_a_wish_that_crossed_its_announcement_is_not_made_again() -> None:
    d = dispatcher(slots=8)
    want(d, steps(0, 1))
    first, second = d.assign()
    finish(d, first)
    want(d, steps(0, 1), seen=0)  # said before the announcement arrived
    assert d.assign() == []
    finish(d, second)
    want(d, steps(0, 1, 2), seen=1)  # only the second crossed; the first is wanted once more
    assert keys_of(d.assign()) == steps(0, 2)


def test_a_wish_that_crossed_its_fault_is_not_tried_again_until_asked_for() -> None:
    d = dispatcher(slots=8)
    want(d, steps(0))
    (assignment,) = d.assign()
    fault = d.failed(0, 1, assignment.places[0], message="no", sample=3, traceback="tb")
    assert fault == Fault("WorkerError", "no", 1, 0, 0, 3, "tb")
    assert d.assign() == []
    want(d, steps(0, 1), seen=0)
    assert keys_of(d.assign()) == steps(1)
    want(d, steps(0), seen=1)
    assert keys_of(d.assign()) == steps(0), "asked for after it was told"


def test_a_fault_counts_among_the_announcements() -> None:
    d = dispatcher(slots=8)
    want(d, steps(0, 1))
    first, second = d.assign()
    announce = finish(d, first)
    fault = d.failed(0, 1, second.places[0], message="no", sample=None, traceback="")
    assert announce is not None
    assert fault is not None
    assert (announce.number, fault.number) == (1, 2)


def test_a_failed_batch_gives_its_slot_back_and_its_worker_goes_on() -> None:
    d = dispatcher(slots=1)
    want(d, steps(0, 1))
    (assignment,) = d.assign()
    d.failed(0, 1, assignment.places[0], message="no", sample=None, traceback="")
    assert d.load(0) == 0
    assert keys_of(d.assign()) == steps(1)


def test_one_failure_in_an_assignment_leaves_the_rest_of_it() -> None:
    d = dispatcher(slots=100)
    warmed_up(d)
    want(d, steps(*range(16)), seen=4)
    assignment = d.assign()[0]
    broken, *whole = assignment.places
    assert d.failed(0, 1, broken, message="no", sample=None, traceback="") is not None
    announce = d.done(0, 1, [Entry(*place, 8) for place in whole], FAST)
    assert announce is not None
    assert [entry[:2] for entry in announce.entries] == [place[:2] for place in whole]
    assert d.load(0) == 0


def test_a_release_that_is_stale_or_nonsense_harms_nothing() -> None:
    d = dispatcher(slots=2)
    want(d, steps(0, 1))
    first, second = d.assign()
    announce = finish(d, first)
    assert announce is not None
    (release,) = released(announce)
    nonsense = [
        Release(release.slot, release.sequence + 1),
        Release(second.places[0].slot, second.places[0].sequence),  # still being written
        Release(99, 1),
        Release(2**64 - 1, 2**64 - 1),
    ]
    assert len(d.release(1, nonsense)) == 4
    assert d.table(1).free == 0
    assert d.release(1, [release]) == []
    assert len(d.release(1, [release, release])) == 2, "released once is released"
    assert d.table(1).free == 1
    assert finish(d, second) is not None


def test_a_batch_that_was_released_may_be_wanted_anew() -> None:
    d = dispatcher(slots=2)
    want(d, steps(0))
    announce = finish(d, d.assign()[0])
    assert announce is not None
    d.release(1, released(announce))
    want(d, steps(0), seen=1)
    (again,) = d.assign()
    assert again.places[0][:2] == (0, 0)
    assert again.places[0].sequence > announce.entries[0].sequence


# -- deaths --------------------------------------------------------------------------------------


def test_a_dead_workers_batches_are_made_by_another_first_and_in_order() -> None:
    d = dispatcher(slots=8)
    want(d, steps(0, 1, 2, 3))
    assert keys_of(d.assign()) == steps(0, 1)
    assert d.leave(0) == []
    assert d.table(1).free == 8
    d.join(5)
    assert keys_of(d.assign()) == steps(0, 1)
    assert d.load(0) == 0


def test_what_a_worker_finished_before_its_death_is_not_made_again() -> None:
    d = dispatcher(slots=8)
    want(d, steps(0, 1, 2))
    first, _ = d.assign()
    assert finish(d, first) is not None
    d.leave(0)
    d.join(1)
    assert keys_of(d.assign()) == steps(1, 2)


def test_a_report_of_a_dead_worker_is_ignored() -> None:
    d = dispatcher(slots=8)
    want(d, steps(0))
    (late,) = d.assign()
    d.leave(0)
    d.join(1)
    (again,) = d.assign()
    assert finish(d, late) is None
    place = late.places[0]
    assert d.failed(0, 1, place, message="no", sample=None, traceback="") is None
    assert finish(d, again) is not None


def test_a_report_of_another_sequence_is_ignored() -> None:
    d = dispatcher(slots=8)
    want(d, steps(0))
    (assignment,) = d.assign()
    place = assignment.places[0]
    wrong = Entry(*place._replace(sequence=place.sequence + 1), 8)
    assert d.done(0, 1, [wrong], 1.0) is None
    assert d.table(1).count(SlotState.CLAIMED) == 1


def test_a_death_without_work_and_an_unknown_worker_are_nothing() -> None:
    d = dispatcher()
    assert d.leave(0) == []
    assert d.leave(7) == []


def test_a_batch_that_kills_its_workers_is_given_up_and_the_others_are_made() -> None:
    d = dispatcher(workers=0, slots=8)
    want(d, steps(0, 1, 2))
    faults: list[tuple[int, Fault]] = []
    for worker in range(MAX_ATTEMPTS):
        d.join(worker)
        assert keys_of(d.assign())[0] == (0, 0)
        assert faults == []
        faults = d.leave(worker)
    ((stream, fault),) = faults
    assert (stream, fault.kind, fault.number, fault.epoch, fault.step) == (
        1,
        "WorkerError",
        1,
        0,
        0,
    )
    assert "epoch 0, step 0: 3 workers died" in fault.message
    d.join(9)
    assert keys_of(d.assign()) == steps(1, 2)
    want(d, steps(0, 3), seen=0)
    d.join(10)
    assert keys_of(d.assign()) == steps(3), "the wish crossed the fault"
    want(d, steps(0), seen=1)
    d.join(11)
    assert keys_of(d.assign()) == steps(0), "asked for again, it is tried again"


def test_a_batch_that_was_made_at_last_is_no_suspect_any_more() -> None:
    d = dispatcher(workers=0, slots=8)
    for _ in range(3):
        want(d, steps(0), seen=100)
        for worker in range(MAX_ATTEMPTS - 1):
            d.join(worker)
            d.assign()
            assert d.leave(worker) == []
        d.join(5)
        announce = finish(d, d.assign()[0])
        assert announce is not None
        d.release(1, released(announce))
        d.leave(5)


def test_only_the_batch_at_work_is_suspected_not_those_that_wait() -> None:
    d = dispatcher(workers=0, slots=8)
    want(d, steps(0, 1))
    for worker in range(MAX_ATTEMPTS):
        d.join(worker)
        d.assign()
        d.leave(worker)
    d.join(8)
    (second,) = d.assign()
    assert second.places[0][:2] == (0, 1)
    assert d.leave(8) == [], "its first death"


def test_it_is_known_what_a_worker_owes_and_in_which_order() -> None:
    d = dispatcher(slots=8)
    assert d.held(0) == d.held(7) == []
    want(d, steps(0, 1))
    first, second = d.assign()
    assert d.held(0) == [(1, first.places[0]), (1, second.places[0])]
    finish(d, first)
    assert d.held(0) == [(1, second.places[0])]
    d.leave(0)
    assert d.held(0) == []


def test_of_an_assignment_of_several_batches_the_deadly_one_is_given_up() -> None:
    """A worker reports an assignment when it is whole; what it was at, the slots' headers tell."""
    d = dispatcher(slots=16)
    warmed_up(d)
    d.leave(0)
    want(d, steps(0, 1, 2, 3), seen=4)
    deadly = (0, 2)
    given_up: list[Key] = []
    for worker in range(1, 20):
        d.join(worker)
        at_work = None
        for assignment in d.assign():
            at_work = next(((1, p) for p in assignment.places if p[:2] == deadly), None)
            if at_work is not None:
                break
            finish(d, assignment, FAST)
        given_up += [(fault.epoch, fault.step) for _, fault in d.leave(worker, suspect=at_work)]
    assert given_up == [deadly]


def test_a_stream_that_waited_is_not_blamed_for_one_that_is_closed() -> None:
    d = dispatcher(workers=0, streams=1, slots=8)
    want(d, steps(0), stream=1)
    given_up = []
    for worker in range(MAX_ATTEMPTS):
        stream = 2 + worker
        d.open(stream, slots=2, steps=10)
        want(d, steps(0), stream=stream)
        d._sharing._turn.rotate(1)  # the new stream first
        d.join(worker)
        assert [a.stream for a in d.assign()] == [stream, 1]
        d.close(stream)
        given_up += d.leave(worker)
    assert given_up == []


# -- closing -------------------------------------------------------------------------------------


def test_a_stream_closed_while_it_is_written_is_forgotten() -> None:
    d = dispatcher(streams=2, slots=8)
    want(d, steps(0), stream=1)
    (writing,) = d.assign()
    d.close(1)
    assert d.load(0) == 1, "the worker is still at it"
    assert finish(d, writing) is None
    assert d.load(0) == 0
    want(d, steps(5), stream=2)
    assert keys_of(d.assign()) == steps(5)


def test_a_failure_and_a_death_for_a_closed_stream_tell_nobody() -> None:
    d = dispatcher(slots=8)
    want(d, steps(0, 1))
    first, _ = d.assign()
    d.close(1)
    assert d.failed(0, 1, first.places[0], message="no", sample=None, traceback="") is None
    assert d.load(0) == 1
    assert d.leave(0) == []


# -- everything at once ----------------------------------------------------------------------------


class World:
    """A dispatcher between consumers and workers that do anything in any order.

    The model knows two things: who has each slot in hand, and what each consumer still waits for.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.d = Dispatcher()
        self.slots: dict[int, int] = {}
        self.steps = self.rng.choice((1, 3, 10))
        #: (stream, slot) -> whose hand it is in
        self.hands: dict[tuple[int, int], str] = {}
        #: stream -> what was announced and not released: key -> entry
        self.held: dict[int, dict[Key, Entry]] = {}
        self.waiting: dict[int, set[Key]] = {}
        self.seen: dict[int, int] = {}
        self.on_the_wire: dict[int, deque[Announce | Fault]] = {}
        self.received: dict[int, Counter[Key]] = {}
        self.asked: dict[int, Counter[Key]] = {}
        self.work: dict[int, deque[Assignment]] = {}
        #: workers that cannot be killed, and what they hold all the same
        self.hung: dict[int, deque[Assignment]] = {}
        self.next_stream = self.next_worker = 1
        for _ in range(self.rng.randrange(1, 4)):
            self.join()
        for _ in range(self.rng.randrange(1, 4)):
            self.open()

    # what may happen

    def open(self) -> None:
        stream, self.next_stream = self.next_stream, self.next_stream + 1
        self.slots[stream] = self.rng.choice((1, 2, 3, 8))
        self.d.open(stream, slots=self.slots[stream], steps=self.steps)
        self.held[stream], self.waiting[stream] = {}, set()
        self.seen[stream], self.on_the_wire[stream] = 0, deque()
        self.received[stream], self.asked[stream] = Counter(), Counter()

    def close(self) -> None:
        if len(self.slots) > 1:
            stream = self.rng.choice(list(self.slots))
            self.d.close(stream)
            del self.slots[stream]
            self.hands = {key: hand for key, hand in self.hands.items() if key[0] != stream}

    def join(self) -> None:
        worker, self.next_worker = self.next_worker, self.next_worker + 1
        self.d.join(worker)
        self.work[worker] = deque()

    def die(self) -> None:
        worker = self.rng.choice(list(self.work))
        for assignment in self.work.pop(worker):
            for place in assignment.places:
                self.drop_hand(assignment.stream, place.slot, f"worker {worker}")
        for stream, fault in self.d.leave(worker):
            assert stream in self.slots
            self.on_the_wire[stream].append(fault)
        self.join()

    def hang(self) -> None:
        """A worker cannot be killed: its batches go to others, its slots stay in its hand."""
        if len(self.hung) < 2:
            worker = self.rng.choice(list(self.work))
            self.hung[worker] = self.work.pop(worker)
            for stream, fault in self.d.quarantine(worker):
                self.on_the_wire[stream].append(fault)
            self.join()

    def end(self) -> None:
        """A worker that could not be killed is gone at last."""
        if self.hung:
            worker, work = self.hung.popitem()
            for assignment in work:
                for place in assignment.places:
                    self.drop_hand(assignment.stream, place.slot, f"worker {worker}")
            assert self.d.leave(worker) == []

    def finish(self) -> None:
        """A worker reports some of its assignment, in one message or in several."""
        busy = [worker for worker, work in self.work.items() if work]
        if not busy:
            return
        worker = self.rng.choice(busy)
        assignment = self.work[worker].popleft()
        stream = assignment.stream
        for place in assignment.places:
            self.drop_hand(stream, place.slot, f"worker {worker}")
        whole = [place for place in assignment.places if self.rng.random() < 0.85]
        for place in assignment.places:
            if place not in whole:
                fault = self.d.failed(
                    worker, stream, place, message="no", sample=None, traceback=""
                )
                assert (fault is not None) == (stream in self.slots)
                if fault is not None:
                    self.on_the_wire[stream].append(fault)
        if whole:
            entries = [Entry(*place, 1) for place in whole]
            announce = self.d.done(worker, stream, entries, self.rng.choice((FAST, 1.0)))
            assert (announce is not None) == (stream in self.slots)
            if announce is not None:
                assert announce.entries == tuple(entries)
                for entry in entries:
                    self.take_hand(stream, entry.slot, "consumer")
                self.on_the_wire[stream].append(announce)

    def hear(self) -> None:
        """A consumer receives what was sent first."""
        stream = self.rng.choice(list(self.slots))
        if self.on_the_wire[stream]:
            self.hear_next(stream)

    def hear_next(self, stream: int) -> None:
        message = self.on_the_wire[stream].popleft()
        assert message.number == self.seen[stream] + 1
        self.seen[stream] = message.number
        if isinstance(message, Fault):
            self.waiting[stream].discard((message.epoch, message.step))
            return
        for entry in message.entries:
            key = entry[:2]
            self.received[stream][key] += 1
            assert key not in self.held[stream], "no batch twice at a time"
            self.held[stream][key] = entry
            self.waiting[stream].discard(key)

    def wish(self) -> None:
        """A consumer replaces its list, and gives slots back."""
        stream = self.rng.choice(list(self.slots))
        back = [entry for entry in self.held[stream].values() if self.rng.random() < 0.6]
        for entry in back:
            del self.held[stream][entry[:2]]
            self.drop_hand(stream, entry.slot, "consumer")
        stale = [Release(entry.slot, entry.sequence) for entry in back if self.rng.random() < 0.2]
        released = [Release(entry.slot, entry.sequence) for entry in back]
        assert self.d.release(stream, released) == []
        assert len(self.d.release(stream, stale)) == len(stale)
        wanted = {
            (self.rng.randrange(2), self.rng.randrange(self.steps))
            for _ in range(self.rng.randrange(6))
        } - set(self.held[stream])
        self.waiting[stream] = set(wanted)
        for key in wanted:
            self.asked[stream][key] += 1
        want(self.d, sorted(wanted), stream=stream, seen=self.seen[stream])

    def assign(self) -> None:
        for assignment in self.d.assign():
            assert assignment.stream in self.slots
            assert len(self.work[assignment.worker]) < WORKER_DEPTH
            self.work[assignment.worker].append(assignment)
            for place in assignment.places:
                self.take_hand(assignment.stream, place.slot, f"worker {assignment.worker}")

    # what must hold

    def take_hand(self, stream: int, slot: int, hand: str) -> None:
        assert 0 <= slot < self.slots[stream]
        assert (stream, slot) not in self.hands, f"in the hands of {self.hands[stream, slot]}, too"
        self.hands[stream, slot] = hand

    def drop_hand(self, stream: int, slot: int, hand: str) -> None:
        if stream in self.slots:
            assert self.hands.pop((stream, slot)) == hand

    def check(self) -> None:
        for stream, slots in self.slots.items():
            in_hand = sum(1 for key in self.hands if key[0] == stream)
            assert self.d.table(stream).free == slots - in_hand

    def happen(self) -> None:
        for event, often in (
            (self.wish, 5), (self.assign, 8), (self.finish, 6), (self.hear, 6), (self.die, 1),
            (self.hang, 0.3), (self.end, 0.5),
            (self.close, 0.3), (self.open, 0.3),
        ):  # fmt: skip
            if self.rng.random() < often / 10:
                event()
                self.check()

    def settle(self) -> None:
        """Nothing more is wished or killed: what is awaited must come."""
        while self.hung:
            self.end()
        for _ in range(200):
            for stream in self.slots:
                while self.on_the_wire[stream]:
                    self.hear_next(stream)
                back = [Release(e.slot, e.sequence) for e in self.held[stream].values()]
                for entry in self.held[stream].values():
                    self.drop_hand(stream, entry.slot, "consumer")
                self.held[stream].clear()
                assert self.d.release(stream, back) == []
            self.assign()
            self.finish()
            self.check()


@pytest.mark.parametrize("seed", range(500))
def test_whatever_happens_no_slot_is_in_two_hands_and_no_wish_is_lost(seed: int) -> None:
    world = World(seed)
    for _ in range(60):
        world.happen()
    world.settle()
    for stream in world.slots:
        assert world.waiting[stream] == set(), "every wish was answered"
        for key, count in world.received[stream].items():
            assert count <= world.asked[stream][key], f"{key} made more often than it was asked for"
        assert world.d.table(stream).free == world.slots[stream]
    assert all(world.d.load(worker) == 0 for worker in world.work)


@pytest.mark.parametrize("seed", range(20))
def test_a_list_that_stays_is_made_exactly_once_through_any_deaths(seed: int) -> None:
    """The same list is said again and again, as it crosses announcements; nothing is made twice."""
    rng = random.Random(seed)
    d = dispatcher(workers=3, slots=4, steps=40)
    everything = [(0, step) for step in range(40)]
    made: Counter[Key] = Counter()
    wire: deque[Announce | Fault] = deque()
    work: list[Assignment] = []
    got: set[Key] = set()
    seen, deaths = 0, 0
    for turn in range(5000):
        work += d.assign()
        happens = rng.random()
        if happens < 0.04 or turn == 10:
            victim = rng.choice(list(d._workers))
            work = [assignment for assignment in work if assignment.worker != victim]
            wire += [fault for _, fault in d.leave(victim)]
            deaths += 1
            d.join(100 + deaths)
        elif happens < 0.4 and work:
            announce = finish(d, work.pop(rng.randrange(len(work))), 0.002)
            assert announce is not None
            made.update(entry[:2] for entry in announce.entries)
            wire.append(announce)
        elif happens < 0.7 and wire:
            message = wire.popleft()
            seen = message.number
            if isinstance(message, Announce):
                got |= {entry[:2] for entry in message.entries}
                d.release(1, released(message))
        want(d, [key for key in everything if key not in got], seen=seen)
        if len(got) == 40:
            break
    assert made == dict.fromkeys(everything, 1)
    assert deaths > 0


def test_wishes_that_are_known_again_and_again_are_not_followed_for_ever() -> None:
    d = dispatcher(slots=4, steps=2**40)
    want(d, steps(0, 1, 2, 3))
    d.assign()
    looked_at = 0

    class Counting(Run):
        @property
        def epoch(self) -> int:
            nonlocal looked_at
            looked_at += 1
            return 0

    d.want(1, [Counting(0, 0, 1)] * MAX_LIST, 0)
    assert looked_at <= MAX_WANTED + 4


def test_who_never_sees_a_fault_is_not_remembered_without_end() -> None:
    d = dispatcher(slots=8, steps=10**6)
    for first in range(0, 10 * MAX_WANTED, MAX_WANTED):
        d.want(1, [Run(0, first, MAX_WANTED)], 0)
        while assigned := d.assign():
            for assignment in assigned:
                for place in assignment.places:
                    d.failed(assignment.worker, 1, place, message="no", sample=None, traceback="")
    assert len(d._streams[1].wishes.faulted) == MAX_WANTED
    d.want(1, [Run(0, 0, 1)], d._streams[1].number)
    assert keys_of(d.assign()) == steps(0), "what was seen makes room"


def test_a_worker_that_lies_is_not_believed() -> None:
    rng = random.Random(7)
    numbers = (0, 1, 2, 3, 7, 2**32, 2**64 - 1)
    d = dispatcher(workers=2, slots=4)
    for _ in range(3000):
        want(d, steps(*range(6)))
        assigned = d.assign()
        for worker in (0, 1, 5):
            lie = Entry(*(rng.choice(numbers) for _ in range(5)))
            seconds = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e300, 1.0))
            d.done(worker, rng.choice((1, 2)), [lie] * rng.randint(0, 3), seconds)
            place = Place(*(rng.choice(numbers) for _ in range(4)))
            d.failed(worker, 1, place, message="no", sample=None, traceback="")
        for assignment in assigned:
            announce = finish(d, assignment, rng.choice((0.0, float("nan"), 1e300)))
            if announce is not None:
                assert not d.release(1, released(announce))


# -- scripts -------------------------------------------------------------------------------------


def script(step: int, size: int = 8) -> Script:
    return Script(0, step, indexes=bytes(size))


def test_a_script_goes_with_its_batch_to_the_worker_and_is_forgotten_when_it_is_made() -> None:
    d = dispatcher()
    d.want(1, [Run(0, 0, 2)], 0, [script(0), script(1)])
    first, second = d.assign()
    assert (first.scripts, second.scripts) == ((script(0),), (script(1),))
    after = [After(0, 0, b"left"), After(0, 1, b"of another batch")]
    entries = [Entry(*place, 8) for place in first.places]
    announce = d.done(0, 1, entries, 1.0, after=after)
    assert announce is not None
    assert announce.after == (After(0, 0, b"left"),)
    # Wanted again, by a consumer that has lost it, it has no script any more.
    d.release(1, released(announce))
    d.want(1, [Run(0, 0, 1)], announce.number)
    assert [a.scripts for a in d.assign()] == [()]


def test_a_script_outlives_the_worker_that_had_it() -> None:
    d = dispatcher(workers=2)
    d.want(1, [Run(0, 0, 1)], 0, [script(0)])
    (assignment,) = d.assign()
    d.leave(assignment.worker)
    (again,) = d.assign()
    assert again.worker != assignment.worker
    assert again.scripts == (script(0),)


def test_a_script_is_kept_while_wishes_come_and_go_and_dropped_with_its_own() -> None:
    d = dispatcher(slots=1)
    d.want(1, [Run(0, 0, 3)], 0, [script(0), script(1), script(2)])
    (first,) = d.assign()
    d.want(1, [Run(0, 1, 1)], 0)  # the third is not wanted any more
    announce = finish(d, first)
    assert announce is not None
    d.release(1, released(announce))
    (second,) = d.assign()
    assert second.scripts == (script(1),)
    announce = finish(d, second)
    assert announce is not None
    d.release(1, released(announce))
    d.want(1, [Run(0, 2, 1)], announce.number)
    assert [a.scripts for a in d.assign()] == [()]


def test_a_list_with_more_scripts_than_can_be_kept_is_refused_whole() -> None:
    d = dispatcher(slots=2)
    half = MAX_SCRIPT_BYTES // 2
    d.want(1, [Run(0, 0, 1)], 0, [script(0, half)])
    with pytest.raises(RemoteProtocolError, match="scripts"):
        d.want(1, [Run(0, 0, 2)], 0, [script(1, half + 8)])
    # Refused whole: the list before it stands, with its script.
    assert [(a.places[0].step, a.scripts) for a in d.assign()] == [(0, (script(0, half),))]
    d.want(1, [Run(0, 5, 1)], 0, [script(5)])
    assert [s for a in d.assign() for s in a.scripts] == [script(5)]


def test_a_stale_release_keeps_nothing_alive() -> None:
    d = dispatcher()
    kept = weakref.ref(d.table(1))
    gc.disable()
    try:
        assert [str(error) for error in d.release(1, [Release(0, 9)])] != []
        d.close(1)
        assert kept() is None, "a circle of an error, its frames and a list would wait for gc"
    finally:
        gc.enable()
