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

from augclient.attachment import Attachment
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
#: Releases and wishes that nobody waits for are sent after this (seconds) at the latest.
LAZY = 0.02

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
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._attachment: Attachment | None = None
        self._demand: Demand | None = None
        self._error: AugError | None = None
        self._closing = False
        self._send_now = False
        self._session = Session(Role.CONSUMER, time.monotonic())
        self._thread = threading.Thread(target=self._run, name="augclient-link", daemon=True)
        self._thread.start()
        _open_links.add(self)
        with self._changed:
            self._changed.wait_for(
                lambda: self._attachment is not None or self._error is not None, connect_timeout
            )
            error = self._error
        if error is None and self._attachment is None:
            error = ConnectTimeout(
                f"no augserver opened the stream at {address} within {connect_timeout:.0f} s. Is "
                "it running (`augserver serve`), and is this the address that it prints?"
            )
        if error is not None:
            self.close()
            raise error

    @property
    def opened(self) -> Opened:
        """What the server said of the stream."""
        assert self._attachment is not None
        return self._attachment.opened

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
        deadline = time.monotonic() + timeout
        # One wish at a time: several threads (TensorFlow's) may come, and demand follows one.
        if not self._turn.acquire(timeout=timeout):
            raise BatchTimeout(
                f"epoch {key[0]}, step {key[1]}: another thread has waited for a batch of this "
                f"consumer for {timeout:.0f} s; give every thread a consumer of its own"
            )
        try:
            return self._fetch(key, deadline, timeout)
        finally:
            self._turn.release()

    def _fetch(self, key: Key, deadline: float, timeout: float) -> dict[str, npt.NDArray[Any]]:
        with self._changed:
            self._raise_error()
            assert self._demand is not None
            self._demand.ask(key)
            while True:
                fault = self._demand.faults.pop(key, None)
                if fault is not None:
                    raise error_of(fault)
                entry = self._demand.take(key)
                if entry is not None:
                    break
                self._wait(key, deadline, timeout)
            assert self._attachment is not None
            arrays = self._attachment.batch(entry)
            if self._demand.unsaid() * 4 > self._attachment.opened.slots:
                self._send_soon()
            return arrays

    def _wait(self, key: Key, deadline: float, timeout: float) -> None:
        """Wait until something has changed, with the server told all that could help."""
        assert self._demand is not None
        assert self._attachment is not None
        self._attachment.returns.hurry = True
        try:
            self._attachment.collect()
            self._make_room()
            if not self._demand.asked(key) or self._attachment.returns.pending:
                self._send_soon()
            left = deadline - time.monotonic()
            if left <= 0 or not self._changed.wait(min(left, 1.0)):
                self._attachment.collect()
                if time.monotonic() >= deadline:
                    raise BatchTimeout(
                        f"epoch {key[0]}, step {key[1]} did not come within {timeout:.0f} s. The "
                        f"server at {self.address} lives, so its workers are too slow for this "
                        "deadline (timeout=), or stuck in a transform"
                    )
        finally:
            self._attachment.returns.hurry = False
        self._raise_error()

    def _make_room(self) -> None:
        """Give back what is ready but not wanted any more, or in the way of what is waited for."""
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
        _open_links.discard(self)
        if os.getpid() != self._owner:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    # -- the thread's side ----------------------------------------------------------------------

    def _send_soon(self) -> None:
        if not self._send_now:
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
                    self._converse(dealer)
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
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _converse(self, dealer: Any) -> None:
        """One conversation from greeting to end; returns when a new one is needed."""
        self._session = Session(Role.CONSUMER, time.monotonic())
        self._say(dealer, Hello(VERSION, os.path.basename(sys.argv[0] or "python"), os.getpid()))
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._wake.reader, zmq.POLLIN)
        while True:
            wait = max(0.0, self._session.due(time.monotonic()))
            if self._attachment is not None and self._attachment.returns.pending:
                wait = min(wait, LAZY)
            ready = dict(poller.poll(int(wait * 1000) + 1))
            if self._wake.reader in ready:
                self._wake.clear()
            with self._changed:
                if dealer in ready and not self._listen(dealer):
                    return
                if self._closing:
                    with contextlib.suppress(AugError):
                        self._say(dealer, Close())
                    return
                self._speak(dealer, idle=not ready)
                self._check_server()

    def _listen(self, dealer: Any) -> bool:
        """Take everything that has come; False if the conversation is over."""
        while True:
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            if not self._take(dealer, self._session.receive(frames[-1], time.monotonic())):
                return False

    def _take(self, dealer: Any, message: Message) -> bool:
        match message:
            case Welcome():
                self._say(dealer, self._wish)
            case Opened():
                self._attach(message)
            case Announce() if self._demand is not None and self._attachment is not None:
                for release in self._demand.announced(message.number, message.entries):
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
        self._changed.notify_all()
        return True

    def _attach(self, opened: Opened) -> None:
        before = self._attachment
        if before is not None:
            # The server was restarted, or has retired this consumer while it was stopped. A
            # stream is a pure function, so it goes on where it was, if it is the same stream.
            before.close()
            if before.opened.fingerprint != opened.fingerprint:
                raise ServerLost(
                    f"the server at {self.address} came back with another dataset "
                    f"({opened.fingerprint:.16} instead of {before.opened.fingerprint:.16})"
                )
        # A private server is of this machine and this user; another may be in a container.
        folder = HOME if self._lives is not None else directory()
        self._attachment = Attachment(opened, self._wake, folder, writable=self._writable)
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
        dealer.send(self._session.send(message, time.monotonic()))

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
