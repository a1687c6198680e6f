"""Who is let in: keys are compared here, and whoever was turned away is named once.

ZeroMQ shakes hands in threads of its own. It asks here whether a key is known (ZAP, RFC 27), and
tells here (socket monitors) what became of a connection. Both are sockets that the loop polls, so
nothing here waits, and a stranger costs a look at a set.

A refusal is logged with its reason and address when it first happens, and then counted: a peer that
tries ten times a second fills no disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

import zmq
from zmq.utils import z85

#: Where libzmq looks for whoever knows the keys.
ZAP_ADDRESS = "inproc://zeromq.zap.01"
#: Seconds between two lines of a log about the same.
AGAIN_SECONDS = 30.0
#: Kinds of refusals that are remembered; beyond, all others count as one.
MOST_KINDS = 256
#: Requests and events taken in one turn.
_PER_TURN = 256

_EVENT = struct.Struct("=Hi")
_WATCHED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_ACCEPT_FAILED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
)
_PROTOCOL = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "shows no key, or has none to ask for",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "its greeting is not encrypted for this server's "
    "key, or was said before by somebody else",
}

_GONE = "an address that is gone"
#: The reason of a refusal that the keeper has told of already, with the key.
_SAID = "said"

_log = logging.getLogger("augserver.doorkeeper")


class Refusals:
    """Says each refusal once, and later how often it has happened again."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], float] = {}
        self._again: dict[tuple[str, str], int] = {}

    def tell(self, address: str, reason: str, now: float) -> None:
        """Somebody at that address was turned away for that reason."""
        kind = (address, reason)
        if kind not in self._told and len(self._told) >= MOST_KINDS:
            kind = ("many addresses", "and for many reasons")
        if kind not in self._told:
            self._told[kind] = now
            _log.warning("refused a connection from %s: %s", *kind)
            return
        self._again[kind] = self._again.get(kind, 0) + 1

    def look(self, now: float) -> None:
        """Tell of what has happened again; to be called now and then."""
        for kind in [k for k in self._again if now - self._told[k] >= AGAIN_SECONDS]:
            self._told[kind] = now
            _log.warning("refused %d more connections from %s: %s", self._again.pop(kind), *kind)


class Doorkeeper:
    """Compares keys for all doors of a server.

    Args:
        context: Of the doors' sockets; make this before them.
        allowed: The public keys (Z85) that may come in, by the domain of a door.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], allowed: Mapping[str, frozenset[bytes]]
    ) -> None:
        self._allowed = {
            domain: frozenset(map(z85.decode, keys)) for domain, keys in allowed.items()
        }
        self._refusals = Refusals()
        self.socket: Any = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ZAP_ADDRESS)

    def take(self, now: float) -> None:
        """Answer who asks whether a key is known."""
        for _ in range(_PER_TURN):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # [identity, "", version, request, domain, address, identity, mechanism, credentials...]
            who, (version, request, domain, address, _, mechanism, *shown) = frames[:2], frames[2:]
            known = mechanism == b"CURVE" and shown[0] in self._allowed.get(domain.decode(), ())
            if not known:
                key = z85.encode(shown[0]).decode() if mechanism == b"CURVE" else "none"
                self.refuse(
                    address.decode(),
                    f"its key ({key}) is not among those that are let in as {domain.decode()}",
                    now,
                )
            answer = (b"200", b"OK") if known else (b"400", b"this key is not let in here")
            self.socket.send_multipart([*who, version, request, *answer, b"", b""], zmq.NOBLOCK)

    def refuse(self, address: str, reason: str, now: float) -> None:
        """Note that somebody was turned away."""
        self._refusals.tell(address, reason, now)

    def look(self, now: float) -> None:
        """To be called now and then."""
        self._refusals.look(now)


class Watch:
    """What becomes of the connections of one door.

    Args:
        door: The socket; watch it before it is bound.
        keeper: Who is told of those that fail.
    """

    def __init__(self, door: Any, keeper: Doorkeeper) -> None:
        self._keeper = keeper
        self._addresses: dict[int, str] = {}
        self._unheard: set[int] = set()
        self._failed = ""
        self._door = door
        self.socket: Any = door.get_monitor_socket(_WATCHED)

    def spoke(self, frame: zmq.Frame) -> None:
        """This frame has come, so its connection is one that says something."""
        if not self._unheard:
            return  # as nearly always
        with contextlib.suppress(zmq.ZMQError, ValueError):
            self._unheard.discard(int(frame.get("__fd")))

    def take(self, now: float) -> None:
        """Hear what has happened."""
        for _ in range(_PER_TURN):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event, value = _EVENT.unpack(frames[0])
            self._hear(event, value, now)

    def _hear(self, event: int, value: int, now: float) -> None:
        match event:
            case zmq.EVENT_ACCEPTED:
                self._addresses[value] = _peer(value)
                self._unheard.add(value)
            case zmq.EVENT_ACCEPT_FAILED:
                self._keeper.refuse("anybody", f"it cannot be accepted: {os.strerror(value)}", now)
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._failed = _SAID
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._failed = _PROTOCOL.get(
                    value, f"it does not speak ZMTP as it should ({value:#x})"
                )
            case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._failed = self._failed or "it ended, or took too long, before it had greeted"
            case zmq.EVENT_DISCONNECTED:
                self._end(value, now)

    def _end(self, descriptor: int, now: float) -> None:
        # What has failed is told by the same thread right before the end of its connection.
        failed, self._failed = self._failed, ""
        address = self._addresses.pop(descriptor, _GONE)
        if descriptor not in self._unheard:
            return
        self._unheard.remove(descriptor)
        failed = failed or (
            "it ended, or was cut off for a frame that is too long, before one whole message had "
            "come"
        )
        if failed != _SAID:
            self._keeper.refuse(address, failed, now)

    def close(self) -> None:
        """Watch no more."""
        self._door.disable_monitor()


def _peer(descriptor: int) -> str:
    """The address at the other end of a connection.

    It may be gone by now, and its number be that of anything: of a socket's copy the copy alone is
    closed here, and of what is no socket as well.
    """
    try:
        copy = os.dup(descriptor)
    except OSError:
        return _GONE
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return _GONE
    with connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return "this machine"
        try:
            return str(connection.getpeername()[0])
        except OSError:
            return _GONE
