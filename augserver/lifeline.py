"""A private server's tie to the program that started it: an inherited pipe.

Its end is the server's end, whatever the program died of. While it lives, the program hands over
what must not travel on any socket: functions of its own (cloudpickle, opened by workers only) and
arrays, which it writes itself into room that the server makes. Every message but Withdraw is
answered by one.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from augproto.codec import decode, encode
from augproto.errors import ConfigError, RemoteProtocolError
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
)
from augserver.crew import Crew
from augserver.datasets.store import DatasetStore
from augserver.pipe import Pipe

#: As many as a config can ask for.
MAX_WORKERS = 1024


class Lifeline:
    """The server's end."""

    def __init__(self, connection: Connection, datasets: DatasetStore, crew: Crew) -> None:
        self._pipe = Pipe(connection, MAX_PIPE_BYTES)
        self._datasets = datasets
        self._crew = crew
        self._address = ""

    def fileno(self) -> int:
        """For the loop's poller."""
        return self._pipe.fileno()

    @property
    def pending(self) -> bool:
        """Whether an answer waits for room: poll for that, too."""
        return self._pipe.pending

    def serving(self, address: str) -> None:
        """Tell the program that consumers can come."""
        self._address = address
        self._pipe.send(encode(Serving(address)))

    def take(self) -> list[Message]:
        """Take what has come and answer it, without waiting.

        Raises:
            EOFError: The program has ended, or talks what no program of ours does.
        """
        self._pipe.flush()
        try:
            frames = self._pipe.receive()
        except RemoteProtocolError as error:
            raise EOFError(f"{error}") from error
        taken = [message for message in map(self._take, frames) if message is not None]
        if self._pipe.ended:
            raise EOFError("the program it belongs to has ended")
        return taken

    def _take(self, frame: bytes) -> Message | None:
        try:
            message = decode(frame, limit=MAX_PIPE_BYTES)
            if isinstance(message, Withdraw):
                # Said by a garbage collector, which does not wait for an answer.
                self._datasets.withdraw(message.name)
                return message
            answer = self._answer(message)
        except Exception as error:  # whatever the program says, it is answered to it alone
            self._pipe.send(encode(fault_of(error)))
            return None
        self._pipe.send(encode(answer))
        return message

    def _answer(self, message: Message) -> Message:
        match message:
            case Offer():
                room = self._datasets.offer(message.name, message.arrays)
                return Room(message.name, room.sources if room else ())
            case Filled():
                self._datasets.filled(message.name)
            case Scale():
                if message.workers > MAX_WORKERS:
                    raise ConfigError(
                        f"workers: got {message.workers}; wanted at most {MAX_WORKERS}"
                    )
                self._crew.scale(message.workers)
            case Function():
                pass  # the loop passes it on to the workers
            case _:
                raise RemoteProtocolError(f"the lifeline got {type(message).__name__}")
        return Serving(self._address)
