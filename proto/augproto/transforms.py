"""What is done to each picture: Keras's own words, checked. A part of a spec."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto import checks
from augproto.errors import ConfigError

#: Keras names the first four; it hands scipy whatever it is given, and these are all that it knows.
FILL_MODES = (
    "constant", "nearest", "reflect", "wrap", "mirror", "grid-constant", "grid-mirror", "grid-wrap",
)  # fmt: skip
#: Of scipy's splines.
ORDERS = (0, 1, 2, 3, 4, 5)
#: Functions that every server has: `preprocess_input` of Keras's imagenet_utils, by its mode and
#: the data format that it is called with.
NAMED = "keras:"
NAMED_FUNCTIONS = tuple(
    f"{NAMED}{mode}:{data_format}"
    for mode in ("caffe", "tf", "torch")
    for data_format in ("channels_last", "channels_first")
)
#: What Keras can be told to compute in where it is not told otherwise (`keras.config.set_floatx`).
FLOATX = ("float32", "float64")
#: Statistics as large as a picture of 1024 x 1024 x 3 in float32: 12 MiB would not fit a frame.
MAX_STATISTIC_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Statistic:
    """A constant array (mean or standard deviation) in its own dtype; hashable, fit for the wire.

    The dtype matters: numpy subtracts a float64 mean from a float32 picture in float64, so
    Keras's results depend on it and so do ours. A plain number of Python's has no dtype: it is
    *weak*, and takes the picture's.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    weak: bool = False

    @classmethod
    def of(cls, field: str, value: object) -> Statistic:
        """The statistic of numbers, of the wire's map, or itself.

        Raises:
            ConfigError: It is none of these, too large or not finite.
        """
        if isinstance(value, Statistic):
            return value
        if type(value) in (int, float):
            plain = cls.of(field, np.float64(checks.number(field, value)))
            return dataclasses.replace(plain, weak=True)
        if isinstance(value, Mapping):  # the wire's form
            known = checks.fields(cls, value, field)
            try:
                array = np.frombuffer(known["data"], np.dtype(known["dtype"]))
                read = cls.of(field, array.reshape([int(n) for n in known["shape"]]))
                weak = checks.flag(field, known.get("weak", False)) and not read.shape
                return dataclasses.replace(read, weak=weak)
            except (KeyError, TypeError, ValueError, OverflowError, SyntaxError) as error:
                raise checks.refuse(field, value, "a map of dtype, shape and data") from error
        try:
            array = np.asarray(value)
            if array.dtype not in (np.float16, np.float32, np.float64):
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

    def operand(self) -> npt.NDArray[Any] | float:
        """What to compute with: the array, or a float of Python's where it is weak."""
        return self.array().item() if self.weak else self.array()

    def to_wire(self) -> dict[str, object]:
        """Plain data."""
        wire: dict[str, object] = {
            "dtype": self.dtype, "shape": list(self.shape), "data": self.data,
        }  # fmt: skip
        return wire | {"weak": True} if self.weak else wire


ShiftRange = float | int | tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """Random and fixed changes of a picture, with the names, the meaning and the order of Keras's
    `ImageDataGenerator` (keras 3.15, keras/src/legacy/preprocessing/image.py).

    The order is fixed: prescale, affine (rotation, shift, shear, zoom in one resampling), channel
    shift, horizontal flip, vertical flip, brightness, `function`, rescale and offset, samplewise
    mean and deviation, featurewise mean and deviation.

    Ranges may be negative, and pairs come in either order, as in Keras: a range is drawn as
    low + (high - low) * u.

    Attributes:
        rotation_range: Degrees; the angle is uniform in [-range, range].
        width_shift_range, height_shift_range: A float below 1 is a share of the axis, a float from
            1 on is pixels; an int n is one of 0..n-1 pixels to either side; a tuple is the list of
            values to choose from (either sign; shares of the axis where all are below 1). A
            negative int is the same as a float: so Keras takes it, and so both are shares.
        shear_range: Degrees.
        zoom_range: (low, high), drawn for each axis; a single float z means (1 - z, 1 + z).
        channel_shift_range: In units of the picture; clipped to the picture's own range.
        brightness_range: (low, high) factors; the picture passes through 8 bits as in Keras. Below
            0 all is black.
        horizontal_flip, vertical_flip: With probability one half each.
        fill_mode, cval: What lies beyond the border ("constant" fills with cval), as in
            `scipy.ndimage.affine_transform`.
        interpolation_order: 0 nearest neighbour, 1 linear, 2 to 5 splines.
        function: A function of one picture: "package.module:name", the name that a private
            server's client gave to a function of its own, or one of NAMED_FUNCTIONS, which every
            server has: "keras:MODE:DATA_FORMAT" is `preprocess_input` of Keras's applications
            (MODE: caffe, tf or torch). Runs after brightness, before rescale.
        prescale: What a picture is multiplied by before anything else, as soon as it has the
            stream's dtype; Keras's `fit(augment=True)` rescales there.
        rescale, offset: picture * rescale + offset. Keras has no offset; 0 leaves its bytes alone.
            A rescale (or prescale) that is a Statistic is one number with a dtype of its own.
        samplewise_center, samplewise_std_normalization: By the picture's own mean and deviation;
            as in Keras, the second brings the first along.
        featurewise_mean, featurewise_std: Given statistics, broadcast over a picture. As in Keras,
            a picture is divided by std + 1e-6; a std without a mean subtracts nothing.
        floatx: Keras's setting of that name, in which it computes brightness, and whatever it does
            to pictures of files (scheme "keras"), whichever the dtype of the batch.
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
    rescale: float | Statistic | None = None
    offset: float = 0.0
    samplewise_center: bool = False
    samplewise_std_normalization: bool = False
    featurewise_mean: Statistic | None = None
    featurewise_std: Statistic | None = None
    prescale: float | Statistic | None = None
    floatx: str = "float32"

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
            put(self, "brightness_range", self._brightness())
        checks.choice("transforms.fill_mode", self.fill_mode, FILL_MODES)
        checks.choice("transforms.interpolation_order", self.interpolation_order, ORDERS)
        checks.choice("transforms.floatx", self.floatx, FLOATX)
        for name in ("rescale", "prescale"):
            if getattr(self, name) is not None:
                put(self, name, _factor(f"transforms.{name}", getattr(self, name)))
        if self.function is not None and not (
            isinstance(self.function, str) and 0 < len(self.function) <= 512
        ):
            raise checks.refuse(
                "transforms.function", self.function, "a name like 'package.module:name'"
            )
        if self.named:
            checks.choice("transforms.function", self.function, NAMED_FUNCTIONS)
        for name in ("featurewise_mean", "featurewise_std"):
            value = getattr(self, name)
            if value is not None:
                put(self, name, Statistic.of(f"transforms.{name}", value))

    def _shift(self, name: str) -> ShiftRange:
        field, value = f"transforms.{name}", getattr(self, name)
        if isinstance(value, np.ndarray) and not value.ndim:
            value = value.item()
        if isinstance(value, (tuple, list, np.ndarray)):
            if not 0 < len(value) <= 65536:
                raise checks.refuse(field, value, "a number or at least one value to choose from")
            return tuple(checks.number(field, v) for v in value)
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            whole = checks.whole(field, value, -(1 << 20), 1 << 20)
            # np.random.choice refuses it, and Keras goes on as with a float.
            return whole if whole >= 0 else float(whole)
        return checks.number(field, value)

    def _zoom(self) -> tuple[float, float]:
        field, value = "transforms.zoom_range", self.zoom_range
        if isinstance(value, (tuple, list)):
            pair = checks.pair(field, value, "a number z (meaning 1 - z to 1 + z) or (low, high)")
            return checks.number(field, pair[0]), checks.number(field, pair[1])
        z = checks.number(field, value)
        return 1 - z, 1 + z

    def _brightness(self) -> tuple[float, float]:
        field, wanted = "transforms.brightness_range", "two factors (low, high)"
        pair = checks.pair(field, self.brightness_range, wanted)
        low, high = checks.number(field, pair[0]), checks.number(field, pair[1])
        if not math.isfinite(high - low):
            raise checks.refuse(field, self.brightness_range, f"{wanted} of a finite distance")
        return low, high

    @property
    def named(self) -> bool:
        """Whether the function is one that every server has: no user's code, and it draws nothing.

        Then it needs no permission and no seeds.
        """
        return self.function is not None and self.function.startswith(NAMED)

    @property
    def flips_at_most(self) -> bool:
        """Whether a picture's numbers all stay as they are."""
        return self == Transforms(
            horizontal_flip=self.horizontal_flip, vertical_flip=self.vertical_flip
        )

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
            or (self.function and not self.named)
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
                value = value.to_wire()
            wire[field.name] = list(value) if isinstance(value, tuple) else value
        return wire


def _factor(field: str, value: object) -> float | Statistic:
    """A number to multiply by: weak, or of a dtype of its own where that makes a difference."""
    if not isinstance(value, (Statistic, Mapping)):
        return checks.number(field, value)
    factor = Statistic.of(field, value)
    if factor.shape:
        raise checks.refuse(field, factor.shape, "one number")
    return factor.array().item() if factor.weak or not factor.array() else factor
