"""Where memory is short, a server works smaller or says why not: no SIGBUS, nobody is killed.

/dev/shm is made small in a private mount namespace, as a container's is; memory in a real cgroup.
Both need rights that a machine may not give; then these tests skip.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import wait_until

#: A batch of 16 pictures in float32.
SLOT_BYTES = 4 << 20

# Every batch must be right; and then every byte of the ring is written, by the consumer, which a
# page that memory does not back would answer with SIGBUS.
CHECKED = """
import contextlib, json, os, sys
import numpy as np
from augclient import Consumer, local
from augproto.errors import NoRoom
from augproto.segment import attach

x = np.load(sys.argv[1] + "/x.npy")

def checked(consumer, x):
    wrong = 0
    for epoch in range(2):
        for batch in consumer.epoch(epoch):
            first = batch.step * 16
            wrong += not np.array_equal(batch.x, x[first : first + 16])
    del batch
    name = consumer._source.opened.segment
    memory = attach(name, writable=True)
    memory[:] = 170
    return {"slots": consumer.slots, "nameless": "@" in name, "bytes": memory.nbytes,
            "wrong": wrong, "written": int(memory.astype(bool).sum())}
"""

PRIVATE = (
    CHECKED
    + """
try:
    with Consumer(x, batch_size=16, shuffle=False, workers=2) as consumer:
        found = checked(consumer, x)
except NoRoom as error:
    found = {"refused": str(error)}
server = local._server._process
local.shut_down()
print(json.dumps(found | {"server": server.returncode, "left": os.listdir("/dev/shm")}))
"""
)

STANDALONE = (
    CHECKED
    + """
from processes import serving
address = f"ipc://{sys.argv[1]}/s"
found = []
with serving(address, "--config", sys.argv[1] + "/augserver.toml") as server:
    with contextlib.ExitStack() as open_ones:
        for batch_size in map(int, sys.argv[2:]):
            try:
                consumer = Consumer(stream="x", address=address, batch_size=batch_size)
            except NoRoom as error:
                found.append({"refused": str(error)})
                continue
            open_ones.enter_context(consumer)
            if batch_size == 16:
                found.append(checked(consumer, x))
            else:
                last = [np.array(batch.x) for batch in consumer.epoch(0)][-1]
                found.append({"slots": consumer.slots, "right": np.array_equal(last[-1], x[-1])})
    server.terminate()
    server.wait(30)
print(json.dumps({"consumers": found, "server": server.returncode,
                  "left": [n for n in os.listdir("/dev/shm") if f"-{server.pid:x}" in n]}))
"""
)


def run(wrapper: Sequence[str], program: str, *arguments: object) -> dict[str, Any]:
    """What a program printed as its last line; a signal to it is a failure with its name."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"said": done.stderr}


def small_shm(size: str) -> list[str]:
    """How to run a command that finds a /dev/shm of this size."""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    for namespaces in ("-m", "-rm"):
        wrapper = ["unshare", namespaces, "sh", "-c", mount, "sh"]
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode == 0:
                return wrapper
    pytest.skip("no right to a mount namespace with a /dev/shm of its own")


class Cgroup:
    """A memory cgroup below this process's own."""

    def __init__(self, folder: Path, limit: str, kills: str) -> None:
        self.folder = folder
        self._limit = limit
        self._kills = kills

    def run_in(self, limit: int) -> list[str]:
        """How to run a command that may use this much memory."""
        (self.folder / self._limit).write_text(str(limit))
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"]

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        found = re.search(r"^oom_kill (\d+)", (self.folder / self._kills).read_text(), re.M)
        assert found is not None
        return int(found[1])

    def empty(self) -> bool:
        """Whether every process in it has ended."""
        return not (self.folder / "cgroup.procs").read_text()


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    own = {
        controllers: path
        for _, controllers, path in (
            line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()
        )
    }
    name = f"augserver-test-{os.getpid()}"
    tried: list[str] = []
    for mount, path, limit, kills in (
        ("memory", own.get("memory"), "memory.limit_in_bytes", "memory.oom_control"),
        ("", own.get(""), "memory.max", "memory.events"),
    ):
        if path is None:
            continue
        group = Path("/sys/fs/cgroup", mount, path.strip("/"), name)
        try:
            group.mkdir()
        except OSError as error:
            tried.append(str(error))
            continue
        try:
            if (group / limit).exists():
                made = Cgroup(group, limit, kills)
                yield made
                wait_until(made.empty, "the processes in the cgroup to end")
                return
            tried.append(f"{group} has no {limit}")
        finally:
            group.rmdir()
    pytest.skip(f"no memory cgroup can be made: {'; '.join(tried) or 'there are none'}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With pictures, and a config that serves them; in a standalone server they need no memory."""
    rows = np.arange(256, dtype=np.uint8)
    pictures = rows[:, None, None, None] + rows[:, None, None] * 3 + rows[:, None] * 7
    assert (len(pictures), pictures[0].nbytes * 16 * 4) == (256, SLOT_BYTES)
    np.save(tmp_path / "x.npy", pictures)
    (tmp_path / "augserver.toml").write_text(
        '[server]\nworkers = 2\n[streams.x]\ndata = "x.npy"\nx = "x"\nbatch_size = 16\n'
        "shuffle = false\n"
    )
    return tmp_path


def is_right(found: dict[str, Any]) -> None:
    assert found["wrong"] == 0
    assert found["written"] > found["bytes"] // 2, "the rest is being written anew by the workers"
    assert found["bytes"] == 4096 + found["slots"] * (SLOT_BYTES + 4096)


@pytest.mark.parametrize("size", ["64m", "1m"])
def test_a_private_server_needs_no_room_in_dev_shm(size: str, folder: Path) -> None:
    found = run(small_shm(size), PRIVATE, folder)
    is_right(found)
    assert found["slots"] == 48, "memory itself is not short"
    assert found["nameless"]
    assert (found["server"], found["left"]) == (0, [])


def test_a_standalone_server_in_64_mib_works_smaller_and_leaves_room_for_another(
    folder: Path,
) -> None:
    found = run(small_shm("64m"), STANDALONE, folder, 16, 16)
    first, second = found["consumers"]
    for one in (first, second):
        is_right(one)
        assert not one["nameless"]
    assert 3 <= second["slots"] <= first["slots"] < 16
    assert (found["server"], found["left"]) == (0, [])


def test_a_standalone_server_in_1_mib_refuses_with_the_sizes_and_serves_what_fits(
    folder: Path,
) -> None:
    found = run(small_shm("1m"), STANDALONE, folder, 16, 1, 16)
    large, small, again = found["consumers"]
    for refused in (large["refused"], again["refused"]):
        assert "a ring of 3 slots, 12.0 MiB, does not fit" in refused
        assert "asked: 48 slots, 192.2 MiB" in refused
        assert re.search(r"/dev/shm has \d\.\d MiB free of 1\.0 MiB", refused)
        assert "docker run: --shm-size" in refused
    assert small["right"]
    assert small["slots"] == 3
    assert (found["server"], found["left"]) == (0, [])


def test_a_private_server_in_a_small_cgroup_works_smaller_and_nobody_is_killed(
    cgroup: Cgroup, folder: Path
) -> None:
    found = run(cgroup.run_in(384 << 20), PRIVATE, folder)
    is_right(found)
    assert 3 <= found["slots"] < 48
    assert "memory is short: a ring of" in found["said"]
    assert (found["server"], cgroup.kills) == (0, 0)


def test_a_private_server_in_a_tiny_cgroup_refuses_with_the_sizes_and_nobody_is_killed(
    cgroup: Cgroup, folder: Path
) -> None:
    found = run(cgroup.run_in(192 << 20), PRIVATE, folder)
    assert "arrays of 16.0 MiB do not fit" in found["refused"]
    assert re.search(rf"{cgroup.folder} has [\d.]+ MiB free of 192\.0 MiB", found["refused"])
    assert "--memory" in found["refused"]
    assert (found["server"], cgroup.kills) == (0, 0)


def test_a_standalone_server_in_a_small_cgroup_works_smaller_and_nobody_is_killed(
    cgroup: Cgroup, folder: Path
) -> None:
    found = run(cgroup.run_in(320 << 20), STANDALONE, folder, 16, 16)
    first, *_ = found["consumers"]
    is_right(first)
    assert first["slots"] < 48
    assert (found["server"], cgroup.kills) == (0, 0)


def test_a_standalone_server_in_a_small_cgroup_unpacks_no_more_than_it_can_hold(
    cgroup: Cgroup, folder: Path
) -> None:
    np.savez_compressed(folder / "x.npz", x=np.zeros(200 << 20, np.uint8).reshape(-1, 256, 256, 1))
    text = (folder / "augserver.toml").read_text().replace("x.npy", "x.npz")
    (folder / "augserver.toml").write_text(text)
    found = run(cgroup.run_in(320 << 20), STANDALONE, folder, 16, 16)
    for refused in found["consumers"]:
        assert "400.0 MiB are needed to unpack the arrays" in refused["refused"]
        assert "save them as .npy files" in refused["refused"]
    assert (found["server"], cgroup.kills) == (0, 0)


def test_more_than_the_server_s_bound_is_refused_to_who_asks_and_the_others_go_on(
    folder: Path,
) -> None:
    text = (folder / "augserver.toml").read_text()
    bounded = text.replace("workers = 2", f"workers = 2\nmax_total_bytes = {20 << 20}")
    (folder / "augserver.toml").write_text(bounded)
    found = run([], STANDALONE, folder, 16, 16, 1)
    first, second, small = found["consumers"]
    is_right(first)
    assert first["slots"] == 4
    assert "max_total_bytes has 4.0 MiB free of 20.0 MiB" in second["refused"]
    assert "raise max_total_bytes" in second["refused"]
    assert small["right"]
    assert (found["server"], found["left"]) == (0, [])
