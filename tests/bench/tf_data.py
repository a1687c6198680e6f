"""What does a step of `fit` cost beside one on a batch that is there: by AugSequence, by tf.data?

TensorFlow, CIFAR-10 shapes in 32 and 256, a model of no weight worth naming, pictures as they are:
what is left is the way from the ring into the training step. "ready" is one batch over and over in
a tf.data.Dataset. "16 a call" is compile(steps_per_execution=16): Keras's own Python, which is most
of a small step, is paid once for 16. CPU is that of this process; the server's are others.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"
warnings.simplefilter("ignore")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from measure import pictures  # noqa: E402

from augclient import AugSequence, local  # noqa: E402

ROUNDS = 7
SAMPLES = 50_000


def main() -> None:
    x, y = (np.resize(array, (SAMPLES, *array.shape[1:])) for array in pictures())
    for batch_size in (32, 256):
        local.shut_down()
        sequence = AugSequence(x, y, batch_size=batch_size, workers=1, slots=16)
        one = tf.data.Dataset.from_tensors((x[:batch_size].astype("float32"), y[:batch_size]))
        sources: dict[str, Any] = {
            "ready": one.repeat(len(sequence)),
            "AugSequence": sequence,
            "as_tf_dataset": sequence.as_tf_dataset(),
        }
        questions = {
            f"{name}, {together} a call": (_model(x.shape[1:], together), data)
            for together in (1, 16)
            for name, data in sources.items()
        }
        answers: dict[str, list[tuple[float, float]]] = {name: [] for name in questions}
        for round_ in range(ROUNDS + 1):
            for name, (model, data) in questions.items():
                seconds = _seconds(model, data)
                if round_:  # the first one builds its graph
                    answers[name].append(seconds)
        for name, both in answers.items():
            wall, cpu = (statistics.median(column) for column in zip(*both, strict=True))
            print(
                f"batch {batch_size:3}, {name:25}: {wall:.2f} s an epoch, "
                f"{1e6 * wall / len(sequence):5.0f} us a step, {1e6 * cpu / len(sequence):5.0f} us "
                "of CPU",
                flush=True,
            )
        print(f"           {sequence.consumer.copies} batches were copied for want of slots")
        sequence.close()


def _model(picture: tuple[int, ...], together: int) -> Any:
    """A trivial one that takes so many steps in each call from Python."""
    model = keras.Sequential(
        [keras.Input(picture), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, steps_per_execution=together)
    return model


def _seconds(model: Any, data: Any) -> tuple[float, float]:
    """Of an epoch, and of this process's CPU."""
    started, cpu = time.perf_counter(), time.process_time()
    model.fit(data, verbose=0)
    return time.perf_counter() - started, time.process_time() - cpu


if __name__ == "__main__":
    main()
