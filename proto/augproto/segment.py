"""Shared memory, with a name or without: create, attach, sweep. Only this file touches it.

Theory of operation (Linux; every trap below was met and measured):

* A segment is a file in /dev/shm, as shm_open(3) would make it, and every process, its creator
  included, maps it by `os.open` + `mmap`. Python's SharedMemory would do the former, but tells a
  *resource tracker*, which calls the segment leaked when its owner is killed, and before Python
  3.13 unlinks it as soon as anybody who has attached exits. It maps so that close() either refuses
  (BufferError) or leaves a pointer to unmapped memory; an mmap dies with its last view.
* tmpfs over-commits: creating 128 MiB in a /dev/shm of 64 succeeds, the first write is SIGBUS.
  `posix_fallocate` turns that into an error at the door, and MADV_POPULATE_WRITE maps the pages
  for the owner, again with an error where a touch would be a signal. Neither helps against the
  limit of a memory cgroup: there the kernel kills. Whoever creates has to ask first.
* Where /dev/shm is too small, a segment may be *nameless*: a memfd, which only memory bounds.
  Others of the same user reach it through its owner's descriptor in /proc, and it vanishes with
  its last holder. It is sealed, so that nobody can cut it under a reader.
* The owner holds `flock(LOCK_EX)` on the segment for life. The kernel drops it on any death, in
  any pid namespace, so a segment whose lock can be taken has no owner: `sweep` unlinks it. One
  that has just been created looks like that too; its creator notices and creates it again.
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
import re
import struct
import sys
import time
import weakref
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from augproto.errors import NoRoom, ServerLost

PREFIX = "augserver-"
#: How a peer names a nameless segment: NAME@PID.DESCRIPTOR, of the process that owns it.
_NAMELESS = re.compile(rf"({PREFIX}[^/@]*)@([0-9]+)\.([0-9]+)")
_DESCRIPTOR = re.compile(r"/proc/[0-9]+/fd/[0-9]+")
#: Times that a creation gives way to a sweep which took the new segment for a dead one's.
_ATTEMPTS = 1000
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid
#: madvise(2): touch all pages for writing, now. Linux 5.14; Python has no name for it.
_MADV_POPULATE_WRITE = 23
#: So much is touched in one call: Python's madvise keeps all other threads waiting.
_POPULATE_BYTES = 16 << 20
#: How a kernel, or what stands in for one, says that it does not know that advice.
_UNKNOWN_ADVICE = {errno.EINVAL, errno.ENOSYS, errno.EPERM}

#: Where Linux keeps shared memory by name, and where a server makes its segments.
HOME = Path("/dev/shm")


def directory() -> Path:
    """Where a consumer finds the segments of a server that it joins.

    That is HOME, or what AUGSERVER_SHM_DIR names: a consumer outside the server's container has
    the server's /dev/shm mounted elsewhere.
    """
    return Path(os.environ.get("AUGSERVER_SHM_DIR") or HOME)


def _open(path: str | Path, flags: int, link: str = f"/memfd:{PREFIX}") -> int:
    """Open a file; among the descriptors of a process only a nameless segment.

    The process may have ended and its number be another's, so what is opened is looked at first:
    O_PATH opens nothing.

    Args:
        link: How the name of a nameless segment has to begin.
    """
    if _DESCRIPTOR.fullmatch(str(path)) is None:
        return os.open(path, flags)
    handle = os.open(path, os.O_PATH)
    try:
        itself = f"/proc/self/fd/{handle}"
        if not os.readlink(itself).startswith(link):
            raise FileNotFoundError(errno.ENOENT, "the segment there is gone", str(path))
        return os.open(itself, flags)
    finally:
        os.close(handle)


def _open_segment(name: str, folder: Path, flags: int) -> int:
    """Open somebody's segment by the name that its owner tells."""
    nameless = _NAMELESS.fullmatch(name)
    if nameless is not None:
        own, pid, fd = nameless.groups()
        return _open(f"/proc/{pid}/fd/{fd}", flags, f"/memfd:{own} ")
    if "/" in name or "@" in name or not name.startswith(PREFIX):
        raise ServerLost(f"attach: {name!r:.80} is not the name of a segment of augserver")
    return _open(folder / name, flags)


def _access(writable: bool) -> int:
    return os.O_RDWR if writable else os.O_RDONLY


def _map(fd: int, *, writable: bool) -> mmap.mmap:
    """Map a whole file; closes the descriptor (the map has one of its own)."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        return mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, protection)
    finally:
        os.close(fd)


def map_file(path: str | Path, *, writable: bool = False) -> npt.NDArray[np.uint8]:
    """A file's bytes as they lie; the mapping lives as long as its last view."""
    # The array holds the mmap object, which unmaps when nothing holds it any more.
    return np.frombuffer(_map(_open(path, _access(writable)), writable=writable), np.uint8)


def _create(path: Path) -> int:
    """A new file under its owner's lock; returns its descriptor."""
    for _ in range(_ATTEMPTS):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            time.sleep(0.001)  # a sweep is about to unlink the last attempt's
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
        except BlockingIOError:
            pass
        os.close(fd)
    raise FileExistsError(errno.EEXIST, "is there already, or is swept all the time", str(path))


def _populate(memory: mmap.mmap) -> None:
    """Touch every page, where the kernel can do so without a signal.

    Raises:
        NoRoom: A page cannot be had.
    """
    for start in range(0, len(memory), _POPULATE_BYTES):
        length = min(_POPULATE_BYTES, len(memory) - start)
        try:
            memory.madvise(_MADV_POPULATE_WRITE, start, length)
        except OSError as error:
            if error.errno in _UNKNOWN_ADVICE:
                return
            raise NoRoom(error.errno, f"shared memory: {error.strerror}") from error


class Segment:
    """A segment that this process owns: locked for life, unlinked by close().

    Attributes:
        name: Of the segment, as a peer attaches it.
        path: Where other processes of this machine and user find its file.
        size: Bytes asked for.
    """

    def __init__(
        self, name: str, size: int, *, nameless: bool = False, populate: bool = True
    ) -> None:
        """Create it, with every byte backed by memory.

        Args:
            nameless: Not in /dev/shm, so that only memory bounds it; ask first (see above).
            populate: Map its pages for the owner as well, which takes three times as long as to
                have them; left out for what others fill.

        Raises:
            NoRoom: Shared memory cannot hold it; nothing is left behind.
        """
        self.name = name
        self.path = HOME / name
        self.size = size
        self._fd: int | None = None
        self._memory: npt.NDArray[np.uint8] | None = None
        self._nameless = nameless
        try:
            if nameless:
                self._fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                self.name = f"{name}@{os.getpid()}.{self._fd}"
                self.path = Path(f"/proc/{os.getpid()}/fd/{self._fd}")
            else:
                self._fd = _create(self.path)
            os.posix_fallocate(self._fd, 0, size)
            if nameless:
                seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
            memory = _map(_open(self.path, os.O_RDWR), writable=True)
            if populate:
                _populate(memory)
        except OSError as error:
            self.close()
            if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise NoRoom(errno.ENOSPC, _no_room(size)) from error
            raise
        self._memory = np.frombuffer(memory, np.uint8)

    @property
    def closed(self) -> bool:
        """Whether it was given up."""
        return self._fd is None

    def map(self) -> npt.NDArray[np.uint8]:
        """The owner's writable mapping, with its pages in place; it lives as long as its last view.

        Raises:
            ValueError: The segment is closed.
        """
        if self._memory is None:
            raise ValueError(f"map: segment {self.name} is closed")
        return self._memory

    def consumer_lives(self) -> bool:
        """Whether a consumer holds the segment (see `Holder`)."""
        if self._fd is None:
            return False
        probe = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, probe)
        return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK

    def close(self) -> None:
        """Unlink it and give up the lock; mappings, here and elsewhere, stay readable."""
        self._memory = None
        if self._fd is None:
            return
        if not self._nameless:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
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
    try:
        fd = _open_segment(name, folder, _access(writable))
    except FileNotFoundError as error:
        if "@" in name:
            raise ServerLost(
                f"attach: no segment {name} in /proc. Either its server has ended, or this process "
                "is in another pid namespace and does not see it"
            ) from error
        raise ServerLost(
            f"attach: no segment {name} in {folder}. Either its server has ended, or this "
            "process does not share the server's shared memory (containers: `ipc: service:...`, "
            "or mount the server's /dev/shm and set AUGSERVER_SHM_DIR)"
        ) from error
    return np.frombuffer(_map(fd, writable=writable), np.uint8)


class Holder:
    """A consumer's proof of life: a lock on the segment that dies with the process.

    The lock has a descriptor of its own. A mapping would keep its file description, and so the
    lock, alive in every forked child; this one is closed there.
    """

    def __init__(self, name: str, folder: Path = HOME) -> None:
        self._fd: int | None = _open_segment(name, folder, os.O_RDONLY)
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
    for path in HOME.glob(f"{PREFIX}*"):
        try:
            if path.lstat().st_uid != os.getuid():
                continue
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # somebody else was faster
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Without a link it was swept between the two calls, and its name may be another's.
            if os.fstat(fd).st_nlink:
                os.unlink(path)
                swept.append(path.name)
        except OSError:
            pass  # it has an owner
        finally:
            os.close(fd)
    return swept


def room() -> tuple[int, int]:
    """Bytes free, and in all, in the directory of segments."""
    status = os.statvfs(HOME)
    if not status.f_blocks:  # mounted without a size
        return sys.maxsize, sys.maxsize
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def _no_room(size: int) -> str:
    free = room()[0] / 2**20
    return (
        f"a segment of {size / 2**20:.1f} MiB does not fit: {HOME} has {free:.1f} MiB free. Make "
        "the ring smaller (slots, batch_size, target_size), or give the container more shared "
        "memory (compose: shm_size; docker run: --shm-size)"
    )
