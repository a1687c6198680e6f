"""What becomes of batches and slots when workers are lost, cannot be killed, or do not come up."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from augproto.messages import Announce, Entry, Fault, Place, Release, Run
from augproto.ring import SlotState
from augserver.dispatcher import MAX_ATTEMPTS, Dispatcher
from augserver.losses import Loss
from augserver.sharing import Assignment
from augserver.wishes import Key


def dispatcher(*, workers: int = 1, slots: int = 8, streams: int = 1) -> Dispatcher:
    made = Dispatcher()
    for stream in range(1, streams + 1):
        made.open(stream, slots=slots, steps=100)
    for worker in range(workers):
        made.join(worker)
    return made


def want(d: Dispatcher, *steps: int, stream: int = 1, seen: int = 0) -> None:
    d.want(stream, [Run(0, step, 1) for step in steps], seen)


def steps_of(assignments: Iterable[Assignment]) -> list[int]:
    return [place.step for assignment in assignments for place in assignment.places]


def finish(d: Dispatcher, assignment: Assignment) -> Announce | None:
    entries = [Entry(*place, 8) for place in assignment.places]
    return d.done(assignment.worker, assignment.stream, entries, 1.0)


def give_up(d: Dispatcher, step: int, losses: list[Loss]) -> Fault:
    """Lose a worker over a step again and again, until its consumer is told."""
    for worker, loss in enumerate(losses, 100):
        d.join(worker)
        (assignment, *_) = d.assign()
        assert steps_of([assignment]) == [step]
        faults = d.leave(worker, (1, assignment.places[0]), loss)
    ((stream, fault),) = faults
    assert stream == 1
    return fault


# -- what is told ----------------------------------------------------------------------------------


def test_a_batch_that_is_given_up_tells_each_cause_once_and_how_often() -> None:
    d = dispatcher(workers=0)
    want(d, 5)
    killed = Loss("was killed by SIGKILL", 13)
    fault = give_up(d, 5, [killed, Loss("exited with code 3", 13), killed])
    assert fault.message == (
        "epoch 0, step 5: 3 workers died while making this batch; it is given up. Of what they "
        "died: 2 times: was killed by SIGKILL, at sample 13; exited with code 3, at sample 13"
    )


def test_the_latest_sample_and_traceback_that_are_known_are_told() -> None:
    d = dispatcher(workers=0)
    want(d, 5)
    fault = give_up(d, 5, [Loss("a", 3, "first"), Loss("b", 4, "second"), Loss("c")])
    assert (fault.sample, fault.traceback) == (4, "second")
    want(d, 5, seen=fault.number)
    fault = give_up(d, 5, [Loss("a")] * MAX_ATTEMPTS)
    assert (fault.sample, fault.traceback) == (None, "")


def test_who_was_taken_along_is_suspected_only_of_what_it_was_at() -> None:
    d = dispatcher(workers=0)
    want(d, 5)
    for worker in range(2 * MAX_ATTEMPTS):
        d.join(worker)
        d.assign()
        assert d.leave(worker, None, Loss("was killed with its forkserver"), guess=False) == []


# -- suspects --------------------------------------------------------------------------------------


def test_a_suspect_goes_alone_and_no_two_are_at_work_at_once() -> None:
    d = dispatcher(workers=2)
    want(d, 0, 1, 2, 3, 4, 5)
    first, second = d.assign()[:2]
    assert {first.worker, second.worker} == {0, 1}
    for assignment in (first, second):  # both die together
        d.leave(assignment.worker, (1, assignment.places[0]))
    d.join(2)
    d.join(3)
    suspects = {0, 1}
    assigned = d.assign()
    assert len(suspects & set(steps_of(assigned))) == 1
    assert len(assigned) == 4, "the others are made meanwhile"
    (alone,) = [a for a in assigned if set(steps_of([a])) & suspects]
    assert len(alone.places) == 1
    assert finish(d, alone) is not None
    for assignment in assigned:
        if assignment is not alone:
            finish(d, assignment)
    assert suspects & set(steps_of(d.assign())), "then the other one"


@pytest.mark.parametrize("seed", range(50))
def test_where_all_workers_die_together_only_the_deadly_batch_is_given_up(seed: int) -> None:
    """One batch kills the forkserver, and with it every worker, whatever these are at."""
    rng = random.Random(seed)
    d = dispatcher(workers=0, slots=6)
    deadly, missing = rng.randrange(12), set(range(12))
    given_up: list[int] = []
    seen, number = 0, 0
    while missing:
        for _ in range(3):
            d.join(number := number + 1)
        crew = [number - 2, number - 1, number]
        for _ in range(30):
            want(d, *sorted(missing), seen=seen)
            work: list[Assignment] = []
            for assignment in d.assign():
                work.append(assignment)
            rng.shuffle(work)
            for assignment in work:
                if deadly in steps_of([assignment]):
                    break
                announce = finish(d, assignment)
                assert announce is not None
                seen = announce.number
                missing -= {entry.step for entry in announce.entries}
                d.release(1, [Release(e.slot, e.sequence) for e in announce.entries])
            else:
                if work:
                    continue
            break
        for worker in crew:
            held = d.held(worker)
            # Those that still hold something are at it, as their slots' headers tell.
            for _, fault in d.leave(worker, held[0] if held else None, guess=False):
                given_up.append(fault.step)
                seen = fault.number
                missing.discard(fault.step)
        assert number < 300
    assert given_up == [deadly]


def test_a_stream_that_kills_whoever_touches_it_leaves_workers_to_the_others() -> None:
    d = dispatcher(workers=2, slots=40, streams=2)
    want(d, *range(40), stream=1)
    good, number, faults = 0, 10, 0
    for _ in range(200):
        want(d, *range(good, good + 4), stream=2, seen=10**6)
        for assignment in d.assign():
            if assignment.stream == 1:
                faults += len(d.leave(assignment.worker, (1, assignment.places[0])))
                d.join(number := number + 1)
            elif assignment in d._workers.get(assignment.worker, ()):
                announce = finish(d, assignment)
                assert announce is not None
                d.release(2, [Release(e.slot, e.sequence) for e in announce.entries])
                good += len(announce.entries)
    assert faults == 40, "each was tried, and given up"
    assert good > 40


def test_a_suspect_that_was_wished_first_has_a_slot_kept() -> None:
    d = dispatcher(workers=2, slots=2)
    want(d, 0, 1)
    for assignment in d.assign()[:2]:
        d.leave(assignment.worker, (1, assignment.places[0]))
    want(d, 0, 1, 2, 3)
    d.join(5)
    d.join(6)
    # One suspect is at work, the other's slot is kept: those that were wished later wait.
    assert steps_of(d.assign()) == [0]


# -- workers that cannot be killed -----------------------------------------------------------------


def test_the_batches_of_an_unkillable_worker_are_made_by_another_in_other_slots() -> None:
    d = dispatcher(workers=2, slots=4)
    want(d, 0, 1)
    first, second = d.assign()
    assert d.quarantine(first.worker, (1, first.places[0])) == []
    (again,) = d.assign()
    assert steps_of([again]) == steps_of([first])
    assert again.worker == second.worker
    assert again.places[0].slot != first.places[0].slot
    announce = finish(d, again)
    assert announce is not None
    d.release(1, [Release(e.slot, e.sequence) for e in announce.entries])
    assert d.table(1).free == 2, "of four, one is being written and one in quarantine"
    assert d.table(1).count(SlotState.CLAIMED) == 2


def test_a_slot_in_quarantine_is_free_when_its_writer_is_gone_at_last() -> None:
    d = dispatcher(workers=2, slots=4)
    want(d, 0)
    (lost,) = d.assign()
    d.quarantine(lost.worker)
    assert d.table(1).free == 3
    assert d.leave(lost.worker) == []
    assert d.table(1).free == 4
    assert d.leave(lost.worker) == [], "once is enough"
    assert d.table(1).free == 4


def test_what_an_unkillable_worker_says_after_all_is_not_believed() -> None:
    d = dispatcher(workers=2, slots=4)
    want(d, 0)
    (lost,) = d.assign()
    d.quarantine(lost.worker)
    assert finish(d, lost) is None
    assert d.table(1).count(SlotState.CLAIMED) == 1
    place: Place = lost.places[0]
    assert d.failed(lost.worker, 1, place, message="", sample=None, traceback="") is None
    assert d.load(lost.worker) == 0
    (again,) = d.assign()
    assert again.worker != lost.worker
    assert finish(d, again) is not None


def test_an_unkillable_worker_counts_as_an_attempt() -> None:
    d = dispatcher(workers=0, slots=8)
    want(d, 0)
    for worker in range(MAX_ATTEMPTS):
        d.join(worker)
        (assignment,) = d.assign()
        faults = d.quarantine(worker, (1, assignment.places[0]), Loss("does not die", 7))
    ((_, fault),) = faults
    assert "3 times: does not die, at sample 7" in fault.message
    assert d.table(1).free == 8 - MAX_ATTEMPTS
    for worker in range(MAX_ATTEMPTS):
        assert d.leave(worker) == []
    assert d.table(1).free == 8


def test_a_stream_that_is_closed_in_quarantine_is_forgotten() -> None:
    d = dispatcher(workers=1, slots=2, streams=2)
    want(d, 0)
    (lost,) = d.assign()
    d.quarantine(lost.worker)
    d.close(1)
    assert d.leave(lost.worker) == []
    assert d.table(2).free == 2


def test_a_ring_without_a_slot_that_circulates_is_found_and_no_other() -> None:
    d = dispatcher(workers=2, slots=2, streams=2)
    want(d, 0, 1, stream=1)
    first, second = d.assign()
    want(d, 0, stream=2)
    assert d.starved() == []
    d.quarantine(first.worker)
    assert d.starved() == [], "the other slot is at work"
    assert finish(d, second) is not None
    assert d.starved() == [1], "it holds a batch, and the one that is wanted has no slot"
    d.leave(first.worker)
    assert d.starved() == []


# -- no workers ------------------------------------------------------------------------------------

WHY = Loss("no worker can be started; the last one exited with code 1", None, "Traceback ...")


def test_who_waits_for_workers_that_do_not_come_is_told_once_for_each_list() -> None:
    d = dispatcher(workers=0, streams=3)
    want(d, 7, 8, stream=1)
    want(d, 9, stream=2)
    told = d.tell_waiting(WHY)
    assert [(stream, fault.step, fault.number) for stream, fault in told] == [(1, 7, 1), (2, 9, 1)]
    fault = told[0][1]
    assert fault.message == f"epoch 0, step 7: {WHY.cause}"
    assert (fault.kind, fault.traceback, fault.sample) == ("WorkerError", "Traceback ...", None)
    assert d.tell_waiting(WHY) == []
    want(d, 7, 8, stream=1, seen=1)
    assert [fault.step for _, fault in d.tell_waiting(WHY)] == [7], "who asks again hears again"


def test_the_batch_that_is_waited_for_is_told_of_before_what_a_dead_worker_owed() -> None:
    d = dispatcher(workers=1)
    want(d, 0, 1, 2)
    d.assign()
    want(d, 50, 51)  # it has jumped
    d.leave(0)
    assert [fault.step for _, fault in d.tell_waiting(WHY)] == [50]
    want(d, 0, 1, 50, seen=1)
    assert [fault.step for _, fault in d.tell_waiting(WHY)] == [0]


def test_what_was_refused_for_want_of_workers_is_made_when_they_come_up() -> None:
    d = dispatcher(workers=0)
    want(d, 7, 8)
    d.tell_waiting(WHY)
    want(d, 7, 8, seen=1)
    d.join(1)
    key: list[Key] = [place[:2] for a in d.assign() for place in a.places]
    assert key == [(0, 7), (0, 8)]


def test_what_is_waited_for_is_tried_again_before_its_followers(  # each would cost three workers
) -> None:
    d = Dispatcher()
    d.open(1, slots=8, steps=8)
    d.want(1, [Run(0, 0, 8)], 0)
    made: list[tuple[int, int]] = []
    for worker in range(2 * MAX_ATTEMPTS):
        d.join(worker)
        assignments = [a for a in d.assign() if a.worker == worker]
        place = assignments[0].places[0]
        made.append(place[:2])
        faults = d.leave(worker, (1, place), Loss("exited with code 3"))
        if faults:
            break
    ((_, fault),) = faults
    assert (fault.epoch, fault.step) == (0, 0)
    assert made == [(0, 0)] * MAX_ATTEMPTS
