"""Keras's preprocessing functions are recognised, and nothing else is."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import keras_module
from same_face import Faces, faces

from augproto.named import named


@pytest.fixture(scope="module")
def both() -> Iterator[Faces]:
    """Ours and Keras's."""
    yield from faces()


@pytest.fixture
def recognised(both: Faces) -> ModuleType:
    """The module under test."""
    return keras_module("augclient.image.recognised")


def models(keras: Any) -> dict[str, Any]:
    """Every preprocess_input that Keras has, by the module of its model."""
    found = {
        name: module.preprocess_input
        for name, module in vars(keras.applications).items()
        if hasattr(module, "preprocess_input")
    }
    assert len(found) > 12
    return found


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_every_model_s_function_has_a_name_that_stands_for_the_same_numbers(
    both: Faces, recognised: ModuleType, data_format: str
) -> None:
    both.keras.config.set_image_data_format(data_format)
    shape = (6, 5, 3) if data_format == "channels_last" else (3, 6, 5)
    picture = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    names = {}
    for model, function in models(both.keras).items():
        name = names[model] = recognised.recognise(function)
        assert name is not None, model
        if name == recognised.NOTHING:
            made = picture
        else:
            assert name.endswith(data_format)
            made = named(name)(picture.copy())
        assert np.array_equal(made, np.asarray(function(picture.copy()))), model
    assert names["vgg16"] == f"keras:caffe:{data_format}"
    assert names["mobilenet_v2"] == f"keras:tf:{data_format}"
    assert names["densenet"] == f"keras:torch:{data_format}"
    assert names["efficientnet"] == recognised.NOTHING


def test_the_way_of_importing_it_does_not_matter(both: Faces, recognised: ModuleType) -> None:
    keras_module("keras._tf_keras.keras")
    for path in ("keras.applications.vgg16", "keras._tf_keras.keras.applications.vgg16"):
        assert recognised.recognise(keras_module(path).preprocess_input)


def test_nothing_is_recognised_by_name_alone(both: Faces, recognised: ModuleType) -> None:
    theirs = both.keras.applications.vgg16.preprocess_input

    def preprocess_input(x: Any, data_format: Any = None) -> Any:
        return theirs(x, data_format)

    @functools.wraps(theirs)
    def wrapped(x: Any) -> Any:
        return theirs(x) * 2

    class Callable_:
        __name__ = "preprocess_input"
        __module__ = theirs.__module__

        def __call__(self, x: Any) -> Any:
            return x

    for function in (
        preprocess_input, wrapped, Callable_(), lambda x: theirs(x), np.negative, None, 3,
        functools.partial(theirs), functools.partial(theirs, data_format="channels_first"),
        both.keras.applications.vgg16.decode_predictions,
    ):  # fmt: skip
        assert recognised.recognise(function) is None


def test_another_formula_in_its_place_is_not_taken_for_it(
    both: Faces, recognised: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = keras_module("keras.src.applications.vgg16")

    def changed(x: Any, data_format: Any = None) -> Any:
        return x / 127.0 - 1.0

    def broken(x: Any, data_format: Any = None) -> Any:
        raise RuntimeError("not a picture")

    for function in (changed, broken):
        function.__name__ = "preprocess_input"
        function.__module__ = module.__name__
        monkeypatch.setattr(module, "preprocess_input", function)
        assert recognised.recognise(function) is None


def test_recognising_draws_nothing(both: Faces, recognised: ModuleType) -> None:
    np.random.seed(4)
    before = repr(np.random.get_state())
    recognised.recognise(both.keras.applications.xception.preprocess_input)
    assert repr(np.random.get_state()) == before
