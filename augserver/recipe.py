"""A stream as a pure function: (spec, seed, dataset) and (epoch, step) give the bytes of a batch.

This is the law of the house in one class. Whoever holds a recipe, in whatever process and after
whatever crash, fills a slot with the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import AugError, ConfigError
from augproto.layout import Layout
from augproto.spec import Spec
from augproto.structure import Structure, leaves, places
from augproto.transforms import Transforms
from augserver import keras_draws
from augserver.datasets.columns import ArrayColumn, Column, Columns, PictureFiles
from augserver.draws import Draws, draw
from augserver.policy import Made, Rows
from augserver.sampling import Sampler
from augserver.transforms import SampleError, TransformBatch, build
from augserver.transforms.resize import resize

Array = npt.NDArray[Any]
Indexes = npt.NDArray[np.int64]
Function = Callable[[Array], Array]
#: Told the index of each sample before it is read or given to a user's function.
Note = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class _Part:
    """One array of the batch: its field in the slot, its column in the dataset.

    `transform` is None for what is copied as it is; `same` names another field that this one is
    equal to (an auto-encoder's target, the finished picture itself).
    """

    field: str
    column: str
    transform: TransformBatch | None = None
    same: str | None = None


class Recipe:
    """How to make every batch of one stream.

    Args:
        spec: The stream.
        seed: The seed in force; the spec's own, or the one that was drawn for it.
        arrays: The dataset, by name; read only.
        function: What `spec.transforms.function` names. Left out where nothing is computed (the
            server describes streams and runs no user's code).
        roots: Folders below which files must lie when they are read, if any.

    Attributes:
        layout: Of a batch in memory.
        structure: x, y and sample_weight as names of the layout's fields.
        sampler: Which samples are in which batch.

    Raises:
        ConfigError: The spec does not fit the dataset.
    """

    def __init__(
        self,
        spec: Spec,
        seed: int,
        arrays: Mapping[str, Array],
        function: Function | None = None,
        roots: tuple[str, ...] = (),
    ) -> None:
        self.spec = spec
        self.seed = seed
        self._columns = Columns(spec, arrays, roots)
        self._parts: list[_Part] = []
        self.structure: dict[str, Structure[str]] = {}
        self._pictures = self._picture_columns()
        if function is None and spec.transforms.function is not None:
            function = _absent
        samples: list[tuple[str, npt.DTypeLike, tuple[int, ...]]] = []
        for role in ("x", "y", "sample_weight"):
            names: Structure[str] | None = getattr(spec, role)
            if names is None:
                continue
            fields = places(role, names)
            self.structure[role] = fields
            for field, name in zip(leaves(fields), leaves(names), strict=True):
                part, dtype, shape = self._part(role, field, name, function)
                self._parts.append(part)
                samples.append((field, dtype, shape))
        self.sampler = Sampler.of(spec, self._length(), seed, self._columns.groups)
        # A batch is never larger than an epoch, so neither need a slot be.
        self.layout = Layout.of(min(spec.batch_size, self.sampler.samples), samples)

    def _part(
        self, role: str, field: str, name: str, function: Function | None
    ) -> tuple[_Part, np.dtype[Any], tuple[int, ...]]:
        column = self._column(role, name)
        if role == "x" and name in self._pictures:
            shape = self._picture_shape(column)
            transform = build(
                self.spec.transforms,
                data_format=self.spec.data_format,
                dtype=self.spec.dtype,
                function=function,
                image_shape=shape,
            )
            return _Part(field, name, transform), np.dtype(self.spec.dtype), shape
        if isinstance(column, PictureFiles):
            return _Part(field, name, same="x"), np.dtype(self.spec.dtype), column.shape[1:]
        return _Part(field, name), column.dtype, column.shape[1:]

    def count(self, epoch: int, step: int) -> int:
        """Samples in a batch of which none is bad."""
        return len(self.sampler.batch(epoch, step))

    def path(self, sample: int) -> str:
        """Of a sample's file; empty where it has none."""
        return self._columns.path(sample)

    def fill(
        self, epoch: int, step: int, out: Mapping[str, Array], note: Note | None = None
    ) -> Made:
        """Write the batch.

        Args:
            out: The layout's fields, each with as many rows as `count` says; a batch that skips
                samples fills the first ones.
            note: Called with a sample's index in the dataset before something is done to it that
                may kill this process.

        Raises:
            SampleError: A sample cannot be made, and the stream's policy does not go on without
                it; it names the sample and its file.
        """
        rows = Rows(self.sampler, epoch, step, self.spec.bad_samples)
        read: dict[int, Array] = {}  # of this batch: a new attempt reads no file twice
        while True:
            try:
                while errors := self._read(rows, read, note):
                    rows.without(*errors)
                self._write(rows, out, read, note)
                return rows.made()
            except SampleError as error:
                rows.without(error)

    def _read(self, rows: Rows, read: dict[int, Array], note: Note | None) -> list[SampleError]:
        """Read what is not read yet; returns all that cannot be, so that each is found out once."""
        errors = []
        for column in map(self._columns.by_name.__getitem__, self._pictures):
            if isinstance(column, PictureFiles):
                for sample in dict.fromkeys(rows.taken.tolist()):
                    if sample in read:
                        continue
                    if note is not None:
                        note(sample)
                    try:
                        read[sample] = column.read(sample)
                    except SampleError as error:
                        if self.spec.bad_samples == "raise":
                            raise
                        errors.append(error)
        return errors

    def _write(
        self,
        rows: Rows,
        out: Mapping[str, Array],
        read: dict[int, Array],
        note: Note | None,
    ) -> None:
        draws: dict[tuple[int, int], Draws] = {}
        for part in self._parts:
            target = out[part.field][: len(rows.taken)]
            column = self._columns.by_name[part.column]
            if part.same is not None:
                target[...] = out[part.same][: len(rows.taken)]
                continue
            if part.transform is None:
                column.take(rows.taken, target)
                continue
            size = _height_width(target.shape[1:], self.spec.data_format)
            source, indexes = self._source(column, rows.taken, size, read)
            noted = _of_rows(note, indexes, rows.taken)
            try:
                if self._interleaved:
                    self._in_turn(rows, size, part.transform, source, indexes, target, noted)
                    continue
                if size not in draws:
                    draws[size] = self._draw(rows, size)
                part.transform.transform_batch(source, indexes, draws[size], target, noted)
            except SampleError as error:
                if indexes is not rows.taken:
                    error.sample = int(rows.taken[error.sample])
                error.path = self._columns.path(error.sample)
                raise

    def _draw(self, rows: Rows, size: tuple[int, int]) -> Draws:
        """The parameters of a batch's rows, by the stream's scheme."""
        height, width = size
        if self.spec.scheme == "keras":
            state = self.sampler.keras_state(rows.epoch, rows.step)
            whole = keras_draws.draw(self.spec.transforms, state, rows.whole, height, width)
            return whole if len(rows.places) == rows.whole else whole.of(rows.places)
        return draw(
            self.spec.transforms,
            seed=self.seed,
            epoch=rows.epoch,
            indexes=rows.drawn,
            height=height,
            width=width,
        )

    @property
    def _interleaved(self) -> bool:
        """Whether a user's function may draw between one sample's parameters and the next's."""
        return self.spec.scheme == "keras" and self.spec.transforms.function is not None

    def _in_turn(
        self,
        rows: Rows,
        size: tuple[int, int],
        transform: TransformBatch,
        source: Array,
        indexes: Indexes,
        target: Array,
        note: Note | None,
    ) -> None:
        """Sample by sample, as Keras: parameters and a function's draws are of one generator."""
        height, width = size
        np.random.set_state(self.sampler.keras_state(rows.epoch, rows.step).get_state())
        random.seed(self.seed + rows.epoch * self.sampler.steps + rows.step)  # Keras leaves it be
        row_of = {place: row for row, place in enumerate(rows.places.tolist())}
        for place in range(rows.whole):
            drawn = keras_draws.draw(self.spec.transforms, np.random, 1, height, width)
            if place in row_of:
                row = slice(row_of[place], row_of[place] + 1)
                transform.transform_batch(source, indexes[row], drawn, target[row], note)

    def _source(
        self,
        column: Column,
        samples: Indexes,
        size: tuple[int, int],
        read: dict[int, Array],
    ) -> tuple[Array, Indexes]:
        """Pictures of the batch's size, and where in them these samples are."""
        if isinstance(column, PictureFiles):
            return np.stack([read[s] for s in samples.tolist()]), np.arange(len(samples))
        assert isinstance(column, ArrayColumn), "pictures are arrays or files"
        if _height_width(column.shape[1:], self.spec.data_format) == size:
            return column.array, samples
        pictures = resize(
            column.array,
            samples,
            size,
            interpolation=self.spec.interpolation,
            data_format=self.spec.data_format,
        )
        return pictures, np.arange(len(samples))

    def _picture_columns(self) -> set[str]:
        """The names of the columns that are pictures."""
        spec = self.spec
        if spec.images is not None:
            chosen = list(spec.images)
        else:
            first = next(leaves(spec.x))
            chosen = [first] if len(self._column("x", first).shape) == 4 else []
        for name in chosen:
            column = self._column("images", name)
            if len(column.shape) != 4 or column.dtype.kind not in "uif":
                raise ConfigError(
                    f"images: array {name!r} is {column.dtype} of shape {column.shape}; wanted "
                    "real numbers of shape (samples, height, width, channels)"
                )
            if spec.dtype == "uint8" and column.dtype != np.uint8:
                raise ConfigError(
                    f"dtype: got 'uint8' for array {name!r} of {column.dtype}; wanted 'float32'"
                )
        if not chosen and (spec.transforms != Transforms() or spec.target_size):
            raise ConfigError(
                "transforms: the first array of x has not the four axes of pictures; name the "
                "pictures with images=, or ask for no transforms"
            )
        return set(chosen)

    def _picture_shape(self, column: Column) -> tuple[int, int, int]:
        shape = column.shape[1:]
        height, width = self.spec.target_size or _height_width(shape, self.spec.data_format)
        if self.spec.data_format == "channels_first":
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

    def _length(self) -> int:
        lengths = {part.column: self._columns.by_name[part.column].shape[0] for part in self._parts}
        if len(set(lengths.values())) != 1:
            got = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
            raise ConfigError(f"the arrays differ in length: {got}; wanted one row per sample")
        return next(iter(lengths.values()))


def _of_rows(
    note: Callable[[int], None] | None, rows: npt.NDArray[np.int64], indexes: npt.NDArray[np.int64]
) -> Callable[[int], None] | None:
    """A note of a sample by its row; resized pictures are an array of their own."""
    if note is None or rows is indexes:
        return note
    return lambda row: note(int(indexes[row]))


def _absent(picture: Array) -> Array:
    raise AugError("this recipe only describes: it was made without the user's function")


def _height_width(shape: tuple[int, ...], data_format: str) -> tuple[int, int]:
    height, width = shape[1:] if data_format == "channels_first" else shape[:2]
    return height, width
