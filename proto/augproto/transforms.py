"""What is done to each picture: Keras's own words, checked. A part of a spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto import checks
from augproto.errors import ConfigError

FILL_MODES = ("constant", "nearest", "reflect", "wrap")
#: Statistics as large as a picture of 1024 x 1024 x 3 in float32: 12 MiB would not fit a frame.
MAX_STATISTIC_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Statistic:
    """A constant array (mean or standard deviation) in its own dtype; hashable, fit for the wire.

    The dtype matters: numpy subtracts a float64 mean from a float32 picture in float64, so
    Keras's results depend on it and so do ours.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, field: str, value: object) -> Statistic:
        if isinstance(value, Statistic):
            return value
        if isinstance(value, Mapping):  # the wire's form
            known = checks.fields(cls, value, field)
            try:
                array = np.frombuffer(known["data"], np.dtype(known["dtype"]))
                return cls.of(field, array.reshape([int(n) for n in known["shape"]]))
            except (KeyError, TypeError, ValueError, OverflowError, SyntaxError) as error:
                raise checks.refuse(field, value, "a map of dtype, shape and data") from error
        try:
            array = np.asarray(value)
            if array.dtype not in (np.float32, np.float64):
                array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise checks.refuse(field, value, "numbers that broadcast over a picture") from error
        if array.nbytes > MAX_STATISTIC_BYTES or array.ndim > 4 or not np.isfinite(array).all():
            raise ConfigError(
                f"{field}: got {array.nbytes} bytes of shape {array.shape}; wanted finite numbers "
                f"that broadcast over a picture, at most {MAX_STATISTIC_BYTES} bytes"
            )
        return cls(array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())

    def array(self) -> npt.NDArray[Any]:
        """The statistic as a read-only array."""
        return np.frombuffer(self.data, np.dtype(self.dtype)).reshape(self.shape)


ShiftRange = float | int | tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """Random and fixed changes of a picture, with the names, the meaning and the order of Keras's
    `ImageDataGenerator` (keras 3.15, keras/src/legacy/preprocessing/image.py).

    The order is fixed: affine (rotation, shift, shear, zoom in one resampling), channel shift,
    horizontal flip, vertical flip, brightness, `function`, rescale and offset, samplewise mean and
    deviation, featurewise mean and deviation.

    Attributes:
        rotation_range: Degrees; the angle is uniform in [-range, range].
        width_shift_range, height_shift_range: A float below 1 is a share of the axis, a float from
            1 on is pixels; an int n is one of 0..n-1 pixels to either side; a tuple is the list of
            values to choose from (either sign; shares of the axis where all are below 1).
        shear_range: Degrees.
        zoom_range: (low, high), drawn for each axis; a single float z means (1 - z, 1 + z).
        channel_shift_range: In units of the picture; clipped to the picture's own range.
        brightness_range: (low, high) factors; the picture passes through 8 bits as in Keras.
        horizontal_flip, vertical_flip: With probability one half each.
        fill_mode, cval: What lies beyond the border ("constant" fills with cval).
        interpolation_order: 0 nearest neighbour, 1 linear.
        function: A function of one picture: "package.module:name", or the name that a private
            server's client gave to a function of its own. Runs after brightness, before rescale.
        rescale, offset: picture * rescale + offset. Keras has no offset; 0 leaves its bytes alone.
        samplewise_center, samplewise_std_normalization: By the picture's own mean and deviation;
            as in Keras, the second brings the first along.
        featurewise_mean, featurewise_std: Given statistics, broadcast over a picture. As in Keras,
            a picture is divided by std + 1e-6; a std without a mean subtracts nothing.
    """

    rotation_range: float = 0.0
    width_shift_range: ShiftRange = 0.0
    height_shift_range: ShiftRange = 0.0
    shear_range: float = 0.0
    zoom_range: float | tuple[float, float] = (1.0, 1.0)
    channel_shift_range: float = 0.0
    brightness_range: tuple[float, float] | None = None
    horizontal_flip: bool = False
    vertical_flip: bool = False
    fill_mode: str = "nearest"
    cval: float = 0.0
    interpolation_order: int = 1
    function: str | None = None
    rescale: float | None = None
    offset: float = 0.0
    samplewise_center: bool = False
    samplewise_std_normalization: bool = False
    featurewise_mean: Statistic | None = None
    featurewise_std: Statistic | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in (
            "rotation_range", "shear_range", "channel_shift_range", "cval", "offset",
        ):  # fmt: skip
            put(self, name, checks.number(f"transforms.{name}", getattr(self, name)))
        for name in ("width_shift_range", "height_shift_range"):
            put(self, name, self._shift(name))
        for name in (
            "horizontal_flip", "vertical_flip", "samplewise_center", "samplewise_std_normalization",
        ):  # fmt: skip
            put(self, name, checks.flag(f"transforms.{name}", getattr(self, name)))
        if self.samplewise_std_normalization:
            put(self, "samplewise_center", True)  # as Keras's constructor does
        put(self, "zoom_range", self._zoom())
        if self.brightness_range is not None:
            wanted = "two factors (low, high), 0 <= low <= high"
            pair = checks.pair("transforms.brightness_range", self.brightness_range, wanted)
            low, high = (checks.number("transforms.brightness_range", v) for v in pair)
            if not 0 <= low <= high:
                raise checks.refuse("transforms.brightness_range", self.brightness_range, wanted)
            put(self, "brightness_range", (low, high))
        checks.choice("transforms.fill_mode", self.fill_mode, FILL_MODES)
        checks.choice("transforms.interpolation_order", self.interpolation_order, (0, 1))
        if self.rescale is not None:
            put(self, "rescale", checks.number("transforms.rescale", self.rescale))
        if self.function is not None and not (
            isinstance(self.function, str) and 0 < len(self.function) <= 512
        ):
            raise checks.refuse(
                "transforms.function", self.function, "a name like 'package.module:name'"
            )
        for name in ("featurewise_mean", "featurewise_std"):
            value = getattr(self, name)
            if value is not None:
                put(self, name, Statistic.of(f"transforms.{name}", value))

    def _shift(self, name: str) -> ShiftRange:
        field, value = f"transforms.{name}", getattr(self, name)
        if isinstance(value, (tuple, list, np.ndarray)):
            if not 0 < len(value) <= 65536:
                raise checks.refuse(field, value, "a number or at least one value to choose from")
            return tuple(checks.number(field, v) for v in value)
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return checks.whole(field, value, 0, 1 << 20)
        return checks.number(field, value)

    def _zoom(self) -> tuple[float, float]:
        field, value = "transforms.zoom_range", self.zoom_range
        if isinstance(value, (tuple, list)):
            pair = checks.pair(field, value, "a number z (meaning 1 - z to 1 + z) or (low, high)")
            return checks.number(field, pair[0]), checks.number(field, pair[1])
        z = checks.number(field, value)
        return 1 - z, 1 + z

    @property
    def random(self) -> bool:
        """Whether anything is drawn at all."""
        return bool(
            self.rotation_range
            or self.width_shift_range
            or self.height_shift_range
            or self.shear_range
            or self.zoom_range != (1.0, 1.0)
            or self.channel_shift_range
            or self.brightness_range
            or self.horizontal_flip
            or self.vertical_flip
            or self.function
        )

    @classmethod
    def from_wire(cls, wire: object) -> Transforms:
        """Read and check the form that `to_wire` gives, or a table of augserver.toml."""
        return cls(**checks.fields(cls, wire, "transforms"))

    def to_wire(self) -> dict[str, object]:
        """Plain data with the fields that differ from their defaults."""
        wire: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if isinstance(value, Statistic):
                value = {
                    "dtype": value.dtype, "shape": list(value.shape), "data": value.data,
                }  # fmt: skip
            wire[field.name] = list(value) if isinstance(value, tuple) else value
        return wire
