"""`augserver check-config` as a user meets it; and a dataset by name, over a real server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import serving

from augclient import Consumer
from augproto.errors import ConfigError

CONFIG = """
[server]
workers = 1
max_streams = 1

[datasets.numbers]
data = "numbers.npz"
x = "x"
y = "y"

[streams.numbers]
dataset = "numbers"
batch_size = 8
seed = 4
transforms = { rotation_range = 20 }
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    x = np.arange(50 * 64, dtype=np.uint8).reshape(50, 8, 8, 1)
    np.savez(tmp_path / "numbers.npz", x=x, y=np.arange(50))
    path = tmp_path / "augserver.toml"
    path.write_text(CONFIG)
    return path


def check(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "augserver", "check-config", *arguments],
        cwd=cwd,
        env=os.environ | {"AUGSERVER_LISTEN": "ipc:///nowhere/ctl.sock"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_good_config_is_explained_and_nothing_is_bound(config: Path) -> None:
    answer = check(str(config))
    assert answer.returncode == 0, answer.stderr
    assert "workers = 1  (file)" in answer.stdout
    assert 'listen = ["ipc:///nowhere/ctl.sock"]  (environment AUGSERVER_LISTEN)' in answer.stdout
    assert "[streams.numbers]" in answer.stdout
    assert "50 samples; 7 batches of 8 in an epoch, shuffled; seed 4" in answer.stdout
    assert not Path("/nowhere").exists()


def test_programs_get_the_same_as_json(config: Path) -> None:
    answer = check("--json", cwd=config.parent)
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert said["file"] == "augserver.toml"
    assert [stream["name"] for stream in said["streams"]] == ["numbers"]
    assert {setting["key"] for setting in said["settings"]} > {"listen", "roots", "max_slots"}


def test_a_config_that_cannot_be_served_ends_with_2_and_the_key(config: Path) -> None:
    config.write_text(CONFIG.replace("workers = 1", "workers = 9999"))
    answer = check(str(config))
    assert answer.returncode == 2
    assert answer.stderr.startswith("augserver: server.workers: got 9999; wanted a whole number")
    config.write_text(CONFIG.replace('y = "y"', 'y = "z"'))
    answer = check(str(config))
    assert answer.returncode == 2
    assert "    ERROR: " in answer.stdout
    assert answer.stderr.startswith("augserver: streams.numbers: ")
    assert "'z'" in answer.stderr


def _digest(consumer: Consumer) -> str:
    digest = hashlib.sha256()
    for batch in consumer.epoch(0):
        for array in batch.as_tuple():
            digest.update(array.tobytes())
    return digest.hexdigest()


def test_a_dataset_by_name_is_the_same_batches_as_the_stream_of_it(
    config: Path, tmp_path: Path
) -> None:
    address = f"ipc://{tmp_path}/ctl.sock"
    with serving(address, "--config", str(config)):
        with Consumer(stream="numbers", address=address) as consumer:
            expected = _digest(consumer)
        options = {"batch_size": 8, "seed": 4, "transforms": {"rotation_range": 20}}
        with Consumer(dataset="numbers", address=address, **options) as consumer:  # type: ignore[arg-type]
            assert _digest(consumer) == expected
            # There may be one such stream at once, and any number of the config's own.
            with pytest.raises(
                ConfigError, match=r"at most 1 streams .*\(max_streams\).*: numbers"
            ):
                Consumer(dataset="numbers", address=address)
            with Consumer(stream="numbers", address=address) as another:
                assert another.samples == 50
        with Consumer(dataset="numbers", address=address, seed=5) as again:
            assert again.seed == 5
        with pytest.raises(ConfigError, match="which are: numbers"):
            Consumer(dataset="letters", address=address)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_by_name_needs_a_server_with_a_config(workers: int) -> None:
    with pytest.raises(ConfigError, match=r"dataset='pets' is a name in a server's config"):
        Consumer(dataset="pets", workers=workers)
