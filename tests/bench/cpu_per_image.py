"""What does a delivered image cost in CPU time of all processes, in copies of itself?

    python tests/bench/cpu_per_image.py [ROUNDS [SECONDS]]

CIFAR-10 at batch 32 and 256, ours and the loop by hand, in turns with np.copyto of a finished batch
(the unit: the least that anybody could do) and with a bare loop of ours (order, draws, kernel into
memory of its own), which says what the rest of ours costs, and which process pays for it.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import cycle

import numpy as np
import report
from measure import cpu_seconds, processes, rate
from peers import work
from peers.bare import bare
from peers.by_hand import by_hand
from peers.ours import batches, consumer, shut_down
from peers.work import Array, Work

ROUNDS, SECONDS = 5, 2.0
#: What is copied before the same comes again, as a ring in use does.
COPIED_BYTES = 128 << 20


def copies(task: Work) -> Iterator[Array]:
    """np.copyto of float32 batches, from memory and to memory that is in no cache for long."""
    count = max(2, COPIED_BYTES // (4 * math.prod(task.shape)))
    source = [np.zeros(task.shape, np.float32) + n for n in range(count)]
    into = [np.zeros(task.shape, np.float32) for _ in range(count)]
    for n in cycle(range(count)):
        np.copyto(into[n], source[n])
        yield into[n]


def measure(task: Work, rounds: int, seconds: float) -> None:
    with consumer(task) as source, by_hand(task) as hand:
        asked = {"hand": hand, "bare": bare(task), "copy": copies(task)}
        endless = batches(source)
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for who, used in _ours(endless, seconds).items():
                found.setdefault(who, []).append(used)
            for name, others in asked.items():
                found.setdefault(name, []).append(rate(others, seconds / 2, 0.3).cpu)
    cost = {name: statistics.median(values) for name, values in found.items()}
    unit = cost["copy"]
    parts = {who: us for who, us in cost.items() if who in ("client", "server", "workers")}
    whole = sum(parts.values())
    beside = 1 - cost["bare"] / whole
    report.answer(
        f"batch {task.batch_size}: CPU time an image, in np.copyto of the image",
        whole / unit,
        f"{whole:.2f} us ("
        + ", ".join(f"{who} {us:.2f}" for who, us in parts.items())
        + f"), np.copyto {unit:.3f} us; order, draws and kernel alone {cost['bare']:.2f} us, so "
        f"{100 * beside:.1f} % is beside them, and {100 * parts['client'] / whole:.1f} % is the "
        "consumer's",
    )
    report.answer(
        f"batch {task.batch_size}: CPU time an image of the loop by hand, in np.copyto",
        cost["hand"] / unit,
        f"{cost['hand']:.2f} us",
    )


def _ours(endless: Iterator[Array], seconds: float) -> dict[str, float]:
    """Microseconds an image, by process, of a window."""
    until = time.perf_counter() + 0.3
    while time.perf_counter() < until:
        next(endless)
    who = processes()
    before = {name: cpu_seconds(pids) for name, pids in who.items()}
    count, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        count += len(next(endless))
    return {
        name: (cpu_seconds(pids) - before[name]) / count * 1e6 for name, pids in who.items() if pids
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    for batch_size in (32, 256):
        measure(work.small_pictures(batch_size), rounds, seconds)
    shut_down()


if __name__ == "__main__":
    main()
