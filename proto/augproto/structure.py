"""The shapes in which Keras takes several arrays: one, a tuple, or a dict of them.

A *structure* holds leaves of any type: names of arrays in a spec, arrays in a batch. It is one
level deep, which is what `model.fit` takes for x, y and sample_weight.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from typing import TypeVar, Union

from augproto.errors import ConfigError

T = TypeVar("T")
S = TypeVar("S")

Structure = Union[T, tuple[T, ...], dict[str, T]]  # noqa: UP007 - a generic alias needs Union


def leaves(structure: Structure[T]) -> Iterator[T]:
    """The leaves, in order (a dict's in its own order)."""
    if isinstance(structure, dict):
        yield from structure.values()
    elif isinstance(structure, tuple):
        yield from structure
    else:
        yield structure


def rebuild(structure: Structure[T], change: Callable[[T], S]) -> Structure[S]:
    """The same structure with every leaf changed."""
    if isinstance(structure, dict):
        return {key: change(leaf) for key, leaf in structure.items()}
    if isinstance(structure, tuple):
        return tuple(change(leaf) for leaf in structure)
    return change(structure)


def places(role: str, structure: Structure[T]) -> Structure[str]:
    """Names for the leaves by their place: "x"; "x/0", "x/1"; "x/left", "x/right"."""
    if isinstance(structure, dict):
        return {key: f"{role}/{key}" for key in structure}
    if isinstance(structure, tuple):
        return tuple(f"{role}/{i}" for i in range(len(structure)))
    return role


def names_from_wire(value: object, where: str) -> Structure[str]:
    """Read a structure of names (str, list or map of str) and refuse anything else."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) and v for v in value):
        return tuple(value)
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(k, str) and isinstance(v, str) and v for k, v in value.items())
    ):
        return dict(value)
    raise ConfigError(
        f"{where}: got {reprlib.repr(value)}; wanted the name of an array, a list of names, "
        "or a map from input name to array name"
    )


def names_to_wire(structure: Structure[str]) -> object:
    """The msgpack form of a structure of names."""
    return list(structure) if isinstance(structure, tuple) else structure
