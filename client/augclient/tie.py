"""A program's end of the pair of sockets that ties its private server to it.

A thread of its own reads and writes. So whoever asks waits under a deadline whatever the server is
doing (stopped in the middle of a message, it would hold a plain write for ever), and may be torn
out of that wait by Ctrl-C: the answer is then heard by nobody, instead of being taken for that to
the next question. And a garbage collector may say something without a wait and without a lock.

The framing is that of multiprocessing's Connection: a length of four bytes, big-endian, signed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import struct
import threading
from collections import deque

from augclient.lease import Wake
from augproto.messages import MAX_FRAME_BYTES

_LENGTH = struct.Struct("!i")
_READ_BYTES = 1 << 16

Answer = queue.SimpleQueue[bytes | None]


class Tie:
    """One end, of which this object takes possession. Every question has one answer, in order."""

    def __init__(self, mine: socket.socket) -> None:
        mine.setblocking(False)
        self._socket = mine
        self._owner = os.getpid()
        self._wake = Wake()
        self._said: queue.SimpleQueue[tuple[bytes, Answer | None]] = queue.SimpleQueue()
        self._first: Answer = queue.SimpleQueue()
        self._closing = False
        self._over = False
        threading.Thread(target=self._run, name="augclient-private", daemon=True).start()

    @property
    def closed(self) -> bool:
        """Whether nothing can be said any more."""
        return self._closing or self._over

    def first(self, timeout: float) -> bytes | None:
        """What the server says unasked; None if it has ended or the time is over."""
        return _heard(self._first, timeout)

    def ask(self, frame: bytes, timeout: float) -> bytes | None:
        """The answer; None if the server has ended or the time is over."""
        answer: Answer = queue.SimpleQueue()
        self._said.put((frame, answer))
        self._wake()
        if self.closed:  # perhaps it had looked for the last time before
            answer.put(None)
        return _heard(answer, timeout)

    def tell(self, frame: bytes) -> None:
        """Say something that is not answered; from anywhere, also from a finalizer."""
        self._said.put((frame, None))
        self._wake()

    def close(self) -> None:
        """Close this end, without a wait."""
        self._closing = True
        if os.getpid() == self._owner:
            self._wake()
        else:  # a forked child has a copy of the descriptor, which keeps the server, and no thread
            self._socket.close()

    # -- the thread's side ----------------------------------------------------------------------

    def _run(self) -> None:
        waiting: deque[Answer] = deque([self._first])
        with self._socket, contextlib.suppress(OSError):
            self._converse(waiting)
        self._over = True
        while not self._said.empty():
            _, answer = self._said.get_nowait()
            if answer is not None:
                waiting.append(answer)
        for answer in waiting:
            answer.put(None)

    def _converse(self, waiting: deque[Answer]) -> None:
        """Until this end is closed, or the other."""
        outgoing, incoming = bytearray(), bytearray()
        poller = select.poll()
        poller.register(self._wake.reader, select.POLLIN)
        while not self._closing:
            room = select.POLLOUT if outgoing else 0
            poller.register(self._socket, select.POLLIN | room)
            for fd, _ in poller.poll():
                if fd == self._wake.reader:
                    self._wake.clear()
            while not self._said.empty():
                frame, answer = self._said.get_nowait()
                outgoing += _LENGTH.pack(len(frame)) + frame
                if answer is not None:
                    waiting.append(answer)
            with contextlib.suppress(BlockingIOError):
                while outgoing:
                    del outgoing[: self._socket.send(outgoing, socket.MSG_NOSIGNAL)]
            with contextlib.suppress(BlockingIOError):
                chunk = self._socket.recv(_READ_BYTES)
                if not chunk:
                    return
                incoming += chunk
            if not _hear(incoming, waiting):
                return


def _hear(incoming: bytearray, waiting: deque[Answer]) -> bool:
    """Give what has come whole to whoever asked; False if the other end talks nonsense."""
    while len(incoming) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(incoming)
        end = _LENGTH.size + length
        if not 0 <= length <= MAX_FRAME_BYTES:
            return False
        if len(incoming) < end:
            break
        if not waiting:
            return False
        waiting.popleft().put(bytes(incoming[_LENGTH.size : end]))
        del incoming[:end]
    return True


def _heard(answer: Answer, timeout: float) -> bytes | None:
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return None
