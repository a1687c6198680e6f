"""The labels of a batch of files, as Keras makes them of a class_mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from augclient.image.plan import Array, Indexes

#: Modes in which a label is a class.
CLASSIFIED = frozenset({"binary", "sparse", "categorical"})


def numbers(classes: Any, indexes: Indexes, dtype: npt.DTypeLike) -> Array:
    """Modes "binary" and "sparse": each sample's class by its number, (n,)."""
    labels = np.empty(len(indexes), dtype)
    for row, sample in enumerate(indexes):
        labels[row] = classes[sample]
    return labels


def one_hot(classes: Any, count: int, indexes: Indexes, dtype: npt.DTypeLike) -> Array:
    """Mode "categorical": (n, count), with a one for the class, or for each class, of a sample."""
    labels = np.zeros((len(indexes), count), dtype)
    for row, sample in enumerate(indexes):
        labels[row, classes[sample]] = 1.0
    return labels


def columns(targets: Sequence[Any], indexes: Indexes) -> list[Any]:
    """Mode "multi_output": a list of each output's rows."""
    return [target[indexes] for target in targets]
