"""How long is an epoch of fit on TensorFlow, beside data that costs nothing to make?

    python tests/bench/fit_epochs.py [IMAGES [ROUNDS [BATCH ...]]]

CIFAR-10's pictures, repeated to IMAGES, and a model that hardly computes anything, at batch 256 and
32. Seconds are of an epoch of 50,000 pictures, computed from IMAGES (Keras's class does with a
fifth); from the end of one epoch to the end of the next, so that the boundary is in them. In turns;
Keras's PyDataset takes part in the first round only, since each of its epochs starts processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import report
from peers import work
from peers.by_hand import ByHand
from peers.ours import shut_down
from peers.work import WORKERS, Missing, Work

IMAGES, ROUNDS = 50_000, 2
EPOCH = 50_000
#: Part of the images that the slow ones are given.
SLOW_PART = 5

#: Makes what `fit` is given, and the number of steps where the data has no end.
Data = Callable[[Work], "contextlib.AbstractContextManager[tuple[Any, int | None]]"]


def repeated(task: Work, images: int) -> Work:
    """The same pictures again and again, so many."""
    assert task.x is not None
    rows = np.resize(np.arange(task.samples), images)
    return dataclasses.replace(task, x=task.x[rows], y=task.y[rows])


@contextlib.contextmanager
def sequence(task: Work) -> Iterator[tuple[Any, int | None]]:
    """Ours, as most use it."""
    with _sequence(task) as ours:
        yield ours, None


@contextlib.contextmanager
def as_tf_dataset(task: Work) -> Iterator[tuple[Any, int | None]]:
    """Ours, through TensorFlow's own datasets."""
    with _sequence(task) as ours:
        if not hasattr(ours, "as_tf_dataset"):
            raise Missing("AugSequence has no as_tf_dataset")
        yield ours.as_tf_dataset(), None


@contextlib.contextmanager
def _sequence(task: Work) -> Iterator[Any]:
    from augclient import AugSequence

    ours = AugSequence(
        task.x, task.y, batch_size=task.batch_size, transforms=task.transforms, workers=WORKERS,
        drop_remainder=True,
    )  # fmt: skip
    try:
        yield ours
    finally:
        ours.close()


def _constant(task: Work) -> tuple[Any, Any]:
    assert task.x is not None
    size = task.batch_size
    return task.x[:size].astype(np.float32) / 255, task.y[:size]


@contextlib.contextmanager
def constant(task: Work) -> Iterator[tuple[Any, int | None]]:
    """The same batch again and again from a PyDataset, as ours is one."""
    import keras

    batch = _constant(task)

    class Constant(keras.utils.PyDataset):  # type: ignore[misc] # keras carries no types
        def __len__(self) -> int:
            return task.samples // task.batch_size

        def __getitem__(self, step: int) -> Any:
            return batch

    yield Constant(), None


@contextlib.contextmanager
def constant_dataset(task: Work) -> Iterator[tuple[Any, int | None]]:
    """The same batch again and again from tf.data."""
    import tensorflow as tf

    yield tf.data.Dataset.from_tensors(_constant(task)).repeat(), task.samples // task.batch_size


@contextlib.contextmanager
def keras_class(task: Work) -> Iterator[tuple[Any, int | None]]:
    """Keras's own class in this process."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    generator = ImageDataGenerator(**task.transforms)
    yield generator.flow(task.x, task.y, batch_size=task.batch_size), None


@contextlib.contextmanager
def py_dataset(task: Work) -> Iterator[tuple[Any, int | None]]:
    """Keras's PyDataset with two processes."""
    from augserver.bench.peers import clean_processes, py_dataset_class

    with clean_processes():
        yield py_dataset_class()(task, workers=WORKERS, use_multiprocessing=True), None


@contextlib.contextmanager
def tf_data(task: Work) -> Iterator[tuple[Any, int | None]]:
    """tf.data as we could best write it."""
    from peers.tf_data import dataset

    yield dataset(task), task.samples // task.batch_size


@contextlib.contextmanager
def keras_layers(task: Work) -> Iterator[tuple[Any, int | None]]:
    """tf.data with Keras's layers."""
    from peers.tf_data import keras_layers

    yield keras_layers(task), task.samples // task.batch_size


@contextlib.contextmanager
def by_hand(task: Work) -> Iterator[tuple[Any, int | None]]:
    """The loop by hand, each batch copied once: TensorFlow would still read it in the ring."""
    loop = ByHand(task)
    try:
        batches = ((x.copy(), y.copy()) for x, y in loop)
        yield batches, task.samples // task.batch_size
    finally:
        loop.close()


ONCE, SLOW = "Keras's PyDataset, 2 processes", "Keras's ImageDataGenerator"
OURS, OURS_DATASET = "augserver", "augserver, as_tf_dataset"
CONSTANT, CONSTANT_DATASET = "constant data (PyDataset)", "constant data (tf.data)"
EVERYBODY: dict[str, Data] = {
    # First, while this process has the fewest threads: it is forked.
    ONCE: py_dataset,
    SLOW: keras_class,
    CONSTANT: constant,
    CONSTANT_DATASET: constant_dataset,
    "by hand": by_hand,
    OURS: sequence,
    OURS_DATASET: as_tf_dataset,
    "tf.data": tf_data,
    "tf.data with Keras's layers": keras_layers,
}


def model() -> Any:
    """Hardly anything to compute."""
    import keras

    trivial = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trivial.compile("sgd", loss)
    return trivial


def epochs_of(network: Any, data: Any, steps: int | None, count: int) -> list[float]:
    """Seconds of `count` epochs of one fit, the first left out."""
    import keras

    ends: list[float] = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
    )
    network.fit(data, steps_per_epoch=steps, epochs=count + 1, verbose=0, callbacks=[note])
    return [after - before for before, after in itertools.pairwise(ends)]


def measure(images: int, rounds: int, batch_size: int) -> None:
    whole = repeated(work.small_pictures(batch_size), images)
    part = repeated(whole, max(2 * batch_size, images // SLOW_PART))
    network = model()
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds):
        for name, make in EVERYBODY.items():
            if name == ONCE and turn:
                continue
            task = part if name == SLOW else whole
            try:
                with make(task) as (data, steps):
                    found = epochs_of(network, data, steps, 1 if name in (ONCE, SLOW) else 2)
            except Missing as reason:
                print(f"{name} is not measured: {reason}")
                continue
            made = task.samples // batch_size * batch_size
            seconds.setdefault(name, []).extend(each * EPOCH / made for each in found)
    median = {name: statistics.median(of) for name, of in seconds.items()}
    for ours, nothing in ((OURS, CONSTANT), (OURS_DATASET, CONSTANT_DATASET)):
        for name, of in sorted(median.items(), key=lambda item: item[1]):
            if ours in median and name != ours and (ours == OURS or name in (nothing, OURS)):
                report.answer(
                    f"fit, batch {batch_size}: an epoch of {ours} beside {name}",
                    median[ours] / of,
                    f"{median[ours]:.2f} s beside {of:.2f} s for {EPOCH:,} pictures",
                )


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    warnings.simplefilter("ignore")
    images = int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    for batch_size in map(int, sys.argv[3:] or (256, 32)):
        measure(images, rounds, batch_size)
    shut_down()


if __name__ == "__main__":
    main()
