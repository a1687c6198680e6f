"""A user's first minute: a small network learns from pictures that the demo draws itself.

The demo is a program like any other: it wraps its arrays in `AugSequence`, and a private server
makes the batches. It shows what that is worth with two figures, images per second and the share of
the time in which the model had nothing to do but wait, and what it does with a contact sheet.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from augproto.errors import ConfigError
from augserver import health
from augserver.shapes import SEED, Dataset, Pictures, draw_dataset, read_dataset

if TYPE_CHECKING:
    from augclient.consumer import Consumer

BACKENDS = ("tensorflow", "jax", "torch")
BATCH = 32
AUGMENTATION: dict[str, object] = {
    "rotation_range": 15,
    "width_shift_range": 0.1,
    "height_shift_range": 0.1,
    "horizontal_flip": True,
    "rescale": 1 / 255,
}
#: Pictures on a side of the contact sheet's two halves.
GRID = 8


class Meter:
    """How long the model had nothing to do because a batch was still being fetched.

    What counts is the time in which both hold: a fetch is under way, and the model has finished
    every batch that was handed over before. On JAX and PyTorch Keras fetches between two steps, so
    this is all of the time spent fetching. On TensorFlow other threads fetch ahead of the model,
    and a fetch that lasts long keeps the model waiting only once it has used up what is there.
    (Where a step's end is reported before a device has finished it, the true share is smaller.)

    The first batch of all is left out: in it the backend compiles the model.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._handed = 0
        self._trained = 0
        self._counting_from: float | None = None
        self._idle_since = 0.0
        self.seconds = 0.0
        self.waited = 0.0
        self.batches = 0

    def epoch_begins(self) -> None:
        """The model begins an epoch; what was fetched before only told Keras the shapes."""
        with self._lock:
            self._handed = self._trained = 0
            self._idle_since = self._clock()
            if self.batches:
                self._counting_from = self._idle_since

    def batch_ends(self) -> None:
        """The model has finished a batch."""
        now = self._clock()
        with self._lock:
            self._trained += 1
            self._idle_since = now
            if self._counting_from is not None:
                self.seconds += now - self._counting_from
            self._counting_from = now
            self.batches += 1

    @contextlib.contextmanager
    def fetch(self) -> Iterator[None]:
        """A batch is being fetched."""
        began = self._clock()
        yield
        now = self._clock()
        with self._lock:
            if self._trained == self._handed and self.batches:
                self.waited += now - max(began, self._idle_since)
            self._handed += 1

    @property
    def share(self) -> float:
        """The part of the time, from 0 to 1, in which the model waited."""
        return self.waited / self.seconds if self.seconds else 0.0


def run(
    *,
    data: Path | None,
    epochs: int,
    workers: int | None,
    backend: str | None,
    output: Path,
    pictures: int,
) -> None:
    """Train, say what happens, draw the contact sheet.

    Raises:
        ConfigError: Keras or its backend is missing, or the data is none.
    """
    chosen = _choose_backend(backend)
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: {output}: there is no such folder")
    dataset = draw_dataset(pictures) if data is None else read_dataset(data)
    _explain(dataset, "drawn by this program" if data is None else f"from {data}")
    print(f"Starting Keras on {chosen} ...", flush=True)
    import keras

    from augclient.consumer import Consumer
    from augclient.sequence import AugSequence

    keras.utils.set_random_seed(SEED)
    meter = Meter()

    class Watched(AugSequence):
        """Tells the meter of every fetch."""

        def __getitem__(self, index: int) -> tuple[Any, ...]:
            with meter.fetch():
                return super().__getitem__(index)

    train = Watched(
        dataset.x_train,
        dataset.y_train,
        batch_size=BATCH,
        seed=SEED,
        workers=workers,
        transforms=AUGMENTATION,
    )
    test = AugSequence(
        dataset.x_test,
        dataset.y_test,
        batch_size=BATCH,
        shuffle=False,
        transforms={"rescale": 1 / 255},
    )
    _introduce(train.consumer, dataset)
    model = _network(keras, dataset)
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: meter.epoch_begins(),
        on_train_batch_end=lambda batch, logs: meter.batch_ends(),
    )
    history = model.fit(train, validation_data=test, epochs=epochs, callbacks=[watch]).history
    images = epochs * train.consumer.samples - BATCH  # without the first batch, as the meter
    _conclude(meter, images, chosen, history["val_accuracy"][-1])
    shown = min(GRID * GRID, len(dataset.x_train))
    originals, labels = dataset.x_train[:shown], dataset.y_train[:shown]
    with Consumer(
        originals, labels, batch_size=shown, shuffle=False, seed=SEED, transforms=AUGMENTATION
    ) as consumer:
        augmented: Any = consumer.get(0, 0).x
        contact_sheet(originals, augmented).save(output)
    print(f"Originals beside their augmented versions: {output}")
    train.close()
    test.close()


def _choose_backend(wanted: str | None) -> str:
    """Make Keras use that backend, or the first there is; importing Keras fixes it for good."""
    wanted = wanted or os.environ.get("KERAS_BACKEND")
    if wanted is not None and wanted not in BACKENDS:
        raise ConfigError(f"--backend: got {wanted!r}; wanted one of {', '.join(BACKENDS)}")
    candidates = BACKENDS if wanted is None else (wanted,)
    chosen = next((name for name in candidates if importlib.util.find_spec(name)), None)
    if chosen is None or importlib.util.find_spec("keras") is None:
        missing = "Keras" if chosen else f"{wanted or 'a backend for Keras'}"
        raise ConfigError(
            f"the demo trains with Keras, and {missing} is not installed: "
            f"pip install 'augserver[{wanted or chosen or BACKENDS[0]}]'"
        )
    os.environ["KERAS_BACKEND"] = chosen
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or its greetings drown the demo's lines
    return chosen


def _network(keras: Any, dataset: Dataset) -> Any:
    """The small network with which the 2017 package was measured."""
    layers = keras.layers
    model = keras.Sequential([keras.Input(dataset.x_train.shape[1:])])
    for filters in (32, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.Conv2D(filters, 3, activation="relu"))
        model.add(layers.MaxPooling2D())
        model.add(layers.Dropout(0.25))
    model.add(layers.Flatten())
    model.add(layers.Dense(512, activation="relu"))
    model.add(layers.Dropout(0.5))
    classes = 1 + int(max(dataset.y_train.max(), dataset.y_test.max()))
    model.add(layers.Dense(max(classes, 10), activation="softmax"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _explain(dataset: Dataset, origin: str) -> None:
    height, width = dataset.x_train.shape[1:3]
    print(
        f"{len(dataset.x_train)} pictures of {height}x{width} to learn from, "
        f"{len(dataset.x_test)} to check, {origin}.\n"
        "Every epoch sees each picture turned by up to 15 degrees, shifted by up to a tenth, and "
        "mirrored or not.",
        flush=True,
    )


def _introduce(consumer: Consumer, dataset: Dataset) -> None:
    """Who makes the batches, and where they lie."""
    from augclient.local import private_server

    address = private_server(None).address
    pid, status = health.ask(address, 10.0)
    workers = _workers(pid, status.workers_wanted)
    numbers = ", ".join(map(str, workers)) or "?"
    pixels = dataset.x_train[0].size
    ring = consumer.slots * consumer.batch_size * (4 * pixels + 8) / 2**20  # float32 and a label
    print(
        f"Process {pid} serves, at {address};\n"
        f"{status.workers_wanted} worker processes ({numbers}) write batches of "
        f"{consumer.batch_size} into a ring of {consumer.slots} in shared memory ({ring:.0f} MiB),"
        "\nand the model trains on them where they lie.",
        flush=True,
    )


def _workers(server: int, wanted: int) -> list[int]:
    """The worker processes, which are the forkserver's; they come up while we talk."""
    deadline = time.monotonic() + 10.0
    while True:
        workers = [worker for child in _children(server) for worker in _children(child)]
        if len(workers) >= wanted or time.monotonic() > deadline:
            return workers
        time.sleep(0.02)


def _children(parent: int) -> list[int]:
    """The processes that a process has started (as far as /proc tells)."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The name, in brackets, may hold anything: count from its end.
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                children.append(int(path.parent.name))
    return sorted(children)


def _conclude(meter: Meter, images: int, backend: str, accuracy: float) -> None:
    print(
        f"Trained at {images / meter.seconds:.0f} images/s on {backend}. The model waited for data "
        f"in {100 * meter.share:.1f} % of the time\n(a batch was being fetched and all before it "
        "were used up). Accuracy on pictures it has\n"
        f"never seen: {100 * accuracy:.1f} %."
    )


def contact_sheet(originals: Pictures, augmented: npt.NDArray[np.floating[Any]]) -> Image.Image:
    """A grid of originals and, at the same places, what became of them (values from 0 to 1)."""
    count, height, width, channels = originals.shape
    scale = max(1, 64 // max(height, width))
    columns, rows = GRID, -(-count // GRID)
    after = (augmented.clip(0, 1) * 255).round().astype(np.uint8)
    gap, head = 2, 20
    half = columns * (width * scale + gap) + gap
    sheet = Image.new("RGB", (2 * half + 4 * gap, head + rows * (height * scale + gap)), "white")
    text = ImageDraw.Draw(sheet)
    for left, title, pictures in (
        (0, "originals", originals),
        (half + 4 * gap, "augmented", after),
    ):
        text.text((left + gap, 4), title, "black")
        for n, picture in enumerate(pictures):
            row, column = divmod(n, columns)
            pixels = np.broadcast_to(picture, (height, width, 3)) if channels == 1 else picture
            image = Image.fromarray(np.ascontiguousarray(pixels))
            image = image.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(
                image,
                (left + gap + column * (width * scale + gap), head + row * (height * scale + gap)),
            )
    return sheet
