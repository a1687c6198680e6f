"""A measurement may fail without ending the others; Ctrl-C and SIGTERM end them all.

Python raises KeyboardInterrupt wherever it happens to be. Inside a callback of the garbage
collector's, of which TensorFlow and JAX have many, it is printed and forgotten; inside a function
that TensorFlow calls it becomes one of TensorFlow's own errors. So the handler also notes that it
was called, and the loops that measure look at the note.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

#: What becomes of an error in the report: longer ones carry tracebacks.
REASON_LENGTH = 300

#: Set by the handler; there is one set of signal handlers in a process.
_told = threading.Event()


@contextlib.contextmanager
def heeding_signals() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise KeyboardInterrupt, at once or at the next check.

    Whatever else an interrupted block raises is a consequence, and leaves it as KeyboardInterrupt
    too. Signals belong to the main thread: in others the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _told.clear()
    hook = sys.unraisablehook
    sys.unraisablehook = _silent_where_interrupted(hook)
    before = {s: signal.signal(s, _on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception:
        check()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        _told.clear()


def _on_signal(number: int, frame: object) -> None:
    _told.set()
    raise KeyboardInterrupt


def _silent_where_interrupted(hook: Any) -> Any:
    def unraisable(found: Any) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):
            hook(found)

    return unraisable


def check() -> None:
    """Raise KeyboardInterrupt if a signal has come, even where the first one was lost."""
    if _told.is_set():
        raise KeyboardInterrupt from None


def reason(error: Exception) -> str:
    """Why something was not measured, in a line.

    Raises:
        KeyboardInterrupt: The error is what became of an interruption.
    """
    check()
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return said if len(said) <= REASON_LENGTH else said[:REASON_LENGTH] + " ..."
