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
        self._threads = 0

    def submit(self, load: Callable[[], T]) -> Future[T]:
        """Have this called in one of the threads."""
        future: Future[T] = Future()
        self._waiting.put((future, load))
        if self._threads < AT_ONCE:
            self._threads += 1
            threading.Thread(target=self._run, name="augserver-loader", daemon=True).start()
        return future

    def _run(self) -> None:
        while True:
            future, load = self._waiting.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(load())
                except BaseException as error:
                    future.set_exception(error)

    def close(self) -> None:
        """Begin nothing more; what is being loaded is left to itself."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()[0].cancel()
