"""One remote worker: dials a server, and makes batches for it until it is told to end.

`serve` does so in the calling process, for engines that place and restart processes themselves.
`attend` is what a process forked by an agent does (`augserver.agent`): the same, tied to the agent
by its pipe.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import select
import socket
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from multiprocessing.connection import Connection

from augproto.codec import decode, encode
from augproto.errors import AugError
from augproto.keys import Keys
from augproto.messages import MAX_TEXT, VERSION, Bye, Enlist, Message, Ready
from augserver.distant import DistantWorker
from augserver.line import Line
from augserver.probe import machine
from augserver.worker import PipeChannel, sendable

#: Seconds between two looks whether to stop.
LOOK_SECONDS = 0.2


def serve(
    address: str,
    *,
    keys: Keys | None = None,
    allow_transforms: Collection[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Be a remote worker, in this process, until `should_stop` says so.

    It is asked between batches. A server that is gone is dialled again, for ever. Where a server
    wants this worker replaced, since it is stuck over a batch, the process ends with exit code 1:
    whoever started it starts it again. For the same bytes as others one thread computes: set
    OPENBLAS_NUM_THREADS, OMP_NUM_THREADS and MKL_NUM_THREADS to 1 before numpy is imported.

    Args:
        address: tcp://HOST:PORT, where the server listens for workers.
        keys: For a server that asks for some.
        allow_transforms: Import paths of functions that may be run here.

    Raises:
        ConfigError: That is no address.
        VersionMismatch: The server speaks another version of the protocol.
    """
    from augserver import preload

    preload.warm()
    own = dataclasses.replace(papers(), machine=machine())
    with Line(address, own, keys=keys) as line:
        _work(line, allow_transforms, should_stop)


def papers(heir: str = "", cause: str = "", traceback: str = "", origin: str = "") -> Enlist:
    """Who a worker is, for as long as its process lives; the process itself says on what machine.

    Args:
        heir: The name of the dead worker whose place it takes.
        cause, traceback: Of what that one has died.
        origin: Who has placed it here, in words.
    """
    cause, traceback = sendable(cause)[:MAX_TEXT], sendable(traceback)[-MAX_TEXT // 4 :]
    pid, host = os.getpid(), sendable(socket.gethostname())
    name, origin = uuid.uuid4().hex, sendable(origin)[:MAX_TEXT]
    return Enlist(VERSION, name, host, pid, "", 0, heir, cause, traceback, origin)


def _work(line: Line, allow: Collection[str], should_stop: Callable[[], bool]) -> None:
    worker = DistantWorker(line, allow)
    while not should_stop():
        event = worker.next(LOOK_SECONDS)
        if event is not None:
            worker.take(event)


# -- in a process that an agent has had forked -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Orders:
    """What all workers of an agent are to do; nothing secret, since it stands in a command line."""

    address: str
    allow_transforms: tuple[str, ...] = ()
    key: str | None = None
    server_key: str | None = None

    @property
    def keys(self) -> Keys | None:
        """What is in the two files.

        Raises:
            ConfigError: No keys, or keys that others can read.
        """
        return Keys.of(self.key, self.server_key)

    def to_word(self) -> str:
        """As text."""
        return json.dumps([self.address, self.allow_transforms, self.key, self.server_key])

    @classmethod
    def of_word(cls, word: str) -> Orders:
        """From that text."""
        address, allow, key, server_key = json.loads(word)
        return cls(address, tuple(allow), key, server_key)


class PipeTether:
    """The pipe to the agent: it says when to end, and wants to know how the line is."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._room = select.poll()
        self._room.register(pipe.fileno(), select.POLLOUT)

    def fileno(self) -> int:
        """For a poller."""
        return self._pipe.fileno()

    def farewell(self) -> str | None:
        """Why this worker is to end, if it is; does not wait."""
        try:
            while self._pipe.poll(0):
                message = decode(self._pipe.recv_bytes())
                if isinstance(message, Bye):
                    return message.reason
        except (EOFError, OSError, AugError):
            return "its agent has ended"
        return None

    def tell(self, message: Message) -> None:
        """Pass something on, unless the agent has not read for long."""
        if self._room.poll(0):
            try:
                self._pipe.send_bytes(encode(message))
            except OSError:
                return


def attend(pipe: Connection, word: str) -> None:
    """Be a remote worker of an agent's: at the other end of the pipe."""
    log = logging.getLogger("augserver")
    log.setLevel(logging.INFO)
    orders = Orders.of_word(word)
    channel = PipeChannel(pipe)
    channel.send(Ready(os.getpid()))
    named = channel.receive()  # its papers, as far as the agent can write them
    if not isinstance(named, Enlist):
        return
    own = dataclasses.replace(named, pid=os.getpid(), machine=machine())
    with Line(orders.address, own, keys=orders.keys, tether=PipeTether(pipe)) as line:
        try:
            _work(line, orders.allow_transforms, lambda: False)
        except AugError as error:
            log.error("%s", error)
            raise SystemExit(1) from None
