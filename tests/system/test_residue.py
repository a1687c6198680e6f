"""Nothing outlives its owner, whatever is killed and in whatever order (see residue_rounds.py)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import residue_rounds
from processes import alive, children, command, descendants, python, serving, wait_until, workers

from augclient import Consumer

#: The first of them; `make residue` plays 200. A failing one is repeated by its seed:
#: `python tests/support/residue_rounds.py 1 SEED`.
ROUNDS = 12


@pytest.mark.slow
def test_whoever_is_killed_nothing_is_left() -> None:
    wrong = [str(this) for this in residue_rounds.rounds(ROUNDS, 0) if this.wrong]
    assert not wrong, "\n".join(wrong)


# -- each thing that the rounds rely on, by itself -----------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.zeros((64, 8, 8, 3), np.uint8))
    path = tmp_path / "augserver.toml"
    path.write_text('[server]\nworkers = 2\n[streams.x]\ndata = "x.npy"\nx = "x"\nbatch_size = 8\n')
    return path


def forkserver(server: int) -> int:
    (found,) = [pid for pid in children(server) if "augserver.forkserver" in command(pid)]
    return found


def test_a_killed_forkserver_takes_its_workers_along_and_is_replaced(config: Path) -> None:
    address = f"ipc://{config.parent}/s"
    with (
        serving(address, "--config", str(config)) as server,
        Consumer(stream="x", address=address) as consumer,
    ):
        consumer.get(0, 0)
        old = forkserver(server.pid)
        crew = workers(server.pid)
        assert len(crew) == 2
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, crew)), "the forkserver's workers to end")
        wait_until(lambda: len(workers(server.pid)) == 2, "others in their place")
        assert [batch.step for batch in consumer.epoch(1)] == list(range(8))


def test_there_is_no_resource_tracker_to_miss(config: Path) -> None:
    with serving(f"ipc://{config.parent}/s", "--config", str(config)) as server:
        wait_until(lambda: len(workers(server.pid)) == 2, "its workers")
        assert not [c for c in map(command, descendants(server.pid)) if "resource_tracker" in c]


def test_the_socket_of_a_killed_server_is_swept_by_one_that_listens_elsewhere(
    config: Path,
) -> None:
    address, other = f"ipc://{config.parent}/s", f"ipc://{config.parent}/other"
    with serving(address, "--config", str(config)) as server:
        server.kill()
        server.wait(20)
    assert {"s", "s.lock"} <= {path.name for path in config.parent.iterdir()}
    with serving(other, "--config", str(config), "--workers", "0"):
        assert not {"s", "s.lock"} & {path.name for path in config.parent.iterdir()}
    assert {path.name for path in config.parent.iterdir()} == {"augserver.toml", "x.npy"}


def test_a_sweep_spares_the_socket_that_another_server_has_taken_over(config: Path) -> None:
    address, other = f"ipc://{config.parent}/s", f"ipc://{config.parent}/other"
    with serving(address, "--config", str(config)) as dead:
        dead.kill()
        dead.wait(20)
    with (
        serving(address, "--config", str(config), "--workers", "0"),
        serving(other, "--config", str(config), "--workers", "0"),
        Consumer(stream="x", address=address) as consumer,
    ):
        assert consumer.get(0, 0).step == 0


FORKING = """
import os, time
from augserver.forkserver import die_with_parent
read, write = os.pipe()
if os.fork() == 0:  # a forkserver
    forkserver = os.getpid()
    if os.fork() == 0:
        while os.getppid() == forkserver:
            time.sleep(0.001)
        die_with_parent(forkserver)
        os.write(write, b"lives on")
    os._exit(0)
os.close(write)
print(os.read(read, 100).decode() or "ended")
"""


def test_a_process_whose_parent_died_before_it_asked_ends_by_itself() -> None:
    done = python(FORKING)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


@pytest.mark.parametrize(("parent", "lives"), [(os.getpid(), True), (1, False)])
def test_a_process_lives_on_only_with_the_parent_that_it_should_have(
    parent: int, lives: bool
) -> None:
    program = f"from augserver.forkserver import die_with_parent; die_with_parent({parent})"
    done = python(f"{program}; print('lives')")
    assert ("lives" in done.stdout) is lives, done.stderr
