"""Keras's own modules, to compare with; a test skips where there is no Keras."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest

#: What Keras's own calls of SciPy warn of.
SCIPY_NOISE = pytest.mark.filterwarnings(
    "ignore:The `scipy.ndimage.interpolation` namespace is deprecated:DeprecationWarning",
    "ignore:Please import `affine_transform` from the `scipy.ndimage`:DeprecationWarning",
)


def keras_module(name: str) -> ModuleType:
    """A module of Keras, on the backend that is named, or TensorFlow."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing them warns of is theirs to mend
        for needed in (os.environ["KERAS_BACKEND"], "keras"):
            reason = f"{needed} is not installed: nothing to compare with"
            pytest.importorskip(needed, reason=reason)
        return importlib.import_module(name)


def image_data_generators() -> Iterator[ModuleType]:
    """The module with Keras's `ImageDataGenerator`; the image format is as before afterwards."""
    image = keras_module("keras.src.legacy.preprocessing.image")
    config = keras_module("keras").config
    before = config.image_data_format()
    yield image
    config.set_image_data_format(before)
