"""The demo: what it draws, how it measures, and that a user's first minute works to its end."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from augproto.errors import ConfigError
from augserver import demo, shapes

EXAMPLES = Path(__file__).parents[2] / "examples"


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _demo(*arguments: str, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "augserver", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_a_fetch_between_two_steps_counts_in_full() -> None:
    clock = _Clock()
    meter = demo.Meter(clock)
    meter.epoch_begins()
    for step in range(3):
        with meter.fetch():
            clock.now += 1
        clock.now += 3
        if step == 0:
            clock.now += 50  # the model is compiled; none of this counts
        meter.batch_ends()
    assert meter.seconds == 8
    assert meter.waited == 2
    assert meter.share == 0.25
    assert meter.batches == 3


def test_a_fetch_ahead_of_the_model_counts_only_once_the_model_has_nothing_left() -> None:
    clock = _Clock()
    meter = demo.Meter(clock)
    meter.epoch_begins()
    with meter.fetch():
        pass
    meter.batch_ends()  # from here on it counts
    with meter.fetch():
        pass
    with meter.fetch():  # two ahead: the model works on the one before
        clock.now += 2
    assert meter.waited == 0
    meter.batch_ends()
    with meter.fetch():
        clock.now += 1
        meter.batch_ends()  # the model has used up everything ...
        clock.now += 4  # ... and waits
    assert meter.waited == 4
    clock.now += 1
    meter.batch_ends()
    assert meter.seconds == 8


def test_what_is_fetched_before_an_epoch_counts_neither_as_a_wait_nor_as_a_batch() -> None:
    clock = _Clock()
    meter = demo.Meter(clock)
    for _ in range(2):
        with meter.fetch():
            clock.now += 5
    meter.epoch_begins()
    for _ in range(2):
        with meter.fetch():
            clock.now += 1
        meter.batch_ends()
    assert meter.waited == 1
    assert meter.share == 1.0


def test_the_drawn_pictures_are_the_same_each_time_and_show_every_shape() -> None:
    x, y = shapes.draw(200, 1)
    again, _ = shapes.draw(200, 1)
    other, _ = shapes.draw(200, 2)
    assert x.shape == (200, shapes.SIDE, shapes.SIDE, 3)
    assert x.dtype == np.uint8
    assert np.array_equal(x, again)
    assert not np.array_equal(x, other)
    assert set(y) == set(range(len(shapes.SHAPES)))


def test_the_examples_pictures_are_what_the_demo_draws() -> None:
    path = EXAMPLES / "data" / "shapes.npz"
    assert path.stat().st_size < 300_000
    stored = shapes.read_dataset(path)
    drawn = shapes.draw_dataset(len(stored.x_train))
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(stored, name), getattr(drawn, name))


def test_a_shape_stays_at_its_place_in_the_contact_sheet() -> None:
    x, _ = shapes.draw(64, 3)
    sheet = np.asarray(demo.contact_sheet(x, x / np.float32(255)))
    middle = sheet.shape[1] // 2
    left, right = sheet[20:, : middle - 4], sheet[20:, middle + 4 :]
    assert left.shape[1] == right.shape[1]
    assert np.array_equal(left, right)
    assert len(np.unique(left.reshape(-1, 3), axis=0)) > 100


def test_data_of_another_kind_is_refused_with_what_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, x_train=np.zeros((4, 8, 8, 3)), y_train=np.zeros(4))
    with pytest.raises(ConfigError, match=r"got x_train float64 \(4, 8, 8, 3\).*wanted x_train"):
        shapes.read_dataset(path)
    answer = _demo("--data", str(tmp_path / "none.npz"))
    assert answer.returncode == 2
    assert "none.npz cannot be read" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_missing_backend_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(backend: str | None) -> None:
        demo.run(
            data=None, epochs=1, workers=1, backend=backend, output=tmp_path / "a.png", pictures=64
        )

    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'augserver\[tensorflow\]'"):
        run(None)
    with pytest.raises(ConfigError, match=r"jax is not installed.*pip install 'augserver\[jax\]'"):
        run("jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch" or None)
    with pytest.raises(ConfigError, match=r"Keras is not installed.*'augserver\[torch\]'"):
        run(None)
    with pytest.raises(ConfigError, match="wanted one of tensorflow, jax, torch"):
        run("theano")


@pytest.mark.keras
@pytest.mark.parametrize("backend", demo.BACKENDS)
def test_the_demo_trains_and_tells_what_it_measured(backend: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    sheet = tmp_path / "sheet.png"
    answer = _demo(
        "--backend", backend, "--epochs", "1", "--pictures", "320", "--workers", "2",
        "--output", str(sheet),
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    said = answer.stdout
    assert "320 pictures of 32x32 to learn from, 53 to check, drawn by this program" in said
    assert re.search(r"Process \d+ serves, at ipc://\S+ctl\.sock", said)
    assert re.search(r"2 worker processes \(\d+, \d+\) write batches of 32 into a ring", said)
    measured = re.search(rf"Trained at (\d+) images/s on {backend}\.", said)
    waited = re.search(r"waited for data in ([\d.]+) % of the time", said)
    accuracy = re.search(r"never seen: ([\d.]+) %", said)
    assert measured is not None
    assert int(measured[1]) > 0
    assert waited is not None
    assert 0 <= float(waited[1]) <= 100
    assert accuracy is not None
    assert 0 <= float(accuracy[1]) <= 100
    assert str(sheet) in said
    with Image.open(sheet) as image:
        assert image.size > (1000, 500)


@pytest.mark.keras
def test_the_demo_takes_pictures_of_the_user_s_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (70, 20, 24, 1), np.uint8)
    labels = rng.integers(0, 3, (70, 1))
    path = tmp_path / "grey.npz"
    np.savez(path, x_train=grey, y_train=labels, x_test=grey[:9], y_test=labels[:9])
    answer = _demo(
        "--data", str(path), "--epochs", "1", "--workers", "1",
        "--output", str(tmp_path / "sheet.png"),
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert f"70 pictures of 20x24 to learn from, 9 to check, from {path}" in answer.stdout
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.keras
def test_the_quickstart_runs_as_it_stands() -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "quickstart.py")],
        env=os.environ | {"AUGSERVER_WORKERS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Epoch 5/5" in run.stdout
