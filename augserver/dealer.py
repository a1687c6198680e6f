"""The socket of a remote worker: how it is made, and when what was sent has left."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import zmq

from augproto.errors import ConfigError
from augproto.keys import Keys
from augproto.messages import MAX_FRAME_BYTES

#: Messages that the socket takes ahead: on a slow link a heartbeat waits behind these.
_AHEAD = 8
#: Seconds between two looks whether a batch has left.
_NAP = 0.001
#: Messages taken in one turn: a server that never stops talking must not keep the thread.
_PER_TURN = 256


def connect(
    context: zmq.Context[zmq.Socket[bytes]], address: str, keys: Keys | None
) -> zmq.Socket[bytes]:
    """The socket of a worker that dials a server.

    Raises:
        ConfigError: That is no address.
    """
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    dealer.setsockopt(zmq.SNDHWM, _AHEAD)
    try:
        if keys is not None:
            keys.apply(dealer)
        dealer.connect(address)
    except zmq.ZMQError as error:
        dealer.close(0)
        raise ConfigError(
            f"connect: got {address!r:.200} ({error.strerror}); wanted tcp://HOST:PORT, where the "
            "server listens for workers (listen_workers)"
        ) from error
    return dealer


def received(dealer: zmq.Socket[bytes]) -> list[list[Any]]:
    """What has come, for one turn."""
    taken: list[list[Any]] = []
    with contextlib.suppress(zmq.Again):
        while len(taken) < _PER_TURN:
            taken.append(dealer.recv_multipart(zmq.NOBLOCK, copy=False))
    return taken


class Sent:
    """A batch that is on its way out: whether its bytes are needed where they lie."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.trackers: list[zmq.MessageTracker] = []

    @property
    def done(self) -> bool:
        """Whether they may be written over."""
        return not self.left and all(tracker.done for tracker in self.trackers)

    def wait(self, seconds: float) -> bool:
        """Until they may, but not for longer; returns whether they may."""
        end = time.monotonic() + seconds
        while not self.done and (left := end - time.monotonic()) > 0:
            # Before its thread has sent them there is nothing to wait for but that.
            tracker = next((t for t in list(self.trackers) if not t.done), None)
            if tracker is None:
                time.sleep(min(left, _NAP))
                continue
            with contextlib.suppress(zmq.NotDone):
                tracker.wait(min(left, _NAP))
        return self.done
