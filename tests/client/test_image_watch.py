"""A change of a generator's settings is seen, in whatever way it was made."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import needs_keras  # noqa: F401 - its package imports Keras
import numpy as np
import pytest

from augclient.image.watch import Watch


def settings() -> Any:
    return SimpleNamespace(shift=1, zoom_range=[0.5, 1.0], function=len, mean=None)


def key_of(generator: Any) -> object:
    values = vars(generator).items()
    return [(k, v.tobytes() if isinstance(v, np.ndarray) else repr(v)) for k, v in values]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda g: setattr(g, "shift", 2),
    "a type": lambda g: setattr(g, "shift", 1.0),
    "within a list": lambda g: g.zoom_range.__setitem__(0, 0.7),
    "another function": lambda g: setattr(g, "function", max),
    "an array": lambda g: setattr(g, "mean", np.zeros(3)),
    "something new": lambda g: setattr(g, "apply_transform", len),
    "something less": lambda g: delattr(g, "mean"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str) -> None:
    generator = settings()
    watch = Watch(generator, key_of)
    assert watch.holds(generator)
    CHANGES[name](generator)
    assert not watch.holds(generator)


def test_a_change_within_an_array_is_seen() -> None:
    generator = settings()
    generator.mean = np.zeros(3)
    watch = Watch(generator, key_of)
    assert watch.holds(generator)
    generator.mean[1] = 1
    assert not watch.holds(generator)


def test_what_is_set_to_an_equal_value_still_holds() -> None:
    generator = settings()
    watch = Watch(generator, key_of)
    generator.zoom_range = [0.5, 1.0]
    assert watch.holds(generator)
    assert watch.holds(settings()), "another one that gives the same pictures"


def test_the_key_is_not_asked_for_as_long_as_nothing_changes() -> None:
    asked = []

    def counted(generator: Any) -> object:
        asked.append(generator)
        return key_of(generator)

    generator = settings()
    watch = Watch(generator, counted)
    assert all(watch.holds(generator) for _ in range(5))
    assert len(asked) == 1
