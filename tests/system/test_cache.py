"""Decoded pictures in shared memory, with real servers: the same bytes, and nothing left behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_truth import TRANSFORMS, bytes_of
from PIL import Image
from processes import kill_a_worker, serving, wait_until, workers

from augclient import Consumer, local
from augproto.messages import Status
from augserver import health

COUNT = 90
OPTIONS: dict[str, Any] = {
    "target_size": (40, 48),
    "batch_size": 8,
    "seed": 5,
    "transforms": TRANSFORMS,
}
#: Bytes of one sample in a cache.
EACH = 40 * 48 * 3 + 1


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of JPEGs."""
    rng = np.random.default_rng(8)
    for i in range(COUNT):
        path = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30 + i, 120 - i, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pets"


@pytest.fixture(autouse=True)
def _fresh_private_server() -> Iterator[None]:
    local.shut_down()
    yield
    local.shut_down()


def epoch(consumer: Consumer, number: int) -> str:
    return hashlib.sha256(b"".join(map(bytes_of, consumer.epoch(number)))).hexdigest()


@contextlib.contextmanager
def plain(pets: Path, **options: Any) -> Iterator[Consumer]:
    with Consumer(data=pets, pictures={}, workers=0, **(OPTIONS | options)) as consumer:
        yield consumer


@pytest.fixture
def truth(pets: Path) -> list[str]:
    """Three epochs without a cache."""
    with plain(pets) as consumer:
        return [epoch(consumer, number) for number in range(3)]


@contextlib.contextmanager
def server(pets: Path, settings: str = "") -> Iterator[tuple[str, int]]:
    """A server with two workers and two streams of the folder, one of them with a cache."""
    config = pets.parent / "augserver.toml"
    stream = (
        f'data = "{pets}"\ntarget_size = [40, 48]\nbatch_size = 8\nseed = 5\n'
        "[streams.{0}.pictures]\n[streams.{0}.transforms]\nrescale = 0.5\n"
    )
    config.write_text(
        f"[server]\nworkers = 2\n{settings}\n"
        f'[streams.kept]\ncache = "decoded"\n{stream.format("kept")}'
        f"[streams.plain]\n{stream.format('plain')}"
    )
    address = f"ipc://{pets.parent}/s"
    with serving(address, "--config", str(config)) as process:
        yield address, process.pid


def status(address: str) -> Status:
    return health.ask(address, 10)[1]


def segments(pid: int) -> int:
    made = re.compile(rf"augserver-\d+-{pid:x}[0-9a-f]{{6}}-")
    return sum(made.match(path.name) is not None for path in Path("/dev/shm").iterdir())


@pytest.mark.parametrize("count", [0, 2])
def test_later_epochs_are_the_same_bytes_and_need_no_files(
    pets: Path, truth: list[str], count: int
) -> None:
    with Consumer(data=pets, pictures={}, workers=count, cache="decoded", **OPTIONS) as consumer:
        assert epoch(consumer, 0) == truth[0]
        shutil.rmtree(pets)
        assert [epoch(consumer, 1), epoch(consumer, 2)] == truth[1:]


def test_files_of_the_program_are_cached_too(pets: Path) -> None:
    files = sorted(pets.glob("*/*"))
    made: list[str] = []
    for cache in (None, "decoded"):
        with Consumer(
            files=files, y=np.arange(COUNT), workers=2, cache=cache, **OPTIONS
        ) as consumer:
            made.append(epoch(consumer, 0))
            if cache is not None:
                shutil.rmtree(pets)
                made.append(epoch(consumer, 0))
    assert len(set(made)) == 1


def test_a_worker_killed_while_it_fills_leaves_nothing_wrong(pets: Path, truth: list[str]) -> None:
    killed = 0
    with Consumer(
        data=pets, pictures={}, workers=2, slots=3, cache="decoded", **OPTIONS
    ) as consumer:
        assert local._server is not None
        pid = local._server.pid
        for number in range(2):
            sha = hashlib.sha256()
            for batch in consumer.epoch(number):
                sha.update(bytes_of(batch))
                if number == 0 and batch.step % 2:
                    kill_a_worker(pid)
                    killed += 1
            assert sha.hexdigest() == truth[number]
        assert killed > 4
        wait_until(lambda: len(workers(pid)) == 2, "two workers")
        shutil.rmtree(pets)
        assert epoch(consumer, 2) == truth[2], "all of it is in the cache in the end"


def test_streams_share_a_cache_within_its_budget_and_leave_nothing(pets: Path) -> None:
    half = COUNT // 2
    with server(pets, f"cache_bytes = {half * EACH + 300}") as (address, pid):
        with (
            Consumer(stream="plain", address=address) as plain_one,
            Consumer(stream="kept", address=address) as first,
            Consumer(stream="kept", address=address, seed=9) as second,
        ):
            said = status(address)
            assert (said.cached_samples, said.cache_places) == (0, half)
            assert segments(pid) == 6, "a door, files, a cache and three rings"
            wanted = [epoch(plain_one, number) for number in range(2)]
            assert epoch(first, 0) == wanted[0]
            assert status(address).cached_samples == half
            assert epoch(second, 0) != wanted[0]
            for path in sorted(pets.glob("*/*"))[:half]:
                path.unlink()
            assert epoch(first, 1) == wanted[1]
            assert f"{half} decoded pictures in {half} places" in health.describe(
                1, status(address)
            )
        wait_until(lambda: segments(pid) == 1, "nothing but the door")
        assert status(address).cache_places == 0


def test_a_server_that_is_killed_leaves_a_cache_that_the_next_one_sweeps(pets: Path) -> None:
    with server(pets) as (address, pid), Consumer(stream="kept", address=address) as consumer:
        next(consumer.epoch(0))
        assert segments(pid) >= 3
        os.kill(pid, signal.SIGKILL)
    assert segments(pid) >= 3
    with server(pets) as (address, _):
        assert segments(pid) == 0


def test_without_room_pictures_are_decoded_each_time(pets: Path) -> None:
    with (
        server(pets, "cache_bytes = 0") as (address, _),
        Consumer(stream="plain", address=address) as plain_one,
        Consumer(stream="kept", address=address) as consumer,
    ):
        assert epoch(consumer, 0) == epoch(plain_one, 0)
        assert status(address).cache_places == 0
