"""Framework-free: batches of a stream, in order or by index, prefetched, without a copy."""

from __future__ import annotations

import itertools
import logging
import operator
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self, Unpack, cast

import numpy as np
import numpy.typing as npt

from augclient import access, opening
from augclient.opening import Opening, Source
from augclient.report import Report
from augclient.request import Paths, SpecOptions, request
from augproto import checks
from augproto.addresses import check_dialled
from augproto.errors import ConfigError
from augproto.messages import ArraySpec, Bad
from augproto.ring import MAX_SLOTS, MIN_SLOTS
from augproto.spec import MAX_EPOCH
from augproto.structure import Structure, names_from_wire, rebuild

Array = npt.NDArray[Any]

#: Seconds that a batch may take to come.
TIMEOUT = 60.0
#: Names the server for every consumer that names none itself.
ADDRESS_VARIABLE = "AUGSERVER_ADDRESS"
#: The number of a private server's workers, for every consumer that gives none itself.
WORKERS_VARIABLE = "AUGSERVER_WORKERS"
#: How batches come to every consumer that does not say so itself.
MEMORY_VARIABLE = "AUGSERVER_MEMORY"


_log = logging.getLogger("augclient.consumer")


@dataclass(frozen=True, slots=True)
class Batch:
    """The arrays of one training step.

    The arrays are views of shared memory, read-only unless the consumer is writable. Each starts
    at a multiple of 64 bytes (by frames, of 8). Its slot is free again when the last view is gone:
    keep what you need with `copy()`, and let go of the rest.

    Attributes:
        epoch, step: Which batch it is.
        x, y, sample_weight: One array, a tuple or a dict of them, rows = samples; or None.
        hashes: What `Spec.hashes` asked for, int64 (samples,); or None.
    """

    epoch: int
    step: int
    x: Structure[Array]
    y: Structure[Array] | None = None
    sample_weight: Structure[Array] | None = None
    hashes: Structure[Array] | None = None

    def copy(self) -> Batch:
        """The same batch in private, writable memory, without a hold on the ring."""

        def private(structure: Structure[Array] | None) -> Structure[Array] | None:
            return None if structure is None else rebuild(structure, np.array)

        x = rebuild(self.x, np.array)
        y, weight, hashes = map(private, (self.y, self.sample_weight, self.hashes))
        return Batch(self.epoch, self.step, x, y, weight, hashes)

    def as_tuple(self) -> tuple[Any, ...]:
        """(x,), (x, y) or (x, y, sample_weight), as Keras takes them."""
        if self.sample_weight is not None:
            return self.x, self.y, self.sample_weight
        return (self.x,) if self.y is None else (self.x, self.y)


class Consumer:
    """A stream of augmented batches; a context manager.

    ::

        with Consumer(x, y, batch_size=64, seed=7, transforms={"rotation_range": 15}) as consumer:
            for batch in consumer.epoch(0):
                train(batch.x, batch.y)

    Args:
        x, y, sample_weight: Arrays, or a tuple or dict of them; with `data`, their names. With an
            address they are handed to that server once, whatever the number of consumers, and are
            read again when it was restarted: leave them as they are.
        data: Files (.npz, .npy) on the server's side that hold the arrays. With `pictures`, a
            folder there of picture files, or a .csv that lists them: x and y stay out.
        files: Paths of picture files, one for each row of y and sample_weight, if there are any.
            With an address they are of the server's machine, and lie below its roots.
        stream: The name of a stream in the server's augserver.toml, instead of all of these.
        dataset: The name of a dataset in the server's augserver.toml, instead of data and files. x,
            y and the options that are left out are as that file says of the dataset.
        address: A server's address. Without one (and without the environment variable
            AUGSERVER_ADDRESS) a private server is started, which ends with this program and is
            shared by all its consumers.
        workers: Processes of the private server (default: one for each core, or
            AUGSERVER_WORKERS); it never has fewer than the most that was asked for. 0 computes the
            same bytes in this process, for a debugger.
        slots: Of the ring: how many batches can be ready or in use at once.
        timeout: Seconds that a batch may take to come. A server at an address may be restarted
            within them: the stream goes on at the next step.
        writable: Map the ring read-write; a change you make stays in this batch.
        memory: "shared" for batches in memory that is shared with the server, "frames" for batches
            that come by message; "auto" (or what AUGSERVER_MEMORY says) shares it where that can be
            had: on one host, in containers that share it.
        key, server_key: Paths of the program's secret key and of the server's public one, where the
            server asks for keys (by default what AUGSERVER_CLIENT_KEY and AUGSERVER_SERVER_KEY
            name); `augserver keygen` makes such files.
        **options: Fields of the spec; see `augproto.spec.Spec` and `SpecOptions`.

    Raises:
        ConfigError: An argument cannot be served.
        ConnectTimeout: Nobody answers at the address.
        NotAllowed: Who answers there asks for another key.
    """

    _scripted = False

    def __init__(
        self,
        x: object = None,
        y: object = None,
        sample_weight: object = None,
        *,
        data: Paths | None = None,
        files: Iterable[str | os.PathLike[str]] | None = None,
        stream: str | None = None,
        dataset: str | None = None,
        address: str | None = None,
        workers: int | None = None,
        slots: int | None = None,
        timeout: float = TIMEOUT,
        writable: bool = False,
        memory: str = access.AUTO,
        key: str | os.PathLike[str] | None = None,
        server_key: str | os.PathLike[str] | None = None,
        **options: Unpack[SpecOptions],
    ) -> None:
        address = address or os.environ.get(ADDRESS_VARIABLE)
        wanted = request(
            x,
            y,
            sample_weight,
            data=data,
            files=files,
            stream=stream,
            dataset=dataset,
            options=options,
            shared=address is not None,
        )
        if workers is None and os.environ.get(WORKERS_VARIABLE):
            workers = _environment_workers()
        _check_whole("workers", workers, 0, 1024)
        _check_whole("slots", slots, MIN_SLOTS, MAX_SLOTS)
        self.timeout = _checked_timeout(timeout)
        if address is not None and not isinstance(address, str):
            raise ConfigError(f"address: got {address!r}; wanted text like 'ipc:///path'")
        if address is not None:
            check_dialled("address", address)
        self._finalizer = weakref.finalize(self, lambda: None)
        memory = access.checked(memory)
        if memory == access.AUTO:
            memory = access.checked(os.environ.get(MEMORY_VARIABLE) or memory)
        if workers == 0 and address is None:
            self._source: Source = opening.inline(wanted)
        elif address is not None:
            keys = access.keys(key, server_key)
            wish = Opening(wanted, slots, writable, self._scripted, memory, keys)
            self._source = opening.join(address, wish)
        else:
            wish = Opening(wanted, slots, writable, self._scripted, memory)
            self._source, give_up = opening.private(wish, workers)
            self._finalizer = weakref.finalize(self, give_up)
            self._finalizer.atexit = False  # then the whole server goes
        # A link's thread must not keep a forgotten consumer's stream alive.
        self._closer = weakref.finalize(self, self._source.close)
        self._closer.atexit = False  # links end by themselves, in the right order
        opened = self._source.opened
        #: Names of a batch's arrays, by role (x, y, sample_weight, hashes).
        self.structure = {r: names_from_wire(names, r) for r, names in opened.structure.items()}
        self._plain = _plain(self.structure)
        self.arrays: tuple[ArraySpec, ...] = opened.arrays  #: name, dtype, shape of one sample
        self.writable = writable or self._source.opened.slots == 0  #: whether batches are
        self.steps: int = opened.steps  #: batches in an epoch
        self.samples: int = opened.samples  #: samples in an epoch
        self.batch_size: int = opened.batch_size
        self.shuffle: bool = opened.shuffle
        self.seed: int = opened.seed  #: the seed in force, also where the server drew it
        self.slots: int = opened.slots  #: of the ring; 0 without one
        self.fingerprint: str = opened.fingerprint  #: of the dataset
        self.class_names: tuple[str, ...] = opened.class_names  #: of a dataset of files
        self._report = Report(opened.steps)

    @property
    def leased(self) -> int:
        """How many slots of the ring are held by views that are alive."""
        return self._source.leased

    @property
    def copies(self) -> int:
        """How many batches were handed out as copies because all other slots were in use."""
        return self._source.copies

    @property
    def memory(self) -> str:
        """What batches come by now: "shared" memory, "frames", or with workers=0 their "own"."""
        return self._source.memory

    @property
    def connected(self) -> bool:
        """Whether the server answers; while it does not, batches are waited for."""
        return self._source.connected

    def get(self, epoch: int, step: int, *, timeout: float | None = None) -> Batch:
        """One batch, by index; those after it are made ahead.

        Raises:
            IndexError: There is no such step.
            BatchTimeout, ServerLost, WorkerError, ConsumerClosed, ForkedProcess: See their docs.
        """
        epoch, step = operator.index(epoch), operator.index(step)
        if not 0 <= epoch <= MAX_EPOCH or not 0 <= step < self.steps:
            raise IndexError(
                f"epoch {epoch}, step {step}: wanted an epoch from 0 to {MAX_EPOCH} and a step "
                f"from 0 to {self.steps - 1}"
            )
        seconds = self.timeout if timeout is None else _checked_timeout(timeout)
        key = (epoch, step)
        arrays = self._source.fetch(key, seconds)
        told = self._report.handed(epoch, step, self._source.bad(key))
        if told is not None:
            _log.warning("%s", told)
        if self._plain is not None:
            x, y = self._plain
            return Batch(epoch, step, arrays[x], arrays[y] if y is not None else None)

        def part(role: str) -> Structure[Array] | None:
            names = self.structure.get(role)
            return None if names is None else rebuild(names, arrays.__getitem__)

        several = cast(Structure[Array], part("x"))
        return Batch(epoch, step, several, part("y"), part("sample_weight"), part("hashes"))

    def bad_samples(self, epoch: int) -> tuple[Bad, ...]:
        """The samples that the batches of an epoch, as far as they have been handed out, had to do
        without (bad_samples="skip" or "substitute"): epoch, step, sample, path, reason.

        Kept for two epochs. When an epoch ends they are logged as well.
        """
        return self._report.bad_samples(epoch)

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in order, from step `first` on."""
        for step in range(first, self.steps):
            yield self.get(epoch, step)

    def epochs(self, count: int, *, first: int = 0) -> Iterator[Batch]:
        """The batches of so many epochs in order, from epoch `first` on; each knows its epoch.

        Raises:
            ConfigError: These are no numbers of epochs.
        """
        count = checks.whole("epochs", count, 0, MAX_EPOCH + 1)
        first = checks.whole("first", first, 0, MAX_EPOCH)
        return itertools.chain.from_iterable(map(self.epoch, range(first, first + count)))

    def __iter__(self) -> Iterator[Batch]:
        """All epochs, for ever."""
        return itertools.chain.from_iterable(map(self.epoch, itertools.count()))

    def close(self) -> None:
        """Let go of the stream. Arrays that are still alive stay readable."""
        try:
            self._source.close()
        finally:  # also where Ctrl-C ends the wait for the link
            self._closer.detach()
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _plain(structure: dict[str, Structure[str]]) -> tuple[str, str | None] | None:
    """The fields of x and y where each is one array, and there is nothing else; else None."""
    x, y = structure["x"], structure.get("y")
    if isinstance(x, str) and (y is None or isinstance(y, str)) and structure.keys() <= {"x", "y"}:
        return x, y
    return None


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if value is not None and not (type(value) is int and low <= value <= high):
        raise ConfigError(f"{name}: got {value!r}; wanted a whole number {low} to {high}, or None")


def _checked_timeout(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ConfigError(f"timeout: got {timeout!r}; wanted seconds, more than 0")
    return min(float(timeout), threading.TIMEOUT_MAX)


def _environment_workers() -> int:
    text = os.environ[WORKERS_VARIABLE]
    if not text.isdecimal():
        raise ConfigError(f"{WORKERS_VARIABLE}: got {text!r}; wanted a whole number")
    return int(text)
