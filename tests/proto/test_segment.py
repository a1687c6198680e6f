"""Shared memory is mapped, held, found dead and swept; and never left behind."""

from __future__ import annotations

import contextlib
import gc
import os
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
from augproto.segment import PREFIX, Holder, Segment, attach, directory, room, sweep


def fresh_name() -> str:
    return f"{PREFIX}{os.getuid()}-{os.getpid():x}{secrets.token_hex(3)}-test"


@pytest.fixture
def owned() -> Iterator[Segment]:
    with Segment(fresh_name(), 8192) as made:
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
    status = (directory() / owned.name).stat()
    assert status.st_blocks * 512 >= status.st_size == owned.size


def test_a_mapping_outlives_the_segment_and_ends_with_its_last_view(owned: Segment) -> None:
    name = owned.name

    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(name)

    view = attach(name)[10:20]
    owned.close()
    gc.collect()
    assert view.tolist() == [0] * 10
    assert maps() == 1
    del view
    assert maps() == 0


def test_close_removes_it_and_may_come_twice(owned: Segment) -> None:
    owned.close()
    owned.close()
    assert not (directory() / owned.name).exists()
    assert not owned.consumer_lives()


def test_close_is_content_if_somebody_else_was_faster(owned: Segment) -> None:
    os.unlink(directory() / owned.name)
    owned.close()


def test_no_descriptor_is_left(owned: Segment) -> None:
    def open_here() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_here()
    for _ in range(20):
        with Segment(fresh_name(), 4096) as made:
            memory = made.map()
            Holder(made.name).close()
            attach(made.name)
            del memory
        with pytest.raises(NoRoom):
            Segment(fresh_name(), 1 << 45)
    assert open_here() == before


@pytest.mark.parametrize("name", ["", "other", "../etc/passwd", f"{PREFIX}../x", f"/{PREFIX}x"])
def test_a_name_that_is_no_segments_is_refused(name: str) -> None:
    with pytest.raises(ServerLost, match="not the name of a segment"):
        attach(name)


def test_a_segment_that_is_gone_is_said_to_be(owned: Segment) -> None:
    owned.close()
    with pytest.raises(ServerLost, match=r"no segment .*AUGSERVER_SHM_DIR"):
        attach(owned.name)


def test_a_consumer_may_find_the_segments_elsewhere(
    owned: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned.map()[0] = 3
    (tmp_path / owned.name).symlink_to(directory() / owned.name)
    monkeypatch.setenv("AUGSERVER_SHM_DIR", str(tmp_path))
    assert attach(owned.name)[0] == 3


def test_what_does_not_fit_is_refused_with_sizes_and_remedy_and_leaves_nothing() -> None:
    before = set(directory().glob("augserver*"))
    with pytest.raises(NoRoom, match=r"segment of 33554432\.0 MiB does not fit.*--shm-size"):
        Segment(fresh_name(), 1 << 45)
    assert {p for p in directory().glob("augserver*") if f"{os.getpid():x}" in p.name} <= before


def test_what_does_not_even_fit_into_the_address_space_is_refused_likewise() -> None:
    with pytest.raises(NoRoom, match=r"does not fit"):
        Segment(fresh_name(), 1 << 60)


def test_room_is_what_the_file_system_says() -> None:
    before = room()
    with Segment(fresh_name(), 64 << 20):
        assert 0 < room() <= before - (32 << 20)


def test_a_sweep_leaves_what_has_an_owner(owned: Segment) -> None:
    with running(OWNER, name := fresh_name()):
        swept = sweep()
        assert name not in swept
        assert owned.name not in swept
        assert (directory() / name).exists()
        assert (directory() / owned.name).exists()


def test_a_sweep_removes_what_a_killed_owner_left() -> None:
    with running(OWNER, name := fresh_name()) as process:
        process.kill()
        process.wait()
        assert (directory() / name).exists()
        swept = sweep()
    # Another server's sweep, here on the same machine, may have been faster.
    assert name in swept or not (directory() / name).exists()
    assert not (directory() / name).exists()


def test_a_sweep_spares_a_creation_under_way_and_removes_one_that_was_interrupted() -> None:
    path = directory() / fresh_name().replace(PREFIX, "augserver.new-")
    path.write_bytes(bytes(100))
    try:
        assert path.name not in sweep()
        assert path.exists()
        long_ago = path.stat().st_mtime - segment._FRESH_SECONDS - 1
        os.utime(path, (long_ago, long_ago))
        sweep()
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


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
        # The child lets go of what it inherited in its first moments.
        wait_until(lambda: not owned.consumer_lives(), "the child to let go", 10)


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
