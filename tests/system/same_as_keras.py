"""The long comparison with Keras: `same_as_keras.py [CONFIGS [SEED [WORKERS]]]`.

CONFIGS programs are drawn at random and run through Keras's `ImageDataGenerator` and through ours;
whatever is not the same is printed with the program. Never collected by pytest.
"""

from __future__ import annotations

import collections
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import faces
import sameness
import streams
from configurations import Configuration, configuration


def kind(c: Configuration) -> str:
    """What the figures are told apart by."""
    if c.tolerance:
        return "whitened" if c.generator.get("zca_whitening") else "samplewise"
    return "exact"


def main() -> None:
    warnings.simplefilter("ignore")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    workers = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    print(f"{count} configurations of seed {seed}, {workers} workers", flush=True)
    same: collections.Counter[str] = collections.Counter()
    equal: collections.Counter[str] = collections.Counter()
    worst: dict[str, float] = collections.defaultdict(float)
    wrong = batches = raised = 0
    seconds = {"Keras": 0.0, "ours": 0.0}
    with streams.folders() as root:
        for number in range(count):
            c = configuration(seed, number)
            started = time.perf_counter()
            wanted = streams.run(faces.theirs(), c, root)
            between = time.perf_counter()
            own = faces.own(workers=workers, order=c.order)
            got = streams.run(faces.ours(), c, root, **own)
            seconds["Keras"] += between - started
            seconds["ours"] += time.perf_counter() - between
            try:
                off = sameness.compare(c, wanted, got)
            except streams.Different as different:
                wrong += 1
                print(f"DIFFERENT: {different}\n", flush=True)
                continue
            raised += wanted.raised is not None
            batches += len(wanted.batches)
            same[kind(c)] += 1
            equal[kind(c)] += off == 0
            worst[kind(c)] = max(worst[kind(c)], off)
    for what, number in same.items():
        print(
            f"{what}: {number} the same, {equal[what]} of them to the bit; "
            f"off by {worst[what]:.2g} of a picture's largest value at most"
        )
    print(
        f"{batches} batches; {raised} errors were the same; {wrong} configurations were not; "
        f"{seconds['Keras']:.0f} s in Keras, {seconds['ours']:.0f} s in ours"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
