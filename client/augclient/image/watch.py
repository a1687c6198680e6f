"""Whether a generator still is what it was, before every batch, in a few microseconds."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

#: Of a generator, called for each picture.
METHODS = ("get_random_transform", "apply_transform", "standardize")


class Watch:
    """A generator's settings at one time.

    Args:
        generator: Or None.
        key_of: Gives all settings that change pictures as one value to compare, and takes longer
            than making a small picture does.
    """

    def __init__(self, generator: Any, key_of: Callable[[Any], object]) -> None:
        self._key_of = key_of
        self._key = key_of(generator)
        self._type = type(generator)
        self._methods = _methods(generator)
        self._values = _values(generator)
        self._lists = [(value, value.copy()) for value in self._values if type(value) is list]
        # An array may change and stay the same object; then only the key can tell.
        self._plain = all(type(value) is list or _hashable(value) for value in self._values)

    def holds(self, generator: Any) -> bool:
        """Whether it gives the same pictures as it did."""
        if type(generator) is not self._type:
            return False
        now = _values(generator)
        if _methods(generator) == self._methods and (
            self._plain
            and len(now) == len(self._values)
            and all(map(is_, now, self._values))
            and all(value == before for value, before in self._lists)
        ):
            return True
        return self._key_of(generator) == self._key


def _methods(generator: Any) -> tuple[Any, ...]:
    """What a program may put in the place of the class's own."""
    return tuple(getattr(type(generator), name, None) for name in METHODS)


def _values(generator: Any) -> tuple[Any, ...]:
    return tuple(getattr(generator, "__dict__", {}).values())


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
