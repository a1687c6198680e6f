"""A remote worker's line to its server, as its main thread sees it.

What has come is taken here, and what was made is handed over; both under a deadline, or at once.
The thread that keeps it up is in keeping.py.
"""

from __future__ import annotations

from types import TracebackType

from augproto.codec import encode
from augproto.messages import Message, Piece, Place
from augserver.dealer import Sent
from augserver.keeping import FAREWELL_SECONDS, Event, Fresh, Keeping

#: Bytes of a batch in one message.
PIECE_BYTES = 1 << 20


class Line(Keeping):
    """A context manager around the thread; `Keeping` documents the arguments."""

    def __enter__(self) -> Line:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(repr(error) if error is not None else "was told to end")

    def close(self, reason: str) -> None:
        """Say that this worker ends, and end the thread."""
        self._closing = self._closing or reason or "ends"
        self._wake()
        self._thread.join(2 * FAREWELL_SECONDS + 1)
        self._woken.close()
        self._wakes.close()

    def receive(self, seconds: float) -> Event | None:
        """What has come, or None after so many seconds.

        Raises:
            AugError: The line has ended for good.
        """
        with self._news:
            self._news.wait_for(lambda: self._inbox or self._error, seconds)
            if self._error is not None:
                raise self._error
            event = self._inbox.popleft() if self._inbox else None
            if isinstance(event, Fresh):
                self._heard_of = self._generation
            return event

    @property
    def stale(self) -> bool:
        """Whether what is being made is not wanted any more: the server has forgotten it."""
        return self._heard_of != self._generation or bool(self._closing)

    def send(self, message: Message) -> None:
        """Tell the server, unless it has forgotten what this is about."""
        self._outbox.append((self._heard_of, [encode(message)], None))
        self._wake()

    def send_batch(self, stream: int, place: Place, slot: memoryview) -> Sent:
        """Send a slot's bytes from where they lie; tells when that may be written again."""
        offsets = range(0, len(slot), PIECE_BYTES)
        sent = Sent(len(offsets))
        for offset in offsets:
            control = encode(Piece(stream, place, "", offset, len(slot)))
            data = slot[offset : offset + PIECE_BYTES]
            self._outbox.append((self._heard_of, [control, data], sent))
        self._wake()
        return sent
