"""What a program brings itself (arrays, functions, lists of paths) and how a server gets it.

A private server gets it through its own pipe (`local`). A server that others use gets arrays in
the conversation of the consumer that needs them: it makes the room, the program writes into it, or
where it cannot (another user, another container) sends what it would have written. That is part of
every opening, also after a server was restarted; a program's other consumers, and one that comes
back while these live, find the arrays there.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from augclient.local import PrivateServer
from augclient.request import Request
from augproto.errors import RemoteProtocolError, ServerLost
from augproto.fingerprint import heading
from augproto.layout import FIELD_ALIGNMENT
from augproto.messages import (
    DOOR_KEY_BYTES,
    ArraySpec,
    Filled,
    Message,
    Offer,
    Room,
    Source,
    Taken,
    Upload,
)
from augproto.segment import attach
from augproto.spec import HANDED

#: Bytes copied, or sent, in one turn of a link, which has heartbeats to say meanwhile.
COPY_BYTES, UPLOAD_BYTES = 16 << 20, 1 << 20

#: What this program's arrays are known by to a server; it is told to servers alone.
_owner = secrets.token_hex(16)

Array = npt.NDArray[Any]


def to_private(server: PrivateServer, wanted: Request) -> Callable[[], None]:
    """Give a private server what it needs of this program; returns how to give that up."""
    if wanted.code is not None:
        server.hand_function(wanted.code)
    if not wanted.arrays or wanted.spec is None:
        return lambda: None
    name = wanted.spec.data[0].removeprefix(HANDED)
    server.hand_arrays(name, wanted.arrays)
    return lambda: server.withdraw(name)


class HandOver:
    """One consumer's arrays on their way to a server that others use, without any socket.

    Args:
        name: Their fingerprint.
        arrays: C-contiguous; they are read again whenever the server has lost them.
        folder: Where the server's segments are found.
    """

    def __init__(self, name: str, arrays: Mapping[str, Array], folder: Path) -> None:
        self._name = name
        self._arrays = arrays
        self._folder = folder
        self._work: Iterator[Message | None] | None = None
        self._waits = False
        self._written = False  # once, so that the arrays may have been changed since

    @property
    def busy(self) -> bool:
        """Whether `work` has something to do."""
        return self._work is not None and not self._waits

    def offer(self, door: str) -> Offer:
        """What is said first."""
        self._work = None
        key = ""
        if door:
            # Where it is another user's, or of another container, they are uploaded.
            with contextlib.suppress(OSError, ValueError, ServerLost):
                key = attach(door, self._folder)[:DOOR_KEY_BYTES].tobytes().hex()
        specs = tuple(ArraySpec(n, a.dtype.str, a.shape) for n, a in self._arrays.items())
        return Offer(self._name, specs, _owner, key)

    def take(self, message: Room | Taken) -> bool:
        """Take an answer; returns whether all is handed over."""
        self._waits = False
        if isinstance(message, Taken):
            return False
        if not message.sources:
            self._work = None
            return True
        self._check(message.sources)
        self._work = self._hand(message.sources)
        return False

    def work(self) -> Message | None:
        """Do a little; returns what is to be said then, if anything."""
        assert self._work is not None
        message = next(self._work, None)
        self._waits = message is not None
        return message

    def _check(self, sources: tuple[Source, ...]) -> None:
        """Refuse room for other arrays than were offered."""
        got = [(source.name, source.dtype, tuple(source.shape)) for source in sources]
        if got != [(name, a.dtype.str, a.shape) for name, a in self._arrays.items()]:
            raise RemoteProtocolError(f"Room.sources: got {got!r:.200}; wanted those offered")

    def _hand(self, sources: tuple[Source, ...]) -> Iterator[Message | None]:
        """Write or send everything, in the order of its places, and say so."""
        segment = sources[0].path
        memory: npt.NDArray[np.uint8] | None = None
        if segment:
            try:
                memory = attach(segment, self._folder, writable=True)
            except OSError:  # a mount that is read-only: as if there were none
                yield self.offer("")
                return
        digest, offset = hashlib.sha256(), 0
        for source in sources:
            array = self._arrays[source.name]
            digest.update(heading(source.name, array))
            flat = array.reshape(-1).view(np.uint8)
            if memory is None and source.offset > offset:  # what lies between two arrays
                yield Upload(
                    self._name, offset, bytes(min(source.offset - offset, FIELD_ALIGNMENT))
                )
            step = UPLOAD_BYTES if memory is None else COPY_BYTES
            for start in range(0, flat.nbytes, step):
                part = flat[start : start + step]
                at = source.offset + start
                if memory is None:
                    yield Upload(self._name, at, part.tobytes())
                else:
                    memory[at : at + part.nbytes] = part
                    yield None
                if self._written:
                    digest.update(part.data)
            offset = source.offset + flat.nbytes
        if memory is None and (offset % FIELD_ALIGNMENT or not offset):
            yield Upload(self._name, offset, bytes(FIELD_ALIGNMENT - offset % FIELD_ALIGNMENT))
        if self._written and digest.hexdigest() != self._name:
            raise ServerLost(
                "the server was restarted, and the arrays of this stream have been changed since "
                "they were handed over to it: a stream gives the same bytes for ever, so open a "
                "new one"
            )
        self._written = True
        yield Filled(self._name)
