"""A private server's tie to the program that started it: an inherited pipe.

Its end is the server's end, whatever the program died of. While it lives, the program hands over
what must not travel on any socket: functions of its own (cloudpickle, opened by workers only) and
arrays, which it writes itself into room that the server makes. Every message but Withdraw is
answered by one.
"""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection

from augproto.errors import AugError, RemoteProtocolError
from augproto.faults import fault_of
from augproto.messages import (
    MAX_PIPE_BYTES,
    Filled,
    Function,
    Message,
    Offer,
    Room,
    Scale,
    Serving,
    Withdraw,
    decode,
    encode,
)
from augserver.crew import Crew
from augserver.datasets.store import DatasetStore


class Lifeline:
    """The server's end."""

    def __init__(self, pipe: Connection, datasets: DatasetStore, crew: Crew) -> None:
        self._pipe = pipe
        self._datasets = datasets
        self._crew = crew
        self._address = ""

    def fileno(self) -> int:
        """For the loop's poller."""
        return self._pipe.fileno()

    def serving(self, address: str) -> None:
        """Tell the program that consumers can come."""
        self._address = address
        with contextlib.suppress(OSError):  # it has ended already; the loop will see that
            self._pipe.send_bytes(encode(Serving(address)))

    def take(self) -> Message | None:
        """Take one message and answer it; None if it was none.

        Raises:
            EOFError: The program has ended.
        """
        try:
            frame = self._pipe.recv_bytes()
        except OSError as error:
            raise EOFError from error
        try:
            message = decode(frame, limit=MAX_PIPE_BYTES)
        except AugError as error:
            self._say(fault_of(error))
            return None
        if isinstance(message, Withdraw):
            # Said by a garbage collector, which does not wait for an answer.
            self._datasets.withdraw(message.name)
            return message
        try:
            answer = self._answer(message)
        except (AugError, OSError) as error:
            answer = fault_of(error)
        self._say(answer)
        return message

    def _say(self, answer: Message) -> None:
        try:
            self._pipe.send_bytes(encode(answer))
        except OSError as error:
            raise EOFError from error

    def _answer(self, message: Message) -> Message:
        match message:
            case Offer():
                room = self._datasets.offer(message.name, message.arrays)
                return Room(message.name, room.sources if room else ())
            case Filled():
                self._datasets.filled(message.name)
            case Scale():
                self._crew.scale(message.workers)
            case Function():
                pass  # the loop passes it on to the workers
            case _:
                raise RemoteProtocolError(f"the lifeline got {type(message).__name__}")
        return Serving(self._address)
