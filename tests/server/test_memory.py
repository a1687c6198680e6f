"""A server's segments: as many slots as fit, in the place where more fit, or a refusal in full."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from augproto.errors import NoRoom
from augproto.layout import Layout
from augproto.segment import PREFIX, Segment
from augserver import memory
from augserver.config import NO_BOUND
from augserver.limits import Limit, memory_limits
from augserver.memory import FEWEST_SLOTS, SERVER_RESERVE, WORKER_RESERVE, Memory

MIB = 1 << 20
#: One slot is 1 MiB, header and all.
LAYOUT = Layout.of(1, [("x", "u1", (MIB - 4096,))])


class Machine:
    """What bounds memory, as a test wants it; and what was made of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shm = 64 * MIB
        self.free = 1 << 40
        self.refusing = 0
        self.made: list[Segment] = []
        monkeypatch.setattr(memory, "room", lambda: (self.shm, 64 * MIB))
        monkeypatch.setattr(memory, "Segment", self.create)

    def limits(self) -> list[Limit]:
        return [Limit("the cgroup", 1 << 41, self.free + memory.RESERVE_MOST, "more memory")]

    def create(
        self, name: str, size: int, *, nameless: bool = False, populate: bool = True
    ) -> Segment:
        if self.refusing:
            self.refusing -= 1
            raise NoRoom("somebody else was faster")
        self.made.append(Segment(name, size, nameless=nameless, populate=populate))
        return self.made[-1]

    def memory(self, *, most: int = NO_BOUND, private: bool = False) -> Memory:
        return Memory(most=most, workers=0, private=private, limits=self.limits)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(monkeypatch)
    yield made
    for segment in made.made:
        segment.close()


def test_a_ring_that_fits_gets_all_its_slots(machine: Machine) -> None:
    segment, slots = machine.memory().ring(LAYOUT, 16)
    assert slots == 16
    assert segment.size == LAYOUT.segment_bytes(16)
    assert segment.path.parent == Path("/dev/shm")


def test_names_are_the_process_s_own_and_never_the_same(machine: Machine) -> None:
    store = machine.memory()
    names = {store.segment(4096).name for _ in range(3)} | {machine.memory().segment(4096).name}
    assert len(names) == 4
    assert all(name.startswith(f"{PREFIX}{os.getuid()}-{os.getpid():x}") for name in names)


@pytest.mark.parametrize(("room", "slots"), [(40, 19), (15, 7), (9, 4), (7, 3), (6, 5), (4, 3)])
def test_a_ring_that_does_not_fit_takes_half_of_what_is_left_or_the_fewest(
    machine: Machine, room: int, slots: int
) -> None:
    machine.shm = room * MIB
    assert machine.memory().ring(LAYOUT, 100)[1] == slots
    machine.shm, machine.free = 1 << 30, room * MIB
    assert machine.memory().ring(LAYOUT, 100)[1] == slots


@pytest.mark.parametrize("private", [False, True])
def test_what_holds_not_even_the_fewest_is_refused_with_all_sizes_and_remedies(
    machine: Machine, private: bool
) -> None:
    machine.free = FEWEST_SLOTS * MIB  # the segment's header is missing
    machine.shm = 2 * MIB
    store = machine.memory(most=50 * MIB, private=private)
    with pytest.raises(NoRoom) as caught:
        store.ring(LAYOUT, 16)
    text = str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    for words in (
        "a ring of 3 slots, 3.0 MiB, does not fit", "asked: 16 slots, 16.0 MiB",
        "/dev/shm has 2.0 MiB free of 64.0 MiB", "the cgroup has 1027.0 MiB free",
        "1024.0 MiB of it kept", "max_total_bytes has 50.0 MiB free", "slots, batch_size",
        "more memory",
    ):  # fmt: skip
        assert words in text
    assert ("--shm-size" in text) is not private, "a private server does without /dev/shm"
    assert "raise max_total_bytes" not in text
    assert machine.made == []


def test_who_asks_for_two_slots_can_have_two(machine: Machine) -> None:
    machine.shm = 2 * MIB + 4096
    assert machine.memory().ring(LAYOUT, 2)[1] == 2
    with pytest.raises(NoRoom, match=r"a ring of 3 slots"):
        machine.memory().ring(LAYOUT, 3)


def test_a_private_server_goes_where_more_fits(machine: Machine) -> None:
    store = machine.memory(private=True)
    assert store.ring(LAYOUT, 10)[0].path.parent == Path("/dev/shm")
    machine.shm = 9 * MIB
    segment, slots = store.ring(LAYOUT, 10)
    assert (slots, segment.path.parent) == (10, Path(f"/proc/{os.getpid()}/fd"))
    machine.free = 4 * MIB
    segment, slots = store.ring(LAYOUT, 10)
    assert (slots, segment.path.parent) == (3, Path("/dev/shm")), "where as many fit, by name"
    machine.shm = 0
    assert store.segment(2 * MIB).path.parent == Path(f"/proc/{os.getpid()}/fd")


def test_others_never_get_nameless_memory(machine: Machine) -> None:
    machine.shm = 2 * MIB
    store = machine.memory()
    with pytest.raises(NoRoom, match=r"--shm-size"):
        store.ring(LAYOUT, 10)
    with pytest.raises(NoRoom, match=r"arrays of 3\.0 MiB do not fit .* as \.npy files"):
        store.segment(3 * MIB)


def test_all_segments_together_stay_within_the_bound_until_one_goes(machine: Machine) -> None:
    store = machine.memory(most=10 * MIB)
    arrays = store.segment(4 * MIB)
    ring, slots = store.ring(LAYOUT, 48)
    assert slots == 5, "half holds not even the fewest, so it takes what there is"
    with pytest.raises(NoRoom, match=r"max_total_bytes has 1\.0 MiB free of 10\.0 MiB.*: .*raise"):
        store.segment(2 * MIB)
    ring.close()
    assert store.ring(LAYOUT, 5)[1] == 5
    arrays.close()
    assert store.segment(4 * MIB).size == 4 * MIB


def test_the_bound_counts_nameless_memory_too(machine: Machine) -> None:
    machine.shm = 0
    store = machine.memory(most=10 * MIB, private=True)
    store.segment(8 * MIB)
    with pytest.raises(NoRoom, match="max_total_bytes"):
        store.segment(4 * MIB)


def test_what_is_being_made_counts_already(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine.memory(most=10 * MIB)
    started, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any, **options: Any) -> Segment:
        started.set()
        assert go_on.wait(30)
        return machine.create(*arguments, **options)

    monkeypatch.setattr(memory, "Segment", slowly)
    loader = threading.Thread(target=store.segment, args=(8 * MIB,))
    loader.start()
    assert started.wait(30)
    with pytest.raises(NoRoom, match=r"max_total_bytes"):
        store.segment(4 * MIB)
    go_on.set()
    loader.join(30)
    assert [segment.size for segment in machine.made] == [8 * MIB]


def test_who_is_overtaken_asks_again(machine: Machine) -> None:
    machine.refusing = 1
    store = machine.memory()
    assert store.ring(LAYOUT, 8)[1] == 8
    machine.refusing = memory.ATTEMPTS
    with pytest.raises(NoRoom, match="ring of 3 slots"):
        store.ring(LAYOUT, 8)
    assert store.ring(LAYOUT, 8)[1] == 8
    assert store._pending == 0


def test_where_nameless_memory_is_forbidden_a_private_server_lives_by_names(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: object) -> int:
        raise PermissionError(errno.EPERM, "forbidden")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    machine.shm = 8 * MIB
    segment, slots = machine.memory(private=True).ring(LAYOUT, 10)
    assert (slots, segment.path.parent) == (3, Path("/dev/shm"))


def test_without_a_dev_shm_a_private_server_works_and_others_say_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> tuple[int, int]:
        raise FileNotFoundError(errno.ENOENT, "no such folder", "/dev/shm")

    monkeypatch.setattr(memory, "room", missing)
    assert machine.memory(private=True).ring(LAYOUT, 4)[1] == 4
    with pytest.raises(NoRoom, match=r"/dev/shm has 0\.0 MiB free of 0\.0 MiB"):
        machine.memory().ring(LAYOUT, 4)


def test_the_processes_themselves_keep_a_part_of_the_memory() -> None:
    def left(free: int, total: int, workers: int) -> int:
        store = Memory(
            most=NO_BOUND, workers=workers, private=False,
            limits=lambda: [Limit("the cgroup", total, free, "")],
        )  # fmt: skip
        return min(limit.left for limit in store._limits())

    assert left(300 * MIB, 512 * MIB, 2) == 300 * MIB - SERVER_RESERVE - 2 * WORKER_RESERVE
    assert left(SERVER_RESERVE, 512 * MIB, 0) == 0
    assert left(10 << 30, 8 << 30, 0) == (10 << 30) - (512 << 20)
    assert left(100 << 30, 1 << 40, 2) == (100 << 30) - (1 << 30)


def test_this_machine_has_room_for_a_small_one() -> None:
    store = Memory(most=NO_BOUND, workers=1, private=True, limits=memory_limits)
    with store.segment(MIB) as segment:
        assert segment.map().nbytes == MIB


def test_its_end_unlinks_everything_also_what_is_made_at_that_moment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine.memory()
    before = store.segment(4096)

    def create(name: str, size: int, *, nameless: bool = False, populate: bool = True) -> Segment:
        store.close()  # the server ends while a load makes room
        return machine.create(name, size, nameless=nameless, populate=populate)

    monkeypatch.setattr(memory, "Segment", create)
    with pytest.raises(NoRoom, match="the server has ended"):
        store.segment(4096)
    assert before.closed
    assert len(machine.made) == 2
    assert all(segment.closed for segment in machine.made)
