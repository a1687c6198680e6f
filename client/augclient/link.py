"""The ZeroMQ socket under a session: one thread that talks to the server so that training need not.

The thread sends wishes, releases and heartbeats and takes announcements; `fetch` takes a batch that
is there or waits for one under a deadline. All state is under one lock, except releases, which
arrive from finalizers in any thread (see lease.py).
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import zmq

from augclient import interrupt
from augclient.attachment import Attachment
from augclient.bell import Bell
from augclient.demand import Demand, Key
from augclient.lease import Wake
from augproto.errors import (
    AugError,
    BatchTimeout,
    ConfigError,
    ConnectTimeout,
    ConsumerClosed,
    ForkedProcess,
    ServerLost,
)
from augproto.faults import error_of
from augproto.messages import (
    MAX_FRAME_BYTES,
    VERSION,
    Announce,
    Bad,
    Bye,
    Close,
    Fault,
    Heartbeat,
    Hello,
    Message,
    Open,
    Opened,
    Want,
    Welcome,
)
from augproto.segment import HOME, directory
from augproto.session import Role, Session, State

#: Seconds for which a server may owe an answer before it counts as lost.
SILENCE = 10.0
#: Seconds to reach a server and open a stream.
CONNECT_TIMEOUT = 30.0
#: ... and for a server that answers meanwhile to load the stream's dataset.
LOAD_TIMEOUT = 600.0
#: Releases and wishes that nobody waits for are sent after this (seconds) at the latest.
LAZY = 0.02
#: A conversation that ends sooner than this (seconds) is not begun again at once.
BRIEF = 0.1
#: Messages taken in one turn: a server that never stops talking must not keep the lock.
MESSAGES_PER_TURN = 256
#: Seconds for which a consumer that has taken a batch counts as one that takes batches.
ACTIVE = 1.0

_open_links: weakref.WeakSet[Link] = weakref.WeakSet()


class Link:
    """One consumer's conversation with a server, in a thread of its own.

    Args:
        address: ZeroMQ address of the server.
        wish: What to open.
        writable: Map the ring read-write (for PyTorch, whose in-place operations do not look).
        lives: Tells whether a private server's process still runs; None for another's server.

    Raises:
        ConnectTimeout: Nobody answered.
        AugError: The server refused the wish.
    """

    def __init__(
        self,
        address: str,
        wish: Open,
        *,
        writable: bool,
        lives: Callable[[], bool] | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self.address = address
        self._wish = wish
        self._writable = writable
        self._lives = lives
        self._owner = os.getpid()
        self._wake = Wake()
        # Reentrant: a signal's handler may close what the thread it runs in is fetching from.
        self._lock = threading.RLock()
        self._turn = threading.RLock()
        self._bell = Bell()
        self._taken_at = -ACTIVE
        self._attachment: Attachment | None = None
        self._demand: Demand | None = None
        self._error: AugError | None = None
        self._closing = False
        self._send_now = False
        self._session = Session(Role.CONSUMER, time.monotonic())
        self._thread = threading.Thread(target=self._run, name="augclient-link", daemon=True)
        try:
            self._thread.start()
            _open_links.add(self)
            interrupt.attend(self)
            self._await_opening(connect_timeout)
        except BaseException:
            self.close()
            raise

    def _await_opening(self, timeout: float) -> None:
        began = time.monotonic()
        deadline = began + timeout
        while True:
            with self._lock:
                if self._error is not None:
                    raise self._error
                if self._attachment is not None:
                    return
                self._bell.expect()
            now = time.monotonic()
            if now >= deadline and self._loads and now < began + LOAD_TIMEOUT:
                deadline = now + SILENCE  # it answers, and has a large dataset to load
            elif now >= deadline and self._loads:
                raise ConnectTimeout(
                    f"the server at {self.address} has not loaded the stream's dataset within "
                    f"{LOAD_TIMEOUT:.0f} s; its log says what it is at"
                )
            elif now >= deadline:
                raise ConnectTimeout(
                    f"no augserver opened the stream at {self.address} within {timeout:.0f} s. Is "
                    "it running (`augserver serve`), and is this the address that it prints?"
                )
            self._bell.wait(deadline)
            self._bell.raise_interrupt(began, "a stream was opened")

    @property
    def _loads(self) -> bool:
        """Whether a server that answers is at opening the stream."""
        with self._lock:
            silent = self._session.silence(time.monotonic())
            return self._session.state is State.OPENING and silent < SILENCE

    @property
    def opened(self) -> Opened:
        """What the server said of the stream."""
        assert self._attachment is not None
        return self._attachment.opened

    def bad(self, key: Key) -> tuple[Bad, ...]:
        """The samples that a batch just fetched had to do without."""
        return self._demand.bad.pop(key, ()) if self._demand is not None else ()

    @property
    def leased(self) -> int:
        """How many slots this consumer holds now."""
        return self._attachment.returns.leased if self._attachment is not None else 0

    @property
    def copies(self) -> int:
        """How many batches were handed out as copies because the ring ran dry."""
        return self._attachment.copies if self._attachment is not None else 0

    # -- the consumer's side --------------------------------------------------------------------

    def fetch(self, key: Key, timeout: float) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a batch; they hold its slot until the last view of them is gone.

        Raises:
            WorkerError: The batch cannot be made.
            BatchTimeout: It did not come in time.
            ServerLost: The server is gone.
            ConsumerClosed, ForkedProcess: The link is not this caller's to use (any more).
        """
        if os.getpid() != self._owner:
            raise ForkedProcess(
                f"this consumer belongs to process {self._owner}; process {os.getpid()} is a fork "
                "of it and must open its own"
            )
        began = time.monotonic()
        deadline = began + timeout
        # One wish at a time: several threads (TensorFlow's) may come, and demand follows one.
        try:
            if not self._turn.acquire(timeout=timeout):
                raise BatchTimeout(
                    f"epoch {key[0]}, step {key[1]}: another thread has waited for a batch of this "
                    f"consumer for {timeout:.0f} s; give every thread a consumer of its own"
                )
            while True:
                arrays = self._take_or_ask(key)
                if arrays is not None:
                    return arrays
                self._bell.raise_interrupt(began, f"epoch {key[0]}, step {key[1]} was waited for")
                self._wait(key, deadline, timeout)
        finally:
            # Whether it was acquired, only the lock itself knows for sure.
            try:  # noqa: SIM105 - a call of suppress() is a place for Ctrl-C
                self._turn.release()
            except RuntimeError:
                pass

    def _take_or_ask(self, key: Key) -> dict[str, npt.NDArray[Any]] | None:
        """The batch if it is there; if not, the server is told all that could help."""
        with self._lock:
            if self._closing or self._demand is None or key not in self._demand.ready:
                # What is there may be taken, whatever has become of the server.
                self._raise_error()
            demand, attachment = self._demand, self._attachment
            assert demand is not None
            assert attachment is not None
            demand.ask(key)
            fault = demand.faults.pop(key, None)
            if fault is not None:
                raise error_of(fault)
            arrays = attachment.take(demand.ready, key)
            if arrays is not None:
                attachment.returns.hurry = False
                demand.taken(key)
                self._taken_at = time.monotonic()
                if demand.unsaid() * 4 > attachment.opened.slots:
                    self._send_soon()
                elif attachment.returns.pending >= attachment.eager:
                    self._wake()
                return arrays
            attachment.returns.hurry = True
            attachment.collect()
            if not demand.asked(key) or attachment.returns.pending:
                self._send_soon()
            elif demand.crowded(attachment.returns.leased):
                self._wake()
            self._bell.expect()
            return None

    def _wait(self, key: Key, deadline: float, timeout: float) -> None:
        """Wait until something has changed."""
        assert self._attachment is not None
        try:
            if time.monotonic() < deadline and self._bell.wait(deadline):
                return
            with self._lock:
                self._attachment.collect()
            if time.monotonic() >= deadline:
                raise BatchTimeout(
                    f"epoch {key[0]}, step {key[1]} did not come within {timeout:.0f} s. The "
                    f"server at {self.address} lives, so its workers are too slow for this "
                    "deadline (timeout=), or stuck in a transform"
                )
        finally:
            self._attachment.returns.hurry = False

    def interrupt(self, until: float) -> None:
        """End the waits that began until then, in threads other than the main one."""
        with self._lock:
            self._bell.cut = max(self._bell.cut, until)
            self._bell.ring()

    def _make_room(self) -> None:
        """Give back what is ready but not wanted any more, or in the way of what is waited for.

        In the link's thread alone: a signal in the middle of it would lose a slot.
        """
        assert self._demand is not None
        assert self._attachment is not None
        returns = self._attachment.returns
        for release in self._demand.excess(returns.leased, waiting=returns.hurry):
            returns.drop(release)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args)
        if self._closing:
            raise ConsumerClosed("this consumer is closed; open a new one")

    def close(self) -> None:
        """End the conversation. Arrays that are still alive stay readable."""
        if os.getpid() != self._owner:
            _open_links.discard(self)
            return
        with self._lock:
            self._closing = True
            self._bell.ring()
        self._wake()
        interrupt.leave(self)
        _open_links.discard(self)
        if threading.current_thread() is not self._thread:
            with contextlib.suppress(RuntimeError):  # Ctrl-C came while it was being started
                self._thread.join(5.0)

    # -- the thread's side ----------------------------------------------------------------------

    def _send_soon(self) -> None:
        self._send_now = True
        self._wake()

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            while not self._closing and self._error is None:
                with context.socket(zmq.DEALER) as dealer:
                    dealer.setsockopt(zmq.LINGER, 200)
                    dealer.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
                    dealer.connect(self.address)
                    began = time.monotonic()
                    self._converse(dealer)
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
        """One conversation from greeting to end; returns when a new one is needed."""
        self._session = Session(Role.CONSUMER, time.monotonic())
        self._say(dealer, Hello(VERSION, os.path.basename(sys.argv[0] or "python"), os.getpid()))
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._wake.reader, zmq.POLLIN)
        while True:
            wait = max(0.0, self._session.due(time.monotonic()))
            if self._looks_out():
                wait = min(wait, LAZY)
            ready = dict(poller.poll(int(wait * 1000) + 1))
            if self._wake.reader in ready:
                self._wake.clear()
            with self._lock:
                if dealer in ready and not self._listen(dealer):
                    return
                if self._closing:
                    with contextlib.suppress(AugError):
                        self._say(dealer, Close())
                    return
                self._speak(dealer, idle=not ready)
                self._check_server()

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

    def _listen(self, dealer: Any) -> bool:
        """Take what has come; False if the conversation is over."""
        for _ in range(MESSAGES_PER_TURN):
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if not self._take(dealer, self._session.receive(frames[-1], time.monotonic())):
                return False
        return True

    def _take(self, dealer: Any, message: Message) -> bool:
        match message:
            case Welcome():
                self._say(dealer, self._wish)
            case Opened():
                self._attach(message)
            case Announce() if self._demand is not None and self._attachment is not None:
                for release in self._demand.announced(message.number, message.entries, message.bad):
                    self._attachment.returns.drop(release)
            case Fault() if message.number and self._demand is not None:
                self._demand.failed(message)
            case Fault() if message.kind == "SessionLost" and self._attachment is not None:
                return False
            case Fault():
                raise error_of(message)
            case Bye():
                raise ServerLost(f"the server at {self.address} has ended: {message.reason}")
            case _:
                return True
        self._bell.ring()
        return True

    def _attach(self, opened: Opened) -> None:
        before = self._attachment
        if before is not None:
            # The server was restarted, or has retired this consumer while it was stopped.
            before.close()
            before.check_follower(opened, self.address)
        # A private server is of this machine and this user; another may be in a container.
        folder = HOME if self._lives is not None else directory()
        self._attachment = Attachment(opened, folder, writable=self._writable)
        if before is not None:
            self._attachment.copies = before.copies
        if self._demand is None:
            self._demand = Demand(opened.steps, opened.slots)
        else:
            self._demand.restart(opened.slots)
        # From here on it is this seed, also where the server drew it.
        if self._wish.spec is not None:
            self._wish = dataclasses.replace(
                self._wish, spec=self._wish.spec | {"seed": opened.seed}
            )
        else:
            changes = self._wish.changes | {"seed": opened.seed}
            self._wish = dataclasses.replace(self._wish, changes=changes)
        self._send_now = True

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
                runs = self._demand.runs()
                self._say(dealer, Want(runs, self._demand.seen, returns.take()))
        if self._session.due(time.monotonic()) <= 0 and self._session.state in (
            State.READY,
            State.OPENING,
            State.OPEN,
        ):
            self._say(dealer, Heartbeat())

    def _say(self, dealer: Any, message: Message) -> None:
        frame = self._session.send(message, time.monotonic())
        try:
            dealer.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            raise ServerLost(
                f"the server at {self.address} reads nothing: a thousand messages wait for it"
            ) from None

    def _check_server(self) -> None:
        if self._lives is not None and not self._lives():
            raise ServerLost(
                "the private server's process has ended; its last words are on this program's "
                "standard error"
            )
        silent = self._session.silence(time.monotonic())
        if silent > SILENCE and self._attachment is not None:
            raise ServerLost(
                f"the server at {self.address} has not answered for {silent:.0f} s: it was killed, "
                "stopped, or its machine is gone"
            )


def _close_all() -> None:
    for link in list(_open_links):
        link.close()


atexit.register(_close_all)
