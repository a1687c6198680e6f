"""What a stream is made of: which arrays or files, in which batches, through which transforms.

A `Spec` is a value. It comes from a client's arguments, from the wire, or from augserver.toml, and
all three doors lead through the same checks: whatever passes can be served, whatever does not is
refused by name with the value that was got and the values that are wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto import checks
from augproto.errors import ConfigError
from augproto.pictures import Pictures
from augproto.structure import Structure, leaves, names_from_wire, names_to_wire

FILL_MODES = ("constant", "nearest", "reflect", "wrap")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "hamming", "box", "lanczos")
DATA_FORMATS = ("channels_last", "channels_first")
DTYPES = ("float32", "float64", "uint8")
SUBSETS = ("training", "validation")
POLICIES = ("raise", "skip", "substitute")

#: What the columns of a dataset of files are called: its pictures, and its labels if it has any.
PICTURE = "picture"
LABEL = "label"

#: The name of what a private server's client has handed over (arrays, a function) starts so.
HANDED = "handed:"
#: The largest seed: the key of the counter-based generator is 64 bits wide.
MAX_SEED = 2**64 - 1
#: A batch of more samples than this is a typing error, not a wish.
MAX_BATCH = 1 << 20
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One stream: dataset, order, batch and transforms. With a seed it fixes every byte.

    Attributes:
        data: Files on the server (.npz: its arrays by their names; .npy: one array named after the
            file's stem), or the name of arrays that a private server's client has handed over.
            With `pictures` one folder of picture files, or one .csv that lists them.
        pictures: How files become pictures and labels; None for arrays. x is "picture" then, and y
            what `pictures.label_mode` says.
        x, y, sample_weight: Names of arrays: one, a tuple or a dict, as Keras takes them.
        images: The arrays of x that are pictures (rank 4) and pass through resize and transforms,
            all with the same draws. None: the first array of x, where it has rank 4.
        batch_size: Samples in a batch; the last one of an epoch is smaller unless drop_remainder.
        shuffle: A new order every epoch; otherwise the dataset's own.
        seed: 0 to 2**64 - 1; None lets the server draw one, once, and report it.
        shard: (index, count): every count-th sample of the epoch's order, from index on.
        validation_split, subset: As in Keras, the first share of the samples is "validation" and
            the rest "training"; of a folder, the first share of each class. subset=None takes all.
        target_size: (height, width) that pictures are resized to, by Pillow, before transforms.
        interpolation: Of that resize.
        data_format: Of the dataset's pictures and of the batch.
        dtype: Of pictures in the batch. "uint8" is for pictures that pass unchanged or flipped.
        bad_samples: What becomes of a sample whose file cannot be read or whose function raises:
            "raise" ends in a WorkerError; "skip" makes the batch shorter; "substitute" takes the
            next sample of the dataset in its place (with its label, and the draws of the sample
            that it stands for). Both of these are told, and are the same in every worker.
        transforms: See `Transforms`.
    """

    data: tuple[str, ...]
    x: Structure[str] = ""
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
    pictures: Pictures | None = None
    bad_samples: str = "raise"
    transforms: Transforms = Transforms()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "data", self._data())
        if self.pictures is not None:
            self._name_columns(self.pictures)
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
                    raise checks.refuse("images", name, f"arrays of x: {', '.join(leaves(self.x))}")
        put(self, "batch_size", checks.whole("batch_size", self.batch_size, 1, MAX_BATCH))
        put(self, "shuffle", checks.flag("shuffle", self.shuffle))
        put(self, "drop_remainder", checks.flag("drop_remainder", self.drop_remainder))
        if self.seed is not None:
            put(self, "seed", checks.whole("seed", self.seed, 0, MAX_SEED))
        self._check_shard()
        self._check_split()
        if self.target_size is not None:
            height, width = checks.pair("target_size", self.target_size, "(height, width)")
            size = (
                checks.whole("target_size", height, 1, 1 << 15),
                checks.whole("target_size", width, 1, 1 << 15),
            )
            put(self, "target_size", size)
        checks.choice("interpolation", self.interpolation, INTERPOLATIONS)
        checks.choice("data_format", self.data_format, DATA_FORMATS)
        checks.choice("dtype", self.dtype, DTYPES)
        checks.choice("bad_samples", self.bad_samples, POLICIES)
        if self.bad_samples == "skip" and self.drop_remainder:
            raise checks.refuse(
                "bad_samples", "skip", "'substitute' where drop_remainder asks for full batches"
            )
        if not isinstance(self.transforms, Transforms):
            put(self, "transforms", Transforms.from_wire(self.transforms))
        self._check_uint8()

    def _data(self) -> tuple[str, ...]:
        value = (self.data,) if isinstance(self.data, str) else self.data
        if not (
            isinstance(value, (tuple, list))
            and 0 < len(value) <= 1024
            and all(isinstance(v, str) and 0 < len(v) < 4096 for v in value)
            and all("\0" not in v and checks.travels(v) for v in value)
        ):
            raise checks.refuse(
                "data",
                self.data,
                "the path of a .npz or .npy file or of a folder, or a list of paths",
            )
        return tuple(value)

    def _name_columns(self, pictures: object) -> None:
        """The names of x and y follow from the pictures; a spec that says others means arrays."""
        put = object.__setattr__
        if not isinstance(pictures, Pictures):
            pictures = Pictures.from_wire(pictures)
            put(self, "pictures", pictures)
        put(self, "x", self.x or PICTURE)
        if self.x != PICTURE:
            raise checks.refuse("x", self.x, f"nothing, or {PICTURE!r}, beside pictures")
        if self.target_size is None:
            raise checks.refuse(
                "target_size", None, "(height, width): files have pictures of any size"
            )
        mode = pictures.label_mode
        if mode == "input":
            y: str | None = PICTURE
        else:
            y = None if mode == "none" else LABEL
        handed = self.data[0].startswith(HANDED) and mode == "none"
        if not handed:  # a list of files that a program hands over brings labels of its own
            if self.y not in (None, y):
                raise checks.refuse(
                    "y", self.y, f"nothing, or {y!r}, beside pictures of label_mode {mode!r}"
                )
            put(self, "y", y)
        if len(self.data) != 1:
            raise checks.refuse("data", self.data, "one folder or one .csv beside pictures")

    def _check_shard(self) -> None:
        index, count = checks.pair("shard", self.shard, "(index, count)")
        count = checks.whole("shard", count, 1, 1 << 20)
        object.__setattr__(self, "shard", (checks.whole("shard", index, 0, count - 1), count))

    def _check_split(self) -> None:
        split = checks.number("validation_split", self.validation_split)
        if not 0 <= split < 1:
            raise checks.refuse(
                "validation_split", split, "a share from 0 up to, but not including, 1"
            )
        object.__setattr__(self, "validation_split", split)
        if self.subset is not None:
            checks.choice("subset", self.subset, SUBSETS)
            if split == 0:
                raise checks.refuse("subset", self.subset, "a validation_split above 0 beside it")

    def _check_uint8(self) -> None:
        t = self.transforms
        plain = Transforms(horizontal_flip=t.horizontal_flip, vertical_flip=t.vertical_flip)
        if self.dtype == "uint8" and t != plain:
            raise ConfigError(
                "dtype: got 'uint8' together with transforms that give fractions; wanted "
                "'float32', or no transforms but flips (cast and rescale inside the model)"
            )

    def with_classes(self, names: tuple[str, ...]) -> Spec:
        """The same stream with the classes that were found in its dataset."""
        if self.pictures is None or not names:
            return self
        return replace(self, pictures=replace(self.pictures, class_names=names))

    @classmethod
    def from_wire(cls, wire: object) -> Spec:
        """Read and check the form that `to_wire` gives, or a table of augserver.toml."""
        known = checks.fields(cls, wire, "spec")
        for name in ("data", "x"):
            if name not in known and (name == "data" or known.get("pictures") is None):
                raise ConfigError(
                    f"spec: {name} is missing; wanted at least data, and x (arrays) or pictures "
                    "(files)"
                )
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
            elif field.name == "pictures":
                if value is not None:
                    wire[field.name] = value.to_wire()
            elif value != field.default:
                wire[field.name] = list(value) if isinstance(value, tuple) else value
        return wire
