"""A dataset as a recipe sees it: columns by name, one value for each sample.

Arrays are columns as they are. Files become two: their pictures, which are read when they are
asked for, and their labels, in the form that the spec wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError, NotAllowed
from augproto.files import FileTable
from augproto.pictures import Pictures
from augproto.spec import HANDED, LABEL, PICTURE, Spec
from augserver.datasets.decoding import Decoder, FileUnavailable
from augserver.datasets.listing import base_of
from augserver.datasets.roots import Roots
from augserver.transforms import SampleError

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


class PictureFiles:
    """Pictures that are read when they are asked for."""

    def __init__(
        self, table: FileTable, spec: Spec, pictures: Pictures, roots: Roots | None
    ) -> None:
        assert spec.target_size is not None, "a spec of pictures has a size"
        self.table = table
        self._decoder = Decoder(pictures, spec.target_size, spec.interpolation, roots)
        self._first = spec.data_format == "channels_first"
        picture = (*spec.target_size, pictures.channels)
        if self._first:
            picture = (pictures.channels, *spec.target_size)
        self.shape: tuple[int, ...] = (len(table), *picture)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    def read(self, sample: int) -> Array:
        """The picture of a sample: uint8, of the stream's size and data format.

        Raises:
            SampleError: Its file holds no picture; final where that says nothing of the file.
        """
        file = self.table[sample]
        try:
            picture = self._decoder.read(file)
        except (FileUnavailable, NotAllowed, MemoryError) as error:
            message = str(error) or "out of memory"
            raise SampleError(sample, message, file.path, final=True) from error
        except Exception as error:  # damaged files make Pillow raise nearly anything
            raise SampleError(sample, f"{type(error).__name__}: {error}", file.path) from error
        return np.moveaxis(picture, -1, 0) if self._first else picture

    def take(self, indexes: Indexes, out: Array) -> None:
        """Write the pictures of these samples."""
        for i, sample in enumerate(indexes.tolist()):
            out[i] = self.read(sample)


class Columns:
    """The columns that a spec can name, over the arrays of its dataset.

    Args:
        roots: Folders below which files must lie when they are read, if any.

    Attributes:
        by_name: The columns.
        groups: int (samples,): the class of each, where a split takes its share of each class.

    Raises:
        ConfigError: The arrays do not hold what the spec says.
    """

    def __init__(
        self, spec: Spec, arrays: Mapping[str, Array], roots: tuple[str, ...] = ()
    ) -> None:
        self.by_name: dict[str, Column] = {}
        self.groups: Array | None = None
        self._files: FileTable | None = None
        if spec.pictures is None:
            self.by_name = {name: ArrayColumn(array) for name, array in arrays.items()}
            return
        handed = spec.data[0].startswith(HANDED)
        self._files = table = FileTable(arrays, "" if handed else base_of(spec.data[0]))
        own = {name: array for name, array in arrays.items() if not name.startswith("files.")}
        self.by_name = {name: ArrayColumn(array) for name, array in own.items()}
        self.by_name[PICTURE] = PictureFiles(
            table, spec, spec.pictures, Roots(roots) if roots else None
        )
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
            self.by_name[LABEL] = ArrayColumn(own[LABEL].astype(np.float32))

    def path(self, sample: int) -> str:
        """Of a sample's file; empty where it has none, or where there is no such sample."""
        if self._files is None or not 0 <= sample < len(self._files):
            return ""
        return self._files[sample].path
