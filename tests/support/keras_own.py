"""Keras's own modules, to compare with; a test skips where there is no Keras."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

import pytest


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
