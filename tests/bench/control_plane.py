"""What does it cost to say where a batch is? CPU time of all processes for each untouched batch."""

from __future__ import annotations

import time

import numpy as np
from measure import cpu_seconds, pictures, processes

from augclient import Consumer

SECONDS = 8.0


def main() -> None:
    x, y = pictures()
    for batch_size in (32, 256):
        with Consumer(x, y, batch_size=batch_size, dtype="uint8", workers=2) as consumer:
            keys = ((e, s) for e in range(10**6) for s in range(consumer.steps))
            for _ in range(500):
                consumer.get(*next(keys))
            who = processes()
            before = {name: cpu_seconds(pids) for name, pids in who.items()}
            batches, end = 0, time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                consumer.get(*next(keys))
                batches += 1
            used = {
                name: (cpu_seconds(pids) - before[name]) / batches * 1e6
                for name, pids in who.items()
            }
        order, out = np.random.permutation(len(x)), np.empty((batch_size, *x.shape[1:]), np.uint8)
        started = time.process_time()
        for i in range(2000):
            start = i * batch_size % (len(x) - batch_size)
            np.take(x, order[start : start + batch_size], axis=0, out=out, mode="clip")
        take = (time.process_time() - started) / 2000 * 1e6
        total = sum(used.values())
        parts = ", ".join(f"{name} {us:.0f}" for name, us in used.items() if us >= 0.5)
        print(
            f"batch {batch_size:4}: {total:6.1f} us a batch ({parts}), of which the copy itself "
            f"(np.take) is {take:.1f}; {(total - take) / batch_size:.2f} us an image beside it; "
            f"{batches * batch_size / SECONDS:,.0f} images/s"
        )


if __name__ == "__main__":
    main()
