"""What a user's function may do to the process that calls it, and what is told of it.

All tests share one private server; sample 13, in step 1, is the one over which things happen.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import alive, python, wait_until, workers

from augclient import Consumer, local
from augproto.errors import WorkerError

PICTURES = np.zeros((64, 4, 4, 3), np.uint8)
PICTURES[13] = 77

Function = Callable[[Any], Any]


def only_13(what: Callable[[], Any]) -> Function:
    """A function that does this to the process that calls it with sample 13."""

    def function(picture: Any) -> Any:
        if picture[0, 0, 0] == 77:
            result = what()
            return picture if result is None else result
        return picture

    return function


def consumer(function: Function, **options: Any) -> Consumer:
    return Consumer(
        PICTURES, batch_size=8, shuffle=False, function=function, workers=2, timeout=60, **options
    )


def crew() -> set[int]:
    assert local._server is not None
    server = local._server.pid
    wait_until(lambda: len(workers(server)) == 2, "two workers")
    return set(workers(server))


def refused(function: Function) -> WorkerError:
    """Step 1 is refused, and every other step is made."""
    with consumer(function) as stream:
        with pytest.raises(WorkerError) as caught:
            stream.get(0, 1)
        assert [batch.step for batch in stream.epoch(0, first=2)] == list(range(2, 8))
    assert (caught.value.epoch, caught.value.step) == (0, 1)
    return caught.value


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1) + 1


def _leave(code: int) -> None:
    sys.exit(code)


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda: _leave(4), "raised SystemExit: 4"),
        (_interrupt, "raised KeyboardInterrupt"),
        (_recurse, "raised RecursionError: maximum recursion depth exceeded"),
        (lambda: "garbage", r"gave <U7 of shape \(\); wanted numbers of shape \(4, 4, 3\)"),
        (lambda: np.zeros((4, 4)), r"gave float64 of shape \(4, 4\); wanted numbers"),
        (lambda: np.array([object()] * 48).reshape(4, 4, 3), r"gave object of shape"),
    ],
    ids=["sys.exit", "KeyboardInterrupt", "recursion", "garbage", "shape", "objects"],
)
def test_what_a_function_raises_or_returns_is_told_and_the_worker_lives(
    what: Callable[[], Any], words: str
) -> None:
    with consumer(lambda picture: picture) as idle:
        idle.get(0, 0)
        before = crew()
        error = refused(only_13(what))
        assert crew() == before
    assert error.sample == 13
    assert re.search(words, str(error)), str(error)
    assert "Traceback" in error.traceback


def test_a_function_that_exits_the_process_is_named_with_code_and_sample() -> None:
    error = refused(only_13(lambda: os._exit(3)))
    assert "step 1: 3 workers died while making this batch; it is given up" in str(error)
    assert "3 times: exited with code 3, at sample 13" in str(error)
    assert error.sample == 13


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda: ctypes.string_at(0), "killed by SIGSEGV (a segmentation fault"),
        (os.abort, "killed by SIGABRT"),
    ],
    ids=["SIGSEGV", "SIGABRT"],
)
def test_a_crash_in_native_code_shows_the_python_lines_that_led_there(
    what: Callable[[], Any], words: str
) -> None:
    def culprit() -> None:
        what()

    error = refused(only_13(culprit))
    assert words in str(error)
    assert error.sample == 13
    assert error.traceback.startswith("Fatal Python error")
    assert "in culprit\n" in error.traceback


def test_a_function_that_kills_its_worker_is_not_blamed_on_want_of_memory() -> None:
    error = refused(only_13(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert "killed by SIGKILL (without evidence of the out-of-memory killer" in str(error)
    assert error.sample == 13


def test_want_of_memory_under_a_limit_is_an_error_and_the_worker_lives() -> None:
    with consumer(lambda picture: picture) as idle:
        idle.get(0, 0)
        before = crew()
        for pid in before:
            resource.prlimit(pid, resource.RLIMIT_AS, (4 << 30, 4 << 30))
        error = refused(only_13(lambda: np.ones(1 << 33)))
        assert crew() == before
    assert error.sample == 13
    assert "MemoryError" in str(error)
    local.shut_down()  # those that come after are not limited


def test_a_function_that_closes_descriptors_of_others_costs_its_own_batch_alone() -> None:
    def close_all() -> None:
        os.closerange(3, 256)
        time.sleep(3600)

    error = refused(only_13(close_all))
    assert "3 times: lives, but has closed its pipe to the server" in str(error)
    assert error.sample == 13


def test_a_function_that_writes_into_descriptors_of_others_is_found_out() -> None:
    def scribble() -> None:
        for fd in range(3, 256):
            try:
                if os.path.realpath(f"/proc/self/fd/{fd}").startswith("/proc"):
                    os.write(fd, b"\xff" * 64)
            except OSError:
                continue
        time.sleep(3600)

    error = refused(only_13(scribble))
    assert "3 times: said what is no message" in str(error)
    assert error.sample == 13


def test_a_function_that_kills_the_forkserver_is_given_up_and_others_are_not() -> None:
    def parricide() -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)

    error = refused(only_13(parricide))
    assert "was killed with its forkserver, at sample 13" in str(error)
    assert error.sample == 13


def test_a_fork_that_returns_from_a_function_is_no_second_worker() -> None:
    def fork_and_return() -> None:
        if os.fork():
            os.wait()

    with consumer(lambda picture: picture) as plain, consumer(only_13(fork_and_return)) as forking:
        for wanted, got in zip(plain.epoch(0), forking.epoch(0), strict=True):
            assert np.array_equal(np.asarray(wanted.x), np.asarray(got.x))


def test_what_kills_a_worker_when_it_is_unpickled_does_not_harm_other_streams() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os._exit, (5,)

    bomb = Bomb()
    with (
        consumer(lambda picture: picture) as good,
        consumer(lambda picture: (picture, bomb)[0], slots=4) as bad,
    ):
        with pytest.raises(WorkerError, match=r"3 workers died .* exited with code 5"):
            bad.get(0, 0)
        assert [batch.step for batch in good.epoch(0)] == list(range(8))


def test_what_a_function_prints_comes_out_where_the_program_s_own_does() -> None:
    done = python(
        "import numpy as np\nfrom augclient import Consumer\n"
        "def loud(picture):\n    print('a word from a function')\n    return picture\n"
        "x = np.zeros((4, 2, 2, 3), 'u1')\n"
        "with Consumer(x, batch_size=4, function=loud, workers=1) as consumer:\n"
        "    consumer.get(0, 0)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("a word from a function\n") >= 4
    assert done.stderr == ""


def _with_children(pids: Path) -> Function:
    """A function that starts a program, a fork, and a thread, and waits for none of them."""

    def function(picture: Any) -> Any:
        import subprocess
        import threading

        if picture[0, 0, 0] == 77 and not pids.exists():
            program = subprocess.Popen(["sleep", "3600"])
            fork = os.fork()
            if fork == 0:
                time.sleep(3600)
            threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
            pids.write_text(f"{os.getpid()} {program.pid} {fork}")
        return picture

    return function


@pytest.mark.parametrize("end", ["its worker", "its server"])
def test_what_a_function_starts_ends_with(end: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with consumer(_with_children(pids)) as stream:
        assert stream.get(0, 1).step == 1
        worker, program, fork = map(int, pids.read_text().split())
        assert all(map(alive, (worker, program, fork)))
        if end == "its worker":
            os.kill(worker, signal.SIGKILL)
        else:
            local.shut_down()
        wait_until(lambda: not any(map(alive, (worker, program, fork))), "all three to end")
        if end == "its worker":
            assert [batch.step for batch in stream.epoch(0, first=2)] == list(range(2, 8))
