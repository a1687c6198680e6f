"""Small batches that share a slot, from a real server: nobody can tell."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import kill_a_worker, serving, wait_until, workers

from augclient import Batch, Consumer, local
from augclient.link import Link

N = 1003
X = np.random.default_rng(1).integers(0, 256, (N, 16, 16, 3), np.uint8)
Y = np.arange(N)
OPTIONS: dict[str, Any] = {
    "batch_size": 8,
    "seed": 3,
    "transforms": {"rotation_range": 30, "horizontal_flip": True, "rescale": 1 / 255},
}


def opened(**options: Any) -> Consumer:
    return Consumer(X, Y, **OPTIONS, **options)


def span(consumer: Consumer) -> int:
    assert isinstance(consumer._source, Link)
    return consumer._source.opened.span


def digest(batch: Batch) -> str:
    return hashlib.sha256(np.asarray(batch.x).tobytes() + np.asarray(batch.y).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def one_by_one() -> dict[tuple[int, int], str]:
    """What each batch is where nobody shares anything: in this process."""
    with opened(workers=0) as consumer:
        return {
            (epoch, step): digest(consumer.get(epoch, step))
            for epoch in range(2)
            for step in range(consumer.steps)
        }


def test_batches_come_as_they_are_made_one_by_one(
    one_by_one: dict[tuple[int, int], str],
) -> None:
    with opened(workers=2) as consumer:
        assert span(consumer) > 1, "or this tests nothing"
        got = {(b.epoch, b.step): digest(b) for e in range(2) for b in consumer.epoch(e)}
        assert got == one_by_one
        assert (consumer.steps, consumer.samples, consumer.batch_size) == (126, N, 8)
        assert len(np.asarray(consumer.get(0, 125).x)) == N % 8


def test_any_batch_can_be_asked_for_at_any_time(
    one_by_one: dict[tuple[int, int], str],
) -> None:
    keys = list(one_by_one)
    random.Random(0).shuffle(keys)
    with opened(workers=2) as consumer:
        for key in [*keys[:60], *keys[:5]]:
            assert digest(consumer.get(*key)) == one_by_one[key], key


def test_threads_that_ask_for_neighbouring_batches_get_each_its_own(
    one_by_one: dict[tuple[int, int], str],
) -> None:
    keys = [key for key in one_by_one if key[0] == 0]
    with opened(workers=2) as consumer, ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda key: digest(consumer.get(*key)), keys))
    assert got == [one_by_one[key] for key in keys]


def test_workers_may_die_at_any_time(one_by_one: dict[tuple[int, int], str]) -> None:
    with opened(workers=2) as consumer:
        assert local._server is not None
        server = local._server.pid
        wait_until(lambda: len(workers(server)) == 2, "two workers")
        got = {}
        for number, key in enumerate(one_by_one):
            if number % 60 == 30:
                kill_a_worker(server)
                wait_until(lambda: len(workers(server)) == 2, "another worker")
            got[key] = digest(consumer.get(*key))
        assert got == one_by_one


def test_a_slot_is_held_by_each_of_its_batches_and_by_nothing_else() -> None:
    with opened(workers=2) as consumer:
        size = span(consumer)
        kept = [consumer.get(0, step) for step in range(size)]
        assert consumer.leased == 1
        last = kept.pop()
        kept.clear()
        gc.collect()
        assert consumer.leased == 1
        del last
        gc.collect()
        assert consumer.leased == 0
        one = consumer.get(0, size)
        assert consumer.leased == 1
        del one
        gc.collect()
        assert consumer.leased == 0, "what was not handed out yet is nobody's"


def test_who_keeps_every_batch_gets_copies_and_is_never_wedged() -> None:
    with opened(workers=2) as consumer:
        kept = [batch for epoch in range(4) for batch in consumer.epoch(epoch)]
        # Copied is what was in the way of the last slot: whole slots, counted in batches.
        assert len(kept) - consumer.slots * span(consumer) <= consumer.copies < len(kept)
        values = [np.asarray(batch.y).copy() for batch in kept]
        assert sorted(np.concatenate(values[:126]).tolist()) == list(range(N))


def test_arrays_stay_readable_after_close() -> None:
    consumer = opened(workers=2)
    batch = consumer.get(0, 3)
    before = digest(batch)
    consumer.close()
    assert digest(batch) == before


def test_who_names_a_number_of_slots_has_one_batch_in_each() -> None:
    with opened(workers=2, slots=5) as consumer:
        assert span(consumer) == 1
        kept = [consumer.get(0, step) for step in range(3)]
        assert (consumer.leased, consumer.slots) == (len(kept), 5)


@pytest.fixture
def config(tmp_path: Path) -> str:
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    config = tmp_path / "augserver.toml"
    config.write_text(
        f'[server]\nworkers = 1\n[streams.s]\ndata = "{tmp_path}/data.npz"\nx = "x"\ny = "y"\n'
        "batch_size = 8\nseed = 3\n[streams.s.transforms]\nrotation_range = 30\n"
        f"horizontal_flip = true\nrescale = {1 / 255!r}\n"
    )
    return str(config)


def test_a_server_may_be_killed_and_started_again_between_batches_of_a_slot(
    tmp_path: Path, config: str, one_by_one: dict[tuple[int, int], str]
) -> None:
    address = f"ipc://{tmp_path}/s"
    with contextlib.ExitStack() as stack:
        with serving(address, "--config", config) as server:
            consumer = stack.enter_context(Consumer(stream="s", address=address))
            size = span(consumer)
            assert size > 2
            got = {step: digest(consumer.get(0, step)) for step in range(size + 2)}
            server.kill()
            server.wait(30)
        with serving(address, "--config", config):
            for step in range(size + 2, 3 * size):
                got[step] = digest(consumer.get(0, step))
    assert got == {step: one_by_one[0, step] for step in range(3 * size)}


def test_where_room_is_short_each_batch_has_a_slot_of_its_own(tmp_path: Path, config: str) -> None:
    text = Path(config).read_text()
    Path(config).write_text(text.replace("workers = 1", "workers = 1\nmax_total_bytes = 6_000_000"))
    address = f"ipc://{tmp_path}/s"
    with (
        serving(address, "--config", config),
        Consumer(stream="s", address=address) as consumer,
    ):
        assert span(consumer) == 1
        assert consumer.slots > 10
        assert len(np.asarray(consumer.get(0, 0).y)) == 8


def test_the_status_counts_batches(tmp_path: Path, config: str) -> None:
    address = f"ipc://{tmp_path}/s"
    with (
        serving(address, "--config", config),
        Consumer(stream="s", address=address) as consumer,
    ):
        assert span(consumer) > 1
        for _ in consumer.epoch(0):
            pass
        ran = subprocess.run(
            [sys.executable, "-m", "augserver", "status", "--connect", address],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    (line,) = [part for part in ran.stdout.split("; ") if "batches made" in part]
    assert int(line.split()[0]) >= 126
