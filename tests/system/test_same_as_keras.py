"""The same program through Keras's `ImageDataGenerator` and through ours: the same stream.

Two hundred programs are drawn at random (tests/support/configurations.py) and compared in all they
give; `python tests/system/same_as_keras.py 2000 SEED` does that with many more.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import faces
import pytest
import sameness
import streams
from configurations import Configuration, configuration

SEED = 1
COUNT = 200
#: Every program with two workers, and some of them with one and with four.
CASES = [
    (workers, number)
    for workers, numbers in ((1, range(0, COUNT, 5)), (2, range(COUNT)), (4, range(2, COUNT, 5)))
    for number in numbers
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    faces.theirs()  # skips where there is none
    faces.pandas()
    with streams.folders() as folder:
        yield folder


_workers_now = 0


def with_workers(count: int) -> None:
    """From here on a private server of so many; a new one, since none gives any of them up."""
    global _workers_now
    if count != _workers_now:
        assert faces.restarts() == 0
        faces.shut_down()
        _workers_now = count


@functools.cache
def program(number: int) -> Configuration:
    return configuration(SEED, number)


@functools.cache
def wanted(number: int, root: Path) -> streams.Stream:
    return streams.run(faces.theirs(), program(number), root)


@pytest.mark.parametrize(("workers", "number"), CASES)
def test_a_program_gives_what_it_gives_with_keras(workers: int, number: int, root: Path) -> None:
    with_workers(workers)
    c = program(number)
    got = streams.run(faces.ours(), c, root, **faces.own(workers=workers, order=c.order))
    sameness.compare(c, wanted(number, root), got)


def test_no_worker_died_over_these_programs(root: Path) -> None:
    c = program(0)
    streams.run(faces.ours(), c, root, **faces.own(order=c.order))
    assert faces.restarts() == 0


def test_the_programs_use_everything_that_there_is(root: Path) -> None:
    programs = [program(number) for number in range(COUNT)]
    arguments = {name for c in programs for name in c.generator}
    assert len(arguments) == 23
    functions = [c.generator.get("preprocessing_function") for c in programs]
    assert len({function.__name__ for function in functions if function}) >= 3
    for what, values in {
        "way": {"flow", "flow_from_directory", "flow_from_dataframe"},
        "order": {"stream", "keras"},
        "positional": {True, False},
        "saves": {True, False},
        "image_data_format": {"channels_first", "channels_last"},
        "floatx": {"float32", "float64"},
    }.items():
        assert {getattr(c, what) for c in programs} == values, what
    assert {c.generator.get("interpolation_order", 1) for c in programs} >= {0, 1, 2, 3}
    assert {c.generator.get("fill_mode", "nearest") for c in programs} >= {
        "nearest", "constant", "reflect", "wrap",
    }  # fmt: skip
    assert {c.data["channels"] for c in programs} >= {1, 2, 3, 4, 5}
    assert {c.data.get("dtype") for c in programs} >= {"uint8", "float32", "float64"}
    assert {c.flow.get("subset") for c in programs} == {None, "training", "validation"}
    modes = {str(c.flow.get("class_mode")) for c in programs if c.way == "flow_from_dataframe"}
    assert modes >= {"binary", "categorical", "input", "multi_output", "raw", "sparse", "None"}
    failed = [number for number in range(COUNT) if wanted(number, root).raised]
    assert len(failed) < COUNT / 10, "most programs should run"


@pytest.mark.parametrize("name", faces.MUTANTS)
def test_one_wrong_thing_would_be_noticed(name: str, root: Path) -> None:
    wrong = faces.mutant(name)
    for number in range(COUNT):
        try:
            got = streams.run(wrong, program(number), root)
            sameness.compare(program(number), wanted(number, root), got)
        except streams.Different:
            return
    pytest.fail(f"{COUNT} programs did not notice that {name}")
