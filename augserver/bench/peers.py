"""Keras's own class in one process, its PyDataset with two, and a plain Pool.

All three compute with `ImageDataGenerator`'s transforms, picture by picture, as programs do that
use what Keras has. The Pool maps over the pictures of each batch, as the package of 2017 did.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import numpy as np

from augserver.bench.work import TWO, Array, Batches, Work

#: Batches that Keras's processes make ahead; its default.
AHEAD = 10
#: Seconds that a peer's batch may take: some of them wait for ever for a process that has died.
BATCH_TIMEOUT = 120.0
#: Seconds for such a peer's processes to end.
ENDING = 10.0
KERAS_IMAGE = "keras.src.legacy.preprocessing.image"


def keras_image() -> Any:
    """Keras's module with its `ImageDataGenerator`, without the noise that it makes.

    Raises:
        ImportError: There is no Keras, or one without that class.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = importlib.import_module(KERAS_IMAGE)
    # SciPy's namespaces that this class calls are deprecated; it says so for every picture.
    warnings.filterwarnings("ignore", message=".*scipy.ndimage.*", category=DeprecationWarning)
    return image


@contextlib.contextmanager
def keras_flow(work: Work) -> Iterator[Any]:
    """Keras's own iterator over a work's samples, shuffled, for ever; good within the block."""
    generator = keras_image().ImageDataGenerator(**work.transforms)
    if work.x is not None:
        yield generator.flow(work.x, work.y, batch_size=work.batch_size, seed=1)
        return
    with tempfile.TemporaryDirectory(prefix="augserver-bench-") as folder:
        _link(work, Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # it counts the files aloud
            flow = generator.flow_from_directory(
                folder,
                class_mode="sparse",
                target_size=work.size,
                batch_size=work.batch_size,
                seed=1,
            )
        if flow.n != work.samples:
            raise RuntimeError(
                f"Keras's class finds {flow.n} of the {work.samples} files that augserver is given"
            )
        yield flow


def _link(work: Work, folder: Path) -> None:
    """A folder for each class, of links to the work's files.

    In the files' own folders Keras's class would also take what lies deeper and pictures of other
    endings, and count empty folders as classes.
    """
    for label in range(int(work.y.max()) + 1):
        (folder / f"{label:06d}").mkdir()
    for n, (file, label) in enumerate(zip(work.files, work.y.tolist(), strict=True)):
        source = Path(file).absolute()
        (folder / f"{label:06d}" / f"{n:08d}{source.suffix}").symlink_to(source)


@contextlib.contextmanager
def image_data_generator(work: Work) -> Iterator[Batches]:
    """`ImageDataGenerator` in this process."""
    with keras_flow(work) as flow:
        yield (x for x, _ in flow)


class Samples:
    """One augmented sample by its number; what the processes compute."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._image = keras_image()
        self._generator = self._image.ImageDataGenerator(**work.transforms)

    def __getitem__(self, sample: int) -> Array:
        work = self._work
        source = work.files[sample] if work.x is None else work.x[sample]
        return _augmented(self._image, self._generator, source, work.size)

    def __getstate__(self) -> Work:
        return self._work

    def __setstate__(self, work: Work) -> None:
        self.__init__(work)  # type: ignore[misc] # modules cannot be pickled


def _augmented(image: Any, generator: Any, source: Any, size: tuple[int, int]) -> Array:
    if isinstance(source, str):
        source = np.asarray(image.image_utils.load_img(source, target_size=size))
    picture = source.astype(np.float32)
    out: Array = generator.standardize(generator.random_transform(picture))
    return out


_class: type[Any] | None = None


def py_dataset_class() -> type[Any]:
    """The PyDataset of a work; made late, since Keras is imported late."""
    global _class
    if _class is None:
        import keras

        class Augmented(keras.utils.PyDataset):  # type: ignore[misc] # keras carries no types
            def __init__(self, work: Work, **options: Any) -> None:
                super().__init__(**options)
                self._options = options
                self._work = work
                self._samples = Samples(work)

            def __len__(self) -> int:
                return self._work.samples // self._work.batch_size

            def __getitem__(self, step: int) -> tuple[Array, Array]:
                size = self._work.batch_size
                rows = range(step * size, (step + 1) * size)
                x = np.stack([self._samples[row] for row in rows])
                return x, self._work.y[rows.start : rows.stop]

            def __reduce__(self) -> Any:
                return _py_dataset, (self._work, self._options)

        _class = Augmented
    return _class


def _py_dataset(work: Work, options: dict[str, Any]) -> Any:
    return py_dataset_class()(work, **options)


@contextlib.contextmanager
def clean_processes() -> Iterator[None]:
    """Whatever starts processes forks them from a clean one that has Keras imported.

    Forking beside TensorFlow's threads, the default on Linux until Python 3.14, hangs now and then.
    Neither that process nor those it starts hear Ctrl-C, which a terminal sends to all of them: who
    has started them ends them, and a Pool one of whose processes has died of it never ends.
    """
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_forkserver_preload([KERAS_IMAGE])
    multiprocessing.set_start_method("forkserver", force=True)
    resource_tracker.ensure_running()  # which starts with a mask of its own, and then clears it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()  # inherits the mask, as its children do
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@contextlib.contextmanager
def py_dataset(work: Work) -> Iterator[Batches]:
    """A PyDataset's batches from two processes, as Keras's own fit gets them."""
    keras_image()
    from keras.src.trainers.data_adapters.py_dataset_adapter import OrderedEnqueuer

    with clean_processes():
        data = py_dataset_class()(work)
        running: list[Any] = []

        def batches() -> Iterator[Array]:
            while True:
                enqueuer = OrderedEnqueuer(
                    data, workers=TWO, use_multiprocessing=True, max_queue_size=AHEAD, shuffle=True
                )
                running.append(enqueuer)
                enqueuer.start()
                source = enqueuer.get()
                for _ in range(len(data)):
                    yield next(source)[0]
                running.remove(enqueuer)
                enqueuer.stop()

        try:
            yield _within(BATCH_TIMEOUT, batches())
        finally:
            for enqueuer in running:
                _end(enqueuer)


def _end(enqueuer: Any) -> None:
    """End an enqueuer's processes; its own `stop` waits for whoever does not answer."""
    thread = enqueuer.run_thread
    enqueuer.stop(drain_queue_and_join=False)
    end = time.monotonic() + ENDING
    # Its thread closes the pool once it has room for what it was about to ask for.
    while thread is not None and thread.is_alive() and time.monotonic() < end:
        with contextlib.suppress(queue.Empty):
            enqueuer.future_queue.get(timeout=0.1)


def _within(seconds: float, batches: Iterator[Array]) -> Iterator[Array]:
    """The same batches, each within a time or not at all; fetched one ahead.

    The thread that fetches is a daemon: it may be stuck for good.
    """
    ready: queue.Queue[Array | Exception] = queue.Queue(1)

    def fetch() -> None:
        try:
            for batch in batches:
                ready.put(batch)
        except Exception as error:
            ready.put(error)

    threading.Thread(target=fetch, name="augserver-bench-peer", daemon=True).start()
    while True:
        try:
            batch = ready.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no batch within {seconds:.0f} s") from None
        if isinstance(batch, Exception):
            raise batch
        yield batch


_image: Any = None


def _of_pool(asked: tuple[Any, Any, tuple[int, int]]) -> Array:
    global _image
    if _image is None:
        _image = keras_image()
    generator, source, size = asked
    return _augmented(_image, generator, source, size)


@contextlib.contextmanager
def plain_pool(work: Work) -> Iterator[Batches]:
    """`Pool.map` over the pictures of each batch, the transforms pickled with every one."""
    generator = keras_image().ImageDataGenerator(**work.transforms)
    sources: Any = work.files if work.x is None else work.x
    rng = np.random.default_rng(1)
    with clean_processes(), multiprocessing.Pool(TWO) as pool:

        def batches() -> Iterator[Array]:
            while True:
                order = rng.permutation(work.samples)
                for first in range(0, work.samples - work.batch_size + 1, work.batch_size):
                    samples = order[first : first + work.batch_size].tolist()
                    asked = [(generator, sources[n], work.size) for n in samples]
                    yield np.stack(pool.map_async(_of_pool, asked).get(BATCH_TIMEOUT))

        yield batches()
