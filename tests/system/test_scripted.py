"""Batches by script from real workers: the same bytes from everywhere, whoever dies meanwhile."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import kill_a_worker, serving, wait_until, workers

from augclient import local
from augclient.scripted import Scripted, of_samples
from augproto.errors import ConfigError, ServerLost, WorkerError

Array = np.ndarray[Any, Any]

X: Array = np.random.default_rng(4).integers(0, 256, (40, 16, 12, 3)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _fresh_private_server() -> Iterator[None]:
    local.shut_down()
    yield
    local.shut_down()


def state(seed: int) -> Any:
    return np.random.RandomState(seed).get_state()


def stream(count: int, function: Any = None, **options: Any) -> Scripted:
    if function is not None:
        options["function"] = function
    return Scripted(
        X,
        batch_size=8,
        scheme="keras",
        seed=0,
        workers=count,
        transforms={"rotation_range": 30, "zoom_range": 0.2, "horizontal_flip": True},
        **options,
    )


def whole(batches: Any) -> list[tuple[bytes, bytes]]:
    return [(batch.x.tobytes(), np.asarray(after[1]).tobytes()) for batch, after in batches]


SCRIPTS = [of_samples([(7 * i + k) % 40 for k in range(1 + i % 8)], state(i)) for i in range(60)]


@pytest.fixture(scope="module")
def truth() -> list[tuple[bytes, bytes]]:
    """All scripts, one after another, computed in this process."""
    with stream(0) as scripted:
        return whole(scripted.make(script) for script in SCRIPTS)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("slots", [3, None])
def test_scripted_batches_are_the_same_from_everywhere(
    count: int, slots: int | None, truth: list[tuple[bytes, bytes]]
) -> None:
    with stream(count, slots=slots) as scripted:
        assert whole(scripted.make(script) for script in SCRIPTS) == truth
        assert whole(scripted.make_all(SCRIPTS)) == truth


def test_scripted_batches_are_the_same_while_workers_are_killed(
    truth: list[tuple[bytes, bytes]],
) -> None:
    with stream(2) as scripted:
        server = local.private_server(None).pid
        got = []
        for i, batch in enumerate(scripted.make_all(SCRIPTS * 4)):
            got.append(batch)
            if i % 40 == 20:
                kill_a_worker(server)
                # Killed without a pause, three of them may happen to have been at the same batch.
                wait_until(lambda: len(workers(server)) == 2, "two workers again")
            if len(got) == 20:
                assert whole(got) == list(itertools.islice(itertools.cycle(truth), i - 19, i + 1))
                got.clear()
        assert not got


def test_scripts_over_a_long_dataset_are_of_one_batch_each() -> None:
    long = np.tile(X, (20, 1, 1, 1))
    options: dict[str, Any] = {
        "batch_size": 8, "scheme": "keras", "seed": 0, "transforms": {"rotation_range": 30},
    }  # fmt: skip
    with (
        Scripted(long, workers=0, **options) as here,
        Scripted(long, workers=1, **options) as there,
    ):
        wanted = whole(here.make(script) for script in SCRIPTS[:20])
        assert whole(there.make_all(SCRIPTS[:20])) == wanted


def test_a_script_that_cannot_be_made_is_an_error_and_those_after_it_are_made() -> None:
    def no_dark_ones(picture: Array) -> Array:
        if picture.mean() < 1:
            raise ValueError("too dark")
        return picture

    dark = X.copy()
    dark[3] = 0
    with Scripted(
        dark, batch_size=4, scheme="keras", seed=0, workers=1, function=no_dark_ones
    ) as scripted:
        with pytest.raises(WorkerError, match="too dark") as caught:
            scripted.make(of_samples([1, 3], state(0)))
        assert caught.value.sample == 3
        with pytest.raises(WorkerError, match="40 samples of the dataset"):
            scripted.make(of_samples([40], state(0)))
        batch, _ = scripted.make(of_samples([2], state(0)))
        assert isinstance(batch.x, np.ndarray)
        assert len(batch.x) == 1


def test_scripts_that_nobody_takes_hold_no_slot() -> None:
    with stream(1, slots=3) as scripted:
        for _ in range(10):
            abandoned = scripted.make_all(SCRIPTS)
            next(abandoned)
            abandoned.close()
        for script in SCRIPTS[:10]:
            scripted.make(script)
        wait_until(lambda: scripted.leased == 0, "all slots to be given back")


def test_a_server_that_is_killed_is_an_error_and_not_a_hang() -> None:
    with stream(1) as scripted:
        scripted.make(SCRIPTS[0])
        os.kill(local.private_server(None).pid, signal.SIGKILL)
        # What was ready may still be taken; a script is new each time.
        with pytest.raises(ServerLost):
            whole(scripted.make_all(SCRIPTS))
    with stream(1) as another:  # and its server sweeps what the dead one has left
        another.make(SCRIPTS[0])


def test_a_scripted_stream_has_no_steps_and_says_so() -> None:
    with stream(0) as scripted, pytest.raises(ConfigError, match="make"):
        scripted.get(0, 0)


def test_a_script_of_a_server_that_others_use_is_made_by_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    address = f"ipc://{tmp_path}/sock"
    config = tmp_path / "augserver.toml"
    config.write_text(f'[server]\nworkers = 1\nroots = ["{tmp_path}"]\n')
    transforms = {"rotation_range": 30, "zoom_range": 0.2, "horizontal_flip": True}
    with (
        serving(address, "--config", str(config)),
        Scripted(
            "x",
            data=tmp_path / "x.npz",
            batch_size=8,
            scheme="keras",
            seed=0,
            address=address,
            transforms=transforms,
        ) as scripted,
        stream(0) as here,
    ):
        for script in SCRIPTS[:8]:
            assert whole([scripted.make(script)]) == whole([here.make(script)])
