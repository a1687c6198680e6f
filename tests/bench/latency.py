"""Does it matter how large a batch is that is ready? The time of `get`, for 0.4 MB and 150 MB.

    python tests/bench/latency.py [BATCHES]

Batches of 32 pictures, uint8 and untouched, are announced and lie in the ring; timed is what
happens from then on: the consumer takes the announcement, makes the arrays, and reads the first and
the last value. Both sizes in turns. A copy of the large batch is timed beside them.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
import report

from augclient import Consumer, local

BATCHES = 60
BATCH, SLOTS = 32, 4
#: Sides of the square pictures: 0.4 MB and 150 MB a batch.
SIDES = {"0.4 MB": 64, "150 MB": 1250}


class Ready:
    """A stream whose next batch is ready before it is asked for."""

    def __init__(self, side: int) -> None:
        x = np.ones((2 * BATCH, side, side, 3), np.uint8)
        self.consumer = Consumer(x, batch_size=BATCH, dtype="uint8", workers=1, slots=SLOTS)
        self._keys = ((e, s) for e in range(10**6) for s in range(self.consumer.steps))
        self.consumer.get(*next(self._keys))
        started = time.perf_counter()
        for _ in range(2 * SLOTS):
            self.consumer.get(*next(self._keys))
        #: Seconds in which the ring has certainly been filled again.
        self.patience = 0.02 + 2 * (time.perf_counter() - started)

    def get(self) -> tuple[float, float]:
        """Seconds until the arrays are there, and seconds of a copy of them."""
        time.sleep(self.patience / SLOTS)
        key = next(self._keys)
        started = time.perf_counter()
        x: Any = self.consumer.get(*key).x
        int(x[0, 0, 0, 0]) + int(x[-1, -1, -1, -1])
        there = time.perf_counter()
        np.array(x)
        return there - started, time.perf_counter() - there


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else BATCHES
    streams = {size: Ready(side) for size, side in SIDES.items()}
    seconds: dict[str, list[float]] = {size: [] for size in SIDES}
    copying: list[float] = []
    for stream in streams.values():
        time.sleep(stream.patience)
    for _ in range(count):
        for size, stream in streams.items():
            there, copied = stream.get()
            seconds[size].append(there * 1e6)
            if size == "150 MB":
                copying.append(copied * 1e6)
    for stream in streams.values():
        stream.consumer.close()
    local.shut_down()
    figures = ", ".join(
        f"{size}: p50 {statistics.median(of):,.0f} us, p99 {np.percentile(of, 99):,.0f} us"
        for size, of in seconds.items()
    )
    small, large = (statistics.median(of) for of in seconds.values())
    report.answer(
        "a ready batch of 150 MB beside one of 0.4 MB, time to its arrays",
        large / small,
        f"{figures}; a copy of 150 MB takes {statistics.median(copying):,.0f} us",
    )


if __name__ == "__main__":
    main()
