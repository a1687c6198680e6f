"""Pictures in files as a column of a dataset, and those of one batch while it is made.

A batch's pictures become one array, since a kernel takes one: rows of a buffer into which files are
decoded, or the whole cache, in place, where every sample of the batch has a place in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import NotAllowed
from augproto.files import FileTable
from augproto.pictures import Pictures
from augproto.spec import Spec
from augserver.datasets.cache import DecodedCache
from augserver.datasets.decoding import Decoder, FileUnavailable
from augserver.datasets.roots import Roots
from augserver.transforms import SampleError

#: Files that the kernel is told of before they are wanted.
AHEAD = 32
#: Bytes of a buffer that is kept for the next batch; new memory costs a page fault for each 4 KiB.
KEPT_BYTES = 128 << 20

Array = npt.NDArray[Any]
Indexes = npt.NDArray[np.int64]


class PictureFiles:
    """Pictures that are read when they are asked for.

    Args:
        roots: Folders below which files must lie when they are read, if any.
        cache: Where pictures are kept that were read, if anywhere.
        brought: The bytes of files, by sample, where these are another machine's and no path leads
            to them.
    """

    def __init__(
        self,
        table: FileTable,
        spec: Spec,
        pictures: Pictures,
        roots: Roots | None,
        cache: DecodedCache | None = None,
        brought: Mapping[int, bytes] | None = None,
    ) -> None:
        assert spec.target_size is not None, "a spec of pictures has a size"
        self.table = table
        self.cache = cache
        self._brought = brought
        self.decoder = Decoder(pictures, spec.target_size, spec.interpolation, roots)
        self.first = spec.data_format == "channels_first"
        picture = (*spec.target_size, pictures.channels)
        if self.first:
            picture = (pictures.channels, *spec.target_size)
        self.shape: tuple[int, ...] = (len(table), *picture)
        self.dtype: np.dtype[Any] = np.dtype(pictures.dtype)
        self.spare: list[Array] = []

    def read(self, sample: int, out: Array | None = None) -> Array:
        """The picture of a sample, (height, width, channels); see `Decoder.read`.

        Raises:
            SampleError: Its file holds no picture; final where that says nothing of the file.
        """
        try:
            if self._brought is not None:
                return self.decoder.decode(self._brought[sample], out)
            return self.decoder.read(self.table[sample], out)
        except (FileUnavailable, NotAllowed, MemoryError) as error:
            message = str(error) or "out of memory"
            raise SampleError(sample, message, self.path(sample), final=True) from error
        except Exception as error:  # damaged files make Pillow raise nearly anything
            message = f"{type(error).__name__}: {error}"
            raise SampleError(sample, message, self.path(sample)) from error

    def path(self, sample: int) -> str:
        """Of a sample's file; empty where it is another machine's."""
        return self.table[sample].path if self._brought is None else ""

    def read_ahead(self, samples: Sequence[int]) -> None:
        """Have the kernel fetch files that will be wanted; what is wrong with one shows then.

        All that this costs where they are in memory is four microseconds each. A thread that reads
        them gained no more from a disk, and costs more.
        """
        if self._brought is not None:
            return
        for sample in samples:
            with contextlib.suppress(OSError):
                fd = os.open(self.table[sample].path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)

    def take(self, indexes: Indexes, out: Array) -> None:
        """Write the pictures of these samples."""
        for i, sample in enumerate(indexes.tolist()):
            picture = self.read(sample)
            out[i] = np.moveaxis(picture, -1, 0) if self.first else picture


class Reading:
    """The pictures of one batch; `close` it when the batch is made.

    ::

        for sample in reading.missing(samples):
            reading.read(sample)
        source, indexes, names = reading.source(samples)
    """

    def __init__(self, column: PictureFiles) -> None:
        self._column = column
        self._cache = column.cache
        self._in_place = False
        self._buffer: Array | None = None
        self._rows: dict[int, int] = {}
        self._free: list[int] = []

    def missing(self, samples: Indexes) -> Iterator[int]:
        """The samples that have to be read, one by one, each before the next is asked for."""
        wanted = np.array(list(dict.fromkeys(samples.tolist())), np.int64)
        cache = self._cache
        there = np.zeros(len(wanted), bool) if cache is None else cache.whole(wanted)
        self._in_place = cache is not None and int(wanted.max()) < len(cache)
        if not self._in_place:
            self._make_room(len(samples), wanted)
            there |= np.isin(wanted, list(self._rows))
            if cache is not None:
                for sample in wanted[there].tolist():
                    if sample not in self._rows:
                        self._put(sample, cache.pictures[sample])
        missing = wanted[~there].tolist()
        self._column.read_ahead(missing[:AHEAD])
        for i, sample in enumerate(missing):
            if i % AHEAD == 0:
                self._column.read_ahead(missing[i + AHEAD : i + 2 * AHEAD])
            yield sample

    def read(self, sample: int) -> None:
        """Read one of those.

        Raises:
            SampleError: It cannot be read.
        """
        cache = self._cache
        if self._in_place:
            assert cache is not None, "nothing else is in place"
            self._column.read(sample, cache.place(sample))
            cache.mark(sample)
            return
        assert self._buffer is not None, "`missing` makes it"
        picture = self._column.read(sample, self._buffer[self._free[-1]])
        self._rows[sample] = self._free.pop()
        if cache is not None and sample < len(cache):
            cache.place(sample)[...] = picture
            cache.mark(sample)

    def source(self, samples: Indexes) -> tuple[Array, Indexes, Indexes | None]:
        """An array of pictures in the stream's data format, and where in it these samples are.

        Returns:
            The array, read only; an index for each sample; and the sample at each index, or None
            where the indexes are the samples themselves.
        """
        if self._in_place:
            assert self._cache is not None, "nothing else is in place"
            return self._formatted(self._cache.pictures), samples, None
        assert self._buffer is not None, "`missing` makes it"
        names = np.full(len(self._buffer), -1, np.int64)
        names[list(self._rows.values())] = list(self._rows)
        indexes = np.array([self._rows[sample] for sample in samples.tolist()], np.int64)
        source = self._buffer.view()
        source.flags.writeable = False
        return self._formatted(source), indexes, names

    def close(self) -> None:
        """The batch is made, or given up."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None and buffer.nbytes <= KEPT_BYTES and not self._column.spare:
            self._column.spare.append(buffer)

    def _formatted(self, pictures: Array) -> Array:
        # Each as it lies in memory, also where its channels come first: sums follow memory.
        return np.moveaxis(pictures, -1, 1) if self._column.first else pictures

    def _put(self, sample: int, picture: Array) -> None:
        assert self._buffer is not None, "there is room"
        row = self._rows[sample] = self._free.pop()
        self._buffer[row] = picture

    def _make_room(self, count: int, wanted: Indexes) -> None:
        """A row for each of these; never more than at first, since no batch grows."""
        if self._buffer is None:
            with contextlib.suppress(IndexError):  # another thread may make a batch, too
                spare = self._column.spare.pop()
                self._buffer = spare if len(spare) >= count else None
            if self._buffer is None:
                decoder = self._column.decoder
                self._buffer = np.empty((count, *decoder.shape), self._column.dtype)
            self._free = list(reversed(range(len(self._buffer))))
        keep = set(wanted.tolist())
        for sample in [sample for sample in self._rows if sample not in keep]:
            self._free.append(self._rows.pop(sample))
