"""What all tests share: two ends of a conversation, a clock, and the check that nothing is left."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest

from augproto.messages import Hello, Message, Open, Opened, Welcome
from augproto.session import Role, Session

#: How long (seconds) what a test has started may take to vanish.
VANISHING = 10.0

WaitUntil = Callable[..., None]

_ours = {os.getpid()}


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class SessionPair:
    """A consumer's and a server's session; what is said at one end comes out at the other."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.consumer = Session(Role.CONSUMER, clock.now)
        self.server = Session(Role.SERVER, clock.now)

    def says(self, role: Role, message: Message) -> None:
        """One end says it, the other must hear exactly that, and both must agree on the state."""
        ends = (self.consumer, self.server)
        speaker, listener = ends if role is Role.CONSUMER else ends[::-1]
        heard = listener.receive(speaker.send(message, self._clock.now), self._clock.now)
        assert heard == message
        assert speaker.state is listener.state

    def opened(self, opened: Opened) -> None:
        """Say everything up to the open stream."""
        self.says(Role.CONSUMER, Hello((1, 0), "test", 1))
        self.says(Role.SERVER, Welcome((1, 0), 2, 30.0))
        self.says(Role.CONSUMER, Open("cifar", None, None))
        self.says(Role.SERVER, opened)


@pytest.fixture
def clock() -> Clock:
    """A fake clock, at 0."""
    return Clock()


@pytest.fixture
def pair(clock: Clock) -> SessionPair:
    """Two ends of a conversation in which nothing was said."""
    return SessionPair(clock)


@pytest.fixture
def wait_until() -> WaitUntil:
    """`wait_until(condition, what, deadline)`: wait for a condition, not for a time."""
    return processes.wait_until


def _private_server() -> int | None:
    """This program's private server: its modules share it, and it may outlive a single test."""
    local = sys.modules.get("augclient.local")
    server = getattr(local, "_server", None)
    return None if server is None else int(server.pid)


@pytest.fixture(scope="session", autouse=True)
def _processes_are_noted() -> Iterator[None]:
    """Remember who was started here, so that what they leave can be told from others' after."""
    start = subprocess.Popen.__init__

    def noting(process: Any, *arguments: Any, **options: Any) -> None:
        start(process, *arguments, **options)
        _ours.add(process.pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", noting)
        yield


def _owners() -> dict[int, int]:
    """The processes that own segments, by the segment's inode: they hold a flock (segment.py)."""
    device = os.stat("/dev/shm").st_dev
    place = f"{os.major(device):02x}:{os.minor(device):02x}"
    held = re.findall(rf"FLOCK +ADVISORY +WRITE +(\d+) {place}:(\d+) ", _read("/proc/locks"))
    return {int(inode): int(pid) for pid, inode in held}


def _maker(segment: str) -> int:
    """The process that has made a segment, as its name tells (see `augserver.memory`)."""
    match = re.match(r"augserver-\d+-([0-9a-f]+)[0-9a-f]{6}(?:-|$)", segment)
    return int(match[1], 16) if match else os.getpid()


def _elsewhere(pid: int) -> bool:
    """Whether a process is none of ours: other tests and servers run on this machine, too."""
    while pid > 1 and pid != os.getpid():
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        pid = int(fields[1]) if fields else 0
    return pid != os.getpid()


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""


def _children() -> set[int]:
    """This process's children; the kernel tells them faster than a walk over /proc."""
    lists = list(Path("/proc/self/task").glob("*/children"))
    if not lists:
        return set(processes.children(os.getpid()))
    pids: set[int] = set()
    for path in lists:
        with contextlib.suppress(OSError):  # a thread that has ended
            pids |= {pid for pid in map(int, path.read_text().split()) if processes.alive(pid)}
    return pids


def _left(*, but: int | None = None) -> set[str]:
    """Segments and child processes that there are now, but for those of one process."""
    owners = _owners()
    left = set()
    for path in Path("/dev/shm").glob("augserver*"):
        with contextlib.suppress(OSError):
            owner = owners.get(path.stat().st_ino)
            ours = _maker(path.name) in _ours if owner is None else not _elsewhere(owner)
            if ours and (owner is None or owner != but):
                left.add(str(path))
    for pid in _children():
        command = processes.command(pid)
        # Python's own, of this process; it watches for what we would leave.
        if pid != but and "multiprocessing.resource_tracker" not in command:
            left.add(f"process {pid}: {command}")
    return left


def _nothing_new(before: set[str], *, but: int | None = None) -> None:
    new: set[str] = set()

    def clean() -> bool:
        new.clear()
        new.update(_left(but=but) - before)
        return not new

    with contextlib.suppress(AssertionError):
        processes.wait_until(clean, "nothing left", VANISHING)
    assert not new, f"left behind: {', '.join(sorted(new))}"


@pytest.fixture(scope="module", autouse=True)
def _the_private_server_leaves_nothing() -> Iterator[None]:
    """A private server is shared by a module's tests and ends with them."""
    before = _left()
    yield
    local = sys.modules.get("augclient.local")
    if local is not None:
        local.shut_down()
    _nothing_new(before)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """/dev/shm and this process's children are after a test as they were before it."""
    before = _left(but=_private_server())
    yield
    _nothing_new(before, but=_private_server())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A table of what was skipped, and why, as the last thing before the counts."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "no reason"
        reason = reason.removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    terminalreporter.section("skipped tests and their reasons")
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count:5}  {reason}")
    terminalreporter.line(f"{sum(reasons.values()):5}  in all")
