"""A dataset as a recipe sees it: columns by name, one value for each sample.

Arrays are columns as they are. Files become two: their pictures, which are read when they are
asked for, and their labels, in the form that the spec wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError
from augproto.files import File, FileTable
from augproto.pictures import Pictures
from augproto.spec import HANDED, LABEL, PICTURE, Spec
from augserver.datasets.cache import DecodedCache
from augserver.datasets.listing import base_of
from augserver.datasets.reading import PictureFiles, Reading
from augserver.datasets.roots import Roots

Array = npt.NDArray[Any]
Indexes = npt.NDArray[np.int64]


class Column(Protocol):
    """One value for each sample; `shape` counts the samples first."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(samples, *shape of a value)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a value's numbers."""

    def take(self, indexes: Indexes, out: Array) -> None:
        """Write the values of these samples."""


class ArrayColumn:
    """An array of the dataset."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype

    def take(self, indexes: Indexes, out: Array) -> None:
        """Write the rows of these samples."""
        # "clip" spares numpy a second buffer; the sampler's indexes are in range.
        np.take(self.array, indexes, axis=0, out=out, mode="clip")


class OneHot:
    """Classes by number, as float32 rows of zeros and a one; nothing is stored."""

    def __init__(self, numbers: Array, classes: int) -> None:
        self._numbers = numbers
        self.shape: tuple[int, ...] = (len(numbers), classes)
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def take(self, indexes: Indexes, out: Array) -> None:
        """Write the rows of these samples."""
        out[...] = 0
        out[np.arange(len(indexes)), self._numbers[indexes]] = 1


class Cast:
    """An array's values in another dtype; as they are taken, since rows may still be to come."""

    def __init__(self, array: Array, dtype: npt.DTypeLike) -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)

    def take(self, indexes: Indexes, out: Array) -> None:
        """Write the rows of these samples."""
        out[...] = self._array[indexes]


class Columns:
    """The columns that a spec can name, over the arrays of its dataset.

    Args:
        roots: Folders below which files must lie when they are read, if any.
        cache: Of pictures that were read, if there is one.
        brought: The bytes of files by sample, where these are another machine's.

    Attributes:
        by_name: The columns.
        groups: int (samples,): the class of each, where a split takes its share of each class.

    Raises:
        ConfigError: The arrays do not hold what the spec says.
    """

    def __init__(
        self,
        spec: Spec,
        arrays: Mapping[str, Array],
        roots: tuple[str, ...] = (),
        cache: DecodedCache | None = None,
        brought: Mapping[int, bytes] | None = None,
    ) -> None:
        self.by_name: dict[str, Column] = {}
        self._pictures: PictureFiles | None = None
        self.groups: Array | None = None
        if spec.pictures is None:
            self.by_name = {name: ArrayColumn(array) for name, array in arrays.items()}
            return
        elsewhere = brought is not None or spec.data[0].startswith(HANDED)
        table = FileTable(arrays, "" if elsewhere else base_of(spec.data[0]))
        own = {name: array for name, array in arrays.items() if not name.startswith("files.")}
        self.by_name = {name: ArrayColumn(array) for name, array in own.items()}
        self._pictures = PictureFiles(
            table, spec, spec.pictures, Roots(roots) if roots else None, cache, brought
        )
        self.by_name[PICTURE] = self._pictures
        if spec.pictures.classified:
            self._classify(spec.pictures, own)

    def _classify(self, pictures: Pictures, own: Mapping[str, Array]) -> None:
        if LABEL not in own or not pictures.class_names:
            raise ConfigError(
                f"pictures.label_mode: got {pictures.label_mode!r} for files without classes; "
                "wanted 'none' and labels of your own (y=)"
            )
        self.groups = own[LABEL]
        if pictures.label_mode == "categorical":
            self.by_name[LABEL] = OneHot(own[LABEL], len(pictures.class_names))
        elif pictures.label_mode == "binary":
            self.by_name[LABEL] = Cast(own[LABEL], np.float32)

    def reading(self) -> Reading | None:
        """What reads the pictures of one batch; None where they are no files."""
        return None if self._pictures is None else Reading(self._pictures)

    def file(self, sample: int) -> File | None:
        """The file of a sample; None where samples have none."""
        return None if self._pictures is None else self._pictures.table[sample]

    def path(self, sample: int) -> str:
        """Of a sample's file; empty where it has none, or where there is no such sample."""
        if self._pictures is None or not 0 <= sample < len(self._pictures.table):
            return ""
        return self._pictures.path(sample)
