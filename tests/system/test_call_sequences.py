"""An iterator's calls in any order give what Keras's iterator gives for the same calls."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import faces
import numpy as np
import pytest
import sequences

COUNT = 60


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    return faces.theirs()


@pytest.mark.parametrize("number", range(COUNT))
def test_in_keras_order_any_calls_give_and_leave_what_keras_does(
    keras: ModuleType, number: int
) -> None:
    calls = sequences.sequence(number, "keras")
    wanted = sequences.outcome(keras, calls)
    assert sequences.outcome(faces.ours(), calls, **faces.own(order="keras")) == wanted, str(calls)


@pytest.mark.parametrize("number", range(COUNT))
def test_in_stream_order_calls_give_keras_batches_and_leave_np_random_alone(
    keras: ModuleType, number: int
) -> None:
    calls = sequences.sequence(number, "stream")
    wanted = sequences.outcome(keras, calls)
    if any(name == "draw" for name, _ in calls.calls):
        wanted = [said for said in wanted if not said.startswith("draw")]  # Keras has seeded it
    got = sequences.outcome(faces.ours(), calls, **faces.own(order="stream"))
    assert [said for said in got if not said.startswith("draw")] == wanted, str(calls)


def _wrap(owner: Any, name: str, change: Callable[[Any], None]) -> None:
    original = getattr(owner, name)

    def changed(self: Any, *arguments: Any) -> Any:
        result = original(self, *arguments)
        change(self)
        return result

    setattr(owner, name, changed)


def _draw(flow: Any) -> None:
    np.random.random()


def _forget(flow: Any) -> None:
    flow.index_array = None


def _count(flow: Any) -> None:
    flow.total_batches_seen += 1


@pytest.mark.parametrize(
    ("name", "change", "orders"),
    [
        ("reset", _forget, ("keras",)),
        ("on_epoch_end", _forget, ("keras",)),
        ("__getitem__", _count, ("keras", "stream")),
        ("__next__", _count, ("keras", "stream")),
        ("__next__", _draw, ("keras",)),
        ("reset", _count, ("keras", "stream")),
    ],
)
def test_one_wrong_thing_would_be_noticed(
    keras: ModuleType, name: str, change: Callable[[Any], None], orders: tuple[str, ...]
) -> None:
    for order in orders:
        wrong = faces.mutant("nothing is printed")  # a module of its own, to be changed
        _wrap(wrong.Iterator, name, change)
        assert any(
            sequences.outcome(wrong, calls) != sequences.outcome(keras, calls)
            for calls in (sequences.sequence(number, order) for number in range(COUNT))
        ), order
