"""Limits of memory are read from /proc and /sys as kernels and containers write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from augserver.limits import Limit, memory_limits

MIB = 1 << 20
MEMINFO = "MemTotal:  1048576 kB\nMemFree:  1000 kB\nMemAvailable:  524288 kB\nHugePages_Total: 0\n"
NO_LIMIT_V1 = 9223372036854771712


def tree(root: Path, files: dict[str, Any]) -> Path:
    """A made-up /proc and /sys."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def version_1(folder: str, limit: int, usage: int, inactive: int = 0) -> dict[str, Any]:
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": usage,
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_cache 5\ntotal_inactive_file {inactive}",
    }


def version_2(
    folder: str, most: object, usage: int, inactive: int = 0, high: object = "max"
) -> dict[str, Any]:
    return {
        f"{folder}/memory.max": most,
        f"{folder}/memory.high": high,
        f"{folder}/memory.current": usage,
        f"{folder}/memory.stat": f"anon 7\ninactive_file {inactive}\nactive_file 9",
    }


def cgroups(root: Path) -> list[tuple[str, int, int]]:
    """Which limits there are beside the machine's: (folder, total, free)."""
    prefix = f"the memory cgroup {root}/"
    found = [limit for limit in memory_limits(root) if limit.who != "the machine"]
    return [(limit.who.removeprefix(prefix), limit.total, limit.free) for limit in found]


def test_the_machine_is_a_limit_by_what_is_available(tmp_path: Path) -> None:
    (machine,) = memory_limits(tree(tmp_path, {"proc/meminfo": MEMINFO}))
    assert (machine.who, machine.total, machine.free) == ("the machine", 1 << 30, 1 << 29)


def test_a_system_that_tells_nothing_has_no_limits(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == []
    odd: dict[str, Any] = {
        "proc/meminfo": "MemTotal: lots",
        "proc/self/cgroup": "0::/x",
        "sys/fs/cgroup/x": "file",
    }
    assert memory_limits(tree(tmp_path, odd)) == []


def test_this_system_has_at_least_one() -> None:
    limits = memory_limits()
    assert limits[0].who == "the machine"
    assert all(0 <= limit.free <= limit.total for limit in limits)


def test_version_2_counts_the_own_group_and_every_ancestor(tmp_path: Path) -> None:
    files: dict[str, Any] = {"proc/self/cgroup": "0::/pod/container"}
    files |= version_2("sys/fs/cgroup/pod/container", 200 * MIB, 50 * MIB)
    files |= version_2("sys/fs/cgroup/pod", 100 * MIB, 90 * MIB)
    files |= version_2("sys/fs/cgroup/other", 1 * MIB, 1 * MIB)
    assert cgroups(tree(tmp_path, files)) == [
        ("sys/fs/cgroup/pod/container", 200 * MIB, 150 * MIB),
        ("sys/fs/cgroup/pod", 100 * MIB, 10 * MIB),
    ]


def test_version_2_in_a_namespace_of_its_own_is_the_mounts_root(tmp_path: Path) -> None:
    files: dict[str, Any] = {"proc/self/cgroup": "0::/"} | version_2(
        "sys/fs/cgroup", 100 * MIB, 30 * MIB
    )
    assert cgroups(tree(tmp_path, files)) == [("sys/fs/cgroup", 100 * MIB, 70 * MIB)]


@pytest.mark.parametrize("path", ["/docker/0123abcd", "/../../elsewhere", "/../0123abcd"])
def test_a_path_that_is_not_in_this_namespace_means_the_mounts_root(
    tmp_path: Path, path: str
) -> None:
    two: dict[str, Any] = {"proc/self/cgroup": f"0::{path}"} | version_2(
        "sys/fs/cgroup", 100 * MIB, 30 * MIB
    )
    assert cgroups(tree(tmp_path / "2", two)) == [("sys/fs/cgroup", 100 * MIB, 70 * MIB)]
    one: dict[str, Any] = {"proc/self/cgroup": f"7:cpu,cpuacct:/\n4:memory:{path}"}
    one |= version_1("sys/fs/cgroup/memory", 100 * MIB, 30 * MIB)
    assert cgroups(tree(tmp_path / "1", one)) == [("sys/fs/cgroup/memory", 100 * MIB, 70 * MIB)]


def test_a_path_upwards_reads_nothing_outside_the_mount(tmp_path: Path) -> None:
    files: dict[str, Any] = {"proc/self/cgroup": "0::/../secret"} | version_2("sys/fs/secret", 1, 1)
    assert cgroups(tree(tmp_path, files)) == []


def test_max_is_no_limit_and_high_is_one(tmp_path: Path) -> None:
    files: dict[str, Any] = {"proc/self/cgroup": "0::/a/b/c"}
    files |= version_2("sys/fs/cgroup/a/b/c", "max", 50 * MIB)
    files |= version_2("sys/fs/cgroup/a/b", "max", 50 * MIB, high=80 * MIB)
    files |= version_2("sys/fs/cgroup/a", 90 * MIB, 50 * MIB, high=200 * MIB)
    assert cgroups(tree(tmp_path, files)) == [
        ("sys/fs/cgroup/a/b", 80 * MIB, 30 * MIB),
        ("sys/fs/cgroup/a", 90 * MIB, 40 * MIB),
    ]


def test_version_1_counts_the_own_group_and_every_ancestor(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "proc/self/cgroup": "9:name=systemd:/\n4:hugetlb,memory:/pod/one\n1:cpu:/x\n0::/"
    }
    files |= version_1("sys/fs/cgroup/memory/pod/one", NO_LIMIT_V1, 50 * MIB)
    files |= version_1("sys/fs/cgroup/memory/pod", 300 * MIB, 100 * MIB)
    files |= version_1("sys/fs/cgroup/memory", 1000 * MIB, 990 * MIB)
    assert cgroups(tree(tmp_path, files)) == [
        ("sys/fs/cgroup/memory/pod", 300 * MIB, 200 * MIB),
        ("sys/fs/cgroup/memory", 1000 * MIB, 10 * MIB),
    ]


def test_pages_of_files_that_nobody_reads_are_free(tmp_path: Path) -> None:
    files: dict[str, Any] = {"proc/self/cgroup": "4:memory:/a\n0::/b"}
    files |= version_1("sys/fs/cgroup/memory/a", 100 * MIB, 95 * MIB, inactive=40 * MIB)
    files |= version_2("sys/fs/cgroup/unified/b", 100 * MIB, 95 * MIB, inactive=30 * MIB)
    assert [free for _, _, free in cgroups(tree(tmp_path, files))] == [45 * MIB, 35 * MIB]


@pytest.mark.parametrize(("usage", "inactive", "free"), [(150, 0, 0), (10, 90, 100)])
def test_numbers_that_contradict_each_other_stay_within_bounds(
    tmp_path: Path, usage: int, inactive: int, free: int
) -> None:
    # The files are not read in one moment.
    files: dict[str, Any] = {"proc/self/cgroup": "0::/a"} | version_2(
        "sys/fs/cgroup/a", 100, usage, inactive
    )
    assert cgroups(tree(tmp_path, files)) == [("sys/fs/cgroup/a", 100, free)]


def test_a_limit_says_what_is_free_and_what_is_kept_of_it() -> None:
    limit = Limit("the machine", 100 * MIB, 40 * MIB, "buy more")
    assert str(limit) == "the machine has 40.0 MiB free of 100.0 MiB"
    assert limit.left == 40 * MIB
    kept = Limit("the machine", 100 * MIB, 40 * MIB, "buy more", kept=64 * MIB)
    assert str(kept).endswith("of 100.0 MiB (64.0 MiB of it kept for the processes themselves)")
    assert kept.left == 0
