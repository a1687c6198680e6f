"""`augserver bench`: it measures, writes one page that needs nothing else, and tidies up."""

from __future__ import annotations

import html.parser
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import descendants, wait_until

pytest.importorskip("matplotlib", reason="matplotlib is not installed: no plots to draw")
pytest.importorskip("psutil", reason="psutil is not installed: nothing watches the processors")
pytest.importorskip("keras", reason="Keras is not installed: nothing to train")
pytest.importorskip("tensorflow", reason="TensorFlow is not installed: nothing to train on")


#: Trains for minutes after a moment of everything else.
TRAINING = """
from dataclasses import replace
from augserver import cli
from augserver.bench import generation, plan
generation.PEERS.clear()
plan.PLANS["tiny"] = replace(plan.TINY, train_seconds=600.0)
cli.main()
"""
INTERRUPTED = "augserver: interrupted; no report was written"


def _bench(
    *arguments: str, cwd: Path, program: tuple[str, ...] = ("-m", "augserver")
) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "client"), str(root / "proto")]
    return subprocess.Popen(
        [sys.executable, *program, "bench", "--size", "tiny", *arguments],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ
        | {
            "KERAS_BACKEND": "tensorflow",
            "TMPDIR": str(cwd),
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        },
    )


class _Page(html.parser.HTMLParser):
    """Notes what is open, what is asked for from elsewhere, and the JSON."""

    EMPTY = frozenset({"meta", "link", "img", "br", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.elsewhere: list[str] = []
        self.ids: list[str] = []
        self.referred: list[str] = []
        self.plots = 0
        self.language = ""
        self.numbers = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag not in self.EMPTY:
            self.open.append(tag)
        self._note(tag, said)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))

    def _note(self, tag: str, said: dict[str, str | None]) -> None:
        self.plots += tag == "svg" and said.get("role") == "img"
        self.language = self.language or (said.get("lang") or "")
        if said.get("id"):
            self.ids.append(str(said["id"]))
        for name in ("href", "src", "xlink:href", "action", "data"):
            place = said.get(name)
            if place is not None:
                (self.referred if place.startswith("#") else self.elsewhere).append(place)
        if tag in ("link", "iframe", "object", "img", "base"):
            self.elsewhere.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.numbers += data


@pytest.mark.slow
@pytest.mark.keras
def test_the_report_is_one_page_with_all_three_measurements(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "small.npz",
        x_train=rng.integers(0, 256, (128, 32, 32, 3), np.uint8),
        y_train=np.arange(128) % 10,
    )
    running = _bench("--data", str(tmp_path), "--processes", "1", cwd=tmp_path)
    out, err = running.communicate(timeout=240)
    assert running.returncode == 0, err
    text = (tmp_path / "augserver-bench.html").read_text()
    page = _Page()
    page.feed(text)
    page.close()
    assert (page.open, page.unbalanced) == ([], [])
    assert page.elsewhere == []
    assert len(page.ids) == len(set(page.ids))
    assert {place[1:] for place in page.referred} <= set(page.ids)
    assert page.plots == 5
    assert page.language == "en"
    assert not re.search(r"@import|url\((?!#)", text)
    numbers = json.loads(page.numbers)
    assert numbers == json.loads((tmp_path / "augserver-bench.json").read_text())
    _check(numbers)
    assert "small.npz" in numbers["data"]["small"]
    assert "drawn by this program" in numbers["data"]["photographs"]
    assert "augserver delivers" in out
    assert [path.name for path in tmp_path.glob("augserver-bench-*")] == []


def _check(numbers: dict[str, Any]) -> None:
    generation = numbers["generation"]
    assert set(generation["ours"]) == {"0", "1"}
    assert generation["missing"] == {}
    assert len(generation["others"]) == 3
    rates = [*generation["ours"].values(), *generation["others"].values()]
    assert all(0 < rate["low"] <= rate["median"] <= rate["high"] for rate in rates)
    training = numbers["training"]
    assert set(training["rates"]) == {"32", "64"}
    assert all(len(of) == 2 for of in training["rates"].values())
    photographs = numbers["photographs"]
    assert set(photographs["rates"]) == set(photographs["usage"]) == {
        "augserver", "Keras ImageDataGenerator",
    }  # fmt: skip
    for usage in photographs["usage"].values():
        assert usage["cpu"]
        assert all(0 <= percent <= 100 for percent in usage["cpu"])
    assert {"Processor", "Versions", "Date"} <= set(numbers["machine"])


def _reads(running: subprocess.Popen[str], words: str) -> None:
    assert running.stdout is not None
    if not any(words in line for line in running.stdout):
        pytest.fail(f"it ended too early: {running.communicate()[1]}")


def test_a_signal_ends_training_with_one_line(tmp_path: Path) -> None:
    running = _bench("--processes", "1", cwd=tmp_path, program=("-c", TRAINING))
    _reads(running, "batch 32")
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_neither_processes_nor_files(tmp_path: Path) -> None:
    running = _bench(cwd=tmp_path)
    _reads(running, "round 1")  # the peers' processes run
    wait_until(lambda: bool(descendants(running.pid)), "a process of its own")
    below = descendants(running.pid)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, err = running.communicate(timeout=60)
    # Both are 130 to a shell. (Python ends by the signal itself where KeyboardInterrupt has come
    # within an exec of text, as namedtuple does one, whoever has caught it since.)
    assert running.returncode in (130, -signal.SIGINT), err
    assert err.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in err
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), "its processes to end"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_not_there_is_said_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    running = _bench("--output", str(tmp_path / "nowhere" / "report.html"), cwd=tmp_path)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert "there is no such folder" in err
