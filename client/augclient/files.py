"""A server's files, as far as a program has to look at them to find its classes and pictures.

Each question is a conversation of its own; the threads that ask share one context. What is found
are names; the pictures are read by the server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import zmq

from augclient.link import CONNECT_TIMEOUT, LOAD_TIMEOUT
from augclient.talk import SILENCE
from augproto.errors import AugError, ConfigError, ConnectTimeout, RemoteProtocolError, ServerLost
from augproto.faults import error_of
from augproto.keys import Keys
from augproto.messages import (
    MAX_FRAME_BYTES,
    MAX_LIST,
    MAX_NAME_BYTES,
    VERSION,
    AreFiles,
    Bye,
    Close,
    Fault,
    FilesAre,
    Folder,
    Heartbeat,
    Hello,
    Message,
    Walk,
    Walked,
    Welcome,
)
from augproto.refusal import Refusal
from augproto.session import Role, Session

#: Milliseconds for the last word to leave.
LINGER = 100

M = TypeVar("M")


class ServerFiles:
    """The file system of a server, below its roots.

    Args:
        address: The server's.
        keys: For one that asks for some.
    """

    def __init__(self, address: str, keys: Keys | None = None) -> None:
        self.address = address
        self._keys = keys

    def folders(self, directory: str) -> list[str]:
        """The names of a folder's sub-folders, links to folders among them, sorted.

        Raises:
            FileNotFoundError: There is no such folder.
            NotAllowed: It lies outside the server's roots.
        """
        names: list[str] = []
        rows = 0
        for row in self._walk(Walk(os.fsencode(directory), deep=False)):
            rows += 1
            names += map(os.fsdecode, row.folders)
        if not rows:
            raise FileNotFoundError(
                errno.ENOENT, f"{os.strerror(errno.ENOENT)} on the server's machine", directory
            )
        return sorted(names)

    def walk(self, directory: str, follow_links: bool) -> list[tuple[str, list[str]]]:
        """(folder, names of the files in it) of a folder and all below it, as os.walk has them;
        nothing where there is no such folder.

        Raises:
            NotAllowed: It, or a folder that a link leads to, lies outside the server's roots.
        """
        found: dict[str, list[str]] = {}
        for row in self._walk(Walk(os.fsencode(directory), follow_links=follow_links)):
            found.setdefault(os.fsdecode(row.path), []).extend(map(os.fsdecode, row.files))
        return list(found.items())

    def are_files(self, paths: Sequence[str]) -> list[bool]:
        """Whether each path is that of a regular file, or of a link to one.

        Raises:
            NotAllowed: One lies outside the server's roots.
        """
        are: list[bool] = []
        with _Conversation(self.address, self._keys) as conversation:
            for some in _parts(paths):
                while some:
                    answer = conversation.ask(AreFiles(some), FilesAre)
                    if not 0 < len(answer.are) <= len(some):
                        raise RemoteProtocolError(
                            f"FilesAre: got {len(answer.are)} answers; wanted 1 to {len(some)}"
                        )
                    are += answer.are
                    some = some[len(answer.are) :]  # it looks at as many as it can in a while
        return are

    def _walk(self, walk: Walk) -> Iterator[Folder]:
        with _Conversation(self.address, self._keys) as conversation:
            more = True
            page = walk.page
            while more:
                question = Walk(walk.folder, walk.deep, walk.follow_links, page)
                answer = conversation.ask(question, Walked)
                yield from answer.rows
                more, page = answer.more, page + 1


def _parts(paths: Sequence[str]) -> Iterator[tuple[bytes, ...]]:
    """The paths as bytes, so many at a time as a message may hold."""
    some: list[bytes] = []
    size = 0
    for path in map(os.fsencode, paths):
        if some and (len(some) == MAX_LIST or size + len(path) > MAX_NAME_BYTES):
            yield tuple(some)
            some, size = [], 0
        some.append(path)
        size += len(path)
    if some:
        yield tuple(some)


class _Conversation:
    """One, with a question at a time; a context manager."""

    def __init__(self, address: str, keys: Keys | None) -> None:
        self._address = address
        self._session = Session(Role.CONSUMER, time.monotonic())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer: Any = self._context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.LINGER, LINGER)
        self._dealer.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        if keys is not None:
            keys.apply(self._dealer)
        self._refusal = Refusal(self._dealer, keyed=keys is not None)
        try:
            self._dealer.connect(address)
            self._say(Hello(VERSION, os.path.basename(sys.argv[0] or "python"), os.getpid()))
            self._hear(Welcome, CONNECT_TIMEOUT, CONNECT_TIMEOUT)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(f"address {address!r}: {error.strerror}") from error
        except BaseException:
            self._context.destroy(linger=0)
            raise

    def __enter__(self) -> _Conversation:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(AugError, zmq.ZMQError):
            self._say(Close())
        self._context.destroy(linger=LINGER)

    def ask(self, question: Walk | AreFiles, wanted: type[M]) -> M:
        """A question, and its answer."""
        self._say(question)
        return self._hear(wanted, SILENCE, LOAD_TIMEOUT)  # a disk over a network is slow

    def _say(self, message: Message) -> None:
        self._dealer.send(self._session.send(message, time.monotonic()), zmq.NOBLOCK)

    def _hear(self, wanted: type[M], silence: float, timeout: float) -> M:
        deadline = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            due = self._session.due(now)
            if wanted is not Welcome and due <= 0:
                self._say(Heartbeat())
                due = self._session.beat
            if now >= deadline or self._session.silence(now) > silence:
                raise self._lost(wanted)
            if not self._dealer.poll(int(min(max(due, 0.001), deadline - now) * 1000) + 1):
                continue
            frame = self._dealer.recv_multipart(zmq.NOBLOCK)[-1]
            message = self._session.receive(frame, time.monotonic())
            if isinstance(message, wanted):
                return message
            if isinstance(message, Fault):
                raise error_of(message)
            if isinstance(message, Bye):
                raise ServerLost(f"the server at {self._address} has ended: {message.reason}")

    def _lost(self, wanted: type) -> ConnectTimeout | ServerLost:
        if wanted is Welcome:
            return ConnectTimeout(
                f"no augserver answers at {self._address} within {CONNECT_TIMEOUT:.0f} s. Is it "
                "running (`augserver serve`), and is this the address that it prints?"
            )
        return ServerLost(f"the server at {self._address} was asked for its files and is silent")
