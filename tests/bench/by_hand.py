"""Is it faster than what a good engineer writes in an afternoon (OpenCV and shared memory by hand)?

    python tests/bench/by_hand.py [ROUNDS [SECONDS]]

CIFAR-10 in memory at batch 32 and 256, two workers each, in turns with Keras's own class. The
comparison is void where the loop by hand is below 22 times Keras's class at batch 32, or below 29
times at batch 256: then it was written too slow.
"""

from __future__ import annotations

import contextlib
import sys

import report
from measure import rates
from peers import work
from peers.by_hand import by_hand
from peers.keras_own import image_data_generator
from peers.ours import ours, shut_down

ROUNDS, SECONDS = 5, 2.0
FLOOR = {32: 22.0, 256: 29.0}
OURS, HAND, KERAS = "augserver", "by hand", "Keras's ImageDataGenerator"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    for batch_size, floor in FLOOR.items():
        task = work.small_pictures(batch_size)
        with contextlib.ExitStack() as stack:
            makers = {OURS: ours, HAND: by_hand, KERAS: image_data_generator}
            batches = {name: stack.enter_context(make(task)) for name, make in makers.items()}
            found = rates(batches, rounds, seconds)
        us, hand, keras = found[OURS], found[HAND], found[KERAS]
        times = hand.images / keras.images
        void = "" if times >= floor else f" VOID: by hand is below {floor:.0f} times Keras's class."
        report.answer(
            f"batch {batch_size}: augserver beside the loop by hand, images/s",
            us.images / hand.images,
            f"{us.images:,.0f} images/s beside {hand.images:,.0f} by hand, which is {times:.1f} "
            f"times Keras's class ({keras.images:,.0f}).{void}",
        )
        report.answer(
            f"batch {batch_size}: the loop by hand beside augserver, CPU time an image",
            hand.cpu / us.cpu,
            f"{us.cpu:.2f} us beside {hand.cpu:.2f} by hand and {keras.cpu:.1f} of Keras's class, "
            f"all processes ({keras.cpu / hand.cpu:.1f} times by hand's)",
        )
    shut_down()


if __name__ == "__main__":
    main()
