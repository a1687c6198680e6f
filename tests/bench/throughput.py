"""How many augmented CIFAR-10 pictures a second arrive, beside Keras's own class in one process?"""

from __future__ import annotations

import os
import warnings
from functools import partial

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.simplefilter("ignore")

from measure import TRANSFORMS, consumed, drawn, medians, pictures  # noqa: E402

from augclient import Consumer, local  # noqa: E402

ROUNDS = 3


def main() -> None:
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    x, y = pictures()
    for batch_size in (32, 256):
        flow = ImageDataGenerator(**TRANSFORMS).flow(x, y, batch_size=batch_size)
        keras_own = "Keras ImageDataGenerator"
        for workers in (1, 2):
            local.shut_down()
            with Consumer(
                x, y, batch_size=batch_size, workers=workers, transforms=TRANSFORMS
            ) as consumer:
                keys = ((e, s) for e in range(10**6) for s in range(consumer.steps))
                for _ in range(3 * consumer.slots):
                    consumer.get(*next(keys))
                name = f"augserver, {workers} worker{'s' * (workers > 1)}"
                questions = {
                    keras_own: partial(drawn, flow),
                    name: partial(consumed, consumer, keys),
                }
                answers = medians(questions, rounds=ROUNDS)
                print(
                    f"batch {batch_size:4}: {name} {answers[name]:8,.0f} images/s; {keras_own} in "
                    f"the same minutes {answers[keras_own]:8,.0f}; "
                    f"ratio {answers[name] / answers[keras_own]:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
