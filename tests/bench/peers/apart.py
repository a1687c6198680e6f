"""Somebody measured in a process of its own: two servers of ours, say, or two loops at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from measure import Rate, rate

#: Seconds that a process may take to start, to its first batch, and beyond a window.
PATIENCE = 120.0

#: Gives batches, in the other process.
Maker = Callable[..., Iterator[Any]]


def _serve(pipe: Any, make: Maker, arguments: tuple[Any, ...]) -> None:
    batches = None
    try:
        batches = make(*arguments)
        next(batches)
        pipe.send("ready")
        with contextlib.suppress(EOFError):  # whoever asks has ended
            while (asked := pipe.recv()) is not None:
                pipe.send(rate(batches, *asked))
    except BaseException:
        pipe.send(traceback.format_exc())
    finally:
        del batches
        from augclient import local

        local.shut_down()


class Apart:
    """A process that makes batches and measures how fast it gets them; a context manager.

    Args:
        make: A function of a module, called there; gives an endless iterator.
        arguments: Its arguments; small, since they are pickled.
    """

    def __init__(self, make: Maker, *arguments: Any) -> None:
        start = multiprocessing.get_context("spawn")
        self._pipe, theirs = start.Pipe()
        self._process = start.Process(target=_serve, args=(theirs, make, arguments))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Apart:
        self._answer(PATIENCE)
        return self

    def ask(self, seconds: float, warm_up: float) -> None:
        """Begin a window; several may at the same time."""
        self._pipe.send((seconds, warm_up))
        self._patience = seconds + warm_up + PATIENCE

    def answer(self) -> Rate:
        """What the window came to."""
        found = self._answer(self._patience)
        assert isinstance(found, Rate)
        return found

    def _answer(self, patience: float) -> Any:
        if not self._pipe.poll(patience):
            raise TimeoutError(f"process {self._process.pid} has not answered for {patience} s")
        found = self._pipe.recv()
        if isinstance(found, str) and found != "ready":
            raise RuntimeError(f"in process {self._process.pid} of {os.getpid()}:\n{found}")
        return found

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(PATIENCE)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(PATIENCE)


def together(several: list[Apart], seconds: float, warm_up: float) -> float:
    """Images a second of several at the same time."""
    for one in several:
        one.ask(seconds, warm_up)
    return sum(one.answer().images for one in several)
