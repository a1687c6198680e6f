"""How many photographs a second come from disk at 299x299, beside every peer on the same cores?

    python tests/bench/photographs.py [ROUNDS [SECONDS [FILES]]]

2,000 JPEG files of 500x375, batch 64: decoded, resized, turned, shifted, zoomed, mirrored, with a
channel shift. In the first epoch everybody decodes; the decoded cache is of later ones.
"""

from __future__ import annotations

import sys

import report
from peers import work
from peers.all import compare
from peers.ours import shut_down

ROUNDS, SECONDS = 3, 3.0


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    count = int(sys.argv[3]) if len(sys.argv) > 3 else work.PHOTOGRAPHS
    with work.photographs(count=count) as task:
        found, missing = compare(task, rounds, seconds, warm_up=1.0)
        report.standing(f"{count} {task.name}, batch {task.batch_size}", found, missing)
        shut_down()


if __name__ == "__main__":
    main()
