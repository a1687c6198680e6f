"""Ctrl-C for a program whose main thread cannot hear it.

Python runs a signal's handler in the main thread, between two of its instructions. Under
TensorFlow that thread sits in C++ until a batch comes, and the batch is fetched by another thread:
if the server stands still, Ctrl-C would be heard when the fetch gives up, not before.

What Python does at once, whatever its threads are doing, is to write a byte into the *wake-up
descriptor* (`signal.set_wakeup_fd`). A thread of ours reads there. If the main thread then stands
still, and a fetch waits in another, the fetch ends with a KeyboardInterrupt of its own; TensorFlow
returns from C++ with that for an error, and Python raises the real one.

A main thread that goes on has heard of Ctrl-C and may do with it what it likes, even begin the next
fit. So what it begins after that is left alone; what waited before is ended only if the main thread
stands still again (TensorFlow waits for its threads when an iterator goes).

There is one such descriptor in a process, and asyncio has uses for it: what was there before gets
every byte passed on, and is put back when the last link has closed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import Protocol

#: Seconds without a step of the main thread after which it stands still.
GRACE = 0.3
#: Seconds after Ctrl-C for which it is looked at.
ATTENTION = 10.0


class Waiting(Protocol):
    """Something that others may wait in."""

    def interrupt(self, until: float) -> None:
        """End every wait outside the main thread that began until then."""


class _Press:
    """One Ctrl-C, and what the main thread does about it."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._where = _main_thread()
        self._heard = False
        self.due = self._at + GRACE  #: when to look

    def look(self) -> bool:
        """Whether to look again."""
        now, where = time.monotonic(), _main_thread()
        if where != self._where:
            self._heard, self._where = True, where
        else:
            _interrupt_all(self._at if self._heard else now)
        self.due = now + GRACE
        return now - self._at < ATTENTION


def _main_thread() -> tuple[int, int]:
    """Where the main thread is: its frame, and the instruction."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return (id(frame), frame.f_lasti) if frame is not None else (0, 0)


class _Watch:
    """The wake-up descriptor and the thread that reads from it."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = -1
        self._installed = False
        threading.Thread(target=self._read, name="augclient-interrupt", daemon=True).start()

    def install(self) -> None:
        """Be the wake-up descriptor; in the main thread, once or again."""
        before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        if before != self._writer:
            self._before = before
        self._installed = True

    def restore(self) -> None:
        """Let the one before be it again, unless somebody else is by now."""
        if self._installed:
            self._installed = False
            now = signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)
            if now != self._writer:
                signal.set_wakeup_fd(now, warn_on_full_buffer=False)

    def _read(self) -> None:
        press: _Press | None = None
        signals = select.poll()
        signals.register(self._reader, select.POLLIN)
        while True:
            wait = None if press is None else max(0.0, press.due - time.monotonic()) * 1000
            if signals.poll(wait):
                numbers = os.read(self._reader, 4096)
                self._pass_on(numbers)
                if signal.SIGINT in numbers:
                    press = _Press()
            if press is not None and time.monotonic() >= press.due and not press.look():
                press = None

    def _pass_on(self, numbers: bytes) -> None:
        if self._before != -1:
            with contextlib.suppress(OSError):  # full, or gone
                os.write(self._before, numbers)

    def close(self) -> None:
        """In a forked child, which has the descriptors but not the thread."""
        self.restore()
        os.close(self._reader)
        os.close(self._writer)


_watch: _Watch | None = None
_attended: set[Waiting] = set()


def _interrupt_all(until: float) -> None:
    # A handler of the program's own may mean that nothing is to end.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        for waiting in list(_attended):
            waiting.interrupt(until)


def attend(waiting: Waiting) -> None:
    """End the waits in this one on Ctrl-C, until `leave`."""
    _attended.add(waiting)
    listen()


def listen() -> None:
    """Hear of signals, also where another has taken that over meanwhile.

    Only the main thread can bring that about; any other leaves it to the main one's next call.
    """
    global _watch
    if _attended and threading.current_thread() is threading.main_thread():
        _watch = _watch or _Watch()
        _watch.install()


def leave(waiting: Waiting) -> None:
    """No more; with the last one the wake-up descriptor is what it was before."""
    _attended.discard(waiting)
    if _watch and not _attended and threading.current_thread() is threading.main_thread():
        _watch.restore()


def _forget_in_child() -> None:
    # A signal to the child must not be taken for one to its parent.
    global _watch
    _attended.clear()
    if _watch is not None:
        _watch.close()
        _watch = None


os.register_at_fork(after_in_child=_forget_in_child)
