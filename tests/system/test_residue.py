"""Nothing outlives its owner, whatever is killed and in whatever order (see residue_rounds.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import residue_rounds
from processes import alive, children, command, descendants, python, serving, wait_until, workers

from augclient import Consumer

#: The first of them; `make residue` plays 200. A failing one is repeated by its seed:
#: `python tests/support/residue_rounds.py 1 SEED`.
ROUNDS = 25


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
    (found,) = [pid for pid in children(server) if "multiprocessing.forkserver" in command(pid)]
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


def test_a_killed_resource_tracker_is_missed_by_nobody(config: Path) -> None:
    address = f"ipc://{config.parent}/s"
    with serving(address, "--config", str(config)) as server:
        (tracker,) = [pid for pid in children(server.pid) if "resource_tracker" in command(pid)]
        os.kill(tracker, signal.SIGKILL)
        for pid in workers(server.pid):
            os.kill(pid, signal.SIGKILL)
        with Consumer(stream="x", address=address) as consumer:
            assert consumer.get(0, 0).step == 0
        below = descendants(server.pid)
        server.terminate()
        assert server.stdout is not None
        said = server.stdout.read()
    assert "resource_tracker" not in said
    wait_until(lambda: not any(map(alive, below)), "everybody below the server to end")


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


MEETING = """
import os, signal, sys, time
from multiprocessing import forkserver
from pathlib import Path
from augserver.supervisor import Supervisor
supervisor = Supervisor(1, Path(sys.argv[1]))
killed = forkserver._forkserver._forkserver_pid
os.kill(killed, signal.SIGKILL)
os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
ensure = forkserver._forkserver.ensure_running
forkserver._forkserver.ensure_running = lambda: None  # it has looked a moment before
print(supervisor.start(time.monotonic()))
forkserver._forkserver.ensure_running = ensure
print(len(supervisor.start(time.monotonic() - 1)), "at once")
print(len(supervisor.start(time.monotonic() + 1)), "later")
supervisor.stop()
"""


def test_a_forkserver_that_is_killed_while_a_worker_is_started_ends_no_server(
    tmp_path: Path,
) -> None:
    done = python(MEETING, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "0 at once", "1 later"]


MUTE = """
import os, sys, time
from multiprocessing import forkserver
from pathlib import Path
from augserver.supervisor import Supervisor
supervisor = Supervisor(1, Path(sys.argv[1]))
for said in (b"", b"\\x80\\x04\\x95\\xff"):  # the server is killed before it has said it all
    status, data = forkserver.connect_to_new_process([])
    os.write(data, said)
    os.close(data)
    assert forkserver.read_signed(status) > 0
    print("ended with", forkserver.read_signed(status))
supervisor.stop()
"""


def test_a_worker_whose_server_dies_while_it_is_told_what_to_do_ends_without_a_word(
    tmp_path: Path,
) -> None:
    done = python(MUTE, str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["ended with 1"] * 2


FORKING = """
import os, time
from augserver import preload
read, write = os.pipe()
if os.fork() == 0:  # a forkserver, as far as its child can see
    preload._IMPORTER = os.getpid()
    forkserver = os.getpid()
    if os.fork() == 0:
        while os.getppid() == forkserver:
            time.sleep(0.001)
        preload.die_with_parent()
        os.write(write, b"lives on")
    os._exit(0)
os.close(write)
print(os.read(read, 100).decode() or "ended")
"""


def test_a_worker_whose_forkserver_died_before_it_asked_ends_by_itself() -> None:
    done = python(FORKING)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


FORKED = """
import ctypes, os
from augserver import preload

def signal_at_parents_death():
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
    return number.value

def fork(then):
    pid = os.fork()
    if pid == 0:
        then()
        os._exit(0)
    os.waitpid(pid, 0)

def worker():
    print("worker", signal_at_parents_death(), flush=True)
    fork(lambda: print("its own", signal_at_parents_death(), flush=True))

fork(worker)
"""


def test_a_worker_cannot_be_stopped_before_its_end_is_bound_to_the_forkservers() -> None:
    done = python(FORKED)
    assert done.stdout.splitlines() == ["worker 9", "its own 0"], done.stderr


@pytest.mark.parametrize(("parent", "lives"), [("own", True), ("another's", False), ("", True)])
def test_a_forkserver_whose_server_died_before_it_asked_ends_by_itself(
    parent: str, lives: bool
) -> None:
    pid = {"own": str(os.getpid()), "another's": "1", "": ""}[parent]
    done = subprocess.run(
        [sys.executable, "-c", "import augserver.preload; print('lives')"],
        env=os.environ | {"AUGSERVER_SERVER_PID": pid},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ("lives" in done.stdout) is lives, done.stderr
