"""The same bytes from any number of workers, from any server, in any order, through any death."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_truth import TRANSFORMS, bytes_of, two_epochs
from plain_reference import digest
from processes import alive, serving, wait_until, workers
from real_data import CIFAR10, needs_cifar10

from augclient import Consumer, local
from augclient.request import SpecOptions

SEED = (1 << 40) + 7
BATCH = 48
OPTIONS: SpecOptions = {"batch_size": BATCH, "seed": SEED, "transforms": TRANSFORMS}

pytestmark = needs_cifar10


@pytest.fixture(scope="module")
def pictures() -> tuple[Any, Any, Any]:
    with np.load(CIFAR10) as archive:
        x, y = archive["x_train"], archive["y_train"]
    return x, y, np.linspace(0, 1, len(x))


@pytest.fixture(scope="module")
def truth(pictures: tuple[Any, Any, Any]) -> str:
    return digest(*pictures, SEED, BATCH)


@pytest.fixture(scope="module")
def archive(pictures: tuple[Any, Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cifar.npz"
    np.savez(path, **dict(zip(("pictures", "labels", "weights"), pictures, strict=True)))
    return path


@pytest.fixture(autouse=True)
def _fresh_private_server() -> Iterator[None]:
    local.shut_down()  # a shared one would keep the workers of the test before
    yield
    local.shut_down()


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_private_server_with_any_number_of_workers_gives_the_referencebytes_of(
    count: int, pictures: tuple[Any, Any, Any], truth: str
) -> None:
    with Consumer(*pictures, workers=count, **OPTIONS) as consumer:
        assert two_epochs(consumer) == truth
        if count:
            assert local._server is not None
            assert len(workers(local._server.pid)) == count


@pytest.mark.parametrize("count", [0, 2])
def test_a_standalone_server_gives_the_referencebytes_of(
    count: int, archive: Path, truth: str, tmp_path: Path
) -> None:
    config = tmp_path / "augserver.toml"
    config.write_text(f'[server]\nroots = ["{archive.parent}"]\n')
    address = f"ipc://{tmp_path}/s"
    with (
        serving(address, "--config", str(config), "--workers", str(count)),
        Consumer(
            "pictures", "labels", "weights", data=str(archive), address=address, **OPTIONS
        ) as consumer,
    ):
        assert two_epochs(consumer) == truth


def test_batches_asked_for_by_index_in_a_random_order_are_the_same(
    pictures: tuple[Any, Any, Any], truth: str
) -> None:
    keys = [(epoch, step) for epoch in range(2) for step in range(-(-len(pictures[0]) // BATCH))]
    shuffled = random.Random(5).sample(keys, len(keys))
    with Consumer(*pictures, workers=2, **OPTIONS) as consumer:
        got = {key: bytes_of(consumer.get(*key)) for key in shuffled}
    assert hashlib.sha256(b"".join(got[key] for key in keys)).hexdigest() == truth


def test_killing_workers_at_random_changes_no_byte(
    pictures: tuple[Any, Any, Any], truth: str
) -> None:
    chance = random.Random(11)
    killed = []
    sha = hashlib.sha256()
    with Consumer(*pictures, workers=2, slots=6, **OPTIONS) as consumer:
        assert local._server is not None
        server = local._server.pid
        for epoch in range(2):
            for batch in consumer.epoch(epoch):
                sha.update(bytes_of(batch))
                if batch.step % 20 == 10:
                    wait_until(lambda: bool(workers(server)), "a worker to kill")
                    victim = chance.choice(workers(server))
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
    assert len(killed) >= 10
    assert not any(alive(pid) for pid in killed)
    assert sha.hexdigest() == truth
