"""Messages as bytes and back. Only this file imports msgpack.

A message is a msgpack array: its code, then its fields in the order of the class. Every field is
checked against its annotation on arrival (type, range, length), so that behind `decode` nobody
looks at raw data. Fields at the end may be missing where they have defaults. Everything else that
deviates is refused with the field's name.
"""

from __future__ import annotations

import dataclasses
import itertools
import reprlib
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

from augproto.errors import RemoteProtocolError
from augproto.messages import CODES, MAX_FRAME_BYTES, MAX_LIST, MAX_TEXT, Message

#: A frame up to this is decoded as it is. In a longer one lists and maps are counted while they are
#: made: eight million empty lists fit into a frame, and half a gigabyte of them into memory.
SMALL_FRAME = 64 << 10
#: Elements of all lists and maps of a frame: a Want of as many runs and releases as can be.
MAX_ELEMENTS = 10 * MAX_LIST
_MAX_INT = 2**64 - 1

_CODE_OF = {cls: code for code, cls in CODES.items()}
_NAMES = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in CODES.values()}

_Check = Callable[[Any], Any]
M = TypeVar("M")


class _Bad(Exception):
    """A field that does not fit; the text says what was wanted."""


def _whole(value: Any) -> Any:
    if type(value) is not int or not 0 <= value <= _MAX_INT:
        raise _Bad("a whole number from 0 to 2**64 - 1")
    return value


def _real(value: Any) -> Any:
    if type(value) is not float and type(value) is not int:
        raise _Bad("a number")
    return float(value)


def _exactly(kind: type, wanted: str) -> _Check:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise _Bad(wanted)
        return value

    return check


def _text(value: Any) -> Any:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise _Bad(f"text of at most {MAX_TEXT} characters")
    return value


def _table(value: Any) -> Any:
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise _Bad("a map with text keys")
    return value


def _list_of(element: _Check, row: type | None = None) -> _Check:
    """Args: row: what the elements are, if they are rows of whole numbers and nothing else."""
    width = len(typing.get_type_hints(row)) if row is not None else 0
    make: Callable[..., Any] | None = row

    def check(value: Any) -> Any:
        if make is not None and _are_whole_rows(value, width):
            return tuple(itertools.starmap(make, value))
        if type(value) is not list or len(value) > MAX_LIST:
            raise _Bad(f"a list of at most {MAX_LIST}")
        return tuple([element(v) for v in value])

    return check


def _are_whole_rows(value: Any, width: int) -> bool:
    """Whether this is a list of so many whole numbers each, found out without a loop in Python.

    Nearly all that is said all day is such lists. Where the answer is no, whoever looks at the
    elements one by one finds out what is wrong with which.
    """
    if type(value) is not list or not 0 < len(value) <= MAX_LIST or set(map(type, value)) != {list}:
        return False
    numbers = list(itertools.chain.from_iterable(value))
    return (
        set(map(len, value)) == {width}
        and set(map(type, numbers)) == {int}
        and min(numbers) >= 0
        and max(numbers) <= _MAX_INT
    )


def _row_of(row: type) -> _Check:
    checks = [_check_of(kind) for kind in typing.get_type_hints(row).values()]
    make: Callable[..., Any] = row

    def check(value: Any) -> Any:
        if type(value) is not list or len(value) != len(checks):
            raise _Bad(f"a list of the {len(checks)} fields of {row.__name__}")
        return make(*[c(v) for c, v in zip(checks, value, strict=True)])

    return check


def _optional(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


def _check_of(annotation: Any) -> _Check:
    """Compile a field's annotation into the function that checks and converts its value."""
    simple: dict[Any, _Check] = {
        int: _whole,
        float: _real,
        str: _text,
        bool: _exactly(bool, "true or false"),
        bytes: _exactly(bytes, "bytes"),
    }
    if annotation in simple:
        return simple[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        row = arguments[0]
        whole = isinstance(row, type) and issubclass(row, tuple)
        whole = whole and set(typing.get_type_hints(row).values()) == {int}
        return _list_of(_check_of(row), row if whole else None)
    if origin is dict:
        return _table
    if origin in (typing.Union, types.UnionType):
        (kind,) = (a for a in arguments if a is not type(None))
        return _optional(_check_of(kind))
    return _row_of(annotation)


_CHECKS = {
    cls: tuple(_check_of(kind) for kind in typing.get_type_hints(cls).values())
    for cls in CODES.values()
}
_REQUIRED = {
    cls: sum(
        f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        for f in dataclasses.fields(cls)
    )
    for cls in CODES.values()
}

#: Of the optional fields, the last one first.
_DEFAULTS = {
    cls: tuple(
        f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in reversed(dataclasses.fields(cls)[_REQUIRED[cls] :])
    )
    for cls in CODES.values()
}


def encode(message: Message) -> bytes:
    """The message as bytes, without the optional fields at its end that say nothing.

    So whoever does not use what a minor version has added is understood by those before it.
    """
    cls = type(message)
    fields = [_CODE_OF[cls], *(getattr(message, name) for name in _NAMES[cls])]
    for default in _DEFAULTS[cls]:
        # 0 is no None: what is equal may mean something else.
        if fields[-1] != default or type(fields[-1]) is not type(default):
            break
        del fields[-1]
    return typing.cast(bytes, msgpack.packb(fields, use_bin_type=True))


def decode(frame: bytes, *, limit: int = MAX_FRAME_BYTES) -> Message:
    """The message that a peer's bytes hold, every field checked.

    Args:
        limit: Bytes that are looked at; pipes between a program and its own server have a larger
            one than sockets.

    Raises:
        RemoteProtocolError: It is none; the text names the field, what was got and wanted.
    """
    if len(frame) > limit:
        raise RemoteProtocolError(f"a frame of {len(frame)} bytes; wanted at most {limit}")
    try:
        count = _Count() if len(frame) > SMALL_FRAME else None
        raw = msgpack.unpackb(
            frame,
            use_list=True,
            raw=False,
            strict_map_key=False,
            max_array_len=min(len(frame), MAX_ELEMENTS),
            max_map_len=min(len(frame), MAX_ELEMENTS),
            list_hook=count,
            object_hook=count,
        )
    except Exception as error:  # msgpack raises a dozen kinds on garbage
        raise RemoteProtocolError(f"a frame that is not msgpack: {error}") from error
    if type(raw) is not list or not raw or type(raw[0]) is not int or raw[0] not in CODES:
        raise RemoteProtocolError(f"a frame that is no message: {reprlib.repr(raw):.120}")
    cls = CODES[raw[0]]
    values, checks, names = raw[1:], _CHECKS[cls], _NAMES[cls]
    if not _REQUIRED[cls] <= len(values) <= len(checks):
        raise RemoteProtocolError(
            f"{cls.__name__}: got {len(values)} fields; wanted {len(checks)}: {', '.join(names)}"
        )
    checked = []
    for check, name, value in zip(checks, names, values, strict=False):
        try:
            checked.append(check(value))
        except _Bad as bad:
            raise RemoteProtocolError(
                f"{cls.__name__}.{name}: got {reprlib.repr(value):.120}; wanted {bad}"
            ) from None
    return typing.cast(Message, cls(*checked))


class _Count:
    """Counts what a frame is made of while it is made, and stops where it is too much."""

    def __init__(self) -> None:
        self._left = MAX_ELEMENTS

    def __call__(self, made: Any) -> Any:
        # One for itself: an empty list takes more memory than an element.
        self._left -= 1 + len(made)
        if self._left < 0:
            raise RemoteProtocolError(f"more than {MAX_ELEMENTS} elements")
        return made


def expect(frame: bytes, kind: type[M]) -> M:
    """Decode a frame that must be this kind of message."""
    message = decode(frame)
    if not isinstance(message, kind):
        raise RemoteProtocolError(f"got {message!r:.120}; wanted {kind.__name__}")
    return message
