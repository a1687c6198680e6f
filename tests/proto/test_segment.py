"""Shared memory is mapped, held, found dead and swept; and never left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import alive, wait_until

from augproto import segment
from augproto.errors import NoRoom, ServerLost
from augproto.segment import PREFIX, Holder, Segment, attach, directory, map_file, room, sweep


def fresh_name() -> str:
    return f"{PREFIX}{os.getuid()}-{os.getpid():x}{secrets.token_hex(3)}-test"


@pytest.fixture(params=["named", "nameless"])
def owned(request: pytest.FixtureRequest) -> Iterator[Segment]:
    with Segment(fresh_name(), 8192, nameless=request.param == "nameless") as made:
        yield made


@pytest.fixture
def nameless() -> Iterator[Segment]:
    with Segment(fresh_name(), 8192, nameless=True) as made:
        yield made


@contextlib.contextmanager
def running(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python that runs this program, has said its first line, and dies by SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()
        process.wait()
    sweep()


OWNER = """
import sys
from augproto.segment import Segment
segment = Segment(sys.argv[1], 8192)
print("ready", flush=True)
sys.stdin.read()
"""

NAMELESS_OWNER = """
import sys
from augproto.segment import Segment
segment = Segment(sys.argv[1], 8192, nameless=True)
print("ready", flush=True)
print(segment.name, flush=True)
sys.stdin.read()
"""

HOLDER = """
import sys
from augproto.segment import Holder, attach
memory = attach(sys.argv[1])
holder = Holder(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""

# These fork, as a data loader would. (Not in this process: from Python 3.12 on a fork beside
# threads is a warning, and numpy has threads.)
FORKING_HOLDER = """
import os, sys
from augproto.segment import Holder
holder = Holder(sys.argv[1])
child = os.fork()
if child == 0:
    if sys.argv[2] == "child closes":
        holder.close()
        os._exit(0)
    sys.stdin.read()
    os._exit(0)
if sys.argv[2] == "child closes":
    os.waitpid(child, 0)
if sys.argv[2] == "parent closes":
    holder.close()
print("ready", flush=True)
print(child, flush=True)
sys.stdin.read()
"""


def test_what_the_owner_writes_the_others_read(owned: Segment) -> None:
    mine, theirs = owned.map(), attach(owned.name)
    assert len(mine) == len(theirs) == owned.size == 8192
    mine[4096:] = 7
    assert theirs[4096:].min() == 7
    assert not theirs[:4096].any()


def test_an_attachment_is_read_only_unless_asked_for(owned: Segment) -> None:
    reading = attach(owned.name)
    assert not reading.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        reading[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        reading.flags.writeable = True
    writing = attach(owned.name, writable=True)
    writing[0] = 9
    assert reading[0] == 9


def test_every_byte_is_backed_from_the_start(owned: Segment) -> None:
    status = owned.path.stat()
    assert status.st_blocks * 512 >= status.st_size == owned.size


def test_a_mapping_outlives_the_segment_and_ends_with_its_last_view(owned: Segment) -> None:
    name = owned.name

    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(name.partition("@")[0])

    view = attach(name)[10:20]
    owned.close()
    gc.collect()
    assert view.tolist() == [0] * 10
    assert maps() == 1
    del view
    assert maps() == 0


def test_close_removes_it_and_may_come_twice(owned: Segment) -> None:
    assert owned.path.exists()
    assert not owned.closed
    owned.close()
    owned.close()
    assert owned.closed
    assert not owned.path.exists()
    assert not owned.consumer_lives()
    with pytest.raises(ValueError, match="is closed"):
        owned.map()


def test_close_is_content_if_somebody_else_was_faster() -> None:
    with Segment(fresh_name(), 8192) as made:
        os.unlink(made.path)


def test_no_descriptor_is_left(owned: Segment) -> None:
    def open_here() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_here()
    for turn in range(20):
        with Segment(fresh_name(), 4096, nameless=turn % 2 == 0) as made:
            memory = made.map()
            Holder(made.name).close()
            attach(made.name)
            del memory
        with pytest.raises(NoRoom):
            Segment(fresh_name(), 1 << 45)
    assert open_here() == before


@pytest.mark.parametrize(
    "name",
    ["", "other", "../etc/passwd", f"{PREFIX}../x", f"/{PREFIX}x", f"{PREFIX}x@", f"{PREFIX}x@1",
     f"{PREFIX}x@1.", f"{PREFIX}x@1.2.3", f"{PREFIX}x@-1.2", f"{PREFIX}x@self.2", "other@1.2",
     f"{PREFIX}x@1.\u0662", f"{PREFIX}x@1@1.2"],
)  # fmt: skip
def test_a_name_that_is_no_segments_is_refused(name: str) -> None:
    with pytest.raises(ServerLost, match="not the name of a segment"):
        attach(name)


def test_a_segment_that_is_gone_is_said_to_be(owned: Segment) -> None:
    owned.close()
    why = "pid namespace" if "@" in owned.name else "AUGSERVER_SHM_DIR"
    with pytest.raises(ServerLost, match=rf"no segment {owned.name} .*{why}"):
        attach(owned.name)


def test_a_consumer_may_find_the_segments_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Segment(fresh_name(), 8192) as made:
        made.map()[0] = 3
        (tmp_path / made.name).symlink_to(made.path)
        monkeypatch.setenv("AUGSERVER_SHM_DIR", str(tmp_path))
        assert attach(made.name, directory())[0] == 3


def test_another_process_reads_and_writes_nameless_memory(nameless: Segment) -> None:
    nameless.map()[:3] = (1, 2, 3)
    other = subprocess.run(
        [sys.executable, "-c",
         "import sys\nfrom augproto.segment import attach, map_file\n"
         "print(attach(sys.argv[1])[:3].tolist())\n"
         "attach(sys.argv[1], writable=True)[0] = 8\n"
         "map_file(sys.argv[2], writable=True)[1] = 9\n",
         nameless.name, str(nameless.path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (other.returncode, other.stdout) == (0, "[1, 2, 3]\n"), other.stderr
    assert nameless.map()[:3].tolist() == [8, 9, 3]


def test_nameless_memory_is_seen_nowhere_and_vanishes_with_its_last_holder(
    nameless: Segment,
) -> None:
    before = set(directory().iterdir())
    with Segment(fresh_name(), 8192, nameless=True) as made:
        assert set(directory().iterdir()) - before == set()
        view = attach(made.name)
    with pytest.raises(ServerLost, match="no segment"):
        attach(made.name)
    assert not view.any()


def test_nobody_can_cut_nameless_memory_under_its_readers(nameless: Segment) -> None:
    with open(nameless.path, "r+b") as file:
        for size in (0, 4096, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(file.fileno(), size)


def test_a_descriptor_that_is_another_files_by_now_is_not_opened(
    nameless: Segment, tmp_path: Path
) -> None:
    own, pid = nameless.name.split("@")[0], os.getpid()
    other = tmp_path / "precious"
    other.write_bytes(bytes(8192))
    with open(other) as file, Segment(fresh_name(), 8192, nameless=True) as second:
        _, _, fd = second.name.rpartition(".")
        for stale in (f"{own}@{pid}.{file.fileno()}", f"{own}@{pid}.{fd}", f"{own}@{pid}.999999"):
            with pytest.raises(ServerLost, match="no segment"):
                attach(stale, writable=True)
            with pytest.raises(FileNotFoundError):
                Holder(stale)
        with pytest.raises(FileNotFoundError):
            map_file(f"/proc/{pid}/fd/{file.fileno()}", writable=True)


def test_a_nameless_segment_of_a_dead_process_is_gone() -> None:
    with running(NAMELESS_OWNER, fresh_name()) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        view = attach(name)
        process.kill()
        process.wait()
        with pytest.raises(ServerLost, match="no segment"):
            attach(name)
        assert not view.any()


def test_pages_are_in_place_before_the_owner_touches_them() -> None:
    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    size = 64 << 20
    with Segment(fresh_name(), size) as made:
        memory = made.map()
        before = faults()
        memory[::4096] = 1
        taken = faults() - before
        again = attach(made.name, writable=True)
        before = faults()
        again[::4096] = 1
        untouched = faults() - before
    if untouched < size // 4096 // 64:
        pytest.skip("this kernel maps shared memory ahead of its own accord")
    if tuple(map(int, os.uname().release.split(".")[:2])) < (5, 14):
        pytest.skip("this kernel cannot populate for writing")
    assert taken * 16 < untouched


class Advised:
    """A map whose kernel answers madvise with an error."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0

    def __len__(self) -> int:
        return 100 << 20

    def madvise(self, advice: int, start: int, length: int) -> None:
        assert advice == 23
        self.calls += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_a_kernel_that_cannot_populate_is_not_asked_again(number: int) -> None:
    old = Advised(number)
    segment._populate(old)  # type: ignore[arg-type]
    assert old.calls == 1


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EFAULT, 133])
def test_a_page_that_cannot_be_had_is_an_error_and_no_signal(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fresh_name()
    populate = segment._populate
    monkeypatch.setattr(segment, "_populate", lambda memory: populate(Advised(number)))  # type: ignore[arg-type]
    with pytest.raises(NoRoom):
        Segment(name, 8192)
    assert not (directory() / name).exists()


def test_what_does_not_fit_is_refused_with_sizes_and_remedy_and_leaves_nothing() -> None:
    before = set(directory().glob("augserver*"))
    with pytest.raises(NoRoom, match=r"segment of 33554432\.0 MiB does not fit.*--shm-size"):
        Segment(fresh_name(), 1 << 45)
    assert {p for p in directory().glob("augserver*") if f"{os.getpid():x}" in p.name} <= before


def test_what_does_not_even_fit_into_the_address_space_is_refused_likewise() -> None:
    with pytest.raises(NoRoom, match=r"does not fit"):
        Segment(fresh_name(), 1 << 60)


def test_room_is_what_the_file_system_says() -> None:
    free, total = room()
    with Segment(fresh_name(), 64 << 20):
        assert 0 < room()[0] <= free - (32 << 20)
        assert room()[1] == total >= free


def test_room_without_a_size_is_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [0] * 10  # as statvfs(3) of a tmpfs that is mounted with size=0 tells
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    assert room() == (sys.maxsize, sys.maxsize)


def test_a_sweep_leaves_what_has_an_owner() -> None:
    with running(OWNER, name := fresh_name()), Segment(fresh_name(), 8192) as mine:
        swept = sweep()
        assert name not in swept
        assert mine.name not in swept
        assert (directory() / name).exists()
        assert mine.path.exists()


def test_a_sweep_removes_what_a_killed_owner_left() -> None:
    with running(OWNER, name := fresh_name()) as process:
        process.kill()
        process.wait()
        assert (directory() / name).exists()
        swept = sweep()
    # Another server's sweep, here on the same machine, may have been faster.
    assert name in swept or not (directory() / name).exists()
    assert not (directory() / name).exists()


def test_a_creation_that_a_sweep_takes_for_a_dead_ones_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = fresh_name()
    swept: list[str] = []
    flock = fcntl.flock

    def sweep_first(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        swept.extend(sweep())  # between the creation and its lock
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    with Segment(name, 8192) as made:
        assert name in swept
        assert name not in sweep()
        assert attach(name).nbytes == made.size
    assert not (directory() / name).exists()


def test_a_sweep_that_comes_late_spares_the_next_of_that_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = directory() / fresh_name()
    path.write_bytes(b"a dead one's")
    flock = fcntl.flock

    def swept_by_another_first(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        path.write_bytes(b"a living one's")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", swept_by_another_first)
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([path]))
    try:
        assert sweep() == []
        assert path.read_bytes() == b"a living one's"
    finally:
        path.unlink()


def test_a_sweep_has_no_eye_for_the_files_of_others() -> None:
    path = directory() / f"other-{secrets.token_hex(4)}"
    path.write_bytes(b"x")
    try:
        sweep()
        assert path.exists()
    finally:
        path.unlink()


def test_a_consumer_lives_as_long_as_it_holds(owned: Segment) -> None:
    assert not owned.consumer_lives()
    first, second = Holder(owned.name), Holder(owned.name)
    assert owned.consumer_lives()
    first.close()
    first.close()
    assert owned.consumer_lives()
    second.close()
    assert not owned.consumer_lives()


def test_mapping_a_segment_is_not_holding_it(owned: Segment) -> None:
    memory = attach(owned.name)
    assert not owned.consumer_lives()
    assert memory.size == owned.size


def test_a_killed_consumer_is_dead_at_once(owned: Segment) -> None:
    with running(HOLDER, owned.name) as process:
        assert owned.consumer_lives()
        process.send_signal(signal.SIGSTOP)
        assert owned.consumer_lives(), "silent is not dead"
        process.kill()
        process.wait()
        assert not owned.consumer_lives()


def test_a_killed_consumer_is_dead_though_a_child_that_it_forked_lives_on(owned: Segment) -> None:
    with running(FORKING_HOLDER, owned.name, "child lives on") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert owned.consumer_lives()
        process.kill()
        process.wait()
        assert alive(child)
        # The child closes its copy as soon as it runs at all.
        wait_until(lambda: not owned.consumer_lives(), "the child to let go")
        assert alive(child)


def test_a_consumer_that_closed_is_gone_though_a_child_that_it_forked_lives_on(
    owned: Segment,
) -> None:
    with running(FORKING_HOLDER, owned.name, "parent closes") as process:
        assert process.stdout is not None
        assert alive(int(process.stdout.readline()))
        assert not owned.consumer_lives()


def test_a_forked_childs_close_and_exit_do_not_end_its_parents_hold(owned: Segment) -> None:
    with running(FORKING_HOLDER, owned.name, "child closes"):
        assert owned.consumer_lives()
    assert not owned.consumer_lives()


def test_the_owners_lock_and_the_consumers_are_two_things(owned: Segment) -> None:
    holder = Holder(owned.name)
    assert owned.name not in sweep()
    assert owned.consumer_lives()
    holder.close()
    assert owned.name not in sweep()
    assert np.array_equal(attach(owned.name), np.zeros(8192, np.uint8))
