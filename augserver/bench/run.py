"""The whole measurement: find the data, ask everybody, write the report."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from augproto.errors import ConfigError
from augserver.bench import attempts
from augserver.bench.plan import PLANS, process_counts
from augserver.config import cores

#: What is imported, and the package that brings it.
NEEDED = {"matplotlib": "matplotlib", "psutil": "psutil", "keras": "keras"}
BACKENDS = ("tensorflow", "jax", "torch")
PACKAGES = ("augserver", "keras", *BACKENDS, "numpy", "numba", "scipy", "pillow", "simplejpeg")


def run(
    *,
    data: Path | None,
    download: bool,
    output: Path,
    json_output: Path | None,
    svg: Path | None,
    processes: int | None,
    size: str,
) -> None:
    """Measure, and write the report.

    Raises:
        ConfigError: A package is missing, or the data, a backend or a file to write is none.
        KeyboardInterrupt: Ctrl-C or SIGTERM ended it; there is no report.
    """
    if size not in PLANS:
        raise ConfigError(f"--size: got {size!r}; wanted one of {', '.join(PLANS)}")
    _check_packages()
    os.environ["KERAS_BACKEND"] = _backend()
    _check_outputs([output])
    json_output = json_output or output.with_suffix(".json")
    _check_outputs([path for path in (output, json_output, svg) if path is not None])
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data: got {data}; wanted a folder")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", module=r"keras|tensorflow")
    with attempts.heeding_signals():
        text, summary = _measure(data, download, json_output, svg, processes, size)
    output.write_text(text, encoding="utf-8")
    print(summary)
    print(f"Report: {output}; numbers: {json_output}")


def _measure(
    data: Path | None,
    download: bool,
    json_output: Path,
    svg: Path | None,
    processes: int | None,
    size: str,
) -> tuple[str, str]:
    """The report's page and its summary; the numbers are written."""
    from augclient import local
    from augserver.bench import data as sources
    from augserver.bench import generation, page, plots, training

    plan = PLANS[size]
    most = processes or cores()
    started = time.monotonic()

    def say(text: str) -> None:
        attempts.check()
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    small = sources.small_pictures(data, download, plan.pictures)
    say(f"Pictures: {small.origin}.")
    with sources.photographs(data, plan.photographs) as photographs:
        say(f"Photographs: {photographs.origin}.")
        say(f"Small pictures, generation only, 0 to {most} processes ...")
        try:
            generated = generation.measure(small, plan, process_counts(most), say)
            say("Small pictures with training ...")
            trained = training.on_small_pictures(small, plan, most, say)
            say("Photographs from disk with training ...")
            busy = training.on_photographs(photographs, plan, most, say)
        finally:
            local.shut_down()
        report = page.Report(
            machine(),
            {"small": small.origin, "photographs": photographs.origin},
            {"size": size} | asdict(plan),
            generated,
            trained,
            busy,
        )
    attempts.check()
    # Numbers first: they are there even if a plot cannot be drawn of them.
    json_output.write_text(report.as_json() + "\n", encoding="utf-8")
    if svg is not None:
        svg.write_text(plots.alone(plots.beside(generated)), encoding="utf-8")
    return page.page(report), page.summary(report)


def _check_packages() -> None:
    missing = [name for name, module in NEEDED.items() if importlib.util.find_spec(module) is None]
    if not any(importlib.util.find_spec(backend) for backend in BACKENDS):
        missing.append("tensorflow")
    if missing:
        raise ConfigError(
            f"augserver bench needs {', '.join(missing)}: pip install 'augserver[bench]', or in a "
            "clone of the repository pip install -e '.[bench]'"
        )


def _backend() -> str:
    """What Keras would take by itself if it can train with it, or what is installed."""
    installed = [backend for backend in BACKENDS if importlib.util.find_spec(backend)]
    asked = os.environ.get("KERAS_BACKEND")
    if not asked:
        configured = _configured_backend()
        return configured if configured in installed else installed[0]
    if asked not in installed:
        raise ConfigError(
            f"KERAS_BACKEND: got {asked!r}; wanted what is installed of {', '.join(BACKENDS)}: "
            f"{', '.join(installed)}"
        )
    return asked


def _configured_backend() -> object:
    """Of Keras's own file of settings, if there is one."""
    home = os.environ.get("KERAS_HOME")
    folder = Path(home) if home else Path(os.path.expanduser("~")) / ".keras"
    try:
        return json.loads((folder / "keras.json").read_text(encoding="utf-8")).get("backend")
    except (OSError, ValueError, AttributeError):
        return None


def _check_outputs(paths: Sequence[Path]) -> None:
    """Minutes of measuring are not to be lost because their file cannot be written."""
    for path in paths:
        try:
            if path.is_dir():
                raise ConfigError(f"{path}: got a folder; wanted a file to write to")
            if not path.absolute().parent.is_dir():
                raise ConfigError(f"{path}: there is no such folder to write it to")
            there = path.exists()
            with open(path, "ab"):
                pass
            if not there:
                path.unlink()
        except OSError as error:
            raise ConfigError(f"{path}: it cannot be written: {error.strerror}") from error
    if len({path.resolve() for path in paths}) < len(paths):
        names = ", ".join(map(str, paths))
        raise ConfigError(f"got {names}; wanted a file of its own for each: see --output, --json")


def machine() -> dict[str, str]:
    """What it was measured on, in words."""
    from augserver.bench.watch import gpu_names

    versions = []
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "Processor": f"{_processor()}, {cores()} cores for this program",
        "Memory": f"{memory:.0f} GiB",
        "GPU": ", ".join(gpu_names()) or "No GPU answered NVML",
        "System": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "Versions": ", ".join(versions),
        "Keras backend": os.environ.get("KERAS_BACKEND", "default"),
        "Date": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
