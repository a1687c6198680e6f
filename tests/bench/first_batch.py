"""How long from a finished import to the first batch, and what memory does each process take?"""

from __future__ import annotations

import time

from measure import TRANSFORMS, pictures, processes, pss_mib

from augclient import Consumer, local


def main() -> None:
    x, y = pictures()
    for attempt in ("the program's first consumer", "its second"):
        started = time.perf_counter()
        consumer = Consumer(x, y, batch_size=32, workers=2, transforms=TRANSFORMS)
        opened = time.perf_counter()
        batch = consumer.get(0, 0)
        print(
            f"{attempt}: opened after {opened - started:.2f} s, first batch after "
            f"{time.perf_counter() - started:.2f} s"
        )
        del batch
        for step in range(60):
            consumer.get(0, step)
        if attempt.startswith("the"):
            for name, pids in processes().items():
                if pids:
                    each = pss_mib(pids) / len(pids)
                    print(f"  {name}: {each:.1f} MiB PSS each, {len(pids)} of them")
        consumer.close()
    local.shut_down()


if __name__ == "__main__":
    main()
