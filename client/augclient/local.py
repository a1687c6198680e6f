"""The private server behind `address=None`: started once, shared by the program, ends with it.

It is a process of its own (`python -m augserver.private`), so it needs no `__main__` guard and
works in `python -c` and in a notebook. It is tied to this program by one inherited socket pair:
when this program ends, for whatever reason, the pair ends, and so does the server. Through the
same pair go the arrays' places and the user's functions; a socket never sees them.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from augclient.tie import Tie
from augproto.codec import decode, encode
from augproto.errors import AugError, ConfigError, RemoteProtocolError, ServerLost
from augproto.faults import error_of
from augproto.messages import (
    ArraySpec,
    Fault,
    Filled,
    Function,
    Message,
    Offer,
    Room,
    Scale,
    Serving,
    Withdraw,
)
from augproto.segment import map_file, sweep

#: Seconds for a private server to start and to answer.
START_TIMEOUT = 60.0
ANSWER_TIMEOUT = 60.0
#: Seconds for another thread to hand its arrays over.
HAND_TIMEOUT = 600.0
#: Seconds for a private server to end by itself.
GRACE = 5.0

M = TypeVar("M")

_lock = threading.Lock()
_server: PrivateServer | None = None
_processes: list[subprocess.Popen[bytes]] = []  # that were started here and not waited for


def private_server(workers: int | None) -> PrivateServer:
    """This program's private server, started if need be, with at least so many workers."""
    global _server
    with _lock:
        if _server is None or not _server.alive():
            _server = PrivateServer(workers)
        elif workers is not None:
            try:
                _server.ask(Scale(workers), Serving)
            except ServerLost:  # it was about to end, or stands still
                _server = PrivateServer(workers)
        return _server


class PrivateServer:
    """The process and the pair of sockets that ties it to this one.

    Attributes:
        address: Where its consumers connect.

    Raises:
        ConfigError: The server's packages are not installed.
        ServerLost: It did not start.
    """

    def __init__(self, workers: int | None) -> None:
        for module in ("augserver", "scipy", "PIL", "cloudpickle"):
            if importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"without an address a private server is started, and that needs {module}: "
                    "pip install 'augserver[server]' (or name a server's address)"
                )
        _processes[:] = [process for process in _processes if process.poll() is None]
        mine, theirs = map(_above_standard, socket.socketpair())
        self._owner = os.getpid()
        with mine, theirs:
            # -P: a `random.py` beside the user's script must not become the server's.
            command = [sys.executable, "-P", "-m", "augserver.private", str(theirs.fileno())]
            self._process = subprocess.Popen(
                [*command, str(-1 if workers is None else workers)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal is for the program; the server ends when the program does.
                start_new_session=True,
                stdout=_stream(1),
                stderr=_stream(2),
            )
            _processes.append(self._process)
            self._tie = Tie(socket.socket(fileno=mine.detach()))
        self._known: set[str] = set()
        # Offer, write, Filled: another thread's offer of the same arrays in between would take the
        # room away. Reentrant, for a signal's handler that opens a stream.
        self._handing = threading.RLock()
        try:
            first = self._tie.first(START_TIMEOUT)
            self.address = self._checked(first, Serving, START_TIMEOUT).address
        except BaseException:  # Ctrl-C, too, must not leave a server that nobody knows of
            self.disown()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process runs and this one is tied to it."""
        mine = os.getpid() == self._owner and not self._tie.closed
        return mine and self._process.poll() is None

    def hand_function(self, function: Function) -> None:
        """Let workers know a function of this program's own."""
        if function.name not in self._known:
            self.ask(function, Serving)
            self._known.add(function.name)

    def hand_arrays(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copy arrays once into memory that the server holds; `withdraw` gives them up.

        Raises:
            NoRoom: They do not fit into shared memory.
        """
        if not self._handing.acquire(timeout=HAND_TIMEOUT):
            raise ServerLost(
                f"another thread has been handing arrays over for {HAND_TIMEOUT:.0f} s; the "
                "private server stands still, or the machine is out of memory"
            )
        try:
            self._hand_arrays(name, arrays)
        finally:
            self._handing.release()

    def _hand_arrays(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        specs = tuple(ArraySpec(n, a.dtype.str, a.shape) for n, a in arrays.items())
        try:
            room = self.ask(Offer(name, specs), Room)
            if room.sources:
                memory = map_file(room.sources[0].path, writable=True)
                for source in room.sources:
                    flat = arrays[source.name].reshape(-1).view(np.uint8)
                    memory[source.offset : source.offset + flat.nbytes] = flat
                self.ask(Filled(name), Serving)
        except AugError:
            raise
        except BaseException:  # Ctrl-C: what was offered is offered no more
            self.withdraw(name)
            raise

    def withdraw(self, name: str) -> None:
        """Give up arrays handed over before; harmless when the server is gone.

        This may be called by the garbage collector, so it waits for nothing: no answer comes.
        """
        if os.getpid() == self._owner:
            self._tie.tell(encode(Withdraw(name)))

    def ask(self, message: Message, wanted: type[M]) -> M:
        """Say something and wait for its answer."""
        if not self.alive():
            raise ServerLost("the private server's process has ended")
        return self._checked(self._tie.ask(encode(message), ANSWER_TIMEOUT), wanted, ANSWER_TIMEOUT)

    def _checked(self, frame: bytes | None, wanted: type[M], timeout: float) -> M:
        if frame is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                # Its end of the pair closes before it can be reaped.
                self._process.wait(2.0 if self._tie.closed else 0.0)
            code = self._process.poll()
            state = "does not answer" if code is None else f"ended with code {code}"
            self.disown()
            raise ServerLost(
                f"the private server {state} (waited {timeout:.0f} s at most); what it had to say "
                "is on this program's standard error"
            )
        message = decode(frame)
        if isinstance(message, Fault):
            raise error_of(message)
        if not isinstance(message, wanted):
            raise RemoteProtocolError(f"the private server said {message!r:.120}")
        return message

    def close(self, grace: float = GRACE) -> None:
        """End it: politely by closing the pair, then by SIGKILL."""
        self.disown()
        if os.getpid() == self._owner:
            _end(self._process, grace)

    def disown(self) -> None:
        """Close this process's end of the pair, without a wait; it ends by itself, or at exit."""
        self._tie.close()


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Wait for the end of a server whose pair is closed, and kill it if it does not come."""
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(grace)
        sweep()  # it could not do so itself
    if process in _processes:
        _processes.remove(process)


def _above_standard(pair: socket.socket) -> socket.socket:
    """The same socket under a number that nobody takes for standard input, output or error."""
    if pair.fileno() > 2:
        return pair
    with pair:  # a daemon has closed those three
        above: int = fcntl.fcntl(pair.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        return socket.socket(fileno=above)


def _stream(fd: int) -> int | None:
    """What the server gets for output or errors: the program's own, or nothing if it has none."""
    try:
        os.fstat(fd)
    except OSError:
        return subprocess.DEVNULL
    return None


def shut_down() -> None:
    """End this program's private server now; the next sequence starts another."""
    global _server
    with _lock:
        server, _server = _server, None
    if server is not None:
        server.disown()
    for process in list(_processes):
        _end(process, GRACE)


def _forget_in_child() -> None:
    # A forked child that kept its copy of the pair open would keep the server alive.
    global _server, _lock
    _lock = threading.Lock()
    if _server is not None:
        _server.disown()
        _server = None
    for process in _processes:
        # The child is not the parent of that process and must not wait for it.
        process.returncode = 0
    _processes.clear()


os.register_at_fork(after_in_child=_forget_in_child)
atexit.register(shut_down)
