"""A consumer is read ahead for as it moves, never twice, and never waits for what has no room."""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

import pytest

from augclient.demand import SCRIPT_BYTES, UNMADE_BYTES, Demand, Key, Scripted
from augproto.messages import Announce, Entry, Fault, Place, Release, Run, Script, Want
from augproto.spec import MAX_EPOCH
from augserver.dispatcher import Dispatcher


def wanted(demand: Demand) -> list[Key]:
    """What a Want would name, batch by batch."""
    return [(run.epoch, run.first + i) for run in demand.runs() for i in range(run.steps)]


def announce(demand: Demand, *keys: Key) -> None:
    """The server has made these."""
    number = demand.seen + 1
    demand.announced(number, [Entry(*key, slot, number, 8) for slot, key in enumerate(keys)])


def taken(demand: Demand, key: Key) -> Entry:
    demand.ask(key)
    entry = demand.take(key)
    assert entry is not None
    return entry


def test_the_whole_ring_is_asked_for_over_the_end_of_an_epoch() -> None:
    demand = Demand(steps=3, slots=4)
    demand.ask((0, 0))
    assert demand.runs() == (Run(0, 0, 3), Run(1, 0, 2))


def test_runs_are_as_few_as_can_be() -> None:
    demand = Demand(steps=100, slots=10)
    demand.ask((0, 0))
    announce(demand, (0, 3), (0, 7))
    assert demand.runs() == (Run(0, 0, 3), Run(0, 4, 3), Run(0, 8, 3))
    for first, second in pairwise(demand.runs()):
        assert first.first + first.steps < second.first


def test_an_epoch_of_one_step_gives_a_run_for_each_epoch() -> None:
    demand = Demand(steps=1, slots=2)
    demand.ask((0, 0))
    assert demand.runs() == (Run(0, 0, 1), Run(1, 0, 1), Run(2, 0, 1))


def test_before_the_first_question_the_beginning_is_read_ahead() -> None:
    assert wanted(Demand(steps=10, slots=2)) == [(0, 0), (0, 1), (0, 2)]


def test_a_batch_that_is_there_or_was_taken_is_not_asked_for_again() -> None:
    demand = Demand(steps=10, slots=3)
    demand.ask((0, 0))
    announce(demand, (0, 0), (0, 1))
    assert wanted(demand) == [(0, 2), (0, 3)]
    assert taken(demand, (0, 0)).step == 0
    assert wanted(demand) == [(0, 2), (0, 3), (0, 4)], "and not (0, 0)"
    assert demand.take((0, 0)) is None
    assert taken(demand, (0, 1)).step == 1
    assert wanted(demand) == [(0, 2), (0, 3), (0, 4), (0, 5)]


def test_over_whole_epochs_every_batch_is_asked_for_exactly_once() -> None:
    demand = Demand(steps=5, slots=3)
    made: list[Key] = []
    for key in [(epoch, step) for epoch in range(4) for step in range(5)]:
        demand.ask(key)
        new = wanted(demand)
        announce(demand, *new)
        made += new
        assert taken(demand, key)[:2] == key
    assert made == [(n // 5, n % 5) for n in range(len(made))]
    assert len(made) <= 20 + 3


def test_a_jump_is_followed_by_little_and_order_by_more_and_more() -> None:
    demand = Demand(steps=1000, slots=16)
    ahead = []
    for step in (500, 501, 502, 503, 504, 505):
        demand.ask((0, step))
        keys = wanted(demand)
        assert keys[0] == (0, step)
        ahead.append(len(keys) - 1)
        announce(demand, (0, step))
        taken(demand, (0, step))
        demand.ready.clear()
    assert ahead == [1, 2, 4, 8, 16, 16]


def test_the_beginning_of_an_epoch_is_no_jump() -> None:
    demand = Demand(steps=100, slots=8)
    demand.ask((0, 40))
    for epoch, ahead in ((3, 2), (5, 4), (4, 8)):
        demand.ask((epoch, 0))
        assert len(wanted(demand)) == ahead + 1


def test_asking_again_for_what_is_awaited_changes_nothing() -> None:
    demand = Demand(steps=100, slots=8)
    demand.ask((2, 50))
    before = wanted(demand)
    demand.ask((2, 50))
    assert wanted(demand) == before == [(2, 50), (2, 51)]


def test_it_is_known_what_the_server_has_been_told() -> None:
    demand = Demand(steps=100, slots=4)
    demand.ask((0, 0))
    assert not demand.asked((0, 0))
    assert demand.unsaid() == 4
    demand.runs()
    assert demand.asked((0, 0))
    assert not demand.asked((0, 5))
    assert demand.unsaid() == 0
    announce(demand, (0, 0), (0, 1))
    assert demand.asked((0, 1))
    taken(demand, (0, 0))
    taken(demand, (0, 1))
    assert demand.unsaid() > 0


def test_a_batch_that_cannot_be_made_is_told_and_not_asked_for() -> None:
    demand = Demand(steps=10, slots=3)
    demand.ask((0, 0))
    demand.runs()
    fault = Fault("WorkerError", "broken", 4, 0, 1)
    demand.failed(fault)
    assert demand.seen == 4
    assert demand.faults == {(0, 1): fault}
    assert wanted(demand) == [(0, 0), (0, 2), (0, 3)]
    assert demand.asked((0, 1))
    del demand.faults[0, 1]  # its consumer was told, and asks again
    assert wanted(demand) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_what_is_not_wanted_any_more_goes_back() -> None:
    demand = Demand(steps=100, slots=4)
    demand.ask((0, 0))
    announce(demand, (0, 0), (0, 1), (0, 2))
    demand.ask((0, 1))
    assert demand.excess(0, waiting=False) == [Release(0, 1)]
    demand.ask((7, 60))
    assert demand.excess(0, waiting=False) == [Release(1, 1), Release(2, 1)]
    assert demand.ready == {}
    assert demand.excess(0, waiting=False) == []


def test_what_is_in_the_way_goes_back_the_latest_first() -> None:
    demand = Demand(steps=100, slots=4)
    demand.ask((0, 0))
    announce(demand, (0, 1), (0, 2), (0, 3), (0, 4))
    assert demand.excess(0, waiting=False) == [], "nobody waits"
    assert demand.excess(0, waiting=True) == [Release(3, 1)]
    assert demand.excess(0, waiting=True) == [], "one free slot is enough"
    assert demand.excess(2, waiting=True) == [Release(2, 1), Release(1, 1)], "leased slots count"
    assert list(demand.ready) == [(0, 1)]


def test_nothing_is_in_the_way_of_a_batch_that_is_there() -> None:
    demand = Demand(steps=100, slots=2)
    demand.ask((0, 0))
    announce(demand, (0, 0), (0, 1))
    assert demand.excess(0, waiting=True) == []


def test_to_a_new_server_everything_is_said_anew() -> None:
    demand = Demand(steps=10, slots=2)
    demand.ask((3, 4))
    demand.runs()
    announce(demand, (3, 5))
    demand.failed(Fault("WorkerError", "broken", 9, 3, 6))
    demand.restart(steps=10, slots=2)
    assert (demand.seen, demand.ready, demand.faults) == (0, {}, {})
    assert not demand.asked((3, 4))
    assert wanted(demand) == [(3, 4), (3, 5)]


def test_where_a_slot_holds_another_number_of_batches_nothing_is_foreseen() -> None:
    demand = Demand(steps=10, slots=4)
    demand.ask((3, 4))
    announce(demand, (3, 4))
    taken(demand, (3, 4))
    demand.restart(steps=40, slots=4)
    demand.ask((3, 17))
    assert wanted(demand)[0] == (3, 17)
    announce(demand, (3, 17))
    taken(demand, (3, 17))
    demand.ask((3, 39))
    announce(demand, (3, 39))
    taken(demand, (3, 39))
    assert wanted(demand)[0] == (4, 0), "of an epoch of forty steps"


def test_a_new_ring_of_another_size_is_read_ahead_and_freed_as_such() -> None:
    demand = Demand(steps=100, slots=8)
    demand.ask((0, 0))
    assert len(wanted(demand)) == 9
    demand.restart(steps=100, slots=3)
    assert wanted(demand) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    announce(demand, (0, 1), (0, 2), (0, 3))
    assert demand.excess(0, waiting=True) == [Release(2, 1)], "its three slots are full"
    demand.restart(steps=100, slots=8)
    for step in range(3):
        announce(demand, (0, step))
        taken(demand, (0, step))
    assert len(wanted(demand)) == 9


class Both:
    """A consumer, its demand, and a server's dispatcher; what they say takes its time."""

    def __init__(self, rng: random.Random, *, steps: int, slots: int, workers: int) -> None:
        self.rng = rng
        self.slots = slots
        self.demand = Demand(steps, slots)
        self.leases: list[Release] = []
        self.returned: list[Release] = []
        self.made: list[Key] = []
        self._dispatcher = Dispatcher()
        self._dispatcher.open(1, slots=slots, steps=steps)
        for worker in range(workers):
            self._dispatcher.join(worker)
        self._at_work: list[tuple[int, Place]] = []
        self._to_server: deque[Want] = deque()
        self._to_consumer: deque[Announce] = deque()

    def speak(self, *, waiting: bool, key: Key | None = None) -> None:
        """What the link's thread does."""
        excess = self.demand.excess(len(self.leases), waiting=waiting)
        self.returned += excess
        unasked = key is not None and not self.demand.asked(key)
        if excess or unasked or self.returned or self.demand.unsaid() * 4 > self.slots:
            released, self.returned = tuple(self.returned), []
            self._to_server.append(Want(self.demand.runs(), self.demand.seen, released))

    def pass_time(self) -> None:
        """Something happens: a message arrives, or a worker finishes a batch."""
        for assignment in self._dispatcher.assign():
            self._at_work += [(assignment.worker, place) for place in assignment.places]
        if self._to_server and self.rng.random() < 0.5:
            want = self._to_server.popleft()
            assert self._dispatcher.release(1, want.released) == [], "nothing is released twice"
            self._dispatcher.want(1, want.runs, want.seen)
        elif self._at_work and self.rng.random() < 0.5:
            worker, place = self._at_work.pop(self.rng.randrange(len(self._at_work)))
            announced = self._dispatcher.done(worker, 1, [Entry(*place, 8)], 0.001)
            assert announced is not None
            self.made.append(place[:2])
            self._to_consumer.append(announced)
        elif self._to_consumer:
            announced = self._to_consumer.popleft()
            self.demand.announced(announced.number, announced.entries)

    def get(self, key: Key) -> Entry:
        """What `Link.fetch` does, with a deadline in steps."""
        self.demand.ask(key)
        for _ in range(2000):
            entry = self.demand.take(key)
            if entry is not None:
                return entry
            self.speak(waiting=True, key=key)
            self.pass_time()
        raise AssertionError(f"{key} did not come; {len(self.leases)} leases")

    def lease(self, entry: Entry) -> None:
        """Hold it, if a slot is left to circulate."""
        release = Release(entry.slot, entry.sequence)
        if len(self.leases) >= self.slots - 1:
            self.returned.append(release)
        else:
            self.leases.append(release)
        while self.leases and self.rng.random() < 0.5:
            self.returned.append(self.leases.pop(self.rng.randrange(len(self.leases))))


@pytest.mark.parametrize("slots", [2, 3, 4, 16])
@pytest.mark.parametrize("seed", range(10))
def test_a_consumer_that_jumps_about_and_keeps_batches_gets_every_batch(
    seed: int, slots: int
) -> None:
    rng = random.Random(seed)
    both = Both(rng, steps=12, slots=slots, workers=2)
    key = (0, 0)
    for _ in range(150):
        entry = both.get(key)
        assert entry[:2] == key
        both.lease(entry)
        both.speak(waiting=False)
        epoch, step = key
        in_order = (epoch, step + 1) if step < 11 else (epoch + 1, 0)
        key = in_order if rng.random() < 0.7 else (rng.randrange(3), rng.randrange(12))


@pytest.mark.parametrize("slots", [2, 3, 4, 16])
def test_a_consumer_in_order_has_each_batch_made_once(slots: int) -> None:
    both = Both(random.Random(slots), steps=7, slots=slots, workers=2)
    keys = [(epoch, step) for epoch in range(20) for step in range(7)]
    for key in keys:
        both.lease(both.get(key))
        both.speak(waiting=False)
    # Where a consumer holds most of a small ring, what lies in its way is made again later.
    assert len(both.made) - len(set(both.made)) <= (0 if slots > 4 else len(keys))
    assert set(keys) <= set(both.made)


def test_a_consumer_in_order_that_keeps_nothing_has_each_batch_made_once() -> None:
    for slots in (2, 3, 4, 16):
        both = Both(random.Random(slots), steps=7, slots=slots, workers=2)
        keys = [(epoch, step) for epoch in range(20) for step in range(7)]
        for key in keys:
            entry = both.get(key)
            both.returned.append(Release(entry.slot, entry.sequence))
            both.speak(waiting=False)
        assert sorted(both.made)[: len(keys)] == keys
        assert len(both.made) == len(set(both.made)), slots


def test_a_batch_that_comes_twice_gives_its_first_slot_back() -> None:
    demand = Demand(steps=10, slots=4)
    demand.ask((0, 0))
    assert demand.announced(1, [Entry(0, 0, 2, 11, 8)]) == []
    assert demand.announced(2, [Entry(0, 0, 3, 12, 8)]) == [Release(2, 11)]
    assert demand.take((0, 0)) == Entry(0, 0, 3, 12, 8)


def test_a_fault_of_what_was_not_asked_for_is_not_kept() -> None:
    demand = Demand(steps=10, slots=2)
    demand.ask((0, 0))
    demand.runs()
    for number in range(1, 1000):
        demand.failed(Fault("WorkerError", "no", number, 7, number))
    assert demand.faults == {}
    assert demand.seen == 999
    demand.failed(Fault("WorkerError", "no", 1000, 0, 1))
    demand.failed(Fault("WorkerError", "again", 1001, 0, 1))
    assert demand.faults[0, 1].message == "no"


# -- scripts ---------------------------------------------------------------------------------------


def script(step: int, epoch: int = 0, size: int = 8) -> Script:
    return Script(epoch, step, indexes=bytes(size))


def test_nothing_is_foreseen_of_a_scripted_stream() -> None:
    demand = Scripted(steps=10, slots=4)
    assert wanted(demand) == []
    demand.write(script(3))
    assert demand.unsaid() == 1
    assert wanted(demand) == []  # not before its script is said
    assert demand.scripts() == (script(3),)
    assert wanted(demand) == [(0, 3)]


def test_a_script_is_said_once() -> None:
    demand = Scripted(steps=10, slots=4)
    demand.write(script(0))
    assert demand.scripts()
    demand.write(script(1))
    assert demand.scripts() == (script(1),)
    assert wanted(demand) == [(0, 0), (0, 1)]
    announce(demand, (0, 0))
    taken(demand, (0, 0))
    assert demand.scripts() == ()
    assert wanted(demand) == [(0, 1)]


def test_scripts_that_do_not_fit_into_one_message_follow_in_the_next() -> None:
    demand = Scripted(steps=10, slots=8)
    for step in range(3):
        demand.write(script(step, size=SCRIPT_BYTES // 2 + 8))
    assert [s.step for s in demand.scripts()] == [0]
    assert demand.unsaid() == 2
    assert [s.step for s in demand.scripts()] == [1]
    assert wanted(demand) == [(0, 0), (0, 1)]
    assert [s.step for s in demand.scripts()] == [2]


def test_a_new_server_is_told_every_script_that_was_not_taken() -> None:
    demand = Scripted(steps=10, slots=4)
    for step in range(3):
        demand.write(script(step))
    demand.scripts()
    announce(demand, (0, 0))
    taken(demand, (0, 0))
    demand.restart(steps=10, slots=4)
    assert wanted(demand) == []
    assert [s.step for s in demand.scripts()] == [1, 2]


def test_a_script_that_was_struck_out_is_not_wanted_and_its_batch_is_given_back() -> None:
    demand = Scripted(steps=10, slots=4)
    demand.write(script(0))
    demand.scripts()
    demand.strike((0, 0))
    assert wanted(demand) == []
    announce(demand, (0, 0))
    assert demand.excess(0, waiting=False) == [Release(0, 1)]


def test_a_refused_script_is_over() -> None:
    demand = Scripted(steps=10, slots=4)
    demand.write(script(0))
    demand.scripts()
    demand.runs()
    demand.failed(Fault("WorkerError", "no", 1, 0, 0))
    assert demand.refused((0, 0)) is not None
    assert demand.scripts() == ()
    assert wanted(demand) == []


def test_what_makes_room_for_the_batch_that_is_waited_for_is_asked_for_again_with_its_script() -> (
    None
):
    demand = Scripted(steps=100, slots=3)
    for step in range(4):
        demand.write(script(step))
    demand.scripts()
    announce(demand, (0, 1), (0, 2), (0, 3))
    demand.ask((0, 0))
    assert [release.slot for release in demand.excess(0, waiting=True)] == [2]
    assert demand.scripts() == (script(3),)
    assert wanted(demand) == [(0, 0), (0, 3)]


def test_scripts_that_a_server_may_keep_are_bounded_but_for_the_one_that_is_waited_for() -> None:
    demand = Scripted(steps=1000, slots=64)
    count = UNMADE_BYTES // SCRIPT_BYTES + 3
    for step in range(count):
        demand.write(script(step, size=SCRIPT_BYTES))
    said = 0
    while scripts := demand.scripts():
        said += len(scripts)
    assert said == UNMADE_BYTES // SCRIPT_BYTES
    demand.ask((0, count - 1))  # it was written last
    assert [s.step for s in demand.scripts()] == [count - 1]
    announce(demand, (0, 0))
    announce(demand, (0, 1))
    assert [s.step for s in demand.scripts()] == [said]


def test_of_scripts_the_one_that_is_waited_for_is_wanted_first() -> None:
    demand = Scripted(steps=10, slots=3)
    for step in range(4):
        demand.write(script(step))
    demand.scripts()
    demand.ask((0, 2))
    assert wanted(demand) == [(0, 2), (0, 0), (0, 1), (0, 3)]


def test_nothing_is_foreseen_beyond_the_last_epoch_that_there_can_be() -> None:
    demand = Demand(steps=10, slots=8)
    demand.ask((MAX_EPOCH, 0))
    for step in range(7):
        announce(demand, (MAX_EPOCH, step))
        taken(demand, (MAX_EPOCH, step))
    assert wanted(demand) == [(MAX_EPOCH, 7), (MAX_EPOCH, 8), (MAX_EPOCH, 9)]
    for step in (7, 8, 9):
        announce(demand, (MAX_EPOCH, step))
        taken(demand, (MAX_EPOCH, step))
    assert wanted(demand) == []
