"""Asks a server how it is, as a stranger would: through its protocol, under a deadline.

A process that runs is not yet a server that serves. So a health check says Hello, asks for the
status and judges the answer; it looks at no pid file and at no port.
"""

from __future__ import annotations

import os
import time
from typing import Any

import zmq

from augproto.addresses import check_dialled
from augproto.errors import ConfigError, ConnectTimeout, NotAllowed, RemoteProtocolError
from augproto.faults import error_of
from augproto.keys import Keys
from augproto.messages import (
    MAX_FRAME_BYTES,
    VERSION,
    AskStatus,
    Bye,
    Close,
    Fault,
    Hello,
    Message,
    Status,
    Welcome,
)
from augproto.refusal import Refusal
from augproto.session import Role, Session
from augserver.limits import mib

#: Milliseconds for the last word to leave; a server that is gone does not delay us by more.
LINGER = 100
#: Seconds between two questions to a server that is starting; and what the last of them needs.
_BETWEEN, _ENOUGH = 0.1, 1.0


def ask(address: str, timeout: float, keys: Keys | None = None) -> tuple[int, Status]:
    """The server's process and what it says of itself.

    Args:
        keys: For a server that asks for some.

    Raises:
        ConnectTimeout: Nobody answered within `timeout` seconds.
        ConfigError: That is no address.
        AugError: The server refused to talk.
    """
    check_dialled("address", address)
    deadline = time.monotonic() + timeout
    session = Session(Role.CONSUMER, time.monotonic())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, LINGER)
            dealer.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
            if keys is not None:
                keys.apply(dealer)
            refusal = Refusal(dealer, keyed=keys is not None)
            try:
                dealer.connect(address)
            except zmq.ZMQError as error:
                raise ConfigError(f"address: got {address!r}; {error.strerror}") from error

            def say(message: Message) -> None:
                dealer.send(session.send(message, time.monotonic()), zmq.NOBLOCK)

            say(Hello(VERSION, "augserver health", os.getpid()))
            welcome = _hear(dealer, session, deadline, address, refusal)
            if not isinstance(welcome, Welcome):
                raise RemoteProtocolError(f"got {welcome!r:.120}; wanted Welcome")
            say(AskStatus())
            status = _hear(dealer, session, deadline, address, refusal)
            if not isinstance(status, Status):
                raise RemoteProtocolError(f"got {status!r:.120}; wanted Status")
            say(Close())
            return welcome.pid, status
    finally:
        context.destroy(linger=LINGER)


def ask_settled(address: str, timeout: float, keys: Keys | None = None) -> tuple[int, Status]:
    """As `ask`; but one whose first workers are still to come is asked again until they are there.

    Within the timeout: then the status says that there are none.
    """
    deadline = time.monotonic() + timeout
    while True:
        pid, status = ask(address, deadline - time.monotonic(), keys)
        if not _starts(status) or deadline - time.monotonic() < _ENOUGH:
            return pid, status
        time.sleep(_BETWEEN)


def _starts(status: Status) -> bool:
    return bool(status.workers_wanted and not status.workers_alive and not status.restarts)


def _hear(
    dealer: Any, session: Session, deadline: float, address: str, refusal: Refusal
) -> Message:
    poller = zmq.Poller()
    poller.register(dealer, zmq.POLLIN)
    poller.register(refusal.socket, zmq.POLLIN)
    ready: dict[Any, int] = {}
    while dealer not in ready:
        left = deadline - time.monotonic()
        ready = dict(poller.poll(max(0, int(left * 1000) + 1)))
        refused = refusal.reason() if refusal.socket in ready else None
        if refused is not None:
            raise NotAllowed(f"the server at {address} refuses: {refused}")
        if left <= 0:
            raise ConnectTimeout(
                f"no augserver answers at {address}: not running, stopped, or the address is not "
                f"the one it prints; it {refusal.silence()}"
            )
    message = session.receive(dealer.recv_multipart(zmq.NOBLOCK)[-1], time.monotonic())
    if isinstance(message, Fault):
        raise error_of(message)
    if isinstance(message, Bye):
        raise ConnectTimeout(f"the server at {address} is ending: {message.reason}")
    return message


def complaint(status: Status) -> str | None:
    """Why a server that answers cannot serve all the same; None if it can."""
    if any(row.state == "ready" for row in status.remote):
        return None
    if _starts(status):
        return (
            f"none of {status.workers_wanted} workers is ready yet (the first server of a machine "
            "compiles its kernels, which takes some ten seconds): the server's log says more"
        )
    if status.workers_wanted and not status.workers_alive:
        return (
            f"none of {status.workers_wanted} workers is alive ({status.restarts} have ended since "
            "the start): the server's log says why"
        )
    return None


def describe(pid: int, status: Status) -> str:
    """The status in one line."""
    streams = ", ".join(status.streams) or "none"
    workers = f"{status.workers_alive} of {status.workers_wanted} workers"
    if not status.workers_wanted:
        workers = "no worker processes"
    if status.remote:
        ready = sum(row.state == "ready" for row in status.remote)
        workers += f" and {ready} of {len(status.remote)} remote ones"
    cache = ""
    if status.cache_places:
        cache = (
            f"; {status.cached_samples} decoded pictures in {status.cache_places} places, "
            f"{mib(status.cache_bytes)}"
        )
    frames = f" ({status.by_frames} by frames)" if status.by_frames else ""
    return (
        f"pid {pid}; streams: {streams}; {workers}, {status.restarts} replaced; "
        f"{status.consumers} consumers{frames}; {status.batches} batches made; "
        f"{status.bad_samples} bad samples{cache}"
    )


def remote_workers(status: Status) -> list[str]:
    """The workers that have dialled in, a line for each."""
    return [
        f"remote worker {row.number} on {row.host} (pid {row.pid}"
        f"{', ' if row.origin else ''}{row.origin}): {row.state}; "
        f"{row.batches} batches made" + (f"; {row.remark}" if row.remark else "")
        for row in status.remote
    ]


def bad_samples(status: Status) -> list[str]:
    """The samples that batches had to do without, a line for each."""
    lines = [
        f"bad sample {bad.sample}{f' ({bad.path})' if bad.path else ''}: {bad.reason}"
        for bad in status.bad
    ]
    if status.bad_samples > len(status.bad):
        lines.append(f"... and {status.bad_samples - len(status.bad)} more bad samples")
    return lines
