"""PROTOCOL.md says what the code does: tables, pictures and numbers are compared both ways."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from augproto import (
    codec,
    errors,
    layout,
    messages,
    pictures,
    ring,
    segment,
    session,
    spec,
    transforms,
)
from augproto.messages import CODES
from augproto.session import Role, Session
from augserver import wishes

DOCUMENT = Path(__file__).parents[2] / "proto" / "PROTOCOL.md"
TEXT = DOCUMENT.read_text()

#: Every constant of the protocol's modules that bounds what a peer may send, or places something.
CONSTANTS = {
    f"{module.__name__.removeprefix('augproto.')}.{name}"
    for module in (messages, codec, layout, spec, transforms, pictures)
    for name, value in vars(module).items()
    if type(value) is int and re.match(r"MAX_|.*_ALIGNMENT$|.*_HEADER_BYTES$", name)
    if module is not codec or name not in vars(messages)  # which it imports
} - {
    "spec.MAX_SEED",
    "spec.MAX_KERAS_SEED",
    "spec.MAX_HASHES",
}  # numbers that a spec may hold, no sizes

ROWS = (
    messages.Run, messages.Place, messages.Entry, messages.Release, messages.Script,
    messages.After, messages.Bad, messages.ArraySpec, messages.Source, messages.Load,
    messages.Working, messages.Folder,
)  # fmt: skip


def table(*header: str, after: str = "") -> list[list[str]]:
    """The rows of the first table with this header, below a text."""
    lines = TEXT[TEXT.index(after) :].splitlines()
    start = lines.index(f"| {' | '.join(header)} |")
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(header), f"a row of another width: {line}"
        rows.append(cells)
    return rows


def kind(annotation: Any) -> str:
    """An annotation in the document's words."""
    simple = {int: "int", float: "real", str: "text", bool: "bool", bytes: "bytes"}
    if annotation in simple:
        return simple[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return f"[{kind(arguments[0])}]"
    if origin is dict:
        return "map"
    if origin in (typing.Union, types.UnionType):
        return f"{kind(arguments[0])}?"
    return str(annotation.__name__)


def fields(row: Any) -> str:
    """The fields of a message or a row in the document's words."""
    words = []
    defaults = {f.name: f for f in dataclasses.fields(row)} if row not in ROWS else {}
    for name, annotation in typing.get_type_hints(row).items():
        word = f"{name}: {kind(annotation)}"
        field = defaults.get(name)
        if field is not None and field.default is not dataclasses.MISSING:
            word += " = " + {None: "nil", "": '""', (): "[]"}.get(field.default, str(field.default))
        elif field is not None and field.default_factory is not dataclasses.MISSING:
            assert field.default_factory() == {}
            word += " = {}"
        words.append(f"`{word}`")
    return ", ".join(words)


def moves(states: dict[Any, dict[Any, Any]]) -> list[list[str]]:
    """A table of states as the document writes it."""
    rows = []
    for state, allowed in states.items():
        for what, then in allowed.items():
            name = what if isinstance(what, str) else what.__name__
            rows.append([state.name, name, then.name])
        if not allowed:
            rows.append([state.name, "nothing", ""])
    return rows


def picture(docstring: str | None) -> str:
    """The first literal block of a docstring."""
    text = inspect.cleandoc(docstring or "").split("::\n\n", 1)[1]
    block = re.match(r"(?:(?: {4}.*)?\n)*(?: {4}.*)?", text)
    assert block is not None
    return "\n".join(line.removeprefix("    ") for line in block[0].strip("\n").splitlines())


def test_every_message_stands_there_with_code_sender_and_fields() -> None:
    expected = [
        [str(code), cls.__name__, (cls.__doc__ or "").partition(":")[0], fields(cls)]
        for code, cls in CODES.items()
    ]
    assert table("code", "message", "sender", "fields") == expected


def test_every_row_of_a_message_stands_there_with_its_fields() -> None:
    assert table("row", "fields") == [[row.__name__, fields(row)] for row in ROWS]


def test_every_kind_of_field_that_a_table_uses_is_explained() -> None:
    hints = [typing.get_type_hints(cls) for cls in (*CODES.values(), *ROWS)]
    used = {
        word
        for annotations in hints
        for annotation in annotations.values()
        for word in re.findall(r"\w+", kind(annotation))
    } - {row.__name__ for row in ROWS}
    explained = {row[0].strip("`") for row in table("in the tables", "on the wire")}
    assert used | {"[T]", "T?", "a row's name"} == explained


@pytest.mark.parametrize("role", list(Role))
def test_the_tables_of_states_are_those_of_the_sessions(role: Role) -> None:
    after = f"What the {role.value} may say:"
    assert table("state", "says", "then", after=after) == moves(session.TRANSITIONS[role])


def test_the_tables_name_every_state_of_both_ends() -> None:
    for role in Role:
        rows = table("state", "says", "then", after=f"What the {role.value} may say:")
        assert {row[0] for row in rows} == {state.name for state in session.State}


def test_the_table_of_slots_is_that_of_the_ring() -> None:
    assert table("state", "verb", "then") == moves(ring.TRANSITIONS)


@pytest.mark.parametrize("owner", [layout, ring.Header], ids=["slot", "header"])
def test_the_pictures_are_those_of_the_code(owner: object) -> None:
    drawn = picture(owner.__doc__)
    assert drawn.count("\n") >= 1
    assert f"```text\n{drawn}\n```" in TEXT


def test_every_limit_stands_there_with_its_value() -> None:
    written = {row[0]: int(row[1]) for row in table("constant", "value", "of")}
    assert set(written) == CONSTANTS
    for name, value in written.items():
        module, _, constant = name.partition(".")
        assert getattr(importlib.import_module(f"augproto.{module}"), constant) == value, name


def test_numbers_in_sentences_are_those_of_the_code() -> None:
    beat = inspect.signature(Session).parameters["beat"].default
    sentences = [
        f"This is version {messages.VERSION[0]}.{messages.VERSION[1]},",
        f"said nothing for {beat:g} second ",
        f"wishes after the first {wishes.MAX_WANTED}.",
        f"is the first {messages.DOOR_KEY_BYTES} bytes of the segment `Welcome.door`",
        f"still to be made take at most {wishes.MAX_SCRIPT_BYTES >> 20} MiB;",
        f"starts with `{segment.PREFIX}`",
        f"the data `{spec.HANDED}NAME`",
        f"`magic` is `{ring._CLAIMED.decode()}` while",
        f"and `{ring._COMMITTED.decode()}` once",
        f"from 0 to 2**{codec._MAX_INT.bit_length()} - 1",
        f"each at the next multiple of {layout.FIELD_ALIGNMENT}.",
    ]
    assert [sentence for sentence in sentences if sentence not in TEXT] == []
    assert ring._HEADER.format.startswith("<"), "the document says little-endian"


@pytest.mark.parametrize("cls", [spec.Spec, transforms.Transforms, pictures.Pictures])
def test_the_fields_of_a_spec_are_listed(cls: type) -> None:
    names = ", ".join(f"`{field.name}`" for field in dataclasses.fields(cls))
    assert f": {names}.\n" in TEXT


def test_every_name_in_a_sentence_is_one_of_the_code() -> None:
    """A message or an error that was renamed must not live on in a sentence."""
    known = {row.__name__ for row in (*CODES.values(), *ROWS)} | set(dir(errors))
    sentences = "\n".join(line for line in TEXT.splitlines() if not line.startswith("|"))
    names = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)*)(?:\.\w+)?`", sentences))
    assert len(names) > 15
    assert names - known == set()


def test_fields_named_in_sentences_exist() -> None:
    by_name = {cls.__name__: cls for cls in (*CODES.values(), *ROWS)}
    named = re.findall(r"`([A-Z]\w+)\.(\w+)`", TEXT)
    assert len(named) >= 5
    for cls, name in named:
        assert name in typing.get_type_hints(by_name[cls]), f"{cls}.{name}"
