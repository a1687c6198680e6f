"""Threads that load datasets, a few at a time, and do not outlive their process's end.

`concurrent.futures` lets an interpreter exit only when its threads have finished: a server that is
asked to end while it unpacks gigabytes, or reads from a network that hangs, would not.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


#: Loads at a time: a long one, or a disk that hangs, should not keep everybody else waiting.
AT_ONCE = 4


class Loader:
    """Daemon threads, each started with a load."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._threads = 0
        self._unfinished = 0

    def submit(self, load: Callable[[], T]) -> Future[T]:
        """Have this called in one of the threads."""
        future: Future[T] = Future()
        self._waiting.put((future, load))
        with self._lock:
            self._unfinished += 1
            more = self._threads < min(AT_ONCE, self._unfinished)
            self._threads += more
        if more:  # a thread costs memory, so only as many as are at work together
            threading.Thread(target=self._run, name="augserver-loader", daemon=True).start()
        return future

    def _run(self) -> None:
        while True:
            future, load = self._waiting.get()
            if future.set_running_or_notify_cancel():
                try:
                    result = load()
                except BaseException as error:
                    self._finished()
                    future.set_exception(error)
                else:
                    self._finished()
                    future.set_result(result)
            else:
                self._finished()

    def _finished(self) -> None:
        with self._lock:
            self._unfinished -= 1

    def close(self) -> None:
        """Begin nothing more; what is being loaded is left to itself."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()[0].cancel()
