"""How many augmented CIFAR-10 pictures a second arrive, beside every peer on the same two cores?

python tests/bench/throughput.py [ROUNDS [SECONDS [BATCH ...]]]
"""

from __future__ import annotations

import sys

import report
from peers import work
from peers.all import CACHED, EVERYBODY, compare
from peers.ours import shut_down

ROUNDS, SECONDS = 3, 1.0
BATCHES = (32, 256, 1024)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    for batch_size in map(int, sys.argv[3:] or BATCHES):
        task = work.small_pictures(batch_size)
        peers = {name: make for name, make in EVERYBODY.items() if name != CACHED}
        found, missing = compare(task, rounds, seconds, warm_up=0.5, peers=peers)
        report.standing(f"{task.name}, batch {batch_size}", found, missing)
    shut_down()


if __name__ == "__main__":
    main()
