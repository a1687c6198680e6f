"""The datasets that a server holds: loaded once, shared by all streams that need them."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from augproto.errors import ConfigError
from augproto.messages import ArraySpec
from augproto.pictures import Pictures
from augproto.spec import HANDED, Spec
from augserver.datasets.arrays import ArrayDataset, hold, load, reserve
from augserver.datasets.listing import list_files
from augserver.datasets.loader import Loader
from augserver.memory import Memory


class DatasetStore:
    """Datasets by name, with a count of their users; the last one to leave closes it.

    The users of files are the streams that are open. The users of handed-over arrays are the
    client's offers: it may come back for a new stream after its own was retired, so only its word
    (`withdraw`), or its end, lets them go.

    Args:
        memory: Where the arrays will lie.
        loaded: Called, in another thread, when a load has ended.
    """

    def __init__(self, memory: Memory, loaded: Callable[[], None]) -> None:
        self._memory = memory
        self._loaded = loaded
        self._datasets: dict[tuple[str, ...], ArrayDataset] = {}
        self._filling: dict[str, ArrayDataset] = {}
        self._lock = threading.Lock()
        self._making: dict[tuple[str, ...], threading.Lock] = {}
        # Unpacking a large file takes seconds; the server's loop must not stand still meanwhile.
        self._loader = Loader()

    def acquire(self, spec: Spec, roots: Sequence[str] | None = None) -> Future[ArrayDataset]:
        """Become a user of a stream's dataset; it may still have to be loaded.

        Files are the same dataset as long as their sizes and times are.

        Args:
            spec: The stream.
            roots: Folders below which everything that is listed must lie; None for any.
        """
        ready: Future[ArrayDataset] = Future()
        key = spec.data
        handed = any(path.startswith(HANDED) for path in key)
        if spec.pictures is not None and not handed:
            path, pictures = spec.data[0], spec.pictures
            return self._submit(lambda: self._list(path, pictures, roots))
        if not handed:
            try:
                stats = [os.stat(path) for path in key]
            except OSError as error:
                ready.set_exception(ConfigError(f"data: {error.filename}: {error.strerror}"))
                return ready
            for path, status in zip(key, stats, strict=True):
                if not stat.S_ISREG(status.st_mode):  # a pipe, say, would hold up the loader
                    ready.set_exception(ConfigError(f"data: {path!r:.200} is not a regular file"))
                    return ready
            key += tuple(f"{s.st_size} {s.st_mtime_ns}" for s in stats)
        with self._lock:
            dataset = self._datasets.get(key)
            if dataset is not None:
                dataset.users += not dataset.handed
        if dataset is not None:
            ready.set_result(dataset)
            return ready
        if key[0].startswith(HANDED):
            ready.set_exception(ConfigError(f"data: no arrays {key[0]!r:.80} were handed over"))
            return ready
        return self._submit(lambda: self._load(key, spec.data))

    def _submit(self, load: Callable[[], ArrayDataset]) -> Future[ArrayDataset]:
        loading = self._loader.submit(load)
        # Not at the end of `_load`: whoever is woken there finds the future not done yet.
        loading.add_done_callback(lambda _: self._loaded())
        return loading

    def _list(self, path: str, pictures: Pictures, roots: Sequence[str] | None) -> ArrayDataset:
        # Only a new walk tells whether a folder is what it was; the same list is held once.
        listing = list_files(path, pictures, roots)

        def make() -> ArrayDataset:
            dataset = hold(listing.fingerprint, listing.arrays, self._memory)
            dataset.class_names = listing.class_names
            return dataset

        return self._once(("files", listing.fingerprint), make)

    def _load(self, key: tuple[str, ...], paths: tuple[str, ...]) -> ArrayDataset:
        return self._once(key, lambda: load(paths, self._memory))

    def _once(self, key: tuple[str, ...], make: Callable[[], ArrayDataset]) -> ArrayDataset:
        """Become a user of that dataset, which is made by one thread while others wait for it."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                dataset = self._datasets.get(key)
                if dataset is not None:
                    dataset.users += 1
                    return dataset
            made = make()
            with self._lock:
                made.users += 1
                self._datasets[key] = made
                self._making.pop(key, None)
            return made

    def offer(self, name: str, arrays: Sequence[ArraySpec]) -> ArrayDataset | None:
        """Make room for a client's arrays; None if they are here already."""
        key = (f"{HANDED}{name}",)
        if key in self._datasets:
            self._datasets[key].users += 1
            return None
        self._give_up_filling(name)
        self._filling[name] = reserve(name, arrays, self._memory)
        return self._filling[name]

    def filled(self, name: str) -> None:
        """A client has written its arrays."""
        dataset = self._filling.pop(name, None)
        if dataset is None:
            raise ConfigError(f"filled: no room for arrays {name!r:.80} was asked for")
        dataset.handed = True
        dataset.users += 1
        self._datasets[f"{HANDED}{name}",] = dataset

    def withdraw(self, name: str) -> None:
        """One offer less; one that was never filled is over at once."""
        self._give_up_filling(name)
        dataset = self._datasets.get((f"{HANDED}{name}",))
        if dataset is not None:
            self._leave(dataset)

    def _give_up_filling(self, name: str) -> None:
        # A program that was interrupted while it wrote its arrays says so, or begins again.
        filling = self._filling.pop(name, None)
        if filling is not None:
            filling.close()

    def release(self, dataset: ArrayDataset) -> None:
        """One stream less."""
        if not dataset.handed:
            self._leave(dataset)

    def _leave(self, dataset: ArrayDataset) -> None:
        with self._lock:
            dataset.users -= 1
            if dataset.users > 0:
                return
            for key in [k for k, d in self._datasets.items() if d is dataset]:
                del self._datasets[key]
        dataset.close()

    def close(self) -> None:
        """Give everything back."""
        self._loader.close()
        for dataset in [*self._datasets.values(), *self._filling.values()]:
            dataset.close()
