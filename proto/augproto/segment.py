"""Named shared memory: create, attach, sweep. Only this file touches it, and only it locks files.

Theory of operation (Linux; every trap below was met and measured):

* A segment is created through `multiprocessing.shared_memory` and taken out of the resource
  tracker at once: before Python 3.13 every process that attaches registers the segment too, and
  the first one to exit would unlink it under everybody else.
* Everybody, the creator included, maps it by `os.open` + `mmap`: that can be read-only, and the
  mapping dies with its last view, whereas `SharedMemory.close()` either refuses (BufferError) or,
  with a view made by `ndarray(buffer=...)`, leaves a pointer to unmapped memory.
* tmpfs over-commits: creating 128 MiB in a /dev/shm of 64 succeeds, the first write is SIGBUS.
  `posix_fallocate` right after the creation turns that into an error at the door.
* The owner holds `flock(LOCK_EX)` on the segment for life. The kernel drops it on any death, in
  any pid namespace, so a segment whose lock can be taken has no owner: `sweep` unlinks it.
  Creation happens under a temporary name, so that no sweep sees a segment before its lock.
* A consumer holds a shared *open-file-description* lock on the first byte (a second, independent
  kind of lock). The server asks the kernel whether somebody holds it: the answer separates a dead
  consumer, whose ring may be freed, from a silent one, whose ring may not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import sys
import time
import weakref
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from augproto.errors import NoRoom, ServerLost

PREFIX = "augserver-"
_FRESH_PREFIX = "augserver.new-"
#: A creation is over in milliseconds; one of this age (seconds) was interrupted for ever.
_FRESH_SECONDS = 60.0
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid


#: Where Linux keeps shared memory by name, and where a server makes its segments.
HOME = Path("/dev/shm")


def directory() -> Path:
    """Where a consumer finds the segments of a server that it joins.

    That is HOME, or what AUGSERVER_SHM_DIR names: a consumer outside the server's container has
    the server's /dev/shm mounted elsewhere, where `SharedMemory` cannot look.
    """
    return Path(os.environ.get("AUGSERVER_SHM_DIR") or HOME)


def _create_unlocked(name: str, size: int) -> None:
    """Create through multiprocessing.shared_memory, untracked; nothing stays mapped."""
    if sys.version_info >= (3, 13):
        memory = shared_memory.SharedMemory(name, create=True, size=size, track=False)
    else:
        memory = shared_memory.SharedMemory(name, create=True, size=size)
        resource_tracker.unregister(f"/{name}", "shared_memory")
    memory.close()


def map_file(path: str | Path, *, writable: bool = False) -> npt.NDArray[np.uint8]:
    """A file's bytes as they lie; the mapping lives as long as its last view."""
    fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        memory = mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, protection)
    finally:
        os.close(fd)
    # The array holds the mmap object, which unmaps when nothing holds it any more.
    return np.frombuffer(memory, np.uint8)


class Segment:
    """A segment that this process owns: locked for life, unlinked by close().

    Attributes:
        name: Of the segment, as a peer attaches it.
        size: Bytes asked for.
    """

    def __init__(self, name: str, size: int) -> None:
        """Create it, with every byte backed by memory.

        Raises:
            NoRoom: Shared memory cannot hold it; nothing is left behind.
        """
        self.name = name
        self.size = size
        fresh = f"{_FRESH_PREFIX}{name.removeprefix(PREFIX)}"
        path = HOME / fresh
        self._fd: int | None = None
        try:
            _create_unlocked(fresh, size)
            self._fd = os.open(path, os.O_RDWR)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._fd, 0, size)
            os.rename(path, HOME / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            if self._fd is not None:
                os.close(self._fd)
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise NoRoom(errno.ENOSPC, _no_room(size)) from error
            raise
        self._path = HOME / name

    def map(self) -> npt.NDArray[np.uint8]:
        """A writable mapping; it lives as long as its last view."""
        return map_file(self._path, writable=True)

    def consumer_lives(self) -> bool:
        """Whether a consumer holds the segment (see `Holder`)."""
        if self._fd is None:
            return False
        probe = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, probe)
        return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK

    def close(self) -> None:
        """Unlink it and give up the lock; mappings, here and elsewhere, stay readable."""
        if self._fd is None:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> Segment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def attach(name: str, folder: Path = HOME, *, writable: bool = False) -> npt.NDArray[np.uint8]:
    """Map somebody else's segment; the mapping lives as long as its last view.

    Raises:
        ServerLost: There is no segment of that name here.
    """
    if "/" in name or not name.startswith(PREFIX):
        raise ServerLost(f"attach: {name!r:.80} is not the name of a segment of augserver")
    try:
        return map_file(folder / name, writable=writable)
    except FileNotFoundError as error:
        raise ServerLost(
            f"attach: no segment {name} in {folder}. Either its server has ended, or this "
            "process does not share the server's shared memory (containers: `ipc: service:...`, "
            "or mount the server's /dev/shm and set AUGSERVER_SHM_DIR)"
        ) from error


class Holder:
    """A consumer's proof of life: a lock on the segment that dies with the process.

    The lock has a descriptor of its own. A mapping would keep its file description, and so the
    lock, alive in every forked child; this one is closed there.
    """

    def __init__(self, name: str, folder: Path = HOME) -> None:
        self._fd: int | None = os.open(folder / name, os.O_RDONLY)
        lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0)
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
        _holders.add(self)

    def close(self) -> None:
        """Stop holding; the server may free the ring."""
        if self._fd is not None:
            # Said aloud, in case a child that was forked by other means still has the descriptor.
            unlock = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, unlock)
            self.forget()

    def forget(self) -> None:
        """Close the descriptor alone: in a forked child the lock is its parent's."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def _forget_in_child() -> None:
    for holder in list(_holders):
        holder.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def sweep() -> list[str]:
    """Unlink every segment of this user whose owner is dead; returns their names."""
    swept = []
    for path in [*HOME.glob(f"{PREFIX}*"), *HOME.glob(f"{_FRESH_PREFIX}*")]:
        try:
            status = path.stat()
            if status.st_uid != os.getuid():
                continue
            if path.name.startswith(_FRESH_PREFIX) and time.time() - status.st_mtime < (
                _FRESH_SECONDS
            ):
                continue
            fd = os.open(path, os.O_RDWR)
        except OSError:
            continue  # somebody else was faster
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
            swept.append(path.name)
        except OSError:
            pass  # it has an owner
        finally:
            os.close(fd)
    return swept


def room() -> int:
    """Bytes free in the directory of segments."""
    status = os.statvfs(HOME)
    return status.f_bavail * status.f_frsize


def _no_room(size: int) -> str:
    return (
        f"a segment of {size / 2**20:.1f} MiB does not fit: {HOME} has "
        f"{room() / 2**20:.1f} MiB free. Make the ring smaller (slots, batch_size, target_size), "
        "or give the container more shared memory (compose: shm_size; docker run: --shm-size)"
    )
