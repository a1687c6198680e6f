"""The server's end of a worker's pipe: never waits, whatever state the worker is in.

A worker may be busy for a minute, or stopped in the middle of a message. So what cannot be written
now is kept and written when there is room, and what has come by halves is kept until the rest
comes. The framing is that of multiprocessing's Connection (a length of four bytes, big-endian,
signed, then the bytes), so that the worker's end is a plain, blocking Connection.
"""

from __future__ import annotations

import os
import struct
from multiprocessing.connection import Connection

from augproto.errors import RemoteProtocolError
from augproto.messages import MAX_FRAME_BYTES

_LENGTH = struct.Struct("!i")
_READ_BYTES = 1 << 16


class Pipe:
    """One end, of which this object takes possession."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._out = bytearray()
        self._in = bytearray()
        self.ended = False  #: the other end is closed; what it said before is still there
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
        """All messages that have come whole."""
        try:
            while chunk := os.read(self.fileno(), _READ_BYTES):
                self._in += chunk
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        frames = []
        while len(self._in) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in)
            if not 0 <= length <= MAX_FRAME_BYTES:
                raise RemoteProtocolError(f"a worker's pipe announced {length} bytes")
            end = _LENGTH.size + length
            if len(self._in) < end:
                break
            frames.append(bytes(self._in[_LENGTH.size : end]))
            del self._in[:end]
        return frames

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
