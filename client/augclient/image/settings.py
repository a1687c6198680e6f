"""A generator's settings as a spec says them, where one can.

They are read anew for each batch, because programs change them (`datagen.mean = ...`, `fit` after
`flow`); a key tells cheaply whether anything has changed. What no spec can say, above all methods
that a subclass overrides, is *unsaid*: such batches are made in the caller's way, picture by
picture, as Keras makes all of them.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from augclient.image.desk import Where
from augclient.image.generator import OWN_METHODS, ImageDataGenerator, warn_unfitted
from augclient.image.recognised import NOTHING, recognise
from augclient.request import pickled
from augproto.errors import ConfigError
from augproto.transforms import Statistic, Transforms

Array = npt.NDArray[Any]

#: Everything that these read of a generator.
ATTRIBUTES = (
    "featurewise_center", "samplewise_center", "featurewise_std_normalization",
    "samplewise_std_normalization", "zca_whitening", "rotation_range", "width_shift_range",
    "height_shift_range", "brightness_range", "shear_range", "zoom_range", "channel_shift_range",
    "fill_mode", "cval", "horizontal_flip", "vertical_flip", "rescale", "preprocessing_function",
    "data_format", "interpolation_order", "dtype", "mean", "std", "zca_whitening_matrix", "where",
)  # fmt: skip
#: Bytes of an array whose content is compared; of a larger one only which object it is.
COMPARED = 64 << 10


class Unsaid(Exception):
    """No spec says this; the text says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server's stream needs to know of a generator.

    Attributes:
        transforms: All but the function and the whitening matrix.
        function: A user's own function, or the name of one that every server has.
        whitening: The matrix of ZCA, if it is applied.
    """

    transforms: Transforms
    function: Callable[[Any], Any] | str | None
    whitening: Array | None


def tell_unfitted(generator: object) -> None:
    """Warn, as Keras does for each picture, of statistics that are wanted and were not found."""
    if isinstance(generator, ImageDataGenerator):
        for setting, found in (
            ("featurewise_center", "mean"),
            ("featurewise_std_normalization", "std"),
            ("zca_whitening", "zca_whitening_matrix"),
        ):
            if getattr(generator, setting) and getattr(generator, found) is None:
                warn_unfitted(setting)


def key_of(generator: object) -> object:
    """Equal for a generator at two times if it gives the same pictures at both."""
    values = [getattr(generator, name, None) for name in ATTRIBUTES]
    own = getattr(generator, "__dict__", {})
    methods = [own.get(name, getattr(type(generator), name, None)) for name in OWN_METHODS]
    return (type(generator), *map(_frozen, values), *map(id, methods))


def _frozen(value: Any) -> object:
    if isinstance(value, np.ndarray):
        content = value.tobytes() if value.nbytes <= COMPARED else id(value)
        return value.shape, value.dtype.str, content
    if isinstance(value, (list, tuple)):
        return type(value), *map(_frozen, value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    # 1, 1.0 and True are equal, but an int is a choice of shifts and a float is not.
    return type(value), value


def settings_of(generator: object, dtype: str) -> Settings:
    """What a spec says of a generator's pictures.

    Args:
        generator: Whatever stands behind an iterator; None changes nothing.
        dtype: That pictures are changed in: Keras's in-place arithmetic depends on it.

    Raises:
        Unsaid: No spec says it.
    """
    if dtype not in ("float32", "float64"):
        raise Unsaid(f"dtype {dtype!r} is none that a server computes in (float32, float64)")
    if generator is None:
        return Settings(Transforms(), None, None)
    if not isinstance(generator, ImageDataGenerator):
        raise Unsaid(f"{type(generator).__name__} is no augclient.image.ImageDataGenerator")
    for name, method in OWN_METHODS.items():
        if name in vars(generator) or getattr(type(generator), name) is not method:
            raise Unsaid(f"{type(generator).__name__} overrides {name}")
    g = generator
    try:
        transforms = Transforms(
            rotation_range=_number("rotation_range", g.rotation_range),
            width_shift_range=_shift("width_shift_range", g.width_shift_range),
            height_shift_range=_shift("height_shift_range", g.height_shift_range),
            shear_range=_number("shear_range", g.shear_range),
            zoom_range=_pair("zoom_range", g.zoom_range),
            channel_shift_range=_number("channel_shift_range", g.channel_shift_range),
            brightness_range=(
                None
                if g.brightness_range is None
                else _pair("brightness_range", g.brightness_range)
            ),
            horizontal_flip=bool(g.horizontal_flip),
            vertical_flip=bool(g.vertical_flip),
            fill_mode=g.fill_mode,
            cval=_number("cval", g.cval),
            interpolation_order=int(_number("interpolation_order", g.interpolation_order)),
            rescale=factor(g.rescale) if g.rescale else None,
            samplewise_center=bool(g.samplewise_center),
            samplewise_std_normalization=bool(g.samplewise_std_normalization),
            featurewise_mean=_statistic("mean", g.mean) if g.featurewise_center else None,
            featurewise_std=(_statistic("std", g.std) if g.featurewise_std_normalization else None),
            floatx=keras.config.floatx(),
        )
    except ConfigError as error:
        raise Unsaid(str(error)) from error
    if g.featurewise_std_normalization and isinstance(g.std, (list, tuple)):
        raise Unsaid("std is a list, to which numpy adds no number")
    if g.samplewise_std_normalization and not g.samplewise_center:
        raise Unsaid("samplewise_std_normalization was set without samplewise_center")
    matrix = g.zca_whitening_matrix if g.zca_whitening else None
    whitening = None if matrix is None else np.asarray(matrix)
    return Settings(transforms, _function(g.preprocessing_function, g.where), whitening)


def _function(function: Any, where: Where) -> Callable[[Any], Any] | str | None:
    if not function:
        return None
    name = recognise(function)
    if name is not None:
        return None if name == NOTHING else name
    if where.address is None and where.workers != 0:
        try:
            pickled(function)
        except ConfigError as error:
            raise Unsaid(str(error)) from error
    chosen: Callable[[Any], Any] = function
    return chosen


def _number(name: str, value: Any) -> float:
    if isinstance(value, numbers.Real):
        return float(value)
    raise Unsaid(f"{name} is {value!r:.80}, which is no number")


def factor(value: Any) -> float | Statistic:
    """A rescale as a spec has it: a number of numpy's own type counts in that type, one of Python's
    in the picture's.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        return Statistic.of("rescale", value)
    return _number("rescale", value)


def _pair(name: str, value: Any) -> tuple[float, float]:
    low, high = value
    return _number(name, low), _number(name, high)


def _shift(name: str, value: Any) -> float | int | tuple[float, ...]:
    """As `get_random_transform` tells a range from a choice."""
    if isinstance(value, (list, tuple)):
        return tuple(_number(name, v) for v in value)
    if isinstance(value, (int, np.integer)):
        # np.random.choice takes no number below 1, and then it is a range.
        return int(value) if value >= 0 else float(value)
    return _number(name, value)


def _statistic(name: str, value: Any) -> Statistic | None:
    return None if value is None else Statistic.of(name, value)  # a warning tells it, as in Keras
