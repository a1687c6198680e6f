"""What a batch consists of: which columns of the dataset become which fields, and through what.

A recipe fills what is worked out here, once, from the spec and the dataset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import AugError, ConfigError
from augproto.named import named
from augproto.spec import Spec
from augproto.structure import Structure, leaves, places
from augproto.transforms import Transforms
from augserver.datasets.columns import ArrayColumn, Column, Columns
from augserver.datasets.reading import PictureFiles
from augserver.transforms import TransformBatch, build
from augserver.transforms.narrow import NARROW, WIDE, Narrowed
from augserver.transforms.whitening import checked

#: The role, and the field, of `Spec.hashes`.
HASHES = "hashes"

Array = npt.NDArray[Any]
Function = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Part:
    """One array of the batch: its field in the slot, its column in the dataset.

    Attributes:
        field, column: By name.
        dtype, shape: Of one sample's value in the batch.
        transform: None for what is copied as it is.
        size: Height and width of what the transform gives.
        same: Another field that this one is equal to (an auto-encoder's target: the finished
            picture itself).
        whitening: What finished pictures are multiplied by.
    """

    field: str
    column: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    transform: TransformBatch | None = None
    same: str | None = None
    whitening: Array | None = None
    size: tuple[int, int] = (0, 0)


class Parts:
    """The parts of a stream's batches.

    Args:
        spec: The stream.
        columns: Its dataset.
        function: What `spec.transforms.function` names, or None where nothing is computed.
        describes: Whether nothing is computed.

    Attributes:
        listed: All of them, in the order in which they are filled.
        structure: x, y, sample_weight and hashes as names of fields.
        pictures: The columns that are pictures.

    Raises:
        ConfigError: The spec does not fit the dataset.
    """

    def __init__(
        self, spec: Spec, columns: Columns, function: Function | None, *, describes: bool = False
    ) -> None:
        self._spec = spec
        self._columns = columns
        if function is None and spec.transforms.function is not None:
            function = named(spec.transforms.function) if spec.transforms.named else _absent
        self._function = function
        self._describes = describes
        self.pictures = self._find_pictures()
        self.structure: dict[str, Structure[str]] = {}
        self.listed: list[Part] = []
        for role in ("x", "y", "sample_weight"):
            names: Structure[str] | None = getattr(spec, role)
            if names is not None:
                fields = self.structure[role] = places(role, names)
                for field, name in zip(leaves(fields), leaves(names), strict=True):
                    self.listed.append(self._part(role, field, name))
        if spec.hashes is not None:
            self._check_hashes()
            self.structure[HASHES] = HASHES

    @property
    def fields(self) -> list[tuple[str, npt.DTypeLike, tuple[int, ...]]]:
        """(name, dtype, shape of a sample) of each, for the layout."""
        fields: list[tuple[str, npt.DTypeLike, tuple[int, ...]]] = [
            (part.field, part.dtype, part.shape) for part in self.listed
        ]
        return fields + ([(HASHES, np.int64, ())] if self._spec.hashes is not None else [])

    @property
    def samples(self) -> int:
        """Of the dataset.

        Raises:
            ConfigError: The columns do not agree on it.
        """
        lengths = {p.column: self._columns.by_name[p.column].shape[0] for p in self.listed}
        if len(set(lengths.values())) != 1:
            got = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
            raise ConfigError(f"the arrays differ in length: {got}; wanted one row per sample")
        return next(iter(lengths.values()))

    def _part(self, role: str, field: str, name: str) -> Part:
        column, spec = self._column(role, name), self._spec
        if role == "x" and name in self.pictures:
            shape = self._picture_shape(column)
            transform = self._transform(column, shape)
            whitening = self._whitening(shape)
            return Part(
                field,
                name,
                np.dtype(spec.dtype),
                shape,
                transform,
                whitening=whitening,
                size=height_width(shape, spec.data_format),
            )
        if isinstance(column, PictureFiles):
            return Part(field, name, np.dtype(spec.dtype), column.shape[1:], same="x")
        return Part(field, name, column.dtype, column.shape[1:])

    def _transform(self, column: Column, shape: tuple[int, int, int]) -> TransformBatch:
        """Of pictures of a column, resized to that shape."""
        spec = self._spec
        as_keras = spec.scheme == "keras"
        dtype, narrowed = spec.dtype, False
        if as_keras and isinstance(column, PictureFiles):
            # Keras reads files as floatx, and casts to the batch's dtype at the very end.
            dtype = spec.transforms.floatx
        elif dtype in NARROW and not as_keras:
            # Of 8-bit pictures that are at most flipped, nothing is computed at all.
            narrowed = not (dtype == column.dtype == np.uint8 and spec.transforms.flips_at_most)
            dtype = WIDE if narrowed else dtype
        transform = build(
            spec.transforms,
            data_format=spec.data_format,
            dtype=dtype,
            function=self._function,
            image_shape=shape,
            broadcasts=as_keras,
            describes=self._describes,
        )
        return Narrowed(transform) if narrowed else transform

    def _find_pictures(self) -> frozenset[str]:
        spec = self._spec
        if spec.images is not None:
            chosen = list(spec.images)
        else:
            first = next(leaves(spec.x))
            chosen = [first] if len(self._column("x", first).shape) == 4 else []
        for name in chosen:
            column = self._column("images", name)
            if len(column.shape) != 4 or column.dtype.kind not in "buif":
                raise ConfigError(
                    f"images: array {name!r} is {column.dtype} of shape {column.shape}; wanted "
                    "real numbers of shape (samples, height, width, channels)"
                )
        if not chosen and (spec.transforms != Transforms() or spec.target_size):
            raise ConfigError(
                "transforms: the first array of x has not the four axes of pictures; name the "
                "pictures with images=, or ask for no transforms"
            )
        return frozenset(chosen)

    def _check_hashes(self) -> None:
        drawn_for = sum(part.transform is not None for part in self.listed)
        if drawn_for != 1:
            raise ConfigError(
                f"hashes: got {self._spec.hashes} for x with {drawn_for} arrays of pictures; "
                "wanted exactly one: the numbers follow its draws"
            )

    def _whitening(self, picture: tuple[int, int, int]) -> Array | None:
        name = self._spec.whitening
        if name is None:
            return None
        column = self._column("whitening", name)
        if not isinstance(column, ArrayColumn):
            raise ConfigError(f"whitening: got {name!r}; wanted the name of an array")
        return checked(column.array, name, picture)

    def _picture_shape(self, column: Column) -> tuple[int, int, int]:
        shape = column.shape[1:]
        height, width = self._spec.target_size or height_width(shape, self._spec.data_format)
        if self._spec.data_format == "channels_first":
            return shape[0], height, width
        return height, width, shape[2]

    def _column(self, role: str, name: str) -> Column:
        columns = self._columns.by_name
        if name not in columns:
            raise ConfigError(
                f"{role}: no array {name!r} in the dataset; it has " + ", ".join(map(repr, columns))
            )
        column = columns[name]
        if not column.shape:
            raise ConfigError(f"{role}: array {name!r} is a single number; wanted one per sample")
        return column


def height_width(shape: tuple[int, ...], data_format: str) -> tuple[int, int]:
    """Of a picture's shape."""
    height, width = shape[1:] if data_format == "channels_first" else shape[:2]
    return height, width


def _absent(picture: Array) -> Array:
    raise AugError("this recipe only describes: it was made without the user's function")
