"""A consumer and its server: batches are fetched here, and come in a thread of its own.

`fetch` takes a batch that is there, or asks for it and waits under a deadline; what the thread does
meanwhile is in talk.py.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from augclient import interrupt
from augclient.access import AUTO
from augclient.attachment import Shared
from augclient.demand import Key, Scripted
from augclient.handing import HandOver
from augclient.talk import SILENCE, Talk
from augproto.errors import BatchTimeout, ConnectTimeout, ConsumerClosed, ForkedProcess
from augproto.faults import error_of
from augproto.keys import Keys
from augproto.messages import Bad, Open, Opened, Script

#: Seconds to reach a server and open a stream.
CONNECT_TIMEOUT = 30.0
#: What else may be wrong where keys are shown: a server cannot answer who takes it for another.
_OF_KEYS = " Is server_key its own public key? Its log names whom it refuses."
#: ... and for a server that answers meanwhile to load the stream's dataset.
LOAD_TIMEOUT = 600.0

_open_links: weakref.WeakSet[Link] = weakref.WeakSet()


class Link(Talk):
    """One consumer's conversation with a server, in a thread of its own.

    Args:
        address: ZeroMQ address of the server.
        wish: What to open.
        writable: Map the ring read-write (for PyTorch, whose in-place operations do not look).
        lives: Tells whether a private server's process still runs; None for another's server.
        handing: What is to be handed over before each opening, if anything.
        scripted: Whether batches come by scripts (`give`) alone, and none is foreseen.
        memory: How slots are got at: "auto", "shared" or "frames" (see access.py).
        keys: For a server that asks for some.

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
        handing: HandOver | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        scripted: bool = False,
        memory: str = AUTO,
        keys: Keys | None = None,
    ) -> None:
        super().__init__(
            address,
            wish,
            writable=writable,
            lives=lives,
            handing=handing,
            scripted=scripted,
            memory=memory,
            keys=keys,
        )
        self._owner = os.getpid()
        self._turn = threading.RLock()
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
                    + _OF_KEYS
                    * (self._keys is not None)
                )
            self._bell.wait(deadline)
            self._bell.raise_interrupt(began, "a stream was opened")

    @property
    def opened(self) -> Opened:
        """What the server said of the stream."""
        assert self._attachment is not None
        return self._attachment.opened

    def bad(self, key: Key) -> tuple[Bad, ...]:
        """The samples that a batch just fetched had to do without."""
        return self._demand.bad.pop(key, ()) if self._demand is not None else ()

    def give(self, script: Script) -> None:
        """Say what the batch of that name is made of; it is made at once, and then fetched."""
        with self._lock:
            self._raise_error()
            assert isinstance(self._demand, Scripted), "this link was not opened for scripts"
            self._demand.write(script)
            self._send_soon()

    def take_back(self, key: Key) -> None:
        """Forget a script whose batch nobody will fetch."""
        with self._lock:
            if isinstance(self._demand, Scripted):
                self._demand.strike(key)

    def after(self, key: Key) -> bytes:
        """np.random's state after the draws of a scripted batch just fetched."""
        return self._demand.after.pop(key, b"") if self._demand is not None else b""

    @property
    def leased(self) -> int:
        """How many slots this consumer's views hold now."""
        if self._attachment is None:
            return 0
        with self._lock:
            return self._attachment.returns.leased - sum(span.idle for span in self._spans)

    @property
    def copies(self) -> int:
        """How many batches were handed out as copies because the ring ran dry."""
        return self._attachment.copies if self._attachment is not None else 0

    @property
    def memory(self) -> str:
        """What the slots' bytes come by now: "shared" or "frames"."""
        assert self._attachment is not None
        return self._attachment.kind

    @property
    def connected(self) -> bool:
        """Whether the server answers."""
        return self._error is None and not self._patience.away

    # -- the consumer's side --------------------------------------------------------------------

    def fetch(self, key: Key, timeout: float) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a batch; they hold its slot until the last view of them is gone.

        Raises:
            WorkerError: The batch cannot be made.
            BatchTimeout: It did not come in time.
            ServerLost: A private server is gone; another has not come back in time.
            ConsumerClosed, ForkedProcess: The link is not this caller's to use (any more).
        """
        if os.getpid() != self._owner:
            raise ForkedProcess(
                f"this consumer belongs to process {self._owner}; process {os.getpid()} is a fork "
                "of it and must open its own"
            )
        if self._spans:
            with self._lock:
                arrays = self._hand_out(key)
            if arrays is not None:
                return arrays
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
            if self._spans and not self._closing:
                arrays = self._hand_out(key)
                if arrays is not None:
                    return arrays
            demand, attachment = self._demand, self._attachment
            if demand is None or attachment is None:
                self._raise_error()
            assert demand is not None
            assert attachment is not None
            place = (
                key if attachment.opened.span == 1 else (key[0], key[1] // attachment.opened.span)
            )
            if self._closing or place not in demand.ready:
                # What is there may be taken, whatever has become of the server.
                self._raise_error()
            demand.ask(place)
            fault = demand.refused(place)
            if fault is not None:
                raise error_of(dataclasses.replace(fault, step=key[1]))
            span = attachment.take(demand.ready, place)
            if span is not None:
                attachment.returns.hurry = False
                demand.taken(place)
                self._taken_at = time.monotonic()
                if demand.unsaid() * 4 > attachment.opened.slots:
                    self._send_soon()
                elif attachment.returns.pending >= attachment.eager:
                    self._wake()
                self._spans = [*self._spans[-1:], span]
                arrays = self._hand_out(key)
                return arrays  # not at once: Ctrl-C after a call at the block's very end leaves it
            attachment.returns.hurry = True
            attachment.collect()
            if not demand.asked(place) or attachment.returns.pending:
                self._send_soon()
            elif demand.crowded(attachment.returns.leased):
                self._wake()
            self._bell.expect()
            return None

    def _hand_out(self, key: Key) -> dict[str, npt.NDArray[Any]] | None:
        """The batch, if it is in a slot that was taken before."""
        for span in self._spans:
            arrays = span.hand_out(key)
            if arrays is not None:
                if not span.leased and isinstance(self._attachment, Shared):
                    self._attachment.copies += 1
                if span.over:
                    self._spans = [other for other in self._spans if other is not span]
                return arrays
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
                self._raise_lost(key, timeout)
                raise BatchTimeout(
                    f"epoch {key[0]}, step {key[1]} did not come within {timeout:.0f} s. The "
                    f"server at {self.address} lives, so its workers are too slow for this "
                    "deadline (timeout=), or stuck in a transform"
                )
        finally:
            self._attachment.returns.hurry = False

    def _raise_lost(self, key: Key, timeout: float) -> None:
        """If the server does not answer, that is why nothing comes."""
        waited = f"epoch {key[0]}, step {key[1]} did not come within {timeout:.0f} s (timeout=)"
        with self._lock:
            lost = self._patience.lost(time.monotonic(), waited)
        if lost is not None:
            raise lost

    def interrupt(self, until: float) -> None:
        """End the waits that began until then, in threads other than the main one."""
        with self._lock:
            self._bell.cut = max(self._bell.cut, until)
            self._bell.ring()

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
            self._spans.clear()
            self._bell.ring()
        self._wake()
        interrupt.leave(self)
        _open_links.discard(self)
        if threading.current_thread() is not self._thread:
            with contextlib.suppress(RuntimeError):  # Ctrl-C came while it was being started
                self._thread.join(5.0)


def _close_all() -> None:
    for link in list(_open_links):
        link.close()


atexit.register(_close_all)
