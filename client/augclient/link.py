"""The ZeroMQ socket under a session: one thread that talks to the server so that training need not.

The thread sends wishes, releases and heartbeats and takes announcements; `fetch` takes a batch that
is there or waits for one under a deadline. All state is under one lock, except releases, which
arrive from finalizers in any thread (see lease.py).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import zmq

from augclient.demand import Demand, Key
from augclient.lease import Returns, Wake, aligned_empty, lease
from augproto import errors
from augproto.errors import (
    AugError,
    BatchTimeout,
    ConnectTimeout,
    RemoteProtocolError,
    ServerLost,
    WorkerError,
)
from augproto.layout import Layout
from augproto.messages import (
    MAX_FRAME_BYTES,
    VERSION,
    Announce,
    Bye,
    Close,
    Entry,
    Fault,
    Heartbeat,
    Hello,
    Message,
    Open,
    Opened,
    Release,
    Want,
    Welcome,
)
from augproto.ring import Header, Ring
from augproto.segment import Holder, attach
from augproto.session import Role, Session, State

#: Seconds for which a server may owe an answer before it counts as lost.
SILENCE = 10.0
#: Seconds to reach a server and open a stream.
CONNECT_TIMEOUT = 30.0
#: Releases and wishes that nobody waits for are sent after this (seconds) at the latest.
LAZY = 0.02

_log = logging.getLogger("augclient.link")
_open_links: weakref.WeakSet[Link] = weakref.WeakSet()


class _Attached:
    """The ring of one opening: mapping, slots, and the proof that this process lives."""

    def __init__(self, opened: Opened, wake: Wake, *, writable: bool) -> None:
        self.opened = opened
        arrays = [(a.name, a.dtype, a.shape) for a in opened.arrays]
        self.layout = Layout.of(opened.batch_size, arrays)
        memory = attach(opened.segment, writable=writable)
        self.ring = Ring(memory, self.layout, opened.slots)
        self.holder = Holder(opened.segment)
        self.returns = Returns(wake, eager=max(1, opened.slots // 4))


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
        self.copies = 0  #: batches handed out as private copies because the ring ran dry
        self._wish = wish
        self._writable = writable
        self._lives = lives
        self._owner = os.getpid()
        self._wake = Wake()
        self._changed = threading.Condition()
        self._attached: _Attached | None = None
        self._demand: Demand | None = None
        self._error: AugError | None = None
        self._closing = False
        self._send_now = False
        self._collected = 0.0
        self._session = Session(Role.CONSUMER, time.monotonic())
        self._thread = threading.Thread(target=self._run, name="augclient-link", daemon=True)
        self._thread.start()
        _open_links.add(self)
        with self._changed:
            opened = self._changed.wait_for(
                lambda: self._attached is not None or self._error is not None, connect_timeout
            )
            error = self._error
        if error is None and not opened:
            error = ConnectTimeout(
                f"no augserver answered at {address} within {connect_timeout:.0f} s. Is it "
                "running (`augserver serve`), and is the address the one it prints?"
            )
        if error is not None:
            self.close()
            raise error

    @property
    def opened(self) -> Opened:
        """What the server said of the stream."""
        assert self._attached is not None
        return self._attached.opened

    @property
    def leased(self) -> int:
        """How many slots this consumer holds now."""
        return self._attached.returns.leased if self._attached is not None else 0

    # -- the consumer's side --------------------------------------------------------------------

    def fetch(self, key: Key, timeout: float) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a batch; they hold its slot until the last view of them is gone.

        Raises:
            WorkerError: The batch cannot be made.
            BatchTimeout: It did not come in time.
            ServerLost: The server is gone.
        """
        self._check_process()
        deadline = time.monotonic() + timeout
        with self._changed:
            if self._demand is not None:
                self._demand.ask(key)
            while True:
                self._raise_error()
                assert self._demand is not None
                assert self._attached is not None
                fault = self._demand.faults.pop(key, None)
                if fault is not None:
                    raise _worker_error(fault)
                entry = self._demand.take(key)
                if entry is not None:
                    break
                self._attached.returns.hurry = True
                self._poke_if_dry(self._attached.returns)
                if not self._demand.asked(key) or self._attached.returns.pending:
                    self._send_soon()
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(min(left, 1.0)):
                    self._check_deadline(key, deadline, timeout)
            self._attached.returns.hurry = False
            if self._demand.unsaid() * 4 > self._attached.opened.slots:
                self._send_soon()
            return self._hand_out(self._attached, entry)

    def _hand_out(self, attached: _Attached, entry: Entry) -> dict[str, npt.NDArray[Any]]:
        stream = attached.opened.stream
        header = Header(stream, entry.epoch, entry.step, entry.sequence, entry.samples)
        attached.ring.check(entry.slot, header)
        slot = attached.ring.slot(entry.slot)
        release = Release(entry.slot, entry.sequence)
        if attached.returns.leased >= attached.opened.slots - 1:
            self._collect(attached.returns)
        if attached.returns.leased >= attached.opened.slots - 1:
            # One slot always circulates, or a consumer that keeps everything stops the stream.
            copy = aligned_empty(slot.nbytes)
            copy[...] = slot
            attached.returns.drop(release)
            self._send_soon()
            self._count_copy(attached)
            return attached.layout.arrays(copy, entry.samples)
        return attached.layout.arrays(lease(slot, release, attached.returns), entry.samples)

    def _count_copy(self, attached: _Attached) -> None:
        if self.copies == 0:
            _log.warning(
                "all %d slots of the ring but one are in use, so batches are copied out from here "
                "on: more slots (slots=) avoid that, if the batches are not kept on purpose",
                attached.opened.slots,
            )
        self.copies += 1

    def _poke_if_dry(self, returns: Returns) -> None:
        if self._attached is not None and returns.leased >= self._attached.opened.slots - 1:
            self._collect(returns)

    def _collect(self, returns: Returns) -> None:
        """Make dead views release: frameworks keep some in deferred lists and cycles.

        jaxlib drops references only at its next call or collection; PyTorch's may sit in cycles.
        Both measured: without this a ring of two to four slots runs dry for ever.
        """
        jaxlib = sys.modules.get("jaxlib._jax")
        with contextlib.suppress(AttributeError):
            if jaxlib is not None:
                jaxlib.collect_garbage()
        now = time.monotonic()
        if returns.leased and now - self._collected > 1.0:
            # A full collection takes longer than the copy it saves: not for every batch.
            self._collected = now
            import gc

            gc.collect()

    def _check_deadline(self, key: Key, deadline: float, timeout: float) -> None:
        if self._lives is not None and not self._lives():
            self._error = self._error or ServerLost(
                f"epoch {key[0]}, step {key[1]}: the private server's process has ended"
            )
        if time.monotonic() >= deadline and self._error is None:
            raise BatchTimeout(
                f"epoch {key[0]}, step {key[1]} did not come within {timeout:.0f} s; the server at "
                f"{self.address} answers, so its workers are too slow for this deadline (timeout=) "
                "or stuck in a transform"
            )

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise errors.ForkedProcess(
                f"this consumer belongs to process {self._owner}; process {os.getpid()} is a fork "
                "of it and must open its own"
            )

    def _raise_error(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args)
        if self._closing:
            raise errors.ConsumerClosed("this consumer is closed; open a new one")

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
            self._fail(errors.ConfigError(f"address {self.address!r}: {error.strerror}"))
        except AugError as error:
            self._fail(error)
        except Exception as error:  # a thread must not end without a word
            self._fail(ServerLost(f"the link to {self.address} failed: {error!r}"))
        finally:
            if self._attached is not None:
                self._attached.holder.close()
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
            now = time.monotonic()
            wait = max(0.0, self._session.due(now))
            if self._session.state is State.OPEN and self._idle_work():
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
                self._speak(dealer, lazily=not ready)
                self._check_server()

    def _idle_work(self) -> bool:
        assert self._attached is not None
        return bool(self._attached.returns.pending)

    def _listen(self, dealer: Any) -> bool:
        """Take everything that has come; False if the conversation is over."""
        while True:
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            try:
                message = self._session.receive(frames[-1], time.monotonic())
            except RemoteProtocolError:
                if self._session.state is State.CLOSED:
                    continue
                raise
            if not self._take(dealer, message):
                return False

    def _take(self, dealer: Any, message: Message) -> bool:
        match message:
            case Welcome():
                self._say(dealer, self._wish)
            case Opened():
                self._attach(message)
            case Announce():
                assert self._demand is not None
                self._demand.announced(message.number, message.entries)
                self._changed.notify_all()
            case Fault() if message.number:
                assert self._demand is not None
                self._demand.failed(message)
                self._changed.notify_all()
            case Fault() if message.kind == "SessionLost" and self._attached is not None:
                return False
            case Fault():
                raise _error_of(message)
            case Bye():
                raise ServerLost(f"the server at {self.address} has ended: {message.reason}")
            case _:
                pass
        return True

    def _attach(self, opened: Opened) -> None:
        before = self._attached
        if before is not None:
            # The server was restarted, or has retired this consumer while it was stopped. A
            # stream is a pure function, so it goes on where it was, if it is the same stream.
            before.holder.close()
            if before.opened.fingerprint != opened.fingerprint:
                raise ServerLost(
                    f"the server at {self.address} came back with another dataset "
                    f"({opened.fingerprint:.16} instead of {before.opened.fingerprint:.16})"
                )
        self._attached = _Attached(opened, self._wake, writable=self._writable)
        if self._demand is None:
            self._demand = Demand(opened.steps, opened.slots)
        else:
            self._demand.restart()
        self._wish = Open(
            self._wish.stream,
            self._wish.spec,
            self._wish.slots,
            # From here on it is this seed, also where the server drew it.
            self._wish.changes | {"seed": opened.seed} if self._wish.stream else {},
        )
        if self._wish.spec is not None:
            self._wish.spec["seed"] = opened.seed
        self._send_now = True
        self._changed.notify_all()

    def _speak(self, dealer: Any, *, lazily: bool) -> None:
        """Say what there is to say."""
        if self._session.state is State.OPEN:
            assert self._demand is not None
            assert self._attached is not None
            returns = self._attached.returns
            for release in self._demand.excess(returns.leased, waiting=returns.hurry):
                returns.drop(release)
                self._send_now = True
            enough = returns.pending >= max(1, self._attached.opened.slots // 4)
            if self._send_now or enough or (lazily and returns.pending):
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
        silent = self._session.silence(time.monotonic())
        if self._lives is not None and not self._lives():
            raise ServerLost(
                "the private server's process has ended; its last words are on this program's "
                "standard error"
            )
        if silent > SILENCE and self._attached is not None:
            raise ServerLost(
                f"the server at {self.address} has not answered for {silent:.0f} s: it was killed, "
                "stopped, or its machine is gone"
            )


def _error_of(fault: Fault) -> AugError:
    """The error that a server's fault names, as this side's leaf of the same tree."""
    kind = getattr(errors, fault.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, AugError)) or kind is WorkerError:
        return RemoteProtocolError(f"{fault.kind}: {fault.message}")
    return kind(fault.message)


def _worker_error(fault: Fault) -> WorkerError:
    return WorkerError(
        fault.message,
        epoch=fault.epoch,
        step=fault.step,
        sample=fault.sample,
        traceback=fault.traceback,
    )


def _close_all() -> None:
    for link in list(_open_links):
        link.close()


atexit.register(_close_all)
