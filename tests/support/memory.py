"""How much memory a process holds, shared pages by shares, as the kernel tells."""

from __future__ import annotations

import re
from pathlib import Path

from processes import descendants


def pss(pid: int) -> int:
    """Proportional set size in bytes; 0 for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    match = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def private(pid: int) -> int:
    """Bytes that a process has for itself: what it would give back by ending."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(kb) << 10 for kb in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))


def tree(pid: int) -> int:
    """Proportional set size of a process and all below it."""
    return pss(pid) + sum(pss(child) for child in descendants(pid))


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
