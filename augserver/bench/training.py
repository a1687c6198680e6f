"""(b) Small pictures and (c) photographs, with training: the gain, and what keeps a model busy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from augserver.bench import attempts, peers
from augserver.bench.data import Photographs, Pictures
from augserver.bench.plan import TRANSFORMS, Plan
from augserver.bench.timing import Summary
from augserver.bench.watch import Usage, Watch
from augserver.bench.work import Work

OURS, KERAS = "augserver", "Keras ImageDataGenerator"
PHOTOGRAPH_BATCH = 64
#: Steps of an epoch on small pictures, at least and at most.
STEPS = (2, 64)

#: Makes what `fit` takes, one epoch long, of a work and a number of worker processes.
Feed = Callable[[Work, int], "contextlib.AbstractContextManager[Any]"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """Images a second of `fit`, by the batch's size and by who feeds it."""

    rates: dict[int, dict[str, Summary]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Busy:
    """Training on photographs, by who feeds it: images a second, and use over time."""

    batch_size: int
    size: tuple[int, int]
    rates: dict[str, float] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def augmented(work: Work, workers: int) -> Iterator[Any]:
    """Ours."""
    from augclient.sequence import AugSequence

    options: dict[str, Any] = {
        "batch_size": work.batch_size,
        "transforms": work.transforms,
        "workers": workers,
        "seed": 1,
    }
    if work.x is not None:
        sequence = AugSequence(work.x, work.y, **options)
    else:
        sequence = AugSequence(files=work.files, y=work.y, target_size=work.size, **options)
    try:
        yield sequence
    finally:
        sequence.close()


@contextlib.contextmanager
def keras_own(work: Work, workers: int) -> Iterator[Any]:
    """Keras's own iterator, in this process as it is by default."""
    del workers
    with peers.keras_flow(work) as flow:
        yield flow


FEEDS: dict[str, Feed] = {OURS: augmented, KERAS: keras_own}


def on_small_pictures(pictures: Pictures, plan: Plan, workers: int, say: Say) -> Training:
    """Train a small network at each batch size, fed by both in turns."""
    found = Training()
    model = _network((32, 32, 3), int(pictures.y.max()) + 1)
    for batch_size in plan.batch_sizes:
        work = _epoch(pictures, batch_size)
        rates: dict[str, list[float]] = {}
        say(f"  batch {batch_size}")
        for _ in range((plan.rounds + 1) // 2):
            for name, feed in FEEDS.items():
                attempts.check()
                if name not in found.missing:
                    try:
                        with feed(work, workers) as data:
                            rate = _trained(model, data, work.samples, plan.train_seconds)
                    except Exception as error:  # a damaged file, no memory, whatever Keras raises
                        found.missing[name] = attempts.reason(error)
                    else:
                        rates.setdefault(name, []).append(rate)
        found.rates[batch_size] = {name: Summary.of(of) for name, of in rates.items()}
    return found


def on_photographs(photographs: Photographs, plan: Plan, workers: int, say: Say) -> Busy:
    """Train a network on files, fed by one and then by the other, under watch."""
    found = Busy(PHOTOGRAPH_BATCH, plan.photograph_size)
    size = min(PHOTOGRAPH_BATCH, len(photographs.files) // 2)
    model = _network((*plan.photograph_size, 3), int(photographs.y.max()) + 1, deep=True)
    transforms = dict(TRANSFORMS)
    work = Work(
        "photographs", size, transforms, photographs.y, None, photographs.files,
        plan.photograph_size,
    )  # fmt: skip
    for name, feed in FEEDS.items():
        say(f"  {name}")
        try:
            with feed(work, workers) as data:
                # Compiled before the watch looks.
                model.fit(data, steps_per_epoch=1, epochs=1, verbose=0)
            with feed(work, workers) as data, Watch() as watch:
                rate = _trained(model, data, work.samples, plan.use_seconds)
        except Exception as error:  # as above
            found.missing[name] = attempts.reason(error)
        else:
            found.rates[name], found.usage[name] = rate, watch.usage
    return replace(found, batch_size=size)


def _epoch(pictures: Pictures, batch_size: int) -> Work:
    """The pictures, repeated or left out so that an epoch is a few batches, none of them short."""
    steps = min(STEPS[1], max(STEPS[0], len(pictures.x) // batch_size))
    rows = np.resize(np.arange(len(pictures.x)), steps * batch_size)
    return Work("small pictures", batch_size, dict(TRANSFORMS), pictures.y[rows], pictures.x[rows])


def _network(shape: tuple[int, int, int], classes: int, *, deep: bool = False) -> Any:
    """A small convolutional network."""
    import keras
    from keras import layers

    network = keras.Sequential([keras.Input(shape)])
    if deep:  # large pictures become small ones first
        network.add(layers.Conv2D(16, 7, strides=4, activation="relu", padding="same"))
    for filters in (16, 32):
        network.add(layers.Conv2D(filters, 3, activation="relu", padding="same"))
        network.add(layers.MaxPooling2D())
    network.add(layers.GlobalAveragePooling2D())
    network.add(layers.Dense(classes, activation="softmax"))
    network.compile("adam", "sparse_categorical_crossentropy")
    return network


def _trained(model: Any, data: Any, images: int, seconds: float) -> float:
    """Images a second of whole epochs of so many, after the first, for at least some seconds."""
    import keras

    class Clock(keras.callbacks.Callback):  # type: ignore[misc] # keras carries no types
        def __init__(self) -> None:
            super().__init__()
            self.started = self.ended = 0.0
            self.epochs = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            attempts.check()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.ended = time.perf_counter()
            if not self.started:
                self.started = self.ended
            else:
                self.epochs += 1
                self.model.stop_training = self.ended - self.started >= seconds

    clock = Clock()
    model.fit(data, epochs=10**6, verbose=0, callbacks=[clock])
    return clock.epochs * images / (clock.ended - clock.started)
