"""The thread that keeps up a remote worker's line to its server, while batches are made.

It alone owns the socket. It says once a second who the worker is, takes what the server says, puts
inputs together, and sends what was made. A server that is silent, or ends, is dialled again with a
new socket, for ever. What was under way is forgotten then: a server that has lost a worker has
given its work to others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import zmq

from augproto.codec import decode, encode
from augproto.errors import AugError, ConfigError, RemoteProtocolError, ServerLost, VersionMismatch
from augproto.keys import Keys
from augproto.messages import (
    VERSION,
    Bye,
    Dismiss,
    Enlist,
    Enlisted,
    Fault,
    Heartbeat,
    Inputs,
    Message,
    Piece,
    Resign,
)
from augproto.refusal import Refusal
from augserver.dealer import Sent, connect, received
from augserver.intake import Arrived, Intake

#: Seconds between two `Enlist`.
BEAT = 1.0
#: Seconds of a server's silence after which it is dialled again.
SILENCE = 10.0
#: Seconds between two tries: the first pause, and the longest; each is twice the one before.
PAUSES = (0.1, 5.0)
#: Seconds for the last word to leave.
FAREWELL_SECONDS = 0.3

_log = logging.getLogger("augserver.line")


class Fresh:
    """The server does not know this worker (any more): streams and assignments mean nothing."""


Event = Message | Arrived | Fresh


class Tether(Protocol):
    """A line to whoever has started this worker, and wants to know how it is."""

    def fileno(self) -> int:
        """For a poller."""

    def farewell(self) -> str | None:
        """Why this worker is to end, if it is; does not wait."""

    def tell(self, message: Message) -> None:
        """Pass something on; does not wait."""


class Keeping:
    """The thread's side; the main thread's is `augserver.line.Line`.

    Args:
        address: Where the server listens for workers.
        papers: What is said once a second; `begun` is filled in.
        keys: For a server that asks for some.
        tether: To whoever has started this worker.
        dismissed: Called in the thread when the server wants this process replaced, with the
            reason: what the process hangs in cannot be interrupted, so it should end.

    Attributes:
        begun: Samples that were begun; the main thread counts.
    """

    def __init__(
        self,
        address: str,
        papers: Enlist,
        *,
        keys: Keys | None = None,
        tether: Tether | None = None,
        dismissed: Callable[[str], None] | None = None,
    ) -> None:
        self.begun = 0
        self._address = address
        self._papers = papers
        self._keys = keys
        self._tether = tether
        self._dismissed = dismissed or _end_process
        self._news = threading.Condition()
        self._inbox: deque[Event] = deque()
        self._outbox: deque[tuple[int, Sequence[Any], Sent | None]] = deque()
        self._generation = 0  # of what the server knows of this worker
        self._heard_of = 0  # ... and that of which the main thread knows
        self._error: AugError | None = None
        self._closing = ""
        self._intake = Intake()
        self._told: str | None = None  # why the line was lost; empty while it is not
        self._refused = ""
        self._refusal: Refusal | None = None
        self._lived = 0.0
        self._woken, self._wakes = socket.socketpair()
        self._woken.setblocking(False)
        self._wakes.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="augserver-line", daemon=True)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wakes.send(b"\0")

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        pause = PAUSES[0]
        try:
            while not self._closing:
                dealer = connect(context, self._address, self._keys)
                try:
                    enlisted, why = self._converse(dealer)
                finally:
                    if self._refusal is not None:
                        self._refusal.close()
                        self._refusal = None
                    # What was said last has a moment to get there; all else is of no use.
                    dealer.close(int(FAREWELL_SECONDS * 1000) if self._closing else 0)
                if self._closing:
                    break
                self._lose(why, enlisted=enlisted)
                pause = PAUSES[0] if enlisted else min(2 * pause, PAUSES[1])
                self._rest(pause)
        except AugError as error:
            self._fail(error)
        except Exception as error:  # a thread must not end without a word
            self._fail(ServerLost(f"the line to {self._address} failed: {error!r}"))
        finally:
            context.destroy(linger=int(FAREWELL_SECONDS * 1000))
        if self._tether is not None and self._error is None:
            # Nobody but the server has a use for what the main thread is at.
            _end_process("", 0)

    def _fail(self, error: AugError) -> None:
        if self._tether is not None and isinstance(error, (ConfigError, VersionMismatch)):
            self._tether.tell(Fault(type(error).__name__, str(error)))
        with self._news:
            self._error = error
            self._news.notify_all()

    def _lose(self, why: str, *, enlisted: bool) -> None:
        self._begin_anew()
        if self._tether is not None:
            self._tether.tell(Bye(why))
        if why != self._told:  # once for each reason
            lost = "the line is lost" if enlisted else "nobody to work for"
            _log.warning("%s: the server at %s %s; dialling on", lost, self._address, why)
        self._told = why

    def _begin_anew(self) -> None:
        self._intake.clear()
        with self._news:
            self._generation += 1
            self._inbox.clear()
            self._inbox.append(Fresh())
            self._news.notify_all()
        self._drop_old()

    def _drop_old(self) -> None:
        """What the server has forgotten is not sent; what comes later is dropped when it is due."""
        while self._outbox and self._outbox[0][0] != self._generation:
            _, _, sent = self._outbox.popleft()
            if sent is not None:
                sent.left -= 1

    def _rest(self, pause: float) -> None:
        end = time.monotonic() + pause
        poller = self._poller()
        while not self._ends() and (left := end - time.monotonic()) > 0:
            self._live()
            left = min(left, BEAT)
            if self._woken.fileno() in dict(poller.poll(int(left * 1000) + 1)):
                self._clear()

    def _poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._woken.fileno(), zmq.POLLIN)
        if self._tether is not None:
            poller.register(self._tether.fileno(), zmq.POLLIN)
        return poller

    def _live(self) -> None:
        """Tell whoever has started this worker that it runs, whatever the server is doing."""
        if self._tether is not None and time.monotonic() - self._lived >= BEAT:
            self._lived = time.monotonic()
            self._tether.tell(Heartbeat())

    def _clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _ends(self) -> bool:
        if self._tether is not None and not self._closing:
            self._closing = self._tether.farewell() or ""
        return bool(self._closing)

    def _converse(self, dealer: zmq.Socket[bytes]) -> tuple[bool, str]:
        """One conversation; returns whether this worker was enlisted in it, and why it is over."""
        poller = self._poller()
        refusal = self._refusal = Refusal(dealer, keyed=self._keys is not None, worker=True)
        poller.register(refusal.socket, zmq.POLLIN)
        heard, due, enlisted = time.monotonic(), 0.0, False
        while True:
            now = time.monotonic()
            if self._ends():
                self._say(dealer, Resign(self._closing))
                return enlisted, self._closing
            self._live()
            if now >= due:
                due = now + BEAT
                self._say(dealer, dataclasses.replace(self._papers, begun=self.begun))
            if now - heard > SILENCE:
                if enlisted:
                    return True, f"has said nothing for {SILENCE:g} s"
                return False, refusal.silence()
            poller.register(dealer, zmq.POLLIN | (zmq.POLLOUT if self._outbox else 0))
            ready = dict(poller.poll(max(1, int((due - now) * 1000))))
            if self._woken.fileno() in ready:
                self._clear()
            if refusal.socket in ready and (why := refusal.reason()) is not None:
                return enlisted, f"refuses: {why}"
            if ready.get(dealer, 0) & zmq.POLLIN:
                heard = time.monotonic()
                for frames in received(dealer):
                    try:
                        message = decode(frames[0].bytes)
                        if isinstance(message, Bye):
                            return enlisted, f"ends ({message.reason})"
                        enlisted = self._take(message, frames[1:]) or enlisted
                    except VersionMismatch:
                        raise
                    except RemoteProtocolError as error:
                        return enlisted, f"talks nonsense ({error})"
            self._send_some(dealer, due)

    def _take(self, message: Message, data: Sequence[Any]) -> bool:
        """Take what the server says; returns whether that was that this worker is enlisted."""
        match message:
            case Enlisted():
                self._enlisted(message)
                return True
            case Inputs():
                self._arrived(self._intake.begin(message))
            case Piece() if len(data) == 1:
                self._arrived(self._intake.add(message, data[0].buffer))
            case Fault(kind="VersionMismatch"):
                raise VersionMismatch(message.message)
            case Fault():
                if message.message != self._refused:
                    _log.warning("the server at %s: %s", self._address, message.message)
                self._refused = message.message
            case Dismiss():
                _log.error("dismissed by the server at %s: %s", self._address, message.reason)
                if self._tether is not None:
                    self._tether.tell(message)
                self._dismissed(message.reason)
            case _:
                self._deliver(message)
        return False

    def _enlisted(self, message: Enlisted) -> None:
        if message.version[:1] != VERSION[:1]:
            raise VersionMismatch(
                f"the server at {self._address} speaks version {message.version} of the protocol; "
                f"wanted {VERSION[0]}: install the same augserver on both"
            )
        if message.fresh:
            self._begin_anew()
        if self._told != "":
            _log.info("enlisted with the server at %s", self._address)
        elif message.fresh:
            _log.info(
                "enlisted anew with the server at %s, which was restarted, or had given this up",
                self._address,
            )
        self._told = ""
        # Told once: a server that has taken it knows it.
        self._papers = dataclasses.replace(self._papers, heir="", cause="", traceback="")
        if self._tether is not None:
            self._tether.tell(message)

    def _arrived(self, arrived: Arrived | None) -> None:
        if arrived is not None:
            self._deliver(arrived)

    def _deliver(self, event: Event) -> None:
        with self._news:
            self._inbox.append(event)
            self._news.notify_all()

    def _say(self, dealer: zmq.Socket[bytes], message: Message) -> None:
        # Where there is no room nobody reads, and that is noticed by the server's silence.
        with contextlib.suppress(zmq.Again):
            dealer.send(encode(message), zmq.NOBLOCK)

    def _send_some(self, dealer: zmq.Socket[bytes], due: float) -> None:
        """As much as the socket takes, until it is time to say who this is."""
        while time.monotonic() < due:
            self._drop_old()
            if not self._outbox:
                return
            _, frames, sent = self._outbox[0]
            try:
                tracker = dealer.send_multipart(
                    frames, zmq.NOBLOCK, copy=False, track=sent is not None
                )
            except zmq.Again:
                return
            self._outbox.popleft()
            if sent is not None and tracker is not None:
                sent.trackers.append(tracker)
                sent.left -= 1


def _end_process(reason: str, code: int = 1) -> None:
    for handler in logging.getLogger("augserver").handlers:
        handler.flush()
    os._exit(code)
