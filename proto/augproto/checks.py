"""The checks at the door: a value of the type and range that is wanted, or an error that says so.

Each takes the field's name for the message `FIELD: got VALUE; wanted WHAT`.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from augproto.errors import ConfigError


def refuse(field: str, got: object, wanted: str) -> ConfigError:
    """The error that says what was got and wanted."""
    return ConfigError(f"{field}: got {reprlib.repr(got)}; wanted {wanted}")


def number(field: str, value: object) -> float:
    """A finite number, as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise refuse(field, value, "a number")
    beyond = isinstance(value, int) and abs(value) > sys.float_info.max
    if beyond or not math.isfinite(value):
        raise refuse(field, value, "a finite number")
    return float(value)


def flag(field: str, value: object) -> bool:
    """A truth value."""
    if not isinstance(value, (bool, np.bool_)):
        raise refuse(field, value, "true or false")
    return bool(value)


def choice(field: str, value: object, allowed: tuple[Any, ...]) -> Any:
    """One of the values allowed."""
    if isinstance(value, bool) or value not in allowed:
        raise refuse(field, value, "one of " + ", ".join(map(repr, allowed)))
    return value


def whole(field: str, value: object, low: int, high: int) -> int:
    """A whole number within bounds, both included."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise refuse(field, value, f"a whole number from {low} to {high}")
    if not low <= value <= high:
        raise refuse(field, value, f"a whole number from {low} to {high}")
    return int(value)


def travels(value: str) -> bool:
    """Whether text can be said in UTF-8; the name of a strange file cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def pair(field: str, value: object, wanted: str) -> tuple[object, object]:
    """Two values."""
    if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != 2:
        raise refuse(field, value, wanted)
    return value[0], value[1]


def fields(cls: type, wire: object, where: str) -> dict[str, Any]:
    """A map whose keys are fields of a dataclass, as a dict."""
    if not isinstance(wire, Mapping):
        raise refuse(where, wire, "a map of fields")
    names = [field.name for field in dataclasses.fields(cls)]
    for key in wire:
        if key not in names:
            wanted = ", ".join(names)
            raise ConfigError(f"{where}: unknown field {key!r:.80}; the fields are {wanted}")
    return dict(wire)
