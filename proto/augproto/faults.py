"""An error crosses the wire by the name of its leaf, and is the same leaf on the other side."""

from __future__ import annotations

import contextlib

from augproto import errors
from augproto.errors import AugError, RemoteProtocolError, WorkerError
from augproto.messages import MAX_TEXT, Fault


def fault_of(error: Exception) -> Fault:
    """What the peer is told of an error that concerns the conversation, not one batch."""
    # Without what UTF-8 cannot carry: lone surrogates, as in names of strange files.
    text = str(error)[:MAX_TEXT].encode(errors="backslashreplace").decode()
    if isinstance(error, OSError) and not isinstance(error, AugError):
        # Descriptors, memory, a read-only /dev/shm: the system's bounds, not the peer's manners.
        return Fault("NoRoom", f"the server's system refused it: {text}"[:MAX_TEXT])
    return Fault(type(error).__name__, text[:MAX_TEXT])


def error_of(fault: Fault) -> AugError:
    """The error that a peer's fault names; a name that is in no tree of ours is shown as text."""
    if fault.number:
        return WorkerError(
            fault.message,
            epoch=fault.epoch,
            step=fault.step,
            sample=fault.sample,
            path=fault.path,
            traceback=fault.traceback,
        )
    kind = getattr(errors, fault.kind, None)
    if isinstance(kind, type) and issubclass(kind, AugError):
        with contextlib.suppress(TypeError):  # the abstract one, and the one that needs a batch
            return kind(fault.message)
    return RemoteProtocolError(f"{fault.kind}: {fault.message}")
