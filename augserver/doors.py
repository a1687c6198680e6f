"""Where others come in: the sockets of a server, and by which of them somebody has come.

Each door is a ROUTER of its own. Consumers and workers come by different ones, so that nobody can
take the other's part, and whoever has to show a key by others than those who need none. An identity
has the number of its door in front, so that an answer finds the way back.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from augproto.errors import ConfigError
from augproto.keys import load_allowed, load_secret
from augproto.messages import MAX_FRAME_BYTES
from augserver import runtime
from augserver.config import Config
from augserver.doorkeeper import Doorkeeper, Watch

#: Messages taken from one door in a turn, so that workers and other doors get their turn too.
MESSAGES_PER_TURN = 256
#: Messages that wait for a peer: pieces of a ring of 4 GiB, or one for each slot of the largest.
_WAITING = 8192
#: Milliseconds for a connection to greet; a stranger's silent one costs a descriptor until then.
_GREETING_MS = 5000
#: Milliseconds between two looks whether a host is still there, and for it to answer.
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 2000, 8000
#: Numbers of errors from here on are ZeroMQ's own.
_ZMQ_OWN = 156384712
#: What to do where an address cannot be bound.
_HINTS = {
    errno.EADDRINUSE: "; another program, or another address of this server's, has it",
    errno.ENODEV: "; wanted an address or interface of this machine, or * for all of them",
    errno.EADDRNOTAVAIL: "; wanted an address of this machine, or * for all of them",
}
#: Connections that wait to be accepted.
_BACKLOG = 512


class Guest(enum.Enum):
    """Who comes in by a door, in the plural: the domain of the keys that are let in."""

    CONSUMER = "consumers"
    WORKER = "workers"


class Door:
    """One socket, for one kind of guest.

    Args:
        secret: The server's pair of keys (public, secret), where a guest has to show one.
    """

    def __init__(
        self,
        number: int,
        guest: Guest,
        context: zmq.Context[zmq.Socket[bytes]],
        keeper: Doorkeeper,
        secret: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.guest = guest
        self.keyed = secret is not None
        self.addresses: list[str] = []
        self._prefix = bytes([number])
        self.socket: Any = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.SNDTIMEO, 0)
        self.socket.setsockopt(zmq.SNDHWM, _WAITING)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, _GREETING_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        self.socket.setsockopt(zmq.BACKLOG, _BACKLOG)
        if secret is not None:
            self.socket.setsockopt(zmq.CURVE_SERVER, 1)
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, secret[0])
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, secret[1])
            self.socket.setsockopt_string(zmq.ZAP_DOMAIN, guest.value)
        self.watch = Watch(self.socket, keeper)

    def bind(self, address: str) -> None:
        """Listen there, as the key of the config says that has this address.

        Raises:
            ConfigError: The address is taken or cannot be bound.
        """
        # Only where it is asked for, or 127.0.0.1 would be [::ffff:127.0.0.1].
        self.socket.setsockopt(zmq.IPV6, "[" in address)
        before = os.umask(0o177)  # a socket's file is its owner's alone
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            key = "listen_workers" if self.guest is Guest.WORKER else "listen"
            number = error.errno or 0
            why = os.strerror(number) if 0 < number < _ZMQ_OWN else error.strerror
            hint = _HINTS.get(number, "")
            raise ConfigError(f"{key}: cannot bind {address}: {why}{hint}") from error
        finally:
            os.umask(before)
        self.addresses.append(self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))

    def take(self) -> Iterator[list[Any]]:
        """What has come, each as [identity, frame, ...], for one turn.

        What workers send are pieces of batches: frames after the first are views, not copies.
        """
        for _ in range(MESSAGES_PER_TURN):
            try:
                identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if frames:
                first, *pieces = frames
                self.watch.spoke(first)
                yield [
                    self._prefix + identity.bytes,
                    first.bytes,
                    *(piece.buffer for piece in pieces),
                ]
            if not self.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                return  # as nearly always; to be told so by an exception takes ten times as long

    def send(self, identity: bytes, frames: Sequence[Any]) -> bool:
        """Put a message on the wire without waiting; False if it did not get there.

        Gone (EHOSTUNREACH) or not reading (EAGAIN): locks and leases decide what that means.

        Args:
            frames: A message, and perhaps its bytes after it. Of more than 64 KiB no copy is made:
                they have to stay as they are until they have arrived.
        """
        try:
            copy = len(frames) == 1
            self.socket.send_multipart([identity[1:], *frames], zmq.NOBLOCK, copy=copy)
        except zmq.ZMQError:
            return False
        return True


class Doors:
    """All sockets of a server.

    Args:
        config: Where it listens, and for whom.
        folder: The server's private one.
        poller: The loop's.
        started: What is to be closed is noted here.

    Raises:
        ConfigError: An address is taken or cannot be bound.
    """

    def __init__(
        self,
        config: Config,
        folder: runtime.RuntimeFolder,
        poller: zmq.Poller,
        started: contextlib.ExitStack,
    ) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        started.callback(context.destroy, linger=200)
        consumers = config.listen or (f"ipc://{folder.path / 'ctl.sock'}",)
        by_guest = {Guest.CONSUMER: consumers, Guest.WORKER: config.listen_workers}
        allowed = {
            Guest.CONSUMER.value: load_allowed(config.allow_consumers)
            if config.allow_consumers
            else frozenset(),
            Guest.WORKER.value: load_allowed(config.allow_workers)
            if config.allow_workers
            else frozenset(),
        }
        secret = load_secret(Path(config.key)) if config.key else None
        self.keeper = Doorkeeper(context, allowed)
        poller.register(self.keeper.socket, zmq.POLLIN)
        self.all: list[Door] = []
        for guest, addresses in by_guest.items():
            for keyed in (False, True):
                chosen = [a for a in addresses if config.asks_for_keys(a) is keyed]
                if not chosen:
                    continue
                door = Door(len(self.all), guest, context, self.keeper, secret if keyed else None)
                started.callback(door.watch.close)
                self.all.append(door)
                for address in chosen:
                    started.callback(runtime.SocketLock(address, folder).close)
                    door.bind(address)
                poller.register(door.socket, zmq.POLLIN)
                poller.register(door.watch.socket, zmq.POLLIN)

    def take_strangers(self, ready: Mapping[Any, int], now: float) -> None:
        """Answer who asks for keys, and hear of connections that have failed."""
        if self.keeper.socket in ready:
            self.keeper.take(now)
        for door in self.all:
            if door.watch.socket in ready:
                door.watch.take(now)

    def addresses(self, guest: Guest) -> list[str]:
        """Where guests of that kind come in."""
        return [a for door in self.all if door.guest is guest for a in door.addresses]

    def send(self, identity: bytes, *frames: Any) -> bool:
        """Answer by the door that somebody has come by; False if that did not get there."""
        door = self.all[identity[0]]
        return door.send(identity, frames)
