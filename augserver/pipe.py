"""The server's end of a pipe: never waits, whatever state the process at the other end is in.

A worker may be busy for a minute, or stopped in the middle of a message; so may the program behind
a private server. So what cannot be written now is kept and written when there is room, and what has
come by halves is kept until the rest comes. The framing is that of multiprocessing's Connection (a
length of four bytes, big-endian, signed, then the bytes), so that a worker's end is a plain,
blocking Connection.
"""

from __future__ import annotations

import os
import struct
from multiprocessing.connection import Connection

from augproto.errors import RemoteProtocolError
from augproto.messages import MAX_FRAME_BYTES

_LENGTH = struct.Struct("!i")
_READ_BYTES = 1 << 16
#: Bytes taken in one turn, so that an end that never stops talking does not stop the loop.
_TURN_BYTES = 1 << 22


class Pipe:
    """One end, of which this object takes possession.

    Args:
        connection: It.
        limit: Bytes of a message; whoever announces more talks nonsense.

    Attributes:
        ended: Whether the other end is closed: nothing more will come.
    """

    def __init__(self, connection: Connection, limit: int = MAX_FRAME_BYTES) -> None:
        self._connection = connection
        self._limit = limit
        self.ended = False
        self._out = bytearray()
        self._in = bytearray()
        os.set_blocking(connection.fileno(), False)

    def fileno(self) -> int:
        """For a poller."""
        return self._connection.fileno()

    @property
    def pending(self) -> bool:
        """Whether something waits to be written: poll for room, then `flush`."""
        return bool(self._out)

    def send(self, frame: bytes) -> None:
        """Write a message, now or when there is room; a dead worker's is lost."""
        self._out += _LENGTH.pack(len(frame)) + frame
        self.flush()

    def flush(self) -> None:
        """Write what can be written now."""
        try:
            while self._out:
                written = os.write(self.fileno(), self._out)
                del self._out[:written]
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()  # its sentinel tells of its end

    def receive(self) -> list[bytes]:
        """Messages that have come whole; what is left over for this turn comes in the next.

        Raises:
            RemoteProtocolError: A message longer than the limit was announced. From here on nothing
                can be made out in this pipe.
        """
        try:
            for _ in range(0, _TURN_BYTES, _READ_BYTES):
                chunk = os.read(self.fileno(), _READ_BYTES)
                if not chunk:
                    self.ended = True
                    break
                self._in += chunk
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        frames = []
        while len(self._in) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in)
            if not 0 <= length <= self._limit:
                raise RemoteProtocolError(
                    f"a pipe announced a message of {length} bytes; wanted at most {self._limit}"
                )
            end = _LENGTH.size + length
            if len(self._in) < end:
                break
            frames.append(bytes(self._in[_LENGTH.size : end]))
            del self._in[:end]
        return frames

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
