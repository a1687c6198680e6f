"""A program that changes its import finds the names, arguments and defaults that it knew."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Iterator
from typing import Any

import pytest
from same_face import Faces, faces

#: Of Keras's module, though programs have no use for them: it imports them, or hides them.
NOT_THEIRS = {
    "PyDataset", "backend", "collections", "image_utils", "io_utils", "keras_export", "math",
    "multiprocessing", "np", "os", "scipy", "threading", "warnings",
}  # fmt: skip

CLASSES = (
    "ImageDataGenerator", "Iterator", "BatchFromFilesMixin", "NumpyArrayIterator",
    "DirectoryIterator", "DataFrameIterator",
)  # fmt: skip


@pytest.fixture(scope="module")
def both() -> Iterator[Faces]:
    """Ours and Keras's."""
    yield from faces()


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def begins_alike(ours: Any, theirs: Any) -> None:
    """Theirs is the beginning of ours; what follows can be given by name only."""
    mine, keras = (
        list(inspect.signature(function).parameters.values()) for function in (ours, theirs)
    )
    for parameter, known in zip(mine, keras, strict=False):
        assert (parameter.name, parameter.default, parameter.kind) == (
            known.name, known.default, known.kind,
        )  # fmt: skip
    assert len(mine) >= len(keras)
    assert all(extra.kind is extra.KEYWORD_ONLY for extra in mine[len(keras) :])


def test_every_name_of_keras_is_there_and_exported(both: Faces) -> None:
    wanted = public(vars(both.theirs)) - NOT_THEIRS
    assert len(wanted) > 15, "this looks at the wrong module"
    assert wanted <= set(both.ours.__all__)
    assert all(hasattr(both.ours, name) for name in both.ours.__all__)
    assert both.ours.__all__ == sorted(both.ours.__all__)


def test_the_names_of_tensorflow_are_there(both: Faces) -> None:
    import importlib

    module = importlib.import_module("keras._tf_keras.keras.preprocessing.image")
    wanted = public(vars(module))
    assert "ImageDataGenerator" in wanted
    assert wanted <= set(both.ours.__all__)


def test_every_function_takes_what_keras_takes(both: Faces) -> None:
    functions = [
        name
        for name in public(vars(both.theirs)) - NOT_THEIRS
        if inspect.isfunction(getattr(both.theirs, name))
    ]
    assert "random_zoom" in functions
    for name in functions:
        begins_alike(getattr(both.ours, name), getattr(both.theirs, name))


@pytest.mark.parametrize("name", ["load_img", "img_to_array", "array_to_img", "save_img"])
def test_every_function_of_files_takes_what_keras_takes(both: Faces, name: str) -> None:
    begins_alike(getattr(both.ours, name), getattr(both.keras.utils, name))


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_and_method_takes_what_keras_takes(both: Faces, name: str) -> None:
    ours, theirs = getattr(both.ours, name), getattr(both.theirs, name)
    if "__init__" in vars(theirs):
        begins_alike(ours, theirs)
    own = {
        member: value
        for base in reversed(theirs.__mro__)
        if base.__module__ == both.theirs.__name__
        for member, value in vars(base).items()
        if not member.startswith("_") or member == "_get_batches_of_transformed_samples"
    }
    for member, value in own.items():
        assert hasattr(ours, member), f"{name}.{member}"
        if inspect.isfunction(value):
            begins_alike(getattr(ours, member), value)


def test_a_generator_has_keras_s_attributes_and_their_values(both: Faces) -> None:
    ours, theirs = both.ours.ImageDataGenerator(), both.theirs.ImageDataGenerator()
    assert len(vars(theirs)) > 25
    for name, value in vars(theirs).items():
        assert getattr(ours, name) == value, name
        assert type(getattr(ours, name)) is type(value), name


def test_everything_public_is_documented(both: Faces) -> None:
    for name in both.ours.__all__:
        assert pydoc.getdoc(getattr(both.ours, name)), name
