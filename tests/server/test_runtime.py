"""A server's private folder and its sockets: its own while it lives, swept when it is dead."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from augproto.errors import ConfigError
from augserver import runtime
from augserver.runtime import RuntimeFolder, SocketLock


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where folders are made; its path is short, since sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="aug-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield runtime.root()


def killed(folder: RuntimeFolder) -> RuntimeFolder:
    """As the kernel leaves it: locks are gone, files are not."""
    os.close(folder._lock)
    return folder


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def test_a_folder_is_its_owner_s_alone_and_goes_with_it(root: Path) -> None:
    folder = RuntimeFolder()
    assert folder.path.parent == root
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "file").touch()
    folder.close()
    assert list(root.iterdir()) == []


def test_a_sweep_spares_the_living_and_removes_the_dead(root: Path) -> None:
    living, dead = RuntimeFolder(), killed(RuntimeFolder())
    (dead.path / "ctl.sock").touch()
    runtime.sweep()
    assert living.path.exists()
    assert not dead.path.exists()
    living.close()
    assert list(root.iterdir()) == []


def test_a_server_that_died_between_its_lock_and_its_folder_is_swept(root: Path) -> None:
    dead = killed(RuntimeFolder())
    dead.path.rmdir()
    runtime.sweep()
    assert list(root.iterdir()) == []


def test_what_is_no_server_s_is_left_alone(root: Path) -> None:
    others = {root / "ctl.sock", root / "ctl.sock.lock", root / "notes"}
    for path in others:
        path.touch()
    runtime.sweep()
    assert set(root.iterdir()) == others


def test_a_sweep_between_creation_and_lock_makes_the_server_choose_another_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def sweep_first(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        runtime.sweep()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    folder = RuntimeFolder()
    runtime.sweep()
    assert folder.path.exists()
    assert len(list(root.iterdir())) == 2
    folder.close()


def test_the_sockets_of_the_dead_are_removed_wherever_they_lie(root: Path, tmp_path: Path) -> None:
    dead = RuntimeFolder()
    for name in ("a.sock", "b.sock"):
        lock = SocketLock(f"ipc://{tmp_path}/{name}", dead)
        os.close(lock._fd)
    bound(tmp_path / "a.sock")  # it died before the other was bound
    killed(dead)
    runtime.sweep()
    assert list(tmp_path.iterdir()) == []
    assert list(root.iterdir()) == []


def test_a_socket_that_another_server_has_by_now_is_spared(tmp_path: Path) -> None:
    dead, living = RuntimeFolder(), RuntimeFolder()
    address = f"ipc://{tmp_path}/s"
    os.close(SocketLock(address, dead)._fd)
    killed(dead)
    lock = SocketLock(address, living)
    bound(tmp_path / "s")
    runtime.sweep()
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s.lock"}
    with pytest.raises(ConfigError, match="another server listens there"):
        SocketLock(address, living)
    lock.close()
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_removes_no_file_that_is_no_socket(tmp_path: Path) -> None:
    dead = RuntimeFolder()
    os.close(SocketLock(f"ipc://{tmp_path}/s", dead)._fd)
    killed(dead)
    (tmp_path / "s").write_text("important")
    runtime.sweep()
    assert (tmp_path / "s").read_text() == "important"
