"""The datasets that a server holds: loaded once, shared by all streams that need them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from augproto.errors import ConfigError, NotAllowed
from augproto.messages import ArraySpec
from augproto.spec import HANDED
from augserver.datasets.arrays import ArrayDataset, load, reserve


class DatasetStore:
    """Datasets by name, with a count of their users; the last one to leave closes it.

    The users of files are the streams that are open. The users of handed-over arrays are the
    client's offers: it may come back for a new stream after its own was retired, so only its word
    (`withdraw`), or its end, lets them go.

    Args:
        name_segment: Gives a fresh name for a segment.
        loaded: Called, in another thread, when a load has ended.
    """

    def __init__(self, name_segment: Callable[[], str], loaded: Callable[[], None]) -> None:
        self._name_segment = name_segment
        self._loaded = loaded
        self._datasets: dict[tuple[str, ...], ArrayDataset] = {}
        self._filling: dict[str, ArrayDataset] = {}
        # Unpacking a large file takes seconds; the server's loop must not stand still meanwhile.
        self._loader = ThreadPoolExecutor(1, "augserver-loader")

    def acquire(self, data: Sequence[str]) -> Future[ArrayDataset]:
        """Become a user of the dataset; it may still have to be loaded.

        Files are the same dataset as long as their sizes and times are.
        """
        ready: Future[ArrayDataset] = Future()
        key = tuple(data)
        if not any(path.startswith(HANDED) for path in key):
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
        if key in self._datasets:
            dataset = self._datasets[key]
            dataset.users += not dataset.handed
            ready.set_result(dataset)
            return ready
        if key[0].startswith(HANDED):
            ready.set_exception(ConfigError(f"data: no arrays {key[0]!r:.80} were handed over"))
            return ready
        loading = self._loader.submit(self._load, key, tuple(data))
        # Not at the end of `_load`: whoever is woken there finds the future not done yet.
        loading.add_done_callback(lambda _: self._loaded())
        return loading

    def _load(self, key: tuple[str, ...], paths: tuple[str, ...]) -> ArrayDataset:
        dataset = self._datasets.get(key)
        if dataset is None:
            dataset = self._datasets[key] = load(paths, self._name_segment())
        dataset.users += 1
        return dataset

    def offer(self, name: str, arrays: Sequence[ArraySpec]) -> ArrayDataset | None:
        """Make room for a client's arrays; None if they are here already."""
        key = (f"{HANDED}{name}",)
        if key in self._datasets:
            self._datasets[key].users += 1
            return None
        self._give_up_filling(name)
        self._filling[name] = reserve(name, arrays, self._name_segment())
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
        dataset.users -= 1
        if dataset.users <= 0:
            for key in [k for k, d in self._datasets.items() if d is dataset]:
                del self._datasets[key]
            dataset.close()

    def close(self) -> None:
        """Give everything back."""
        self._loader.shutdown(wait=False, cancel_futures=True)
        for dataset in [*self._datasets.values(), *self._filling.values()]:
            dataset.close()


def check_roots(data: Sequence[str], roots: Sequence[str]) -> None:
    """Refuse a consumer's paths outside the allowed folders, also through links and `..`."""
    for path in data:
        real = os.path.realpath(path)
        if not any(
            os.path.commonpath([real, os.path.realpath(root)]) == os.path.realpath(root)
            for root in roots
        ):
            allowed = ", ".join(roots) or "none (the server's config names no roots)"
            raise NotAllowed(f"data: {path!r} is not below a folder this server allows: {allowed}")
