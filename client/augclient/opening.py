"""How a consumer's stream is opened: at an address, on a private server, or in this process."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy.typing as npt

from augclient import handing
from augclient.access import AUTO
from augclient.demand import Key
from augclient.link import Link
from augclient.local import PrivateServer, private_server
from augclient.request import Request
from augproto.errors import ConfigError, ServerLost
from augproto.fingerprint import fingerprint
from augproto.keys import Keys
from augproto.layout import MAX_SPAN
from augproto.messages import Bad, Open, Opened, Script
from augproto.segment import directory
from augproto.spec import HANDED

Array = npt.NDArray[Any]


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

    @property
    def memory(self) -> str:
        """What batches come by: "shared", "frames", or "own" where they are made here."""

    @property
    def connected(self) -> bool:
        """Whether what makes them answers."""

    def fetch(self, key: Key, timeout: float) -> dict[str, Array]:
        """The arrays of a batch, by field."""

    def bad(self, key: Key) -> tuple[Bad, ...]:
        """The samples that a batch just fetched had to do without."""

    def give(self, script: Script) -> None:
        """Say what a batch is made of."""

    def take_back(self, key: Key) -> None:
        """Forget a script."""

    def after(self, key: Key) -> bytes:
        """The state that the script of a batch just fetched has left."""

    def close(self) -> None:
        """Let go of everything."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What is to be opened, and how its link is to be."""

    wanted: Request
    slots: int | None
    writable: bool
    scripted: bool
    memory: str = AUTO
    keys: Keys | None = None

    @property
    def wish(self) -> Open:
        """In the words of the protocol."""
        spec = self.wanted.spec.to_wire() if self.wanted.spec is not None else None
        # A script says what one batch is made of, and not what lies beside it.
        span = 1 if self.scripted else MAX_SPAN
        return Open(self.wanted.stream, spec, self.slots, self.wanted.changes, span)


def join(address: str, opening: Opening) -> Link:
    """Open the stream on the server at an address, which others may use as well."""
    wanted, bring = opening.wanted, None
    if wanted.arrays and wanted.spec is not None:
        name = wanted.spec.data[0].removeprefix(HANDED)
        bring = handing.HandOver(name, wanted.arrays, directory())
    return Link(
        address,
        opening.wish,
        keys=opening.keys,
        writable=opening.writable,
        handing=bring,
        scripted=opening.scripted,
        memory=opening.memory,
    )


def private(opening: Opening, workers: int | None) -> tuple[Link, Any]:
    """Open the stream on this program's own server.

    Returns:
        The link, and what gives up what was handed over for it.
    """
    wanted = opening.wanted
    if wanted.stream is not None:
        raise ConfigError(
            f"stream={wanted.stream!r} is a name in a server's config: say which server (address=)"
        )
    _refuse_dataset(wanted)
    opening = dataclasses.replace(opening, wanted=_absolute(wanted))
    server = private_server(workers)
    try:
        return _open_private(server, opening)
    except ServerLost:
        # It was about to end, or stands still: its other consumers learn that by themselves.
        server.disown()
        return _open_private(private_server(workers), opening)


def _open_private(server: PrivateServer, opening: Opening) -> tuple[Link, Any]:
    give_up = handing.to_private(server, opening.wanted)
    try:
        link = Link(
            server.address,
            opening.wish,
            writable=opening.writable,
            lives=server.alive,
            scripted=opening.scripted,
            memory=opening.memory,
        )
    except BaseException:
        give_up()
        raise
    return link, give_up


def _refuse_dataset(wanted: Request) -> None:
    if wanted.spec is not None and wanted.spec.dataset is not None:
        raise ConfigError(
            f"dataset={wanted.spec.dataset!r} is a name in a server's config: say which server "
            "(address=)"
        )


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


def inline(wanted: Request) -> Source:
    """Open the stream in this process."""
    # Found at run time: the client's package does not depend on the server's.
    import importlib

    try:
        module = importlib.import_module("augserver.inline")
    except ImportError as error:
        raise ConfigError(
            f"workers=0 computes in this process and needs the server's packages ({error}): "
            "pip install 'augserver[server]'"
        ) from error
    if wanted.spec is None:
        raise ConfigError("stream= is a name in a server's config: say which server (address=)")
    _refuse_dataset(wanted)
    wanted = _absolute(wanted)
    arrays = wanted.arrays or None
    mark = fingerprint(wanted.arrays) if arrays else None
    return cast(Source, module.Inline(wanted.spec, arrays, wanted.function, mark))
