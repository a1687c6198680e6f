"""Old programs with two lines changed: they run, and their batches are those of Keras's class.

The programs are examples/migration; how they are compared is in tests/support/migrated.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import migrated
import pytest
from migrated import FOLDER, PROGRAMS, TWO_LINES, is_of_arrays, original, source
from real_data import CIFAR10, DOGS_CATS, needs_cifar10, needs_dogs_cats

#: Where programs are compared and run: all on TensorFlow, one of each kind of data on the others.
ELSEWHERE = ("predict_in_order", "sample_weights")
BACKENDS = {"tensorflow": tuple(PROGRAMS), "jax": ELSEWHERE, "torch": ELSEWHERE}
#: A script with a function of its own, and one that asks for `__main__`.
ALONE = ("random_eraser", "regression")

#: Photographs of each class in training and validation: the smallest, which are read sooner.
PHOTOGRAPHS = {"train": 40, "validation": 12}

pytestmark = [pytest.mark.keras, pytest.mark.slow]


def on_real_data(name: str, *more: str) -> Any:
    needed = needs_cifar10 if is_of_arrays(name) else needs_dogs_cats
    return pytest.param(name, *more, marks=needed, id=" on ".join((name, *more)))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the photographs, unchanged, and a list of what is on them."""
    place = tmp_path_factory.mktemp("photographs")
    for part, count in PHOTOGRAPHS.items():
        for kind in ("cat", "dog"):
            into = place / part / kind
            into.mkdir(parents=True)
            files = (DOGS_CATS.parent / part / kind).iterdir()
            for path in sorted(files, key=lambda path: (path.stat().st_size, path.name))[:count]:
                shutil.copy(path, into)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        importlib.import_module("sample_data").write_list(str(place))
    return place


def data_of(name: str, request: pytest.FixtureRequest) -> str:
    """The first argument for a program: the real data that it wants."""
    return str(CIFAR10 if is_of_arrays(name) else request.getfixturevalue("photographs"))


# -- the programs are old ones ---------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_exactly_two_lines_tell_a_program_from_its_original(name: str) -> None:
    assert len(TWO_LINES.findall(source(name))) == 1
    assert "augclient" not in original(name)
    was, now = original(name).splitlines(), source(name).splitlines()
    assert len(now) - len(was) == 1
    changed = [line for line in now if line not in was]
    assert [line.split()[:2] for line in changed] == [
        ["#", "from"],
        ["from", changed[1].split()[1]],
    ]
    assert "ImageDataGenerator" in source(name)
    assert 30 <= len(now) <= 80


# -- they run, and their pictures are Keras's -----------------------------------------------

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Done]:
    """What became of each program that is asked for, by its name and backend.

    Most of a short run is the import of a backend, in a single thread. So one process runs several
    programs, one after the other, and two processes run at a time.
    """
    selected = [item.name for item in request.session.items]
    runs: list[tuple[tuple[str, ...], str]] = []
    for backend, names in BACKENDS.items():
        wanted = [
            name
            for name in names
            if any(item.endswith(f"[{name} on {backend}]") for item in selected)
            and importlib.util.find_spec(backend) is not None
            and (CIFAR10 if is_of_arrays(name) else DOGS_CATS).exists()
        ]
        halves = (wanted[::2], wanted[1::2]) if len(wanted) > 2 else (wanted,)
        runs += [(tuple(half), backend) for half in halves if half]

    def run(run: tuple[tuple[str, ...], str]) -> Done:
        names, backend = run
        pairs = [word for name in names for word in (name, data[name])]
        return python_of(backend, migrated.__file__, str(places[run]), *pairs)

    data = {name: data_of(name, request) for names, _ in runs for name in names}
    places = {run: tmp_path_factory.mktemp("out") for run in runs}
    with ThreadPoolExecutor(2) as pool:
        done = zip(runs, pool.map(run, runs), strict=True)
        return {(name, backend): what for (names, backend), what in done for name in names}


def python_of(backend: str, *command: str) -> Done:
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def skip_without(backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")


@pytest.mark.parametrize(
    ("name", "backend"),
    [on_real_data(name, backend) for backend, names in BACKENDS.items() for name in names],
)
def test_a_program_s_first_batches_are_those_of_keras_and_it_runs_to_its_end(
    name: str, backend: str, outcomes: dict[tuple[str, str], Done]
) -> None:
    skip_without(backend)
    done = outcomes[name, backend]
    said = done.stdout.splitlines()
    assert f"same: {name}" in said, done.stderr[-6000:]
    assert f"ran: {name}" in said, done.stderr[-6000:]
    result = said[said.index(f"ran: {name}") - 1]  # what a program says last
    assert "nan" not in result.split()


@pytest.mark.parametrize("name", [on_real_data(name) for name in ALONE])
def test_a_program_runs_in_a_python_of_its_own(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    skip_without("tensorflow")
    data = data_of(name, request)
    done = python_of("tensorflow", str(PROGRAMS[name]), data, str(tmp_path))
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.strip(), "a program says what came of it"


@needs_cifar10
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("line", "other"),
    [("rotation_range=15", "rotation_range=15.001"), ("y[keep]", "1 * y[keep][::-1]")],
)
def test_a_difference_would_be_noticed(
    line: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, original_text = source("sample_weights"), original("sample_weights")
    assert line in text
    monkeypatch.setattr(migrated, "source", lambda name: text.replace(line, other))
    monkeypatch.setattr(migrated, "original", lambda name: original_text)
    with pytest.raises(AssertionError):
        migrated.compare("sample_weights", str(CIFAR10), tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_without_arguments_has_pictures_of_its_own(name: str) -> None:
    data = migrated.data_part(source(name), migrated.ours())
    assert data.flows
    for make in data.flows:
        assert len(next(make())) > 0
