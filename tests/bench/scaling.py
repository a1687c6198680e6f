"""What does a second worker bring, beside what a second bare kernel loop brings?

    python tests/bench/scaling.py [ROUNDS [SECONDS]]

Ours with one worker and with two, and one and two processes that do nothing but the work (order,
draws, kernel), in turns; CIFAR-10 at batch 256 and photographs. On a machine of two cores the
consumer and the server have no core of their own: they take theirs from the workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Iterator

import report
from peers import work
from peers.apart import Apart, together
from peers.bare import bare
from peers.ours import batches, consumer
from peers.work import Array, Work

ROUNDS, SECONDS = 5, 1.0


def _filled(task: Work) -> Work:
    """Pictures travel as a name; each process reads them itself."""
    return task if task.files else work.small_pictures(task.batch_size)


def ours_with(task: Work, workers: int) -> Iterator[Array]:
    """Ours, with a private server of its own."""
    yield from batches(consumer(_filled(task), workers))


def bare_of(task: Work) -> Iterator[Array]:
    """A bare loop."""
    yield from bare(_filled(task))


def measure(task: Work, rounds: int, seconds: float) -> None:
    light = dataclasses.replace(task, x=None)
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(Apart(ours_with, light, n)) for n in (1, 2))
        loops = [stack.enter_context(Apart(bare_of, light)) for _ in range(2)]
        found: list[tuple[float, ...]] = []
        for _ in range(rounds):
            asked = ([one], [two], loops[:1], loops)
            found.append(tuple(together(who, seconds, warm_up=0.5) for who in asked))
    first, second, loop, both = map(statistics.median, zip(*found, strict=True))
    report.answer(
        f"{task.name}, batch {task.batch_size}: the second worker's gain beside a bare loop's",
        (second / first) / (both / loop),
        f"1 worker {first:,.0f} images/s, 2 workers {second:,.0f} ({second / first:.2f} times); "
        f"1 bare loop {loop:,.0f}, 2 loops {both:,.0f} ({both / loop:.2f} times)",
    )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    measure(work.small_pictures(256), rounds, seconds)
    with work.photographs() as task:
        measure(task, rounds, 2 * seconds)


if __name__ == "__main__":
    main()
