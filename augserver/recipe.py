"""A stream as a pure function: (spec, seed, dataset) and (epoch, step) give the bytes of a batch.

This is the law of the house in one class. Whoever holds a recipe, in whatever process and after
whatever crash, fills a slot with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import AugError, ConfigError
from augproto.layout import Layout
from augproto.spec import Spec, Transforms
from augproto.structure import Structure, leaves, places
from augserver.draws import Draws, draw
from augserver.sampling import Sampler
from augserver.transforms import SampleError, TransformBatch, build
from augserver.transforms.resize import resize

Array = npt.NDArray[Any]
Function = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class _Part:
    """One array of the batch: its field in the slot, its array in the dataset."""

    field: str
    array: str
    transform: TransformBatch | None  # None: copied as it is


class Recipe:
    """How to make every batch of one stream.

    Args:
        spec: The stream.
        seed: The seed in force; the spec's own, or the one that was drawn for it.
        arrays: The dataset, by name; read only.
        function: What `spec.transforms.function` names. Left out where nothing is computed (the
            server describes streams and runs no user's code).

    Attributes:
        layout: Of a batch in memory.
        structure: x, y and sample_weight as names of the layout's fields.
        sampler: Which samples are in which batch.

    Raises:
        ConfigError: The spec does not fit the dataset.
    """

    def __init__(
        self, spec: Spec, seed: int, arrays: Mapping[str, Array], function: Function | None = None
    ) -> None:
        self.spec = spec
        self.seed = seed
        self._arrays = arrays
        self._parts: list[_Part] = []
        self.structure: dict[str, Structure[str]] = {}
        images = self._images()
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
                array = self._array(role, name)
                transform = None
                dtype, shape = array.dtype, array.shape[1:]
                if role == "x" and name in images:
                    shape = self._image_shape(name)
                    dtype = np.dtype(spec.dtype)
                    transform = build(
                        spec.transforms,
                        data_format=spec.data_format,
                        dtype=spec.dtype,
                        function=function,
                        image_shape=shape,
                    )
                self._parts.append(_Part(field, name, transform))
                samples.append((field, dtype, shape))
        self.sampler = Sampler.of(spec, self._length(), seed)
        # A batch is never larger than an epoch, so neither need a slot be.
        self.layout = Layout.of(min(spec.batch_size, self.sampler.samples), samples)

    def count(self, epoch: int, step: int) -> int:
        """Samples in a batch."""
        return len(self.sampler.batch(epoch, step))

    def fill(
        self,
        epoch: int,
        step: int,
        out: Mapping[str, Array],
        note: Callable[[int], None] | None = None,
    ) -> None:
        """Write the batch.

        Args:
            out: The layout's fields, each with as many rows as `count` says.
            note: Called with a sample's index in the dataset before something is done to it that
                may kill this process.

        Raises:
            SampleError: A picture cannot be made; it names the sample.
        """
        indexes = self.sampler.batch(epoch, step)
        draws: dict[tuple[int, int], Draws] = {}
        for part in self._parts:
            array, target = self._arrays[part.array], out[part.field]
            if part.transform is None:
                # "clip" spares numpy a second buffer; the sampler's indexes are in range.
                np.take(array, indexes, axis=0, out=target, mode="clip")
                continue
            height, width = _height_width(target.shape[1:], self.spec.data_format)
            if (height, width) not in draws:
                draws[height, width] = draw(
                    self.spec.transforms,
                    seed=self.seed,
                    epoch=epoch,
                    indexes=indexes,
                    height=height,
                    width=width,
                )
            rows = indexes
            if array.shape[1:] != target.shape[1:]:
                array = resize(
                    array,
                    indexes,
                    (height, width),
                    interpolation=self.spec.interpolation,
                    data_format=self.spec.data_format,
                )
                rows = np.arange(len(indexes))
            try:
                part.transform.transform_batch(
                    array, rows, draws[height, width], target, _of_rows(note, rows, indexes)
                )
            except SampleError as error:
                if rows is indexes:
                    raise
                sample = int(indexes[error.sample])
                raise SampleError(sample, error.args[1]) from error.__cause__

    def _images(self) -> set[str]:
        """The names of the arrays that are pictures."""
        spec = self.spec
        if spec.images is not None:
            chosen = list(spec.images)
        else:
            first = next(leaves(spec.x))
            chosen = [first] if self._array("x", first).ndim == 4 else []
        for name in chosen:
            array = self._array("images", name)
            if array.ndim != 4 or array.dtype.kind not in "uif":
                raise ConfigError(
                    f"images: array {name!r} is {array.dtype} of shape {array.shape}; wanted real "
                    "numbers of shape (samples, height, width, channels)"
                )
            if spec.dtype == "uint8" and array.dtype != np.uint8:
                raise ConfigError(
                    f"dtype: got 'uint8' for array {name!r} of {array.dtype}; wanted 'float32'"
                )
        if not chosen and (spec.transforms != Transforms() or spec.target_size):
            raise ConfigError(
                "transforms: the first array of x has not the four axes of pictures; name the "
                "pictures with images=, or ask for no transforms"
            )
        return set(chosen)

    def _image_shape(self, name: str) -> tuple[int, int, int]:
        shape = self._arrays[name].shape[1:]
        height, width = self.spec.target_size or _height_width(shape, self.spec.data_format)
        if self.spec.data_format == "channels_first":
            return shape[0], height, width
        return height, width, shape[2]

    def _array(self, role: str, name: str) -> Array:
        if name not in self._arrays:
            raise ConfigError(
                f"{role}: no array {name!r} in the dataset; it has "
                + ", ".join(map(repr, self._arrays))
            )
        array = self._arrays[name]
        if array.ndim == 0:
            raise ConfigError(f"{role}: array {name!r} is a single number; wanted one per sample")
        return array

    def _length(self) -> int:
        lengths = {part.array: len(self._arrays[part.array]) for part in self._parts}
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
