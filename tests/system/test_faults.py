"""Workers, the forkserver and the tracker die, stop and are kept from starting: nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty import Faulty, faulty, truth
from processes import alive, children, command, wait_until, workers

from augclient import Batch, Consumer
from augproto import segment
from augproto.errors import BatchTimeout, WorkerError
from augproto.layout import Layout
from augproto.ring import Ring

TRUTH = truth()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """A server that gives its workers all the time they want."""
    with faulty(tmp_path_factory.mktemp("patient")) as server:
        yield server


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """A server that gives its workers a second."""
    with faulty(tmp_path_factory.mktemp("strict"), deadline=1.0) as server:
        yield server


def data(batch: Batch) -> bytes:
    return np.asarray(batch.x).tobytes()


def epochs(consumer: Consumer, *numbers: int, then: Callable[[], Any] = lambda: None) -> None:
    """Go through epochs, and let this happen in the middle of the first."""
    for number in numbers:
        for batch in consumer.epoch(number):
            assert data(batch) == TRUTH[batch.step]
            if (number, batch.step) == (numbers[0], 3):
                then()


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def logged(server: Faulty, words: str, since: int = 0) -> None:
    wait_until(lambda: words in server.log()[since:], f"the log to say {words!r}", 30)


# -- workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "was killed by SIGKILL (without evidence of the out-of-memory killer"),
        (signal.SIGTERM, "was killed by SIGTERM"),
        (signal.SIGSEGV, "was killed by SIGSEGV (a segmentation fault"),
        (signal.SIGBUS, "was killed by SIGBUS (a bus error"),
    ],
)
def test_a_worker_killed_by_a_signal_is_replaced_and_the_signal_named(
    patient: Faulty, number: signal.Signals, words: str
) -> None:
    since = len(patient.log())
    victim = patient.crew()[0]
    with patient.consumer() as consumer:
        epochs(consumer, 0, 1, then=lambda: os.kill(victim, number))
    logged(patient, f"(pid {victim}) {words}", since)
    assert victim not in patient.crew()


def test_all_workers_killed_at_once_are_replaced(patient: Faulty) -> None:
    with patient.consumer() as consumer:
        before = patient.crew()
        epochs(consumer, 0, 1, then=lambda: kill(*before))
    assert not set(before) & set(patient.crew())


def test_the_log_says_which_batch_and_sample_a_dead_worker_was_at(patient: Faulty) -> None:
    since = len(patient.log())
    with patient.held(), patient.consumer() as consumer:
        consumer.get(0, 0)
        victim = patient.at_the_gate()
        os.kill(victim, signal.SIGSEGV)
        logged(patient, "epoch 0, step 1, at sample 13", since)
        patient.flag("hold", up=False)
        assert data(consumer.get(0, 1)) == TRUTH[1]
    # The worker's own traceback follows.
    logged(patient, "in wait_for_the_gate", since)


def ring_of(consumer: Consumer) -> Ring:
    opened = consumer._source.opened
    layout = Layout.of(opened.batch_size, [(a.name, a.dtype, a.shape) for a in opened.arrays])
    return Ring(segment.attach(opened.segment), layout, opened.slots)


def being_written(ring: Ring, step: int) -> list[tuple[int, int]]:
    """(slot, sequence) of the slots that say they are being written with this step."""
    found = []
    for slot in range(ring.slots):
        _, header = ring.read(slot)
        if header.step == step and ring.being_written(slot, header.sequence):
            found.append((slot, header.sequence))
    return found


def test_the_slot_of_a_stopped_worker_is_nobody_else_s_and_whole_when_it_goes_on(
    patient: Faulty,
) -> None:
    with patient.held(), patient.consumer() as consumer:
        consumer.get(0, 0)
        stopped = patient.at_the_gate()
        os.kill(stopped, signal.SIGSTOP)
        try:
            patient.flag("hold", up=False)
            ring = ring_of(consumer)
            (mine,) = being_written(ring, 1)
            came = [key for key in _keys() if _comes(consumer, key, timeout=1.0)]
            # One more may wait behind the one at work; all others go round and round.
            assert len(came) >= len(_keys()) - 1
            assert being_written(ring, 1) == [mine], "nobody else has touched it"
            assert alive(stopped)
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert data(consumer.get(0, 1)) == TRUTH[1]
        assert stopped in patient.crew()


def _keys() -> list[tuple[int, int]]:
    return [(epoch, step) for epoch in (1, 2, 3, 4) for step in range(2, 8)]


def test_where_a_function_hangs_is_in_the_log_and_in_the_error(strict: Faulty) -> None:
    since = len(strict.log())
    with strict.held(), strict.consumer() as consumer:
        with pytest.raises(WorkerError, match=r"step 1: 3 workers died") as caught:
            consumer.get(0, 1)
        strict.flag("hold", up=False)
        assert data(consumer.get(0, 2)) == TRUTH[2]
        assert data(consumer.get(0, 1)) == TRUTH[1], "asked for again, it is tried again"
    assert "3 times: got on with nothing for more than 1 s" in str(caught.value)
    assert caught.value.sample == 13
    assert "in wait_for_the_gate\n" in caught.value.traceback
    assert "faulty_functions.py" in caught.value.traceback
    assert "in wait_for_the_gate\n" in strict.log()[since:]


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A cgroup whose frozen processes even SIGKILL does not end (version 1 only)."""
    group = FREEZER / f"augserver-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no freezer of cgroup version 1 to be had: {error.strerror}")
    try:
        yield group
    finally:
        (group / "freezer.state").write_text("THAWED")
        kill(*map(int, (group / "cgroup.procs").read_text().split()))
        wait_until(lambda: (group / "cgroup.procs").read_text() == "", "the cgroup to be empty")
        group.rmdir()


@pytest.mark.parametrize("slots", [24, 4])
def test_a_worker_that_cannot_be_killed_keeps_its_slots_and_is_replaced(
    strict: Faulty, freezer: Path, slots: int
) -> None:
    since = len(strict.log())
    strict.crew()
    with strict.held(), strict.consumer(slots=slots) as consumer:
        kept = [consumer.get(0, 0)]
        frozen = strict.at_the_gate()
        ring = ring_of(consumer)
        (freezer / "cgroup.procs").write_text(str(frozen))
        (freezer / "freezer.state").write_text("FROZEN")
        strict.flag("hold", up=False)
        kept.append(consumer.get(0, 1))  # made by another, and into another slot
        logged(strict, f"(pid {frozen}) was killed and does not die", since)
        epochs(consumer, 0, 1)
        wait_until(lambda: len(set(workers(strict.process.pid)) - {frozen}) == 2, "two others")
        (mine,) = being_written(ring, 1)
        epochs(consumer, 2, 3, 4, 5)
        assert alive(frozen)
        assert being_written(ring, 1) == [mine], "nobody has got its slot"
        (freezer / "freezer.state").write_text("THAWED")
        wait_until(lambda: not alive(frozen), "the thawed worker to die")
        logged(strict, f"(pid {frozen}) got on with nothing for more than 1 s", since)
        epochs(consumer, 6, 7, 8, 9)
        assert [data(batch) for batch in kept] == TRUTH[:2]


def test_a_worker_that_outlives_its_forkserver_keeps_its_slots(
    patient: Faulty, freezer: Path
) -> None:
    patient.crew()
    with patient.held(), patient.consumer() as consumer:
        consumer.get(0, 0)
        frozen = patient.at_the_gate()
        ring = ring_of(consumer)
        (freezer / "cgroup.procs").write_text(str(frozen))
        (freezer / "freezer.state").write_text("FROZEN")
        patient.flag("hold", up=False)
        kill(patient.forkserver())
        epochs(consumer, 0, 1)
        (mine,) = being_written(ring, 1)
        assert alive(frozen), "its forkserver's end has told the server nothing of it"
        (freezer / "freezer.state").write_text("THAWED")
        wait_until(lambda: not alive(frozen), "the thawed worker to die")
        assert being_written(ring, 1) == [mine]
        epochs(consumer, 2, 3)


# -- memory ----------------------------------------------------------------------------------------


MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A cgroup of 600 MB (version 1 or 2)."""
    one = (MEMORY / "memory.limit_in_bytes").exists()
    group = (MEMORY if one else Path("/sys/fs/cgroup")) / f"augserver-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if one else "memory.max")).write_text(str(600 << 20))
    except OSError as error:
        pytest.skip(f"no memory cgroup to be had: {error.strerror}")
    try:
        yield group
    finally:
        wait_until(lambda: (group / "cgroup.procs").read_text() == "", "the cgroup to be empty")
        group.rmdir()


def test_a_worker_that_the_kernel_kills_for_want_of_memory_is_said_to_be(
    small_memory: Path, tmp_path: Path
) -> None:
    with faulty(tmp_path, cgroup=small_memory) as server, server.consumer() as consumer:
        server.flag("hungry", up=True)
        epochs(consumer, 0, 1)
        logged(
            server, "SIGKILL (by the kernel for want of memory: the server's cgroup /augserver-test"
        )
        assert "step 1, at sample 13" in server.log()


# -- the forkserver and the tracker ----------------------------------------------------------------


def test_a_killed_forkserver_and_its_workers_are_replaced(patient: Faulty) -> None:
    since = len(patient.log())
    before = [patient.forkserver(), *patient.crew()]
    with patient.consumer() as consumer:
        epochs(consumer, 0, 1, then=lambda: kill(before[0]))
    wait_until(lambda: not any(map(alive, before)), "its workers to die with it")
    logged(patient, f"the forkserver (pid {before[0]}) was killed by SIGKILL", since)
    assert not set(before) & {patient.forkserver(), *patient.crew()}


def test_a_forkserver_killed_together_with_its_workers_is_replaced(patient: Faulty) -> None:
    before = [patient.forkserver(), *patient.crew()]
    with patient.consumer() as consumer:
        epochs(consumer, 0, 1, then=lambda: kill(*before))
    assert not set(before) & {patient.forkserver(), *patient.crew()}


def test_a_stopped_forkserver_stops_nobody_and_a_dead_worker_s_batches_are_made(
    patient: Faulty,
) -> None:
    victim, other = patient.crew()
    forkserver = patient.forkserver()
    since = len(patient.log())
    os.kill(forkserver, signal.SIGSTOP)
    try:
        with patient.consumer() as consumer:
            epochs(consumer, 0, 1, then=lambda: kill(victim))
        logged(patient, "ended; of what is not known", since)
    finally:
        os.kill(forkserver, signal.SIGCONT)
    assert other in patient.crew()


def test_no_resource_tracker_is_missed(patient: Faulty) -> None:
    since = len(patient.log())
    trackers = [c for c in children(patient.process.pid) if "resource_tracker" in command(c)]
    with patient.consumer() as consumer:
        epochs(consumer, 0, 1, then=lambda: kill(*trackers))
    with patient.consumer() as consumer:
        epochs(consumer, 0)
    assert "Traceback" not in patient.log()[since:]
    assert "resource_tracker" not in patient.log()[since:] or trackers


# -- no start --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("no-worker", "no worker can be started; the last one exited with code 6"),
        ("no-forkserver", "no worker can be started; the forkserver exited with code 7"),
        ("no-preload", "no worker can be started; the forkserver exited with code 1"),
    ],
)
def test_who_waits_for_workers_that_cannot_start_is_told_why_until_they_can(
    patient: Faulty, flag: str, words: str
) -> None:
    before = patient.crew()
    with patient.consumer() as consumer:
        assert data(consumer.get(0, 0)) == TRUTH[0]
        patient.flag(flag, up=True)
        try:
            kill(patient.forkserver())
            wait_until(lambda: not any(map(alive, before)), "its workers to die with it")
            with pytest.raises(WorkerError, match=r"epoch 50, step 4: no worker") as caught:
                consumer.get(50, 4)
            assert words in str(caught.value)
            if flag == "no-preload":
                assert "import of PIL" in caught.value.traceback
            with pytest.raises(WorkerError, match=r"no worker can be started"):
                consumer.get(50, 4)
        finally:
            patient.flag(flag, up=False)
        wait_until(lambda: _comes(consumer, (60, 5)), "workers to come up again")
        epochs(consumer, 61)


def _comes(consumer: Consumer, key: tuple[int, int], timeout: float | None = None) -> bool:
    try:
        got = consumer.get(*key, timeout=timeout)
    except (WorkerError, BatchTimeout):
        return False
    assert data(got) == TRUTH[key[1]]
    return True


PIDS = Path("/sys/fs/cgroup/pids")


@pytest.fixture
def crowded() -> Iterator[Path]:
    """A cgroup in which nobody can fork (version 1 only, for the sake of a single process)."""
    group = PIDS / f"augserver-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "pids.max").write_text("1")
    except OSError as error:
        pytest.skip(f"no cgroup of version 1 for processes to be had: {error.strerror}")
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (PIDS / "cgroup.procs").write_text(pid)
        group.rmdir()


def test_a_forkserver_that_may_not_fork_goes_on_and_tries_again(
    patient: Faulty, crowded: Path
) -> None:
    before = patient.crew()
    (crowded / "cgroup.procs").write_text(str(patient.forkserver()))
    with patient.consumer() as consumer:
        kill(*before)
        wait_until(lambda: not any(map(alive, before)), "the workers to die")
        with pytest.raises(WorkerError, match=r"fork failed: Resource temporarily unavailable"):
            consumer.get(50, 4)
        (crowded / "pids.max").write_text("max")
        wait_until(lambda: _comes(consumer, (60, 5)), "workers to come up again")
        for pid in (crowded / "cgroup.procs").read_text().split():
            (PIDS / "cgroup.procs").write_text(pid)
