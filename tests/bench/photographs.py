"""How many photographs a second come from disk at 224x224, beside Keras's own class?"""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.simplefilter("ignore")

from measure import TRANSFORMS, consumed, drawn, medians  # noqa: E402
from real_data import DOGS_CATS  # noqa: E402

from augclient import Consumer, local  # noqa: E402

ROUNDS = 3
SIZE = (224, 224)
BATCH = 32


def main() -> None:
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    if not DOGS_CATS.exists():
        sys.exit(f"real photographs are not at {DOGS_CATS}")
    flow = ImageDataGenerator(**TRANSFORMS).flow_from_directory(
        DOGS_CATS, target_size=SIZE, batch_size=BATCH
    )
    keras_own = "Keras ImageDataGenerator"
    for workers in (1, 2):
        local.shut_down()
        with Consumer(
            data=DOGS_CATS, pictures={"label_mode": "categorical"}, target_size=SIZE,
            batch_size=BATCH, workers=workers, transforms=TRANSFORMS, slots=8,
        ) as consumer:  # fmt: skip
            keys = ((e, s) for e in range(10**6) for s in range(consumer.steps))
            name = f"augserver, {workers} worker{'s' * (workers > 1)}"
            questions = {keras_own: partial(drawn, flow), name: partial(consumed, consumer, keys)}
            answers = medians(questions, rounds=ROUNDS)
            print(
                f"{name} {answers[name]:6,.1f} images/s; {keras_own} in the same minutes "
                f"{answers[keras_own]:6,.1f}; ratio {answers[name] / answers[keras_own]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
