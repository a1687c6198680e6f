"""What a stream is made of: which arrays, in which batches, through which transforms.

A `Spec` is a value. It comes from a client's arguments, from the wire, or from augserver.toml, and
all three doors lead through the same checks: whatever passes can be served, whatever does not is
refused by name with the value that was got and the values that are wanted.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError
from augproto.structure import Structure, leaves, names_from_wire, names_to_wire

FILL_MODES = ("constant", "nearest", "reflect", "wrap")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "hamming", "box", "lanczos")
DATA_FORMATS = ("channels_last", "channels_first")
DTYPES = ("float32", "float64", "uint8")
SUBSETS = ("training", "validation")

#: The name of what a private server's client has handed over (arrays, a function) starts so.
HANDED = "handed:"
#: The largest seed: the key of the counter-based generator is 64 bits wide.
MAX_SEED = 2**64 - 1
#: The last epoch: the generator of draws counts them in 32 bits.
MAX_EPOCH = 2**32 - 2
#: A batch of more samples than this is a typing error, not a wish.
MAX_BATCH = 1 << 20
#: Statistics as large as a picture of 1024 x 1024 x 3 in float32: 12 MiB would not fit a frame.
MAX_STATISTIC_BYTES = 2 << 20


def _refuse(field: str, got: object, wanted: str) -> ConfigError:
    return ConfigError(f"{field}: got {reprlib.repr(got)}; wanted {wanted}")


def _number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise _refuse(field, value, "a number")
    beyond = isinstance(value, int) and abs(value) > sys.float_info.max
    if beyond or not math.isfinite(value):
        raise _refuse(field, value, "a finite number")
    return float(value)


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise _refuse(field, value, "true or false")
    return bool(value)


def _choice(field: str, value: object, allowed: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) or value not in allowed:
        raise _refuse(field, value, "one of " + ", ".join(map(repr, allowed)))
    return value


def _whole(field: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise _refuse(field, value, f"a whole number from {low} to {high}")
    if not low <= value <= high:
        raise _refuse(field, value, f"a whole number from {low} to {high}")
    return int(value)


def _pair(field: str, value: object, wanted: str) -> tuple[object, object]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise _refuse(field, value, wanted)
    return value[0], value[1]


def _known(cls: type, wire: object, where: str) -> dict[str, Any]:
    if not isinstance(wire, Mapping):
        raise _refuse(where, wire, "a map of fields")
    names = [field.name for field in dataclasses.fields(cls)]
    for key in wire:
        if key not in names:
            known = ", ".join(names)
            raise ConfigError(f"{where}: unknown field {key!r:.80}; the fields are {known}")
    return dict(wire)


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
            known = _known(cls, value, field)
            try:
                array = np.frombuffer(known["data"], np.dtype(known["dtype"]))
                return cls.of(field, array.reshape([int(n) for n in known["shape"]]))
            except (KeyError, TypeError, ValueError, OverflowError, SyntaxError) as error:
                raise _refuse(field, value, "a map of dtype, shape and data") from error
        try:
            array = np.asarray(value)
            if array.dtype not in (np.float32, np.float64):
                array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise _refuse(field, value, "numbers that broadcast over a picture") from error
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
            put(self, name, _number(f"transforms.{name}", getattr(self, name)))
        for name in ("width_shift_range", "height_shift_range"):
            put(self, name, self._shift(name))
        for name in (
            "horizontal_flip", "vertical_flip", "samplewise_center", "samplewise_std_normalization",
        ):  # fmt: skip
            put(self, name, _flag(f"transforms.{name}", getattr(self, name)))
        if self.samplewise_std_normalization:
            put(self, "samplewise_center", True)  # as Keras's constructor does
        put(self, "zoom_range", self._zoom())
        if self.brightness_range is not None:
            wanted = "two factors (low, high), 0 <= low <= high"
            pair = _pair("transforms.brightness_range", self.brightness_range, wanted)
            low, high = (_number("transforms.brightness_range", v) for v in pair)
            if not 0 <= low <= high:
                raise _refuse("transforms.brightness_range", self.brightness_range, wanted)
            put(self, "brightness_range", (low, high))
        _choice("transforms.fill_mode", self.fill_mode, FILL_MODES)
        _choice("transforms.interpolation_order", self.interpolation_order, (0, 1))
        if self.rescale is not None:
            put(self, "rescale", _number("transforms.rescale", self.rescale))
        if self.function is not None and not (
            isinstance(self.function, str) and 0 < len(self.function) <= 512
        ):
            raise _refuse("transforms.function", self.function, "a name like 'package.module:name'")
        for name in ("featurewise_mean", "featurewise_std"):
            value = getattr(self, name)
            if value is not None:
                put(self, name, Statistic.of(f"transforms.{name}", value))

    def _shift(self, name: str) -> ShiftRange:
        field, value = f"transforms.{name}", getattr(self, name)
        if isinstance(value, (tuple, list, np.ndarray)):
            if not 0 < len(value) <= 65536:
                raise _refuse(field, value, "a number or at least one value to choose from")
            return tuple(_number(field, v) for v in value)
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return _whole(field, value, 0, 1 << 20)
        return _number(field, value)

    def _zoom(self) -> tuple[float, float]:
        field, value = "transforms.zoom_range", self.zoom_range
        if isinstance(value, (tuple, list)):
            pair = _pair(field, value, "a number z (meaning 1 - z to 1 + z) or (low, high)")
            return _number(field, pair[0]), _number(field, pair[1])
        z = _number(field, value)
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
        return cls(**_known(cls, wire, "transforms"))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One stream: dataset, order, batch and transforms. With a seed it fixes every byte.

    Attributes:
        data: Files on the server (.npz: its arrays by their names; .npy: one array named after the
            file's stem), or the name of arrays that a private server's client has handed over.
        x, y, sample_weight: Names of arrays: one, a tuple or a dict, as Keras takes them.
        images: The arrays of x that are pictures (rank 4) and pass through resize and transforms,
            all with the same draws. None: the first array of x, where it has rank 4.
        batch_size: Samples in a batch; the last one of an epoch is smaller unless drop_remainder.
        shuffle: A new order every epoch; otherwise the dataset's own.
        seed: 0 to 2**64 - 1; None lets the server draw one, once, and report it.
        shard: (index, count): every count-th sample of the epoch's order, from index on.
        validation_split, subset: As in Keras, the first share of the samples is "validation" and
            the rest "training". subset=None takes all of them.
        target_size: (height, width) that pictures are resized to, by Pillow, before transforms.
        interpolation: Of that resize.
        data_format: Of the dataset's pictures and of the batch.
        dtype: Of pictures in the batch. "uint8" is for pictures that pass unchanged or flipped.
        transforms: See `Transforms`.
    """

    data: tuple[str, ...]
    x: Structure[str]
    y: Structure[str] | None = None
    sample_weight: Structure[str] | None = None
    images: tuple[str, ...] | None = None
    batch_size: int = 32
    shuffle: bool = True
    seed: int | None = None
    shard: tuple[int, int] = (0, 1)
    drop_remainder: bool = False
    validation_split: float = 0.0
    subset: str | None = None
    target_size: tuple[int, int] | None = None
    interpolation: str = "nearest"
    data_format: str = "channels_last"
    dtype: str = "float32"
    transforms: Transforms = Transforms()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "data", self._data())
        put(self, "x", names_from_wire(self.x, "x"))
        if self.y is not None:
            put(self, "y", names_from_wire(self.y, "y"))
        if self.sample_weight is not None:
            put(self, "sample_weight", names_from_wire(self.sample_weight, "sample_weight"))
        if self.images is not None:
            names = names_from_wire(self.images, "images")
            put(self, "images", tuple(leaves(names)))
            for name in self.images:
                if name not in leaves(self.x):
                    raise _refuse("images", name, f"arrays of x: {', '.join(leaves(self.x))}")
        put(self, "batch_size", _whole("batch_size", self.batch_size, 1, MAX_BATCH))
        put(self, "shuffle", _flag("shuffle", self.shuffle))
        put(self, "drop_remainder", _flag("drop_remainder", self.drop_remainder))
        if self.seed is not None:
            put(self, "seed", _whole("seed", self.seed, 0, MAX_SEED))
        self._check_shard()
        self._check_split()
        if self.target_size is not None:
            height, width = _pair("target_size", self.target_size, "(height, width)")
            size = (
                _whole("target_size", height, 1, 1 << 15),
                _whole("target_size", width, 1, 1 << 15),
            )
            put(self, "target_size", size)
        _choice("interpolation", self.interpolation, INTERPOLATIONS)
        _choice("data_format", self.data_format, DATA_FORMATS)
        _choice("dtype", self.dtype, DTYPES)
        if not isinstance(self.transforms, Transforms):
            put(self, "transforms", Transforms.from_wire(self.transforms))
        self._check_uint8()

    def _data(self) -> tuple[str, ...]:
        value = (self.data,) if isinstance(self.data, str) else self.data
        if not (
            isinstance(value, (tuple, list))
            and 0 < len(value) <= 1024
            and all(isinstance(v, str) and 0 < len(v) < 4096 and "\0" not in v for v in value)
        ):
            raise _refuse("data", self.data, "the path of a .npz or .npy file, or a list of paths")
        return tuple(value)

    def _check_shard(self) -> None:
        index, count = _pair("shard", self.shard, "(index, count)")
        count = _whole("shard", count, 1, 1 << 20)
        object.__setattr__(self, "shard", (_whole("shard", index, 0, count - 1), count))

    def _check_split(self) -> None:
        split = _number("validation_split", self.validation_split)
        if not 0 <= split < 1:
            raise _refuse("validation_split", split, "a share from 0 up to, but not including, 1")
        object.__setattr__(self, "validation_split", split)
        if self.subset is not None:
            _choice("subset", self.subset, SUBSETS)
            if split == 0:
                raise _refuse("subset", self.subset, "a validation_split above 0 beside it")

    def _check_uint8(self) -> None:
        t = self.transforms
        plain = Transforms(horizontal_flip=t.horizontal_flip, vertical_flip=t.vertical_flip)
        if self.dtype == "uint8" and t != plain:
            raise ConfigError(
                "dtype: got 'uint8' together with transforms that give fractions; wanted "
                "'float32', or no transforms but flips (cast and rescale inside the model)"
            )

    @classmethod
    def from_wire(cls, wire: object) -> Spec:
        """Read and check the form that `to_wire` gives, or a table of augserver.toml."""
        known = _known(cls, wire, "spec")
        for name in ("data", "x"):
            if name not in known:
                raise ConfigError(f"spec: {name} is missing; wanted at least data and x")
        return cls(**known)

    def to_wire(self) -> dict[str, object]:
        """Plain data with the fields that differ from their defaults."""
        wire: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("x", "y", "sample_weight"):
                if value is not None:
                    wire[field.name] = names_to_wire(value)
            elif field.name == "transforms":
                if value != Transforms():
                    wire[field.name] = value.to_wire()
            elif value != field.default:
                wire[field.name] = list(value) if isinstance(value, tuple) else value
        return wire
