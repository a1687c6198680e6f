"""What a process died of, in words, from evidence and nothing else.

A dead process leaves three traces: how it ended (an exit code or a signal), what it wrote into a
file of its own with its last breath (faulthandler), and, where the kernel ran out of memory, the
kernel's counts of such kills. SIGKILL alone says nothing: anybody may send it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: A worker that gets this signal writes where it is into its file, and goes on.
WHERE_ARE_YOU = signal.SIGRTMIN + 7
#: Of a file that a dead process left, so much is told.
TRACE_BYTES = 16384
#: Counts are compared with those of so many seconds ago (up to twice that): a large process takes
#: its time to die.
MEMORY_SECONDS = 5.0

_CGROUPS = Path("/sys/fs/cgroup")
_MACHINE = "/proc/vmstat (the whole machine)"
_KNOWN = {
    signal.SIGSEGV: "a segmentation fault: native code touched memory that is not its own",
    signal.SIGBUS: "a bus error: a file that was mapped has shrunk, or /dev/shm is full",
    signal.SIGFPE: "an arithmetic fault in native code",
    signal.SIGABRT: "native code gave up: abort()",
    signal.SIGILL: "an instruction that this processor does not know",
}


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended.

    Attributes:
        cause: In words that follow the process's name: "was killed by SIGSEGV (...)".
        traceback: What it wrote itself ("" if it could not).
        own: Whether what it did may have been the cause; not so if it was taken along.
    """

    cause: str
    traceback: str = ""
    own: bool = True

    def __str__(self) -> str:
        return f"{self.cause}\n{self.traceback}" if self.traceback else self.cause


def how_it_ended(code: int | None, memory: str) -> str:
    """An exit code in words.

    Args:
        code: As Popen.returncode has it; None where nobody was there to reap the process.
        memory: What is known of kills for want of memory; only a SIGKILL is said to be one.
    """
    if code is None:
        return "ended; of what is not known, since the process that would have reaped it is gone"
    if code >= 0:
        hint = " (os._exit or exec in its code)" if code == 0 else ""
        return f"exited with code {code}{hint}"
    if code == -signal.SIGKILL:
        return f"was killed by SIGKILL ({memory})"
    if -code not in list(signal.Signals):
        return f"was killed by signal {-code}"
    known = _KNOWN.get(signal.Signals(-code))
    return f"was killed by {signal.Signals(-code).name}" + (f" ({known})" if known else "")


class MemoryWitness:
    """The kernel's counts of processes that it killed for want of memory.

    `look` is to be called regularly; `testimony` then tells what has changed lately.
    """

    def __init__(self, now: float) -> None:
        self._old = self._new = _counts()
        self._looked = now

    def look(self, now: float) -> None:
        """Remember the counts, to compare with later."""
        if now - self._looked >= MEMORY_SECONDS:
            self._old, self._new, self._looked = self._new, _counts(), now

    def testimony(self) -> str:
        """What speaks for the out-of-memory killer, or that nothing does.

        A kill that was counted is evidence for one death; the next one needs another.
        """
        grown = [where for where, count in _counts().items() if count > self._old.get(where, count)]
        for where in grown:
            self._old[where] += 1
            self._new[where] = max(self._new[where], self._old[where])
        if not grown:
            return "without evidence of the out-of-memory killer: somebody has sent it"
        if grown[0] == _MACHINE:
            return f"perhaps by the kernel for want of memory: {_MACHINE} counts one such kill more"
        return f"by the kernel for want of memory: {grown[0]} counts one such kill more"


def _counts() -> dict[str, int]:
    """Kills by the place that counts them, the one that is nearest to this process first."""
    counts = {}
    for path, name in _places():
        count = _field(path, "oom_kill")
        if count is not None:
            counts[name] = count
    return counts


def _places() -> Iterable[tuple[Path, str]]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:  # version 2: one hierarchy for everything
                for root in (_CGROUPS, _CGROUPS / "unified"):
                    yield (
                        root / group.lstrip("/") / "memory.events",
                        f"the server's cgroup {group}",
                    )
            elif "memory" in controllers.split(","):
                for place in (group.lstrip("/"), ""):  # a container sees its own as the root
                    path = _CGROUPS / "memory" / place / "memory.oom_control"
                    if path.exists():
                        yield path, f"the server's cgroup {group}"
                        break
    yield Path("/proc/vmstat"), _MACHINE


def _field(path: Path, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return None


def last_words(path: Path) -> str:
    """What a process wrote into its file; the file is not needed any more."""
    try:
        data = path.read_bytes()
        path.unlink()
    except OSError:
        return ""
    if len(data) > TRACE_BYTES:
        data = data[: TRACE_BYTES // 2] + b"\n...\n" + data[-TRACE_BYTES // 2 :]
    lines = data.decode(errors="replace").strip().splitlines()
    # faulthandler ends with a list of all that was imported; nobody has asked.
    return "\n".join(line for line in lines if not line.startswith("Extension modules:")).strip()
