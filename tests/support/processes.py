"""Real processes under test: who they are, how to start and how to stop them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: How long (seconds) a condition may take to come true before a test gives up.
DEADLINE = 60.0


def wait_until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Wait for a condition, not for a time."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline:.0f} s for: {what}"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """The children of a process, as /proc tells."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def command(pid: int) -> str:
    """The command line of a process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def workers(server: int) -> list[int]:
    """The worker processes of a server: children of its forkserver."""
    return [
        worker
        for child in children(server)
        if "forkserver" in command(child)
        for worker in children(child)
    ]


def kill_a_worker(server: int) -> None:
    """SIGKILL one of a server's workers, as soon as one is there to be killed."""

    def killed() -> bool:
        for pid in workers(server):
            with contextlib.suppress(ProcessLookupError):  # reaped since
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    wait_until(killed, "a worker to kill")


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    below = children(pid)
    return below + [d for child in below for d in descendants(child)]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def serving(address: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A standalone server, until the end of the block."""
    server = subprocess.Popen(
        [sys.executable, "-m", "augserver", "serve", "--listen", address, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if "listens" in line:
                break
        else:
            raise AssertionError(f"the server ended at once:\n{''.join(lines)}")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGCONT)
            server.terminate()
        try:
            server.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()


def python(
    program: str,
    *arguments: str,
    cwd: Path | None = None,
    timeout: float = 240.0,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program given as text in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
