"""Every public name of Keras's module is in ours, and is called in the same way."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import faces
import pytest
from keras_own import keras_module

#: What users override or call although it is not public.
HALF_PUBLIC = (
    "_get_batches_of_transformed_samples", "_set_index_array", "_flow_index", "__getitem__",
    "__len__", "__iter__", "__next__", "__init__",
)  # fmt: skip
FUNCTIONS = ("load_img", "img_to_array", "array_to_img", "save_img")


def public(module: ModuleType) -> dict[str, Any]:
    """What a module defines itself and does not hide."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    }


def callables() -> list[tuple[str, Any]]:
    """Keras's functions and methods, with their dotted names."""
    found: list[tuple[str, Any]] = []
    for name, value in public(faces.theirs()).items():
        if not inspect.isclass(value):
            found.append((name, value))
            continue
        for method in [*vars(value), *HALF_PUBLIC]:
            known = method in HALF_PUBLIC or not method.startswith("_")
            function = inspect.getattr_static(value, method, None)
            if known and inspect.isfunction(function):
                found.append((f"{name}.{method}", function))
    found += [(name, getattr(keras_module("keras.utils"), name)) for name in FUNCTIONS]
    return list(dict(found).items())


def of_ours(dotted: str) -> Any:
    value: Any = faces.ours()
    for name in dotted.split("."):
        assert hasattr(value, name), f"augclient.image has no {dotted}"
        value = getattr(value, name)
    return value


def test_every_public_name_of_keras_module_is_there() -> None:
    names = public(faces.theirs())
    assert len(names) >= 18
    missing = [name for name in [*names, *FUNCTIONS] if not _has(name)]
    assert not missing


def _has(name: str) -> bool:
    # The functions on files are not in Keras's own module but in keras.utils.
    return hasattr(faces.ours(), name) or (faces.THEIRS_TWICE and name in FUNCTIONS)


def test_every_call_that_keras_takes_is_taken() -> None:
    checked = callables()
    assert len(checked) >= 50
    wrong = []
    for dotted, theirs in checked:
        if faces.THEIRS_TWICE and dotted in FUNCTIONS:
            continue
        difference = _differs(theirs, of_ours(dotted))
        if difference:
            wrong.append(f"{dotted}: {difference}")
    assert not wrong, "\n".join(wrong)


def _differs(theirs: Any, ours: Any) -> str:
    """In what a call of ours is not a call of theirs with more keywords; empty if in nothing."""
    wanted = list(inspect.signature(theirs).parameters.values())
    got = inspect.signature(ours).parameters
    whole = [p for p in got.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    for place, parameter in enumerate(p for p in wanted if p.kind is p.POSITIONAL_OR_KEYWORD):
        if place >= len(whole) or whole[place].name != parameter.name:
            return f"place {place} is {whole[place : place + 1]}, wanted {parameter.name}"
        if whole[place].default != parameter.default:
            return f"{parameter.name}={whole[place].default!r}, wanted {parameter.default!r}"
    beyond = whole[sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in wanted) :]
    if beyond:
        return f"{beyond[0].name} can be given by place, which Keras does not take"
    for kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
        if any(p.kind is kind for p in wanted) and not any(p.kind is kind for p in got.values()):
            return f"no {kind.description}"
    needed = [p.name for p in got.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    return f"{needed} must be given, which Keras does not know" if needed else ""


def test_a_difference_would_be_noticed() -> None:
    def theirs(x: int, rg: int, row_axis: int = 1, **options: int) -> None: ...
    def renamed(x: int, range: int, row_axis: int = 1, **options: int) -> None: ...
    def another_default(x: int, rg: int, row_axis: int = 0, **options: int) -> None: ...
    def shorter(x: int, rg: int, **options: int) -> None: ...
    def no_options(x: int, rg: int, row_axis: int = 1) -> None: ...
    def one_more(x: int, rg: int, row_axis: int = 1, more: int = 0, **options: int) -> None: ...
    def must(x: int, rg: int, row_axis: int = 1, *, more: int, **options: int) -> None: ...
    def keyword(x: int, rg: int, row_axis: int = 1, *, more: int = 0, **o: int) -> None: ...

    for wrong in (renamed, another_default, shorter, no_options, one_more, must):
        assert _differs(theirs, wrong), wrong.__name__
    assert not _differs(theirs, keyword)


@pytest.mark.parametrize("name", ["ImageDataGenerator", "Iterator", "NumpyArrayIterator",
                                  "DirectoryIterator", "DataFrameIterator"])  # fmt: skip
def test_a_class_is_a_class_and_can_be_derived_from(name: str) -> None:
    assert inspect.isclass(of_ours(name))
    if name.endswith("Iterator"):
        assert issubclass(of_ours(name), keras_module("keras.utils").PyDataset)
        assert issubclass(of_ours(name), of_ours("Iterator"))


def test_the_exported_names_are_all_there_and_sorted() -> None:
    if faces.THEIRS_TWICE:
        pytest.skip("Keras's module exports by decorators")
    image = faces.ours()
    assert sorted(image.__all__) == list(image.__all__)
    assert set(image.__all__) >= set(public(faces.theirs())) | set(FUNCTIONS) | {"list_pictures"}
