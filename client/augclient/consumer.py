"""Framework-free: batches of a stream, in order or by index, prefetched, without a copy."""

from __future__ import annotations

import dataclasses
import logging
import operator
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Unpack, cast

import numpy as np
import numpy.typing as npt

from augclient.demand import Key
from augclient.link import Link
from augclient.local import PrivateServer, private_server
from augclient.report import Report
from augclient.request import Paths, Request, SpecOptions, request
from augproto.errors import ConfigError, ServerLost
from augproto.fingerprint import fingerprint
from augproto.messages import Bad, Open, Opened
from augproto.ring import MAX_SLOTS, MIN_SLOTS
from augproto.spec import HANDED, MAX_EPOCH
from augproto.structure import Structure, names_from_wire, rebuild

Array = npt.NDArray[Any]

#: Seconds that a batch may take to come.
TIMEOUT = 60.0
#: Names the server for every consumer that names none itself.
ADDRESS_VARIABLE = "AUGSERVER_ADDRESS"
#: The number of a private server's workers, for every consumer that gives none itself.
WORKERS_VARIABLE = "AUGSERVER_WORKERS"


_log = logging.getLogger("augclient.consumer")


@dataclass(frozen=True, slots=True)
class Batch:
    """The arrays of one training step.

    The arrays are views of shared memory, read-only unless the consumer is writable. Each starts
    at a multiple of 64 bytes. Its slot is free again when the last view is gone: keep what you
    need with `copy()`, and let go of the rest.

    Attributes:
        epoch, step: Which batch it is.
        x, y, sample_weight: One array, a tuple or a dict of them, rows = samples; or None.
    """

    epoch: int
    step: int
    x: Structure[Array]
    y: Structure[Array] | None = None
    sample_weight: Structure[Array] | None = None

    def copy(self) -> Batch:
        """The same batch in private, writable memory, without a hold on the ring."""

        def private(structure: Structure[Array] | None) -> Structure[Array] | None:
            return None if structure is None else rebuild(structure, np.array)

        x = rebuild(self.x, np.array)
        return Batch(self.epoch, self.step, x, private(self.y), private(self.sample_weight))

    def as_tuple(self) -> tuple[Any, ...]:
        """(x,), (x, y) or (x, y, sample_weight), as Keras takes them."""
        if self.sample_weight is not None:
            return self.x, self.y, self.sample_weight
        return (self.x,) if self.y is None else (self.x, self.y)


class Source(Protocol):
    """Where batches come from: a server, or this process itself (workers=0)."""

    @property
    def opened(self) -> Opened:
        """What the stream is."""

    @property
    def leased(self) -> int:
        """Slots held now."""

    @property
    def copies(self) -> int:
        """Batches that were copied because the ring ran dry."""

    def fetch(self, key: Key, timeout: float) -> dict[str, Array]:
        """The arrays of a batch, by field."""

    def bad(self, key: Key) -> tuple[Bad, ...]:
        """The samples that a batch just fetched had to do without."""

    def close(self) -> None:
        """Let go of everything."""


class Consumer:
    """A stream of augmented batches; a context manager.

    ::

        with Consumer(x, y, batch_size=64, seed=7, transforms={"rotation_range": 15}) as consumer:
            for batch in consumer.epoch(0):
                train(batch.x, batch.y)

    Args:
        x, y, sample_weight: Arrays, or a tuple or dict of them; with `data`, their names.
        data: Files (.npz, .npy) on the server's side that hold the arrays. With `pictures`, a
            folder there of picture files, or a .csv that lists them: x and y stay out.
        files: Paths of picture files, one for each row of y and sample_weight, if there are any
            (a private server only).
        stream: The name of a stream in the server's augserver.toml, instead of all of these.
        address: A server's address. Without one (and without the environment variable
            AUGSERVER_ADDRESS) a private server is started, which ends with this program and is
            shared by all its consumers.
        workers: Processes of the private server (default: one for each core, or
            AUGSERVER_WORKERS); it never has fewer than the most that was asked for. 0 computes the
            same bytes in this process, for a debugger.
        slots: Of the ring: how many batches can be ready or in use at once.
        timeout: Seconds that a batch may take to come.
        writable: Map the ring read-write; a change you make stays in this batch.
        **options: Fields of the spec; see `augproto.spec.Spec` and `SpecOptions`.

    Raises:
        ConfigError: An argument cannot be served.
        ConnectTimeout: Nobody answers at the address.
    """

    def __init__(
        self,
        x: object = None,
        y: object = None,
        sample_weight: object = None,
        *,
        data: Paths | None = None,
        files: Iterable[str | os.PathLike[str]] | None = None,
        stream: str | None = None,
        address: str | None = None,
        workers: int | None = None,
        slots: int | None = None,
        timeout: float = TIMEOUT,
        writable: bool = False,
        **options: Unpack[SpecOptions],
    ) -> None:
        wanted = request(
            x, y, sample_weight, data=data, files=files, stream=stream, options=options
        )
        address = address or os.environ.get(ADDRESS_VARIABLE)
        if workers is None and os.environ.get(WORKERS_VARIABLE):
            workers = _environment_workers()
        _check_whole("workers", workers, 0, 1024)
        _check_whole("slots", slots, MIN_SLOTS, MAX_SLOTS)
        self.timeout = _checked_timeout(timeout)
        if address is not None and not isinstance(address, str):
            raise ConfigError(f"address: got {address!r}; wanted text like 'ipc:///path'")
        self._finalizer = weakref.finalize(self, lambda: None)
        if workers == 0 and address is None:
            self._source: Source = _inline(wanted)
        elif address is not None:
            self._source = _join(address, wanted, slots, writable)
        else:
            self._source, give_up = _private(wanted, workers, slots, writable)
            self._finalizer = weakref.finalize(self, give_up)
            self._finalizer.atexit = False  # then the whole server goes
        # A link's thread must not keep a forgotten consumer's stream alive.
        self._closer = weakref.finalize(self, self._source.close)
        self._closer.atexit = False  # links end by themselves, in the right order
        opened = self._source.opened
        self._structure = {
            role: names_from_wire(names, role) for role, names in opened.structure.items()
        }
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
        arrays = self._source.fetch((epoch, step), seconds)
        told = self._report.handed(epoch, step, self._source.bad((epoch, step)))
        if told is not None:
            _log.warning("%s", told)

        def part(role: str) -> Structure[Array] | None:
            names = self._structure.get(role)
            return None if names is None else rebuild(names, arrays.__getitem__)

        x = cast(Structure[Array], part("x"))
        return Batch(epoch, step, x, part("y"), part("sample_weight"))

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

    def __iter__(self) -> Iterator[Batch]:
        """All epochs, for ever."""
        epoch = 0
        while True:
            yield from self.epoch(epoch)
            epoch += 1

    def close(self) -> None:
        """Let go of the stream. Arrays that are still alive stay readable."""
        try:
            self._source.close()
        finally:  # also where Ctrl-C ends the wait for the link
            self._closer.detach()
            self._finalizer()

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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


def _wish(wanted: Request, slots: int | None) -> Open:
    spec = wanted.spec.to_wire() if wanted.spec is not None else None
    return Open(wanted.stream, spec, slots, wanted.changes)


def _join(address: str, wanted: Request, slots: int | None, writable: bool) -> Link:
    if wanted.arrays or wanted.code is not None:
        what = "arrays" if wanted.arrays else "a function"
        raise ConfigError(
            f"{what} of this program cannot be handed to the server at {address}, which others "
            f"use. Leave address (and the environment variable {ADDRESS_VARIABLE}) out for a "
            "private server, or name a stream (stream=), files on the server (data=) and functions "
            "it can import (function='package.module:name')"
        )
    return Link(address, _wish(wanted, slots), writable=writable)


def _private(
    wanted: Request, workers: int | None, slots: int | None, writable: bool
) -> tuple[Link, Any]:
    if wanted.stream is not None:
        raise ConfigError(
            f"stream={wanted.stream!r} is a name in a server's config: say which server (address=)"
        )
    wanted = _absolute(wanted)
    server = private_server(workers)
    try:
        return _open_private(server, wanted, slots, writable)
    except ServerLost:
        # It was about to end, or stands still: its other consumers learn that by themselves.
        server.disown()
        return _open_private(private_server(workers), wanted, slots, writable)


def _open_private(
    server: PrivateServer, wanted: Request, slots: int | None, writable: bool
) -> tuple[Link, Any]:
    give_up = _hand_over(server, wanted)
    try:
        link = Link(server.address, _wish(wanted, slots), writable=writable, lives=server.alive)
    except BaseException:
        give_up()
        raise
    return link, give_up


def _absolute(wanted: Request) -> Request:
    """Paths of this program, whose folder may be another by the time that a server looks."""
    spec = wanted.spec
    if spec is None or spec.data[0].startswith(HANDED):
        return wanted
    try:
        paths = tuple(os.path.abspath(os.path.expanduser(path)) for path in spec.data)
    except FileNotFoundError as error:
        raise ConfigError(
            f"data: got {spec.data!r:.200} in a working directory that is gone; wanted a path from "
            "the root (/) on"
        ) from error
    return dataclasses.replace(wanted, spec=dataclasses.replace(spec, data=paths))


def _hand_over(server: PrivateServer, wanted: Request) -> Any:
    """Give the server what it needs of this program; returns how to give that up."""
    if wanted.code is not None:
        server.hand_function(wanted.code)
    if not wanted.arrays or wanted.spec is None:
        return lambda: None
    name = wanted.spec.data[0].removeprefix(HANDED)
    server.hand_arrays(name, wanted.arrays)
    return lambda: server.withdraw(name)


def _inline(wanted: Request) -> Source:
    # Found at run time: the client's package does not depend on the server's.
    import importlib

    try:
        inline = importlib.import_module("augserver.inline")
    except ImportError as error:
        raise ConfigError(
            f"workers=0 computes in this process and needs the server's packages ({error}): "
            "pip install 'augserver[server]'"
        ) from error
    if wanted.spec is None:
        raise ConfigError("stream= is a name in a server's config: say which server (address=)")
    wanted = _absolute(wanted)
    arrays = wanted.arrays or None
    mark = fingerprint(wanted.arrays) if arrays else None
    return cast(Source, inline.Inline(wanted.spec, arrays, wanted.function, mark))
