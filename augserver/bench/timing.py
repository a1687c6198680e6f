"""Windows of time, and what many of them come to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from augserver.bench.attempts import check
from augserver.bench.work import Batches


@dataclass(frozen=True)
class Summary:
    """Several answers to the same question.

    Attributes:
        median: Of them.
        low, high: The least and the greatest: the spread.
        mean, deviation: Mean and standard deviation; the deviation of one answer is 0.
        rounds: How many there were.
    """

    median: float
    low: float
    high: float
    mean: float
    deviation: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary:
        """Sum up at least one answer."""
        found = list(values)
        return cls(
            statistics.median(found),
            min(found),
            max(found),
            statistics.fmean(found),
            statistics.stdev(found) if len(found) > 1 else 0.0,
            len(found),
        )


def images_per_second(
    batches: Batches,
    seconds: float,
    warm_up: float,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """What a loop gets that touches one value of each batch.

    Args:
        batches: Endless.
        seconds: How long is measured, and then to the end of a batch.
        warm_up: Seconds before that, in which what was made before is used up.
        clock: Seconds.
    """
    end = clock() + warm_up
    while clock() < end:
        check()
        next(batches)
    started = now = clock()
    count, end = 0, started + seconds
    while now < end:
        check()
        x = next(batches)
        count += len(x)
        x[-1, -1, -1, -1]
        now = clock()
    return count / (now - started)
