"""What the measurements share: pictures, the transforms, and who has used how much of what."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from processes import children, command, descendants
from real_data import CIFAR10

from augclient import local

#: The 2017 benchmark's, more or less: one resampling, one flip, one scale.
TRANSFORMS: dict[str, Any] = {
    "rotation_range": 45,
    "width_shift_range": 0.1,
    "height_shift_range": 0.1,
    "horizontal_flip": True,
    "rescale": 1 / 255,
}
#: How long one answer to "how many images a second" takes.
SECONDS = 3.0
#: Seconds before it, in which what was made while others were measured is used up.
WARM_UP = 0.5
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def pictures() -> tuple[Any, Any]:
    """Real CIFAR-10 pictures where they are, noise of the same shape elsewhere."""
    if CIFAR10.exists():
        with np.load(CIFAR10) as archive:
            return archive["x_train"], archive["y_train"]
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5000, 32, 32, 3), np.uint8), rng.integers(0, 10, 5000)


def medians(questions: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Ask every question once a round, in turns, so that a noisy minute is everybody's."""
    answers: dict[str, list[float]] = {name: [] for name in questions}
    for _ in range(rounds):
        for name, ask in questions.items():
            answers[name].append(ask())
    return {name: statistics.median(values) for name, values in answers.items()}


@dataclass(frozen=True)
class Rate:
    """What a loop got.

    Attributes:
        images: In a second.
        cpu: Microseconds of processor time an image, of this program and all below it: it depends
            less than `images` on what else the machine does.
    """

    images: float
    cpu: float


def rates(
    batches: Mapping[str, Iterator[Any]],
    rounds: int,
    seconds: float = SECONDS,
    warm_up: float = WARM_UP,
) -> dict[str, Rate]:
    """What everybody's batches come to, medians over rounds in turns."""
    answers: dict[str, list[Rate]] = {name: [] for name in batches}
    for _ in range(rounds):
        for name, source in batches.items():
            answers[name].append(rate(source, seconds, warm_up))
    return {
        name: Rate(statistics.median(r.images for r in of), statistics.median(r.cpu for r in of))
        for name, of in answers.items()
    }


def rate(batches: Iterator[Any], seconds: float = SECONDS, warm_up: float = WARM_UP) -> Rate:
    """What a loop gets that touches one value of each batch."""
    end = time.perf_counter() + warm_up
    while time.perf_counter() < end:
        next(batches)  # made while others were measured
    cpu = everybodys_cpu_seconds()
    started = now = time.perf_counter()
    count, end = 0, started + seconds
    while now < end:
        x = next(batches)
        count += len(x)
        x[-1, -1, -1, -1]
        now = time.perf_counter()
    return Rate(count / (now - started), (everybodys_cpu_seconds() - cpu) / count * 1e6)


def drawn(flow: Iterator[Any]) -> float:
    """Images a second that an iterator of Keras's hands out."""
    end = time.perf_counter() + SECONDS
    started, count = time.perf_counter(), 0
    while time.perf_counter() < end:
        count += len(next(flow)[0])
    return count / (time.perf_counter() - started)


def processes() -> dict[str, list[int]]:
    """This program's processes by what they are."""
    assert local._server is not None
    server = local._server.pid
    forkservers = [c for c in children(server) if "forkserver" in command(c)]
    workers = [w for f in forkservers for w in children(f)]
    others = [p for p in descendants(server) if p not in workers and p not in forkservers]
    return {
        "client": [os.getpid()],
        "server": [server],
        "workers": workers,
        "forkserver": forkservers,
        "tracker": others,
    }


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of processes since their start."""
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) * _TICK
    return total


def everybodys_cpu_seconds() -> float:
    """Of this program and all below it, those included that have ended and were waited for."""
    total = 0.0
    for pid in (os.getpid(), *descendants(os.getpid())):
        with contextlib.suppress(OSError):  # it has just ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) * _TICK
    return total


def pss_mib(pids: list[int]) -> float:
    """Proportional set size of processes: shared pages are divided among their users."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024
