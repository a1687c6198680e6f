"""The datasets that a server holds: loaded once, shared by all streams that need them."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import numpy as np

from augproto.errors import ConfigError, NoRoom
from augproto.files import ENDS
from augproto.messages import ArraySpec
from augproto.spec import HANDED, Spec
from augserver.datasets import cache
from augserver.datasets.arrays import ArrayDataset, hold, load, reserve
from augserver.datasets.listing import base_of, list_files
from augserver.datasets.loader import Loader
from augserver.limits import mib
from augserver.memory import Memory

T = TypeVar("T")

_log = logging.getLogger("augserver.server")


class Cached(NamedTuple):
    """Caches of decoded pictures, all together: samples that are there, places, bytes in all."""

    samples: int
    places: int
    size: int


class DatasetStore:
    """Datasets by name, with a count of their users; the last one to leave closes it.

    The users of files are the streams that are open. The users of handed-over arrays are the
    client's offers: it may come back for a new stream after its own was retired, so only its word
    (`withdraw`), or its end, lets them go.

    Args:
        memory: Where the arrays will lie.
        loaded: Called, in another thread, when a load has ended.
        cache_bytes: Of all caches of decoded pictures; None for the usual bound.
        private: The server is a program's own, and has no config in which its user sets anything.
    """

    def __init__(
        self,
        memory: Memory,
        loaded: Callable[[], None],
        cache_bytes: int | None = None,
        *,
        private: bool = False,
    ) -> None:
        self._memory = memory
        self._loaded = loaded
        self._cache_bytes = cache_bytes
        self._private = private
        self._caching = threading.Lock()
        self._told: set[str] = set()
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
            return self.submit(lambda: self._list(spec, roots))
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
            return self.join(dataset, spec, roots)
        if key[0].startswith(HANDED):
            ready.set_exception(ConfigError(f"data: no arrays {key[0]!r:.80} were handed over"))
            return ready
        return self.submit(lambda: self._load(key, spec.data))

    def join(
        self, dataset: ArrayDataset, spec: Spec, roots: Sequence[str] | None
    ) -> Future[ArrayDataset]:
        """Have a stream use a dataset that is there, with a cache if it asks for one."""
        if spec.cache is not None:
            return self.submit(lambda: self._with_cache(dataset, spec, roots))
        ready: Future[ArrayDataset] = Future()
        ready.set_result(dataset)
        return ready

    def submit(self, load: Callable[[], T]) -> Future[T]:
        """Have something done by the threads that load; `loaded` is called when it has ended."""
        loading = self._loader.submit(load)
        # Not at the end of `_load`: whoever is woken there finds the future not done yet.
        loading.add_done_callback(lambda _: self._loaded())
        return loading

    def _list(self, spec: Spec, roots: Sequence[str] | None) -> ArrayDataset:
        assert spec.pictures is not None, "files are listed for their pictures"
        # Only a new walk tells whether a folder is what it was; the same list is held once.
        listing = list_files(spec.data[0], spec.pictures, roots)

        def make() -> ArrayDataset:
            dataset = hold(listing.fingerprint, listing.arrays, self._memory)
            dataset.class_names = listing.class_names
            return dataset

        return self._with_cache(self._once(("files", listing.fingerprint), make), spec, roots)

    def _with_cache(
        self, dataset: ArrayDataset, spec: Spec, roots: Sequence[str] | None
    ) -> ArrayDataset:
        """A dataset of files and, if the stream wants one, the cache of all streams like it.

        Likeness is in what pictures depend on and in where the files lie: the same names, sizes
        and times in another folder are the same dataset, but whoever fills a folder must not fill
        the cache of another one. Nor are those with bounds served what those without have read.
        """
        if spec.cache is None:
            return dataset
        held = ",".join(source.path for source in dataset.sources)
        base = "" if spec.data[0].startswith(HANDED) else base_of(spec.data[0])
        key = ("cache", held, base, f"{roots}", cache.settings(spec))
        try:
            return self._once(key, lambda: self._make_cache(dataset, spec))
        except BaseException:
            self.release(dataset)
            raise

    def _make_cache(self, dataset: ArrayDataset, spec: Spec) -> ArrayDataset:
        """The dataset with a cache for as many samples as there is room for, or for none."""
        made = ArrayDataset(
            dataset.sources, dataset.fingerprint, dataset.class_names, whole=dataset
        )
        wanted = next(source.shape[0] for source in dataset.sources if source.name == ENDS)
        if self._cache_bytes == 0:
            return made  # switched off
        asked = self._cache_bytes is not None
        budget = cache.MOST if self._cache_bytes is None else self._cache_bytes
        whole = mib(cache.size(spec, wanted))
        with self._caching:  # one after the other, so that all stay within the bound
            with self._lock:
                held = sum(d.segment.size for d in self._datasets.values() if d.cache and d.segment)
            most = budget - held
            bound = f"cache_bytes is {mib(budget)}, of which {mib(held)} are in use by other caches"
            if not cache.fitting(spec, most):
                self._tell(
                    "none",
                    f"pictures are decoded in every epoch: a cache of them takes {whole}, and "
                    f"{bound}. To do: {self._remedy(by_bytes=True)}",
                )
                return made

            def size_of(left: int) -> int:
                fit = min(wanted, cache.fitting(spec, min(left, most)))
                return cache.size(spec, fit) if fit else 0

            try:
                made.segment = self._memory.part(
                    cache.PART_ASKED if asked else cache.PART,
                    size_of,
                    f"a cache of decoded pictures, {whole}, does not fit",
                    self._remedy(by_bytes=False),
                )
            except NoRoom as error:
                self._tell("none", f"pictures are decoded in every epoch: {error}")
                return made
        fit = cache.fitting(spec, made.segment.size)
        made.cache = cache.sources_of(spec, fit, str(made.segment.path))
        if fit < wanted:
            by_bytes = fit == cache.fitting(spec, most)
            part = f"{cache.PART_ASKED if asked else cache.PART:.0%}"
            why = bound if by_bytes else f"a cache takes at most {part} of the memory that is left"
            self._tell(
                "some",
                f"a cache of decoded pictures has places for {fit} of {wanted}, "
                f"{mib(made.segment.size)} of {whole}; the others are decoded in every epoch: "
                f"{why}. To do: {self._remedy(by_bytes=by_bytes)}",
            )
        return made

    def _remedy(self, *, by_bytes: bool) -> str:
        """What helps a cache that is too small: for cache_bytes, or for want of memory."""
        fewer = "use fewer or smaller pictures (target_size)"
        if self._private:
            return f"{fewer}, or a server with a larger cache_bytes (augserver serve)"
        if by_bytes:
            return f"raise cache_bytes in [server], if memory allows it, or {fewer}"
        if self._cache_bytes is None:
            return f"set cache_bytes in [server], which allows {cache.PART_ASKED:.0%}, or {fewer}"
        return fewer

    def _tell(self, kind: str, text: str) -> None:
        """Warn once of caches that hold none of their pictures, and once of those with some."""
        if kind not in self._told:
            self._told.add(kind)
            _log.warning("%s", text)

    def cached(self) -> Cached:
        """What is in the caches of decoded pictures by now."""
        with self._lock:
            caches = [d for d in self._datasets.values() if d.cache and d.segment]
        samples = places = size = 0
        for dataset in caches:
            assert dataset.segment is not None, "a cache lies in a segment"
            fit = dataset.cache[0].shape[0]
            samples += int(np.count_nonzero(dataset.segment.map()[:fit]))  # marks come first
            places += fit
            size += dataset.segment.size
        return Cached(samples, places, size)

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
        # The cache first: its key names where its dataset lies, and another may come to lie there.
        whole = dataset.whole
        if not dataset.handed:
            self._leave(dataset)
        if whole is not None:
            self.release(whole)

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
