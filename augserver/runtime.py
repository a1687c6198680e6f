"""A server's private folder: its sockets lie there, and the next server sweeps it when it died.

The folder is 0700, so a socket in it needs no other protection. Like a segment it is locked for
life and created under a temporary name; a folder whose lock can be taken has no owner.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from augproto.errors import ConfigError

_FRESH = "new-"
_FRESH_SECONDS = 60.0
_LOCK = "lock"
#: A socket's path has at most 107 bytes, and the forkserver's lies two levels below the root.
_LONGEST = 60


def root() -> Path:
    """The folder of this user's servers: $XDG_RUNTIME_DIR/augserver, or below /tmp."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base) / "augserver" if base else Path(f"/tmp/augserver-{os.getuid()}")
    if len(os.fsencode(path)) > _LONGEST:
        raise ConfigError(
            f"{path}: a path of at most {_LONGEST} bytes is wanted, since sockets lie below it; "
            "set XDG_RUNTIME_DIR to a shorter one"
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot make the folder for sockets ({error.strerror}); set XDG_RUNTIME_DIR "
            "to a folder that this user may write"
        ) from error
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(
            f"{path}: wanted a folder of this user alone (mode 0700), got mode "
            f"{stat.S_IMODE(status.st_mode):o} of user {status.st_uid}; remove it"
        )
    return path


def default_address() -> str:
    """Where a standalone server listens, and a consumer looks, when nothing else is said."""
    return f"ipc://{root() / 'ctl.sock'}"


class RuntimeFolder:
    """A folder that is this process's own until close()."""

    def __init__(self) -> None:
        fresh = Path(tempfile.mkdtemp(prefix=_FRESH, dir=root()))
        self._lock = os.open(fresh / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody knows it yet
        self.path = fresh.with_name(f"server-{fresh.name.removeprefix(_FRESH)}")
        fresh.rename(self.path)

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep() -> None:
    """Remove folders of servers that are dead."""
    for path in root().iterdir():
        if path.name.startswith(_FRESH):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime < _FRESH_SECONDS:
                    continue
        elif not path.name.startswith("server-"):
            continue
        try:
            lock = os.open(path / _LOCK, os.O_RDWR)
        except OSError:
            if path.name.startswith(_FRESH):
                shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # it has an owner
        finally:
            os.close(lock)


class SocketLock:
    """At most one server at one ipc path.

    ZeroMQ removes a socket file that is in its way and would silently take a living server's
    place; the lock beside it says whether that server lives.
    """

    def __init__(self, address: str) -> None:
        self._path: Path | None = None
        if not address.startswith("ipc://"):
            return
        socket = Path(address.removeprefix("ipc://"))
        if socket.exists() and not socket.is_socket():
            # ZeroMQ would remove it without a word.
            raise ConfigError(
                f"listen: {address}: {socket} exists and is no socket; wanted a path of its own"
            )
        path = Path(f"{socket}.lock")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while not self._take(path):
                continue
        except BlockingIOError as error:
            raise ConfigError(
                f"listen: {address}: another server listens there; stop it or choose another path"
            ) from error
        except OSError as error:
            raise ConfigError(f"listen: {address}: {path}: {error.strerror}") from error
        self._path = path

    def _take(self, path: Path) -> bool:
        """Lock the file; False if its last owner has unlinked it meanwhile."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._fd).st_nlink:
                return True
        except OSError:
            os.close(self._fd)
            raise
        os.close(self._fd)
        return False

    def close(self) -> None:
        """Let the next server have the path."""
        if self._path is not None:
            # libzmq leaves the socket's file behind when it closes; first that, then the lock.
            for path in (self._path.with_suffix(""), self._path):
                with contextlib.suppress(OSError):
                    path.unlink()
            os.close(self._fd)
            self._path = None
