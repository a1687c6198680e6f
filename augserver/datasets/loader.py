"""A thread that loads datasets one after the other, and does not outlive its process's end.

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


class Loader:
    """One daemon thread, started with the first load."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def submit(self, load: Callable[[], T]) -> Future[T]:
        """Have this called in the thread."""
        future: Future[T] = Future()
        self._waiting.put((future, load))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="augserver-loader", daemon=True)
            self._thread.start()
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
