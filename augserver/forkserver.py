"""Forks workers from a clean process and reaps them; both ends of its socket are in this file.

Forking beside threads deadlocks, so workers are forked by a process that has none and has imported
what they need. This does what multiprocessing's forkserver is for, in a way that lets the server
never wait for it and never guess:

* The server's end is a socket that is polled. Nothing in it waits for a forkserver that is still
  importing, stopped or dead; multiprocessing's `start()` would.
* A worker's pidfd is opened by its parent before it can have been reaped, and handed over: it
  names this one process for ever. When it becomes readable the process can write no more, whoever
  is left to reap it; an exit code that does not come proves nothing.
* No socket file, no `__main__` imported again in every worker, no resource tracker.

Who dies takes along what is below it. The forkserver and the workers are killed by the kernel
when their parent dies, of whatever (prctl); so are processes that a user's function forks. What it
starts otherwise is in the worker's process group, which is killed when the worker has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import logging
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn, TextIO

from augserver.death import WHERE_ARE_YOU

_PR_SET_PDEATHSIG = 1
#: The server asks for a worker of this number; the worker's end of its pipe comes along.
_ASK = struct.Struct("!Q")
#: The forkserver tells (kind, worker, pid or exit code or errno); with BORN comes a pidfd, if there
#: is one.
_TELL = struct.Struct("!BQi")
_BORN, _ENDED, _UNBORN = 1, 2, 3
#: Seconds for workers to be gone when the server has closed its end.
_END_SECONDS = 0.5
#: Added to a worker's badness for the kernel's out-of-memory killer: nothing is lost with it, so
#: it should go before the server and before a training program.
_OOM_SCORE = "500"
#: One numerical thread in each worker: they are as many as the cores already. And the number of
#: threads changes the last bits of a matrix product, which must be the same in every worker and
#: after every restart, so it is not the environment's to say. BLAS reads these when numpy is first
#: imported, so they have to be there before the forkserver starts.
_ENVIRONMENT = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Born:
    """A worker runs. It is the receiver's to close the pidfd."""

    number: int
    pid: int
    pidfd: int | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker was reaped."""

    number: int
    code: int


@dataclass(frozen=True, slots=True)
class Unborn:
    """A worker could not be forked: no memory, or a limit of processes."""

    number: int
    errno: int


@dataclass(frozen=True, slots=True)
class Duty:
    """What workers do: a function's import path, called with the worker's end of its pipe, and a
    word for it. Both stand in the forkserver's command line."""

    path: str = "augserver.worker:attend"
    word: str = ""


def trace_path(folder: Path, name: str) -> Path:
    """Where a process of that name writes what faulthandler has to say."""
    return folder / f"{name}.trace"


class Forkserver:
    """The server's end: a process and a socket, of which nothing is ever waited for.

    Args:
        folder: The server's private one.
        duty: Of its workers.
    """

    def __init__(self, folder: Path, duty: Duty) -> None:
        self.trace = trace_path(folder, "forkserver")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from augserver.forkserver import main; "
            f"main({theirs.fileno()}, {os.getpid()}, {str(folder)!r}, {duty.path!r}, {duty.word!r})"
        )
        with theirs:
            # -P: only what is in our path, which comes along.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def fileno(self) -> int:
        """For a poller."""
        return self._socket.fileno()

    def ask(self, number: int, pipe: Connection) -> bool:
        """Ask for a worker; False if there is no room for the question now."""
        try:
            socket.send_fds(self._socket, [_ASK.pack(number)], [pipe.fileno()])
        except BlockingIOError:
            return False
        except OSError:
            return True  # it is dead; `code` tells
        return True

    def hear(self) -> list[Born | Ended | Unborn]:
        """What it has told, without waiting."""
        heard: list[Born | Ended | Unborn] = []
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, _TELL.size, 1)
                if not data:
                    break
                kind, number, value = _TELL.unpack(data)
                if kind == _BORN:
                    heard.append(Born(number, value, fds[0] if fds else None))
                else:
                    heard.append((Ended if kind == _ENDED else Unborn)(number, value))
        return heard

    def code(self) -> int | None:
        """Its exit code, once it has ended; it is reaped then."""
        return self._process.poll()

    def kill(self) -> None:
        """Kill it, and with it all its workers."""
        self._process.kill()

    def close(self, grace: float) -> None:
        """End it and its workers: by closing the socket, then by SIGKILL."""
        self._socket.close()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            # One that cannot be killed is not waited for: the kernel will have it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)


# -- in the forkserver -----------------------------------------------------------------------------


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, whatever the parent dies of.

    Linux only (prctl(2)); elsewhere the end of a pipe or socket has to do.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def main(fd: int, parent: int, folder: str, path: str, word: str) -> NoReturn:
    """Fork and reap until the server is gone."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the server's to judge
    trace = trace_path(Path(folder), "forkserver").open("w", buffering=1)
    faulthandler.enable(trace)
    code = 1
    _log_as_the_server()
    try:
        from augserver import preload

        preload.warm()
        _Forks(socket.socket(fileno=fd), Path(folder), Duty(path, word)).serve()
        code = 0
    except BaseException:
        traceback.print_exc(file=trace)
    finally:
        os._exit(code)


def _log_as_the_server() -> None:
    """What the warm-up and workers warn of looks like the server's; a user's loggers are theirs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("augserver: %(message)s"))
    log = logging.getLogger("augserver")
    log.addHandler(handler)
    log.propagate = False


class _Forks:
    def __init__(self, connection: socket.socket, folder: Path, duty: Duty) -> None:
        self._connection = connection
        self._folder = folder
        self._duty = duty
        _function_of(duty)  # so that workers need not import it, each for itself
        self._workers: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._woken, wakes = socket.socketpair()
        self._woken.setblocking(False)
        wakes.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes.detach())
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(connection, selectors.EVENT_READ)
        gc.freeze()  # the collector of a worker must not touch, and so copy, these pages

    def serve(self) -> None:
        while True:
            ready = [key.fileobj for key, _ in self._selector.select()]
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            self._reap()
            if self._connection in ready:
                data, fds, _, _ = socket.recv_fds(self._connection, _ASK.size, 1)
                if not data:
                    return self._end()
                self._fork(_ASK.unpack(data)[0], fds[0])

    def _fork(self, number: int, pipe: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(pipe)
            self._connection.send(_TELL.pack(_UNBORN, number, error.errno or 0))
            return
        if pid == 0:
            # At once: a worker that is stopped before it has asked would outlive everybody.
            die_with_parent(parent)
            self._connection.close()
            self._selector.close()
            self._woken.close()
            os.close(signal.set_wakeup_fd(-1))
            _be_worker(pipe, trace_path(self._folder, f"worker-{number}"), self._duty)
        os.close(pipe)
        self._workers[pid] = number
        pidfds = []
        with contextlib.suppress(OSError, AttributeError):
            pidfds = [os.pidfd_open(pid)]
        socket.send_fds(self._connection, [_TELL.pack(_BORN, number, pid)], pidfds)
        for pidfd in pidfds:
            os.close(pidfd)

    def _reap(self) -> None:
        for pid, number in list(self._workers.items()):
            # Not reaped yet, it keeps its number, and so its group's number, to itself.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)  # what it has started
            _, status = os.waitpid(pid, 0)
            del self._workers[pid]
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                self._connection.send(_TELL.pack(_ENDED, number, code))

    def _end(self) -> None:
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _END_SECONDS
        while self._workers and time.monotonic() < deadline:
            self._selector.select(0.02)
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
            self._reap()


# -- in a worker -----------------------------------------------------------------------------------


def _function_of(duty: Duty) -> Callable[[Connection, str], None]:
    module, _, name = duty.path.partition(":")
    function: Callable[[Connection, str], None] = getattr(importlib.import_module(module), name)
    return function


def _be_worker(pipe: int, trace_file: Path, duty: Duty) -> NoReturn:
    code, trace = 1, sys.stderr
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        trace = trace_file.open("w", buffering=1)
        _write_down(trace)
        _take_forks_along()
        with contextlib.suppress(OSError, AttributeError, ValueError):
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)

        _function_of(duty)(Connection(pipe), duty.word)
        code = 0
    except BaseException:
        traceback.print_exc(file=trace)
    finally:
        os._exit(code)


def _write_down(trace: TextIO) -> None:
    """Where it is, when it is killed by a fault of its own, and when it is asked."""
    faulthandler.enable(trace)
    faulthandler.register(WHERE_ARE_YOU, trace)


def _take_forks_along() -> None:
    """What is forked here dies with this process.

    Only what its main thread forks: the kernel means the *thread* that forked by "parent", and a
    thread may end long before its process.
    """
    by_main = [False]

    def before() -> None:
        by_main[0] = threading.current_thread() is threading.main_thread()

    def after() -> None:
        faulthandler.disable()  # the file is the worker's
        if by_main[0]:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    os.register_at_fork(before=before, after_in_child=after)
