"""Two faces to compare, ours and Keras's; work on single pictures is done in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import image_data_generators, keras_module


@dataclass(frozen=True)
class Faces:
    """Attributes:
    ours: augclient.image.
    theirs: The module with Keras's `ImageDataGenerator`.
    keras: Its settings (`keras.config`) are put back afterwards.
    asked: What was asked of a server: "warp" and "brighten", and where, in order.
    """

    ours: ModuleType
    theirs: ModuleType
    keras: ModuleType
    asked: list[tuple[str, Any]]


def faces() -> Iterator[Faces]:
    """Ours answers from this process; a test skips where there is no Keras."""
    from augserver.transforms import affine, colour

    keras = keras_module("keras")
    asked: list[tuple[str, Any]] = []

    def warp(picture: Any, matrix: Any, offset: Any, *, where: Any, **settings: Any) -> Any:
        asked.append(("warp", where))
        transform = np.eye(3)
        transform[:2, :2], transform[:2, 2] = matrix, offset
        return affine.warp(picture, transform, **settings)

    def brighten(picture: Any, factor: float, *, where: Any) -> Any:
        assert picture.dtype == np.uint8
        asked.append(("brighten", where))
        return colour.brighten(picture, factor, channel_axis=2).astype(np.uint8)

    floatx = keras.config.floatx()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_module("augclient.image.desk"), "warp", warp)
        patch.setattr(keras_module("augclient.image.desk"), "brighten", brighten)
        for theirs in image_data_generators():
            yield Faces(keras_module("augclient.image"), theirs, keras, asked)
    keras.config.set_floatx(floatx)


def same(ours: Any, theirs: Any) -> None:
    """Equal to the last bit, in dtype, shape and the order of memory.

    Strides are compared where they mean something: along axes longer than 1.
    """
    assert type(ours) is type(theirs)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")
    strides = [
        [stride for stride, length in zip(array.strides, array.shape, strict=True) if length > 1]
        for array in (ours, theirs)
    ]
    assert strides[0] == strides[1]
