"""What the forkserver imports before the first worker: importing this module is its whole use.

Workers are forked from a process that has already paid for numpy, scipy and Pillow and has run one
small batch, so that a new worker is ready in milliseconds and shares those pages with all others.
Only the forkserver imports this; there the import has the side effects it is for.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
from types import TracebackType

import numpy as np

from augproto.spec import Spec, Transforms
from augserver.recipe import Recipe

#: Tells the forkserver who its server is.
SERVER_VARIABLE = "AUGSERVER_SERVER_PID"

_PR_SET_PDEATHSIG = 1
#: The forkserver; a worker is a fork of it.
_IMPORTER = os.getpid()
#: Whether the last fork was the forkserver's.
_forks = False


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, whatever the parent dies of.

    The parent may have died before the kernel was asked, and then nobody would be killed; so this
    process ends if its parent is another than it should be.

    Linux only (prctl(2)); elsewhere the end of the pipe has to do.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if _parent() not in (None, os.getppid()):
        os._exit(1)


def _parent() -> int | None:
    """Who the parent is by rights; None where nobody has said so."""
    if os.getpid() != _IMPORTER:
        return _IMPORTER
    if multiprocessing.parent_process() is not None:
        return None  # a worker whose forkserver could not import this
    server = os.environ.get(SERVER_VARIABLE, "")
    return int(server) if server.isdecimal() else None


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error, unless it only says that the server was killed.

    multiprocessing reads what a new worker is to do from a pipe, and when the server's end of it
    closes before all is said, the user would find a traceback on the terminal.
    """
    if not issubclass(kind, (EOFError, pickle.UnpicklingError)):
        sys.__excepthook__(kind, error, trace)


def warm() -> None:
    """Make one small batch with everything switched on."""
    transforms = Transforms(
        rotation_range=10, width_shift_range=0.1, channel_shift_range=5, horizontal_flip=True,
        brightness_range=(0.9, 1.1), rescale=1 / 255,
    )  # fmt: skip
    spec = Spec(data=("warm",), x="x", batch_size=2, transforms=transforms)
    recipe = Recipe(spec, 0, {"x": np.zeros((2, 8, 8, 3), np.uint8)})
    slot = np.zeros(recipe.layout.slot_bytes, np.uint8)
    recipe.fill(0, 0, recipe.layout.arrays(slot, 2))


def _before_fork() -> None:
    global _forks
    _forks = os.getpid() == _IMPORTER


def _after_fork() -> None:
    # At once: a worker that is stopped before it has asked would outlive everybody. (What a worker
    # itself forks is its function's affair, and the kernel would kill it with a mere thread.)
    if _forks:
        die_with_parent()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
die_with_parent()
sys.excepthook = _tell
warm()
