"""Workers as the supervisor sees them, with processes that only pretend: no start, no end waits."""

from __future__ import annotations

import errno
import os
import signal
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

import pytest

from augserver import supervisor as module
from augserver.death import WHERE_ARE_YOU
from augserver.forkserver import Born, Duty, Ended, Unborn
from augserver.supervisor import (
    BACK_OFF,
    CODE_SECONDS,
    DUMP_SECONDS,
    HOPELESS,
    KILL_SECONDS,
    MOST_UNKILLABLE,
    START_SECONDS,
    Supervisor,
    WorkerProcess,
)


class FakeForkserver:
    """A forkserver of which nothing comes but what a test lets it tell."""

    all: ClassVar[list[FakeForkserver]] = []

    def __init__(self, folder: Path, duty: Duty) -> None:
        self.trace = folder / "forkserver.trace"
        self.pid = 4000 + len(self.all)
        self.asked: list[int] = []
        self.told: list[Born | Ended | Unborn] = []
        self.exit: int | None = None
        self.killed = False
        self.all.append(self)

    def ask(self, number: int, pipe: Connection) -> bool:
        self.asked.append(number)
        return True

    def hear(self) -> list[Born | Ended | Unborn]:
        told, self.told = self.told, []
        return told

    def code(self) -> int | None:
        return self.exit

    def kill(self) -> None:
        self.killed = True

    def close(self, grace: float) -> None:
        pass

    def bear(self, *numbers: int) -> None:
        """These workers run; each in a process of a number that nobody has."""
        self.told += [Born(number, (1 << 22) + 1 + number, None) for number in numbers]


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What would have been sent: (worker, signal)."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "Forkserver", FakeForkserver)
    monkeypatch.setattr(FakeForkserver, "all", [])
    monkeypatch.setattr(
        WorkerProcess, "signal", lambda worker, number: sent.append((worker.number, number))
    )
    # By default a worker lives until its exit code is known, and /proc is not asked.
    monkeypatch.setattr(module, "_state", lambda pid: "R")
    return sent


@pytest.fixture
def crew(tmp_path: Path, signals: list[tuple[int, int]]) -> Supervisor:
    return Supervisor(2, tmp_path, 0.0)


def up(crew: Supervisor, now: float) -> list[WorkerProcess]:
    """Start what is missing, and let it run and be ready."""
    crew.start(now)
    (*_, forkserver) = FakeForkserver.all
    forkserver.bear(*forkserver.asked)
    forkserver.asked.clear()
    born = crew.hear(0.0)
    for worker in born:
        crew.is_ready(worker)
    return born


def die(crew: Supervisor, worker: WorkerProcess, code: int, now: float) -> str:
    (*_, forkserver) = FakeForkserver.all
    forkserver.told.append(Ended(worker.number, code))
    crew.hear(0.0)
    assert crew.gone(now) == [worker]
    return str(crew.bury(worker, now)[1])


def test_no_start_waits_for_the_forkserver(crew: Supervisor) -> None:
    crew.start(0.0)
    assert FakeForkserver.all[0].asked == [0, 1]
    crew.start(1.0)
    assert FakeForkserver.all[0].asked == [0, 1], "asked once"
    assert crew.alive == 0, "none has come up"
    assert crew.hear(0.0) == []
    assert crew.gone(1.0) == []
    assert [worker.number for worker in up(crew, 2.0)] == [0, 1]


def test_a_worker_is_gone_when_it_was_reaped_and_not_before(
    crew: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = up(crew, 0.0)
    crew.doom(worker, "w", 0.0)
    crew.look(DUMP_SECONDS)
    for state in "RSDTt":
        monkeypatch.setattr(module, "_state", lambda pid, state=state: state)
        assert crew.gone(1.0) == []
    assert die(crew, worker, -signal.SIGKILL, 1.0) == "w and was killed"


def test_the_pidfd_decides_where_there_is_one(crew: Supervisor) -> None:
    worker, _ = up(crew, 0.0)
    reader, writer = os.pipe()
    worker.pidfd = reader  # readable means ended, as with a pidfd
    assert crew.gone(0.0) == []
    os.write(writer, b"x")
    os.close(writer)
    assert crew.gone(0.0) == [], "its exit code may still come"
    assert crew.gone(CODE_SECONDS + 0.1) == [worker]
    _, death = crew.bury(worker, 2.0)
    assert death.cause.startswith("ended; of what is not known")


def test_a_worker_that_has_to_go_is_asked_where_it_is_before_it_is_killed(
    crew: Supervisor, signals: list[tuple[int, int]]
) -> None:
    worker, _ = up(crew, 0.0)
    crew.doom(worker, "worked too long", 5.0)
    crew.doom(worker, "worked too long", 5.1)
    crew.look(5.1)
    assert signals == [(0, WHERE_ARE_YOU)]
    crew.look(5.0 + DUMP_SECONDS)
    crew.look(9.0)
    assert signals[1:] == [(0, signal.SIGKILL)]
    worker.trace.write_text("Current thread ...\n")
    assert die(crew, worker, -9, 9.0) == "worked too long and was killed\nCurrent thread ..."


def test_a_worker_that_cannot_be_killed_is_told_once_and_replaced(crew: Supervisor) -> None:
    worker, other = up(crew, 0.0)
    crew.doom(worker, "w", 0.0)
    crew.look(1.0)
    assert crew.unkillable(1.0 + KILL_SECONDS) == []
    assert crew.unkillable(1.1 + KILL_SECONDS) == [worker]
    assert crew.unkillable(9.0) == []
    assert crew.gone(9.0) == []
    (replacement,) = up(crew, 10.0)
    assert set(crew.workers) == {worker.number, other.number, replacement.number}
    assert crew.alive == 2
    assert die(crew, worker, -9, 11.0) == "w and was killed"
    assert up(crew, 99.0) == [], "there are as many as wanted"


def test_hanging_workers_are_not_replaced_without_end(crew: Supervisor) -> None:
    now = 0.0
    while born := up(crew, now):
        for worker in born:
            crew.doom(worker, "w", now)
        crew.look(now + 1)
        now += 60
        assert crew.unkillable(now) == born
    assert len(crew.workers) == MOST_UNKILLABLE * crew.wanted
    assert crew.despair is not None
    assert "4 hang in the kernel and cannot be killed" in crew.despair.cause
    assert crew.alive == 0
    die(crew, crew.workers[0], -9, now)
    assert crew.despair is None
    assert len(up(crew, now + 60)) == 2


def test_what_cannot_start_is_tried_at_growing_intervals_and_then_told(crew: Supervisor) -> None:
    now, starts = 0.0, []
    for rounds in range(1, 7):
        crew.start(now)
        (forkserver,) = FakeForkserver.all
        assert len(forkserver.asked) == 2, "those of one round die together and count once"
        starts.append(now)
        forkserver.bear(*forkserver.asked)
        for worker in crew.hear(0.0):
            die(crew, worker, 1, now)
        forkserver.asked.clear()
        assert (crew.despair is not None) is (rounds >= HOPELESS)
        while not forkserver.asked and now < 100:
            now += 0.05
            crew.start(now)
        for worker in list(crew.workers.values()):
            worker.pipe.close()
        crew.workers.clear()
        forkserver.asked.clear()
    pauses = [b - a for a, b in pairwise(starts)]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= BACK_OFF[-1]
    assert crew.despair is not None
    assert crew.despair.cause == "the last one exited with code 1"
    up(crew, now + 100)
    assert crew.despair is None


def test_a_proven_worker_is_replaced_at_once(crew: Supervisor) -> None:
    for now in range(20):
        for worker in up(crew, now):
            worker.proven = True
        die(crew, next(iter(crew.workers.values())), -9, now)
    assert crew.restarts == 20


def test_a_dead_forkserver_proves_nothing_about_its_workers(
    crew: Supervisor, signals: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = up(crew, 0.0)
    FakeForkserver.all[0].exit = -9
    assert crew.forkserver_has_ended()
    assert crew.lost_forkserver(1.0) is not None
    assert crew.gone(1.0) == [], "they may still write"
    assert signals == [(0, signal.SIGKILL), (1, signal.SIGKILL)]
    monkeypatch.setattr(module, "_state", lambda pid: "Z")
    monkeypatch.setattr(os, "killpg", lambda pid, number: None)
    assert crew.gone(1.0) == [first, second], "nobody will tell an exit code"
    _, death = crew.bury(first, 1.0)
    assert (death.cause, death.own) == ("was killed with its forkserver", False)
    crew.bury(second, 1.0)
    assert len(up(crew, 2.0)) == 2
    assert len(FakeForkserver.all) == 2


def test_a_worker_that_a_dead_forkserver_never_forked_is_forgotten(crew: Supervisor) -> None:
    crew.start(0.0)
    FakeForkserver.all[0].exit = 1
    crew.lost_forkserver(0.0)
    assert crew.workers == {}


def test_a_forkserver_that_forks_nothing_is_killed_and_told(crew: Supervisor) -> None:
    for _ in range(HOPELESS):
        now = crew._not_before + 1
        crew.start(now)
        (*_, forkserver) = FakeForkserver.all
        crew.look(now + START_SECONDS)
        assert not forkserver.killed
        crew.look(now + START_SECONDS + 1.1)
        assert forkserver.killed
        forkserver.exit = -9
        crew.lost_forkserver(now + START_SECONDS + 2)
    assert crew.despair is not None
    assert crew.despair.cause == "the forkserver forked no worker within 60 s and was killed"


def test_a_fork_that_fails_is_tried_again_at_growing_intervals_and_told(crew: Supervisor) -> None:
    now = 0.0
    for rounds in range(1, HOPELESS + 1):
        crew.start(now)
        (forkserver,) = FakeForkserver.all
        forkserver.told += [Unborn(number, errno.EAGAIN) for number in forkserver.asked]
        forkserver.asked.clear()
        assert crew.hear(now) == []
        assert crew.workers == {}
        now += 0.01
        crew.start(now)
        assert forkserver.asked == [], "not at once"
        assert (crew.despair is None) is (rounds < HOPELESS)
        now += BACK_OFF[-1]
    assert crew.despair is not None
    assert "fork failed: Resource temporarily unavailable" in crew.despair.cause
    assert len(up(crew, now)) == 2
    assert crew.despair is None


def test_a_server_that_cannot_start_anything_goes_on_and_tries_again(
    crew: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(module, "connections", full)
        for round in range(HOPELESS):
            crew.start(100.0 * round)
    assert crew.despair is not None
    assert crew.despair.cause == "the server cannot start any: Too many open files"
    assert len(up(crew, 1000.0)) == 2
