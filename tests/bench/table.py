"""Runs the measurements and writes a table in Markdown for the README's performance section.

    python tests/bench/table.py [FILE.md]

Each measurement is a program of its own with a deadline: what hangs or fails becomes a line that
says so. Losses stay in.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).parent
#: Programs and the seconds that each may take.
PROGRAMS: dict[tuple[str, ...], float] = {
    ("by_hand.py",): 180,
    ("throughput.py",): 600,
    ("photographs.py",): 600,
    ("cpu_per_image.py",): 180,
    ("scaling.py",): 240,
    ("latency.py",): 120,
    ("fit_epochs.py",): 900,
    ("first_batch.py",): 300,
    ("drop_in.py",): 300,
}
PACKAGES = (
    "keras", "tensorflow", "torch", "grain", "opencv-python-headless", "numba", "numpy", "scipy",
    "simplejpeg", "pillow",
)  # fmt: skip


def ask(program: tuple[str, ...], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """A program's answers, and what went wrong, if anything."""
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder, "answers")
        running = subprocess.Popen(
            [sys.executable, HERE / program[0], *program[1:]],
            env=os.environ | {report.VARIABLE: str(answers)},
            start_new_session=True,
        )
        try:
            code: int | None = running.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if running.returncode is None:  # it and what it has started
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
        lines = answers.read_text().splitlines() if answers.exists() else []
    wrong = "" if code == 0 else f"exit code {code}" if code else f"no end within {seconds:.0f} s"
    return [json.loads(line) for line in lines], wrong


def machine() -> str:
    """What it was measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    cores = len(os.sched_getaffinity(0))
    return (
        f"{names[0] if names else platform.machine()}, {cores} cores, "
        f"Python {platform.python_version()}, {', '.join(versions)}; "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}."
    )


def main() -> None:
    lines = [
        f"Measured on {machine()}",
        "Each ratio is of one run, medians of windows in turns.",
        "",
        "| question | ratio | figures |",
        "|---|---|---|",
    ]
    for program, seconds in PROGRAMS.items():
        print(f"-- {' '.join(program)}", file=sys.stderr, flush=True)
        answers, wrong = ask(program, seconds)
        for found in answers:
            figures = found["figures"].replace("|", "\\|")
            lines.append(f"| {found['question']} | {found['ratio']:.2f} | {figures} |")
        if wrong:
            lines.append(f"| `{' '.join(program)}` | | {wrong} |")
    text = "\n".join(lines) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
