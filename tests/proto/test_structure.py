"""One array, a tuple or a dict of them: the same shape goes in and comes out."""

from __future__ import annotations

import pytest

from augproto.errors import ConfigError
from augproto.structure import (
    Structure,
    leaves,
    names_from_wire,
    names_to_wire,
    places,
    rebuild,
)

STRUCTURES: list[Structure[str]] = [
    "a",
    ("a",),
    ("b", "a"),
    {"left": "b", "right": "a"},
    {"only": "a"},
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
def test_leaves_come_in_order_and_are_changed_in_place(structure: Structure[str]) -> None:
    changed = rebuild(structure, str.upper)
    assert type(changed) is type(structure)
    assert list(leaves(changed)) == [leaf.upper() for leaf in leaves(structure)]
    if isinstance(structure, dict):
        assert isinstance(changed, dict)
        assert list(changed) == list(structure)


def test_a_leaf_may_be_anything_that_is_neither_tuple_nor_dict() -> None:
    several: Structure[object] = ([1, 2], None)
    assert list(leaves(several)) == [[1, 2], None]
    assert list(leaves([1, 2])) == [[1, 2]]


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        ("a", "x"),
        (("a", "b"), ("x/0", "x/1")),
        ({"left": "a", "right": "b"}, {"left": "x/left", "right": "x/right"}),
    ],
)
def test_leaves_are_named_by_their_place(structure: Structure[str], names: Structure[str]) -> None:
    assert places("x", structure) == names


@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
def test_names_cross_the_wire_unchanged(structure: Structure[str]) -> None:
    wire = names_to_wire(structure)
    assert isinstance(wire, (str, list, dict))
    assert names_from_wire(wire, "x") == structure


def test_what_was_read_is_not_what_was_sent() -> None:
    """The structure of a frozen spec must not change with its caller's dict."""
    wire = {"left": "a"}
    read = names_from_wire(wire, "x")
    wire["left"] = "b"
    assert read == {"left": "a"}


@pytest.mark.parametrize(
    "wire",
    ["", None, 1, b"a", [], {}, ["a", ""], ["a", 1], ["a", ["b"]], {"k": ""}, {"k": 1}, {1: "a"},
     {"k": ["a"]}, {"a"}],
    ids=repr,
)  # fmt: skip
def test_what_holds_no_names_is_refused_by_its_place(wire: object) -> None:
    with pytest.raises(ConfigError, match=r"^sample_weight: got .*; wanted the name of an array"):
        names_from_wire(wire, "sample_weight")
