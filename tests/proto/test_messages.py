"""Whatever is said arrives as it was said, and whatever else arrives is refused by name."""

from __future__ import annotations

import dataclasses
import random
import types
import typing
from typing import Any

import msgpack
import pytest

from augproto import messages
from augproto.codec import decode, encode, expect
from augproto.errors import RemoteProtocolError
from augproto.messages import (
    CODES,
    MAX_FRAME_BYTES,
    MAX_LIST,
    MAX_TEXT,
    Fault,
    Heartbeat,
    Hello,
    Message,
    Open,
    Want,
)

CLASSES = list(CODES.values())
CODE_OF = {cls: code for code, cls in CODES.items()}

TEXTS = ("", "x", "naïve ✓", "x" * MAX_TEXT)
WHOLES = (0, 1, 2**31, 2**64 - 1)
TABLES: tuple[dict[str, object], ...] = (
    {}, {"x": "a", "y": ["b", "c"], "deep": {"data": b"\0\xff", "none": None, "half": 0.5}},
)  # fmt: skip


def some(annotation: Any, rng: random.Random) -> Any:
    """A value that a field with this annotation may have."""
    choices: dict[Any, tuple[Any, ...]] = {
        int: WHOLES,
        float: (0.0, -1.5, 1e300),
        str: TEXTS,
        bool: (False, True),
        bytes: (b"", b"\0\xff" * 100),
    }
    if annotation in choices:
        return rng.choice(choices[annotation])
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return tuple(some(arguments[0], rng) for _ in range(rng.choice((0, 1, 3))))
    if origin is dict:
        return rng.choice(TABLES)
    if origin is types.UnionType:
        return None if rng.random() < 0.3 else some(arguments[0], rng)
    return annotation(*(some(kind, rng) for kind in typing.get_type_hints(annotation).values()))


def one_of(cls: type, rng: random.Random) -> Message:
    """A message of a class, with generated values."""
    values = [some(kind, rng) for kind in typing.get_type_hints(cls).values()]
    return typing.cast(Message, cls(*values))


def wire(message: Message) -> list[Any]:
    """The message as plain data, to be tampered with."""
    code = next(code for code, cls in CODES.items() if cls is type(message))
    fields = [getattr(message, field.name) for field in dataclasses.fields(message)]
    raw = msgpack.unpackb(msgpack.packb([code, *fields]))
    assert isinstance(raw, list)
    return raw


FIELDS = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls)]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_arrives_as_it_was_said(cls: type) -> None:
    rng = random.Random(cls.__name__)
    for _ in range(30):
        message = one_of(cls, rng)
        arrived = decode(encode(message))
        assert arrived == message
        assert type(arrived) is cls
        # Equal is not enough: 1, 1.0 and True are equal, and so are a tuple and its named kin.
        assert repr(arrived) == repr(message)


def test_every_message_has_one_code_and_every_class_is_in_the_union() -> None:
    assert len(set(CODES.values())) == len(CODES)
    assert set(typing.get_args(Message)) == set(CODES.values())


@pytest.mark.parametrize("cls", CLASSES)
def test_a_frame_cut_anywhere_is_refused(cls: type) -> None:
    rng = random.Random(cls.__name__)
    frame = encode(one_of(cls, rng))
    cuts = set(range(len(frame))) if len(frame) < 300 else set(rng.sample(range(len(frame)), 300))
    for cut in cuts | {0}:
        with pytest.raises(RemoteProtocolError):
            decode(frame[:cut])


def test_a_frame_with_something_behind_it_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="not msgpack"):
        decode(encode(Heartbeat()) + b"\0")


def test_two_thousand_mutations_are_read_or_refused_and_nothing_else() -> None:
    rng = random.Random(20250722)
    refused = 0
    for _ in range(2000):
        frame = bytearray(encode(one_of(rng.choice(CLASSES), rng))[:4096])
        for _ in range(rng.choice((1, 1, 2, 8))):
            match rng.randrange(3):
                case 0:
                    frame[rng.randrange(len(frame))] = rng.randrange(256)
                case 1:
                    frame.insert(rng.randrange(len(frame) + 1), rng.randrange(256))
                case _ if len(frame) > 1:
                    del frame[rng.randrange(len(frame))]
        try:
            message = decode(bytes(frame))
        except RemoteProtocolError:
            refused += 1
        else:  # what passes is a message in every field, or it could not be said again
            assert repr(decode(encode(message))) == repr(message)
    assert 500 < refused < 2000


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x90",
        b"\x91\xc3",
        b"\x91\xcc\xff",
        b"\x91\xa1x",
        b"\x91\xcb" + b"\0" * 8,
        b"\x81\x01\x02",
        b"GET / HTTP/1.1\r\n\r\n",
        msgpack.packb([msgpack.Timestamp(1)]),
        msgpack.packb([[1]]),
    ],
    ids=repr,
)
def test_garbage_is_refused(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"no message|not msgpack"):
        decode(frame)


def test_a_frame_nested_too_deeply_is_refused_wherever_it_is_looked_at() -> None:
    for depth in (10, 400, 900, 1000, 1020, 5000):
        nest = b"\x91" * depth + b"\x90"
        with pytest.raises(RemoteProtocolError):
            decode(nest)
        with pytest.raises(RemoteProtocolError):
            decode(b"\x94\x01" + nest + b"\xa1a\x01")  # Hello.version


def test_a_frame_larger_than_the_limit_is_refused_unread() -> None:
    with pytest.raises(RemoteProtocolError, match=f"{MAX_FRAME_BYTES + 1} bytes"):
        decode(b"\x91\x08" + b"\0" * (MAX_FRAME_BYTES - 1))


def test_a_frame_that_promises_more_than_it_holds_is_refused() -> None:
    for promise in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        with pytest.raises(RemoteProtocolError):
            decode(b"\x92\x08" + promise)


def wrong_for(annotation: Any) -> list[Any]:
    """Values that a field with this annotation must not have."""
    everything: dict[Any, list[Any]] = {
        int: ["1", 1.0, True, -1, None, [1], {}],
        float: ["1", True, None, [1.0]],
        str: [b"x", 1, None, ["x"], "x" * (MAX_TEXT + 1)],
        bool: [0, 1, "true", None],
        bytes: ["x", 1, None],
    }
    if annotation in everything:
        return everything[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        inner = [[value] for value in wrong_for(arguments[0])]
        return [None, 1, "x", {}, *inner, [0] * (MAX_LIST + 1)]
    if origin is dict:
        return [None, 1, "x", [], {1: "x"}, {b"x": 1}]
    if origin is types.UnionType:
        return [value for value in wrong_for(arguments[0]) if value is not None]
    kinds = list(typing.get_type_hints(annotation).values())
    whole = [some(kind, random.Random(1)) for kind in kinds]
    broken = [
        [*whole[:i], wrong_for(kind)[0], *whole[i + 1 :]] for i, kind in enumerate(kinds)
    ]  # each of its fields wrong in turn
    return [None, 1, {}, [], whole[:-1], [*whole, 0], *broken]


@pytest.mark.parametrize(
    ("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_wrong_value_is_refused_with_its_fields_name(cls: type, name: str) -> None:
    raw = wire(one_of(cls, random.Random(3)))
    names = [field.name for field in dataclasses.fields(cls)]
    at = 1 + names.index(name)
    for wrong in wrong_for(typing.get_type_hints(cls)[name]):
        tampered = msgpack.packb([*raw[:at], wrong, *raw[at + 1 :]])
        with pytest.raises(RemoteProtocolError, match=rf"^{cls.__name__}\.{name}: got .*wanted "):
            decode(tampered)


@pytest.mark.parametrize("cls", CLASSES)
def test_fields_at_the_end_may_be_left_out_where_they_have_defaults_and_only_there(
    cls: type,
) -> None:
    fields = dataclasses.fields(cls)
    raw = wire(one_of(cls, random.Random(5)))
    required = 1 + sum(
        f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        for f in fields
    )
    whole = decode(msgpack.packb(raw))
    for length in range(required, len(raw)):
        short = decode(msgpack.packb(raw[:length]))
        for i, field in enumerate(fields, 1):
            default = (
                field.default if field.default is not dataclasses.MISSING
                else field.default_factory() if field.default_factory is not dataclasses.MISSING
                else None
            )  # fmt: skip
            expected = getattr(whole, field.name) if i < length else default
            assert getattr(short, field.name) == expected
    for wrong in (raw[: required - 1], [*raw, 0]):
        if len(wrong) > 0:
            with pytest.raises(RemoteProtocolError, match=rf"^{cls.__name__}: got .* fields"):
                decode(msgpack.packb(wrong))


@pytest.mark.parametrize("cls", CLASSES)
def test_what_a_minor_version_added_is_not_said_where_it_says_nothing(cls: type) -> None:
    message = one_of(cls, random.Random(6))
    fields = dataclasses.fields(cls)
    for i in reversed(range(len(fields))):
        field = fields[i]
        if field.default_factory is not dataclasses.MISSING:
            default: Any = field.default_factory()
        else:
            default = field.default
        if default is dataclasses.MISSING:
            break
        message = dataclasses.replace(message, **{field.name: default})
        assert len(msgpack.unpackb(encode(message))) <= 1 + i
        assert decode(encode(message)) == message


def test_a_sample_0_is_not_taken_for_none() -> None:
    fault = Fault("WorkerError", "text", 1, 0, 0, 0)
    assert decode(encode(fault)) == fault


def test_two_messages_do_not_share_a_default() -> None:
    first, second = (Open("a", None, None) for _ in range(2))
    first.changes["seed"] = 1
    assert second.changes == {}


def test_the_refusal_of_a_large_value_is_short() -> None:
    raw = [CODE_OF[Hello], "x" * 1_000_000, "program", 1]
    with pytest.raises(RemoteProtocolError) as refused:
        decode(msgpack.packb(raw))
    assert len(str(refused.value)) < 300


def test_a_map_keeps_what_was_not_to_be_checked_here() -> None:
    spec = {"seed": 0, "share": 0.0, "list": [1, [2]], "deep": {"a": {"b": None}}}
    arrived = expect(encode(Open(None, dict(spec), 3)), Open)
    assert repr(arrived.spec) == repr(spec)


def test_expect_hands_out_the_kind_that_was_expected_and_refuses_others() -> None:
    assert expect(encode(Fault("NoRoom", "full")), Fault).kind == "NoRoom"
    with pytest.raises(RemoteProtocolError, match=r"got Heartbeat\(\); wanted Want"):
        expect(encode(Heartbeat()), Want)


def test_the_largest_lists_pass() -> None:
    runs = tuple(messages.Run(0, i, 1) for i in range(MAX_LIST))
    want = Want(runs, 2**64 - 1, ())
    assert decode(encode(want)) == want
