"""How much memory may still be taken, and who says so: the machine and its memory cgroups.

The kernel counts shared memory like any other. Over the limit of a cgroup it kills, without asking
(exit code 137), and no call fails before: not ftruncate, not posix_fallocate, not mmap. So whoever
wants memory in a container has to read the limits first.

A cgroup's limit holds for everything below it, so every ancestor counts. In a container the path
that /proc/self/cgroup gives may be the host's, while the container's own cgroup is mounted as the
root of /sys/fs/cgroup: folders that are not there are passed over, the mount's root never.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: What is larger is no limit: version 1 writes "none" as the largest number of whole pages.
_NO_LIMIT = 1 << 60
#: Version 2 counts in its one hierarchy, version 1 in one of its own; both may be mounted.
_V2_MOUNTS = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_V1_MOUNT = "sys/fs/cgroup/memory"


@dataclass(frozen=True, slots=True)
class Limit:
    """Somebody who bounds how much can be had.

    Attributes:
        who: In words, for a message.
        total: Bytes in all.
        free: Bytes that nobody has taken.
        remedy: What to do where that is too little.
        kept: Bytes of these that are not to be taken.
    """

    who: str
    total: int
    free: int
    remedy: str
    kept: int = 0

    @property
    def left(self) -> int:
        """Bytes that may be taken."""
        return max(0, self.free - self.kept)

    def __str__(self) -> str:
        kept = f" ({mib(self.kept)} of it kept for the processes themselves)" if self.kept else ""
        return f"{self.who} has {mib(self.free)} free of {mib(self.total)}{kept}"


def mib(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 2**20:.1f} MiB"


def memory_limits(root: Path = Path("/")) -> list[Limit]:
    """The machine's memory, and every memory cgroup that this process is in.

    Args:
        root: Where `proc` and `sys` are.
    """
    return [*_machine(root), *_cgroups(root)]


def _machine(root: Path) -> Iterator[Limit]:
    kib = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        kib[name] = _number(value.removesuffix("kB"))
    total, free = kib.get("MemTotal"), kib.get("MemAvailable")
    if total is not None and free is not None:
        yield Limit("the machine", total << 10, free << 10, "use a machine with more memory")


def _cgroups(root: Path) -> Iterator[Limit]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for mount in _V2_MOUNTS:
                for folder in _own_and_above(root / mount, path):
                    yield from _version_2(folder)
        elif "memory" in controllers.split(","):
            for folder in _own_and_above(root / _V1_MOUNT, path):
                yield from _version_1(folder)


def _own_and_above(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup's folder and all above it, up to the mount's root; they need not be there."""
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # it lies outside of what this namespace sees
        parts = []
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _version_2(folder: Path) -> Iterator[Limit]:
    # Above `high` the kernel does not kill, but slows the process down to a standstill.
    bounds = [_number(_text(folder / name)) for name in ("memory.max", "memory.high")]
    used = _number(_text(folder / "memory.current"))
    yield from _limit(folder, bounds, used, "inactive_file")


def _version_1(folder: Path) -> Iterator[Limit]:
    bounds = [_number(_text(folder / "memory.limit_in_bytes"))]
    used = _number(_text(folder / "memory.usage_in_bytes"))
    yield from _limit(folder, bounds, used, "total_inactive_file")


def _limit(
    folder: Path, bounds: list[int | None], used: int | None, reclaimable: str
) -> Iterator[Limit]:
    known = [bound for bound in bounds if bound is not None and bound < _NO_LIMIT]
    if not known or used is None:
        return
    # Pages of files that nobody has read lately count as used, but are given up at once.
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == reclaimable:
            used -= _number(value) or 0
    total = min(known)
    yield Limit(
        f"the memory cgroup {folder}",
        total,
        max(0, total - max(0, used)),
        "give the container more memory (compose: mem_limit; docker run: --memory; Kubernetes: "
        "resources.limits.memory)",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None
