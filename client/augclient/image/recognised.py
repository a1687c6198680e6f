"""Keras's own preprocessing functions, which every server has by name.

`preprocess_input` of a model of keras.applications is what most programs give as
preprocessing_function. A worker that called it would have to import Keras; so it is recognised
here, and its name is sent instead.

It is recognised by the module that it comes from, and then tried on a small picture beside what a
server would do: a version of Keras that changes a formula, or a program that changes Keras, gets
its own numbers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from augproto.named import named
from augproto.transforms import NAMED, NAMED_FUNCTIONS

Picture = NDArray[Any]

#: What `recognise` gives for a function that changes nothing (EfficientNet's, ConvNeXt's ...).
NOTHING = f"{NAMED}none"

#: keras.src.applications.vgg16, tf_keras.src.applications.vgg16, ...
_MODULE = re.compile(r"(keras|tf_keras|tensorflow)\.([\w.]+\.)?applications\.\w+")


def recognise(function: Callable[..., Any]) -> str | None:
    """Say by which name every server has this function.

    Returns:
        One of `augproto.transforms.NAMED_FUNCTIONS`, NOTHING for a function that returns its
        picture as it is, or None: not recognised. The data format is Keras's global one, which
        the function would use.
    """
    if not isinstance(function, FunctionType) or function.__name__ != "preprocess_input":
        return None
    module = sys.modules.get(function.__module__)
    if not _MODULE.fullmatch(function.__module__) or (
        getattr(module, "preprocess_input", None) is not function
    ):
        return None  # a wrapper takes over the name and the module of what it wraps
    return _tried(function, keras.config.image_data_format())


@cache
def _tried(function: FunctionType, data_format: str) -> str | None:
    """The name whose formula gives what the function gives."""
    shape = (5, 4, 3) if data_format == "channels_last" else (3, 5, 4)
    picture = np.linspace(0, 255, 60, dtype=np.float32).reshape(shape)
    try:
        got = np.asarray(function(picture.copy()))
    except Exception:  # whatever it is, it is not what it was taken for
        return None

    def gives(wanted: Picture) -> bool:
        return got.dtype == wanted.dtype and np.array_equal(got, wanted)

    if gives(picture):
        return NOTHING
    for name in NAMED_FUNCTIONS:
        if name.endswith(f":{data_format}") and gives(named(name)(picture.copy())):
            return name
    return None
