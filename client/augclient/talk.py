"""A conversation with a server that keeps itself up, in a thread, so that training need not.

The thread greets, opens the stream, sends wishes, releases and heartbeats and takes announcements;
where the server knows it no more, or is no more, it begins anew, again and again (see away.py). A
private server's end is an error instead. All state is under one lock, except releases,
which arrive from finalizers in any thread (see lease.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from augclient.access import AUTO, Access
from augclient.attachment import Attachment
from augclient.away import Parted, Patience
from augclient.bell import Bell
from augclient.demand import Demand, Scripted
from augclient.frames import Frames
from augclient.handing import HandOver
from augclient.lease import Wake
from augclient.span import Span
from augproto.errors import AugError, ConfigError, NotAllowed, RemoteProtocolError, ServerLost
from augproto.faults import error_of
from augproto.keys import Keys
from augproto.messages import (
    MAX_FRAME_BYTES,
    VERSION,
    Announce,
    Bye,
    Close,
    Fault,
    Heartbeat,
    Hello,
    Message,
    Open,
    Opened,
    Piece,
    Room,
    Taken,
    Want,
    Welcome,
)
from augproto.refusal import Refusal
from augproto.session import Role, Session, State

#: The version from which on a slot may hold several batches.
SPANS = (1, 3)
#: Seconds for which a server may owe an answer before it counts as lost, and is greeted anew.
SILENCE = 10.0
#: Releases and wishes that nobody waits for are sent after this (seconds) at the latest.
LAZY = 0.02
#: A conversation that ends sooner than this (seconds) is not begun again at once.
BRIEF = 0.1
#: Seconds after which it is looked whether a server lives that has just been heard.
CHECK = 0.1
#: Messages taken in one turn: a server that never stops talking must not keep the lock.
MESSAGES_PER_TURN = 256
#: Seconds for which a consumer that has taken a batch counts as one that takes batches.
ACTIVE = 1.0


class Talk:
    """The thread's side; the consumer's is `augclient.link.Link`, which documents the arguments."""

    def __init__(
        self,
        address: str,
        wish: Open,
        *,
        writable: bool,
        lives: Callable[[], bool] | None,
        handing: HandOver | None,
        scripted: bool,
        memory: str = AUTO,
        keys: Keys | None = None,
    ) -> None:
        self.address = address
        self._keys = keys
        self._refusal: Refusal | None = None
        self._scripted = scripted
        self._wish = wish
        self._lives = lives
        self._access = Access(address, memory, writable=writable, private=lives is not None)
        self._patience = Patience(address)
        self._handing = handing
        self._wake = Wake()
        # Reentrant: a signal's handler may close what the thread it runs in is fetching from.
        self._lock = threading.RLock()
        self._bell = Bell()
        self._taken_at = -ACTIVE
        self._checked_at = -CHECK
        self._attachment: Attachment | None = None
        self._demand: Demand | None = None
        #: Slots of which not every batch was handed out. Two of them, since threads that ask for
        #: neighbouring batches may come in another order.
        self._spans: list[Span] = []
        self._error: AugError | None = None
        self._closing = False
        self._send_now = False
        self._session = Session(Role.CONSUMER, time.monotonic())
        self._thread = threading.Thread(target=self._run, name="augclient-link", daemon=True)

    @property
    def _loads(self) -> bool:
        """Whether a server that answers is at opening the stream, or at being handed its data."""
        with self._lock:
            silent = self._session.silence(time.monotonic())
            at_it = self._session.state in (State.READY, State.OFFERING, State.OPENING)
            return at_it and silent < SILENCE

    def _send_soon(self) -> None:
        self._send_now = True
        self._wake()

    def _dial(self, context: zmq.Context[zmq.Socket[bytes]]) -> Any:
        """A new DEALER on its way to the server."""
        dealer: Any = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 200)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        if self._keys is not None:
            self._keys.apply(dealer)
        if self.address.startswith("tcp://"):  # elsewhere nobody is asked for keys
            self._refusal = Refusal(dealer, keyed=self._keys is not None)
        dealer.connect(self.address)
        return dealer

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            while not self._closing and self._error is None:
                with self._dial(context) as dealer:
                    began = time.monotonic()
                    try:
                        self._converse(dealer)
                    except Parted:
                        # What it had still to say would be said to a server that knows it not.
                        dealer.setsockopt(zmq.LINGER, 0)
                    finally:
                        if self._refusal is not None:
                            self._refusal.close()
                            self._refusal = None
                if not self._closing and time.monotonic() - began < BRIEF:
                    # A server that knows nobody for long must not be asked without pause.
                    self._wake.wait(BRIEF)
        except zmq.ZMQError as error:
            self._fail(ConfigError(f"address {self.address!r}: {error.strerror}"))
        except AugError as error:
            self._fail(error)
        except Exception as error:  # a thread must not end without a word
            self._fail(ServerLost(f"the link to {self.address} failed: {error!r}"))
        finally:
            if self._attachment is not None:
                self._attachment.close()
            context.destroy(linger=200)

    def _fail(self, error: AugError) -> None:
        with self._lock:
            self._error = self._error or error
            self._bell.ring()

    def _converse(self, dealer: Any) -> None:
        """One conversation, until it is closed.

        Raises:
            Parted: A new one is needed.
        """
        self._session = Session(Role.CONSUMER, time.monotonic())
        self._say(dealer, Hello(VERSION, os.path.basename(sys.argv[0] or "python"), os.getpid()))
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._wake.reader, zmq.POLLIN)
        if self._refusal is not None:
            poller.register(self._refusal.socket, zmq.POLLIN)
        while True:
            wait = max(0.0, self._session.due(time.monotonic()))
            if self._looks_out():
                wait = min(wait, LAZY)
            if self._handing is not None and self._handing.busy:
                wait = 0.0
            ready = dict(poller.poll(int(wait * 1000) + (wait > 0)))
            if self._wake.reader in ready:
                self._wake.clear()
            with self._lock:
                if self._refusal is not None and self._refusal.socket in ready:
                    self._heed(self._refusal.reason())
                if dealer in ready:
                    self._listen(dealer)
                if self._closing:
                    with contextlib.suppress(AugError):
                        self._say(dealer, Close())
                    return
                self._hand_over(dealer)
                self._speak(dealer, idle=not ready)
                now = time.monotonic()
                if not ready or now - self._checked_at > CHECK:
                    self._checked_at = now
                    self._check_server()

    def _heed(self, refused: str | None) -> None:
        """A server that lets nobody in is an error at the first opening; later it may be restarted
        with another list, and is waited for."""
        if refused is not None and self._attachment is None:
            raise NotAllowed(f"address: the server at {self.address} refuses: {refused}")

    def _looks_out(self) -> bool:
        """Whether to look soon for slots to give back: the end of a lease rings no bell.

        The next fetch does. In a ring of few slots that is too late for one of them, so there it
        is looked for while batches are taken.
        """
        if self._attachment is None:
            return False
        returns = self._attachment.returns
        few = (self._attachment.eager == 1 or returns.hurry) and returns.leased > 0
        return returns.pending > 0 or (few and time.monotonic() - self._taken_at < ACTIVE)

    def _listen(self, dealer: Any) -> None:
        """Take what has come."""
        for _ in range(MESSAGES_PER_TURN):
            # A piece may be handed out as it is; of all else a copy is made faster than a frame.
            copy = not isinstance(self._attachment, Frames)
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK, copy=copy)
            except zmq.Again:
                break
            first = frames[0] if copy else frames[0].bytes
            message = self._session.receive(first, time.monotonic())
            if not isinstance(message, Bye):
                self._patience.heard()
            if isinstance(message, Piece):
                self._take_piece(message, frames[1:])
            else:
                self._take(dealer, message)
            if not dealer.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                break  # as nearly always; to be told so by an exception takes ten times as long

    def _take_piece(self, piece: Piece, data: list[Any]) -> None:
        if not isinstance(self._attachment, Frames) or len(data) != 1:
            raise RemoteProtocolError(
                f"Piece: got {piece!r:.120} and {len(data)} frames; wanted one frame, in a stream "
                "that comes by frames"
            )
        self._attachment.arrived(piece, data[0])

    def _take(self, dealer: Any, message: Message) -> None:
        match message:
            case Welcome():
                self._welcomed(dealer, message)
            case Room() | Taken():
                if self._handing is not None and self._handing.take(message):
                    self._say(dealer, self._wish)
            case Opened():
                self._attach(message)
            case Announce() if self._demand is not None and self._attachment is not None:
                for release in self._demand.announced(
                    message.number, message.entries, message.bad, message.after
                ):
                    self._attachment.returns.drop(release)
            case Fault() if message.number and self._demand is not None:
                self._demand.failed(message)
            case Fault() if message.kind == "SessionLost":
                raise Parted
            case Fault():
                raise error_of(message)
            case Bye() if self._lives is not None:
                raise ServerLost(f"the server at {self.address} has ended: {message.reason}")
            case Bye():
                self._patience.ended(message.reason, time.monotonic())
                raise Parted
            case _:
                return
        self._bell.ring()

    def _welcomed(self, dealer: Any, welcome: Welcome) -> None:
        self._patience.welcomed()
        frames = self._access.by_frames(welcome)
        # An older one would know no such field.
        span = 1 if welcome.version[:2] < SPANS else self._wish.span
        self._wish = dataclasses.replace(self._wish, span=span, frames=frames)
        if self._handing is not None:
            self._say(dealer, self._handing.offer(welcome.door))
        else:
            self._say(dealer, self._wish)

    def _hand_over(self, dealer: Any) -> None:
        """A little of it, so that there is time for a heartbeat."""
        if self._handing is not None and self._handing.busy:
            message = self._handing.work()
            if message is not None:
                self._say(dealer, message)

    def _attach(self, opened: Opened) -> None:
        before = self._attachment
        if before is not None:
            # The server was restarted, or has retired this consumer while it was stopped.
            before.check_follower(opened, self.address)
        self._attachment = self._access.attach(opened)
        if before is not None:
            before.close()
        self._spans.clear()
        if before is not None:
            self._attachment.copies, self._attachment.warned = before.copies, before.warned
        spans = -(-opened.steps // opened.span)
        if self._demand is None:
            kind = Scripted if self._scripted else Demand
            self._demand = kind(spans, opened.slots)
        else:
            self._demand.restart(spans, opened.slots)
        # From here on it is this seed, also where the server drew it.
        if self._wish.spec is not None:
            self._wish = dataclasses.replace(
                self._wish, spec=self._wish.spec | {"seed": opened.seed}
            )
        else:
            changes = self._wish.changes | {"seed": opened.seed}
            self._wish = dataclasses.replace(self._wish, changes=changes)
        self._send_now = True

    def _make_room(self) -> None:
        """Give back what is ready but not wanted any more, or in the way of what is waited for.

        In the link's thread alone: a signal in the middle of it would lose a slot.
        """
        assert self._demand is not None
        assert self._attachment is not None
        returns = self._attachment.returns
        for release in self._demand.excess(returns.leased, waiting=returns.hurry):
            returns.drop(release)

    def _speak(self, dealer: Any, *, idle: bool) -> None:
        """Say what there is to say: wishes and releases in one message, or a heartbeat."""
        if self._attachment is not None and self._demand is not None:
            self._make_room()
            returns = self._attachment.returns
            enough = returns.pending >= self._attachment.eager or returns.hurry
            if self._session.state is State.OPEN and (
                self._send_now or (returns.pending and (enough or idle))
            ):
                self._send_now = False
                scripts = self._demand.scripts()
                if scripts and self._demand.unsaid():  # they did not fit into one message
                    self._send_soon()
                runs, released = self._demand.runs(), returns.take()
                self._attachment.given_back(released)
                self._say(dealer, Want(runs, self._demand.seen, released, scripts))
        if self._session.due(time.monotonic()) <= 0 and self._session.state in (
            State.READY,
            State.OFFERING,
            State.OPENING,
            State.OPEN,
        ):
            self._say(dealer, Heartbeat())

    def _say(self, dealer: Any, message: Message) -> None:
        frame = self._session.send(message, time.monotonic())
        try:
            dealer.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            if self._lives is None:
                raise Parted from None
            raise ServerLost(
                f"the server at {self.address} reads nothing: a thousand messages wait for it"
            ) from None

    def _check_server(self) -> None:
        if self._lives is not None and not self._lives():
            raise ServerLost(
                "the private server's process has ended; its last words are on this program's "
                "standard error"
            )
        now = time.monotonic()
        silent = self._session.silence(now)
        if self._lives is None:
            greeting = self._session.state is State.GREETING
            self._patience.look(silent, now, SILENCE, greeting=greeting)
        elif silent > SILENCE and self._attachment is not None:
            raise ServerLost(
                f"the server at {self.address} has not answered for {silent:.0f} s: it was killed, "
                "stopped, or its machine is gone"
            )
