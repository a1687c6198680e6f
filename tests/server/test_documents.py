"""The documents tell the truth: deadlines, texts and the tree of errors are the code's own."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from augproto import errors
from augproto.pictures import COLOR_MODES, LABEL_MODES, Pictures
from augproto.spec import POLICIES
from augserver.backend import KERNELS_VARIABLE
from augserver.config import NO_BOUND, Config, parse
from augserver.datasets import named
from augserver.datasets.decoding import ENDINGS
from augserver.settings import CONFIG_VARIABLE, VARIABLES

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "docs" / "promises.md").read_text()
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()
SOURCES = [
    path for house in ("augserver", "client", "proto") for path in (ROOT / house).rglob("*.py")
]

#: What stands for whatever differs from case to case.
ANY = "…"


# -- promises ------------------------------------------------------------------------------------


def _deadlines() -> dict[str, float]:
    rows = re.findall(r"^\| (aug\w+(?:\.\w+)+) \| ([\d.]+) \|", PROMISES, re.MULTILINE)
    return {name: float(value) for name, value in rows}


@pytest.mark.parametrize("name", _deadlines())
def test_a_deadline_has_the_default_that_the_page_names(name: str) -> None:
    module, _, constant = name.rpartition(".")
    value = getattr(importlib.import_module(module), constant, None)
    if value is None:  # a key of augserver.toml
        value = inspect.signature(Config).parameters[constant].default
    assert value == _deadlines()[name]


def test_every_deadline_of_the_code_is_on_the_page() -> None:
    words = re.compile(r"^(?!_)(\w*_)?(SECONDS|TIMEOUT|SILENCE|GRACE|GREETING|LAZY|TICK|BEAT)$")
    pacing = {  # nothing ends then: how long work is cut, what is compared with what
        "augserver.streams.ASSIGNMENT_SECONDS",
        "augserver.death.MEMORY_SECONDS",
        "augserver.datasets.looking.PAGE_SECONDS",
        "augserver.pulse.BEAT_SECONDS",
    }
    found = set()
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = module.removeprefix("client.").removeprefix("proto.")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                found |= {f"{module}.{name}" for name in names if words.match(name)}
    assert len(found) > 10
    assert found - pacing <= set(_deadlines())


def test_the_delays_of_replacement_are_those_of_the_page() -> None:
    from augserver.supervisor import BACK_OFF

    first, *middle, last = (f"{seconds:g}" for seconds in BACK_OFF)
    sentence = f"is replaced after {first}, {', '.join(middle)} and then every {last} seconds"
    assert sentence in PROMISES


# -- troubleshooting -----------------------------------------------------------------------------


def _leaves() -> set[str]:
    classes = [
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if cls.__module__ == errors.__name__
    ]
    never = {"AugError", "ProtocolError"}  # never raised themselves
    return {cls.__name__ for cls in classes} - never


def _entries() -> dict[str, list[str]]:
    """The texts under each heading."""
    entries: dict[str, list[str]] = {}
    for section in re.split(r"^## ", TROUBLE, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        entries[name] = re.findall(r"^> `(.+)`$", body, re.MULTILINE)
    return entries


@functools.cache
def _constants() -> list[str]:
    """Every text of the code, with ANY for what is put in."""
    texts = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else ANY
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def _pattern(text: str) -> re.Pattern[str]:
    """Whatever the code puts in, or writes out, may stand for ANY."""
    return re.compile(".*".join(re.escape(piece) for piece in text.split(ANY)), re.DOTALL)


def test_every_leaf_of_the_error_tree_has_an_entry() -> None:
    assert set(_entries()) == _leaves() | {"Kernels"}
    for name, texts in _entries().items():
        assert texts, name


@pytest.mark.parametrize(
    "text", [text for texts in _entries().values() for text in texts], ids=lambda text: text[:50]
)
def test_an_error_s_text_is_the_code_s_own(text: str) -> None:
    pieces = [piece for piece in text.split(ANY) if len(piece.strip(" :;")) > 4]
    found = _constants()
    whole = _pattern(text)
    if any(whole.search(constant) for constant in found):
        return
    # A text that is put together from several: each piece stands somewhere.
    missing = [piece for piece in pieces if not any(piece in constant for constant in found)]
    assert pieces, "too little to hold against the code"
    assert not missing, missing


def test_the_check_of_texts_finds_what_is_not_there() -> None:
    pattern = _pattern("this server has no brook …; it has: …")
    assert not any(pattern.search(constant) for constant in _constants())
    assert any(_pattern("this server has no stream …; it has: …").search(c) for c in _constants())


# -- settings ------------------------------------------------------------------------------------


def _default(field: dataclasses.Field[Any]) -> str:
    """As the page has it."""
    if field.default is dataclasses.MISSING:
        return "one for each core"
    words = {None: "unset", NO_BOUND: "unbounded", (): "[]", "": '""'}
    return words.get(field.default, str(field.default))


def test_every_setting_of_a_server_is_on_its_page_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (.+?) \|", page, re.MULTILINE))
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for name in ("datasets", "streams", "private"):  # tables, and no setting
        del fields[name]
    assert rows == {name: _default(field) for name, field in fields.items()}


def test_every_variable_of_a_server_is_on_its_page_with_its_key() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(AUGSERVER_\w+)` \| `?([\w ]+)", page, re.MULTILINE))
    assert rows.pop(CONFIG_VARIABLE) == "the file"
    assert rows.pop(KERNELS_VARIABLE) == "kernels"
    assert rows == {variable: key for key, variable in VARIABLES.items()}


def test_the_settings_page_s_own_config_is_one() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    config = parse(tomllib.loads(block), Path("/srv"), {})
    assert config.streams["pets"].data == ("/srv/pets/train",)
    assert config.streams["pets-small"].target_size == (96, 96)
    assert all(f"`{key}`" in page for key in named.KEYS)


def test_what_the_example_leaves_out_can_be_switched_on() -> None:
    lines = (ROOT / "examples" / "augserver.toml").read_text().splitlines()
    shown = [re.sub(r"^#(?=[\w\[])", "", line) for line in lines]
    assert shown != lines
    config = parse(tomllib.loads("\n".join(shown)), Path("/srv"), {})
    assert (config.roots, config.kernels) == (("/srv/data",), "scipy")
    assert config.streams["shapes"].dtype == "float16"
    assert config.streams["photographs"].cache == "decoded"


# -- pictures ------------------------------------------------------------------------------------


def test_every_option_of_pictures_is_on_its_page_with_its_default() -> None:
    page = (ROOT / "docs" / "pictures.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", page, re.MULTILINE))
    fields = {field.name: field.default for field in dataclasses.fields(Pictures)}
    assert {name: ast.literal_eval(text) for name, text in rows.items()} == fields
    for mode in (*LABEL_MODES, *COLOR_MODES, *POLICIES):
        assert f'"{mode}"' in page
    assert all(ending in page for ending in ENDINGS)


def test_the_page_s_own_config_is_one() -> None:
    page = (ROOT / "docs" / "pictures.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    spec = parse(tomllib.loads(block), Path("/srv"), {}).streams["pets"]
    assert spec.pictures == Pictures(label_mode="binary")
    assert spec.data == ("/srv/pets/train",)
