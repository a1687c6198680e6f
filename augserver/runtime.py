"""A server's private folder: its sockets lie there, and the next server sweeps it when it died.

The folder is 0700, so a socket in it needs no other protection. Beside it lies a lock that is held
for life, taken before the folder is made and removed after it: a lock that can be taken has no
owner. In it stand the sockets that lie elsewhere, for whoever sweeps.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import secrets
import shutil
import stat
from pathlib import Path

from augproto.errors import ConfigError

#: Descriptors that a server wants to be allowed: for some ten thousand connections.
_MOST_DESCRIPTORS = 65536
_SERVER = "server-"
_LOCK = ".lock"
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


def raise_descriptors() -> None:
    """Let this process have as many descriptors as it may: each connection takes one, and at a
    soft limit of 1024 strangers could take them all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def default_address() -> str:
    """Where a standalone server listens, and a consumer looks, when nothing else is said."""
    return f"ipc://{root() / 'ctl.sock'}"


class RuntimeFolder:
    """A folder that is this process's own until close()."""

    def __init__(self) -> None:
        while True:
            self.path = root() / f"{_SERVER}{secrets.token_hex(4)}"
            self._lock_path = self.path.with_name(f"{self.path.name}{_LOCK}")
            try:
                self._lock = _take(self._lock_path)
                break
            except BlockingIOError:
                continue  # a sweep has taken it for a dead one's, and removes it
        self.path.mkdir(mode=0o700)

    def note(self, socket: Path) -> None:
        """Have a socket's file removed by a sweep, should this process be killed."""
        os.write(self._lock, os.fsencode(socket.absolute()) + b"\0")

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)


def _take(path: Path, flags: int = os.O_CREAT) -> int:
    """Lock a file, made if need be; returns its descriptor.

    Raises:
        BlockingIOError: Its owner lives.
        FileNotFoundError: There is none, and `flags` do not make one.
    """
    while True:
        lock = os.open(path, os.O_RDWR | flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return lock
        except OSError:
            os.close(lock)
            raise
        os.close(lock)  # its last owner has unlinked it meanwhile


def sweep() -> None:
    """Remove folders and sockets of servers that are dead."""
    for path in root().glob(f"{_SERVER}*{_LOCK}"):
        with contextlib.suppress(OSError):  # it has an owner, or somebody else was faster
            lock = _take(path, 0)
            try:
                for name in path.read_bytes().split(b"\0"):
                    if name:
                        _sweep_socket(Path(os.fsdecode(name)))
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink()
            finally:
                os.close(lock)


def _sweep_socket(socket: Path) -> None:
    """Remove a socket's file and its lock, unless another server has that path by now."""
    path = Path(f"{socket}{_LOCK}")
    with contextlib.suppress(OSError):
        lock = _take(path, 0)
        try:
            if socket.is_socket():
                socket.unlink()
            path.unlink()
        finally:
            os.close(lock)


class SocketLock:
    """At most one server at one ipc path.

    ZeroMQ removes a socket file that is in its way and would silently take a living server's
    place; the lock beside it says whether that server lives.

    Args:
        folder: The server's own, where the socket is noted.
    """

    def __init__(self, address: str, folder: RuntimeFolder) -> None:
        self._path: Path | None = None
        if not address.startswith("ipc://"):
            return
        socket = Path(address.removeprefix("ipc://"))
        if socket.exists() and not socket.is_socket():
            # ZeroMQ would remove it without a word.
            raise ConfigError(
                f"listen: {address}: {socket} exists and is no socket; wanted a path of its own"
            )
        path = Path(f"{socket}{_LOCK}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.note(socket)  # before the lock's file is there
            self._fd = _take(path)
        except BlockingIOError as error:
            raise ConfigError(
                f"listen: {address}: another server listens there; stop it or choose another path"
            ) from error
        except OSError as error:
            raise ConfigError(f"listen: {address}: {path}: {error.strerror}") from error
        self._path = path

    def close(self) -> None:
        """Let the next server have the path."""
        if self._path is not None:
            # libzmq leaves the socket's file behind when it closes; first that, then the lock.
            for path in (self._path.with_suffix(""), self._path):
                with contextlib.suppress(OSError):
                    path.unlink()
            os.close(self._fd)
            self._path = None
