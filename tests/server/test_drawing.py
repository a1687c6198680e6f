"""The kernels draw, bit for bit, what numpy draws: in both schemes, whatever is switched on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from augproto.transforms import Transforms
from augproto.twister import pack
from augserver import draw_kernels, drawing, draws, keras_draws
from augserver.drawing import Drawing
from augserver.draws import Draws

HEIGHT, WIDTH = 40, 60
SHIFTS: list[Any] = [
    0.0, 0.25, 8.0, 1.0, -0.25, 4, 1, -3, (2.0, 7.5), (0.1, 0.5), (-3.0, 0.5), (5.0,),
]  # fmt: skip
OPTIONS: dict[str, list[Any]] = {
    "rotation_range": [0.0, 30.0, -12.5, 1e-300],
    "height_shift_range": SHIFTS,
    "width_shift_range": SHIFTS,
    "shear_range": [0.0, 10.0],
    "zoom_range": [(1.0, 1.0), 0.2, (1.3, 0.8), (1.5, 1.5)],
    "channel_shift_range": [0.0, 20.0, -7.0],
    "brightness_range": [None, (0.5, 1.5), (0.0, 0.0), (1.5, 0.2)],
    "horizontal_flip": [False, True],
    "vertical_flip": [False, True],
    "function": [None, "module:name", "keras:tf:channels_last"],
}


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels draw, whatever the environment says."""
    monkeypatch.setattr(drawing, "_kernels", lambda: draw_kernels)


def some_transforms(rng: np.random.Generator) -> Transforms:
    chosen = {name: values[rng.integers(len(values))] for name, values in OPTIONS.items()}
    return Transforms(**chosen)


def each_alone() -> list[Transforms]:
    return [Transforms(**{name: value}) for name, values in OPTIONS.items() for value in values]


def many() -> list[Transforms]:
    rng = np.random.default_rng(3)
    return each_alone() + [some_transforms(rng) for _ in range(100)]


def equal(got: Draws, wanted: Draws, of: Transforms) -> None:
    for field in fields(Draws):
        a, b = getattr(got, field.name), getattr(wanted, field.name)
        assert (a is None) is (b is None), (field.name, of)
        if a is not None:
            assert (a.dtype, a.shape) == (b.dtype, b.shape), (field.name, of)
            assert a.tobytes() == b.tobytes(), (field.name, of)


def test_the_kernel_s_philox_gives_a_known_answer_of_random123() -> None:
    counter = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    key = (0xA4093822, 0x299F31D0)
    words = draw_kernels.philox(*map(np.uint64, counter + key))
    assert [int(word) for word in words] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**64 - 1, 2**32 - 2), (7, 2**33 + 5)])
def test_the_counter_scheme_is_drawn_by_the_kernel_as_by_numpy(seed: int, epoch: int) -> None:
    indexes = np.array([0, 1, 41, 2**32 - 1, 2**32, 2**33 + 1, 2**62, 5, 5], np.int64)
    indexes.setflags(write=False)  # as orders are
    for t in many():
        got = Drawing(t, HEIGHT, WIDTH).counter(seed, epoch, indexes)
        wanted = draws.draw(t, seed=seed, epoch=epoch, indexes=indexes, height=HEIGHT, width=WIDTH)
        equal(got, wanted, t)


def test_the_keras_scheme_is_drawn_by_the_kernel_as_by_numpy_and_leaves_the_same_state() -> None:
    for number, t in enumerate(many()):
        one, other = np.random.RandomState(number), np.random.RandomState(number)
        got = Drawing(t, HEIGHT, WIDTH).keras(one, 9)
        equal(got, keras_draws.draw(t, other, 9, HEIGHT, WIDTH), t)
        assert pack(one.get_state()) == pack(other.get_state()), t


def test_samples_are_drawn_alike_wherever_their_indexes_lie_in_memory() -> None:
    t = Transforms(rotation_range=30, horizontal_flip=True)
    indexes = np.arange(100, 200, dtype=np.int64)
    whole = Drawing(t, HEIGHT, WIDTH).counter(3, 1, indexes)
    equal(Drawing(t, HEIGHT, WIDTH).counter(3, 1, indexes[::-2]), whole.of(np.arange(99, 0, -2)), t)


def test_no_samples_are_drawn_as_none() -> None:
    t = Transforms(rotation_range=30, horizontal_flip=True, function="module:name")
    none = Drawing(t, HEIGHT, WIDTH).counter(3, 1, np.arange(0))
    assert all(len(v) == 0 for f in fields(Draws) if (v := getattr(none, f.name)) is not None)


@pytest.mark.parametrize("scheme", ["counter", "keras"])
def test_without_numba_numpy_draws(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    absent: Callable[[], ModuleType | None] = lambda: None  # noqa: E731
    t = Transforms(rotation_range=30, width_shift_range=0.2, horizontal_flip=True)

    def drawn() -> Draws:
        one = Drawing(t, HEIGHT, WIDTH)
        if scheme == "counter":
            return one.counter(3, 1, np.arange(6))
        return one.keras(np.random.RandomState(5), 6)

    compiled = drawn()
    monkeypatch.setattr(drawing, "_kernels", absent)
    monkeypatch.setattr(draw_kernels, "from_counters", None)
    monkeypatch.setattr(draw_kernels, "from_doubles", None)
    equal(drawn(), compiled, t)


def test_a_thread_s_generator_is_as_new_each_time() -> None:
    first = keras_draws.state_before(3, 4)
    first.standard_normal(3)  # leaves half a pair behind
    assert pack(keras_draws.state_before(3, 4).get_state()) == pack(
        np.random.RandomState(7).get_state()
    )
    state = pack(np.random.RandomState(9).get_state())
    keras_draws.state_before(3, 4).standard_normal(3)
    assert pack(keras_draws.state_of(state).get_state()) == state
