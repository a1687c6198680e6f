"""Arrays that are another machine's: here in their full shape, but only those rows that were sent.

Each is memory that nobody has touched, which costs addresses and nothing else: the kernel gives a
page when it is first written to. Rows that arrive are put where they are in the dataset, so whoever
reads them, by their own indexes, does not know that all others are missing. What has become too
much is given back to the kernel, all at once.

Files are brought as what is in them, by sample, and are kept for one batch.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import AugError, NoRoom, RemoteProtocolError
from augproto.messages import ArraySpec, Inputs, Source
from augserver.datasets.arrays import places

#: The name under which files are brought.
FILES = "files"
#: Bytes of rows, with the pages that they share, that are kept for batches to come.
KEPT_BYTES = 256 << 20
#: A kernel may load four bytes where it wants the last three; and no mapping is empty.
SLACK = 64
_PAGE = mmap.PAGESIZE
#: Addresses alone: no memory is promised. Python has the name from 3.13 on; the number is Linux's,
#: on x86-64 and aarch64.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

Array = npt.NDArray[Any]
Indexes = npt.NDArray[np.int64]


class SparseArrays:
    """A dataset of which rows are here that were needed lately.

    Args:
        sources: Name, dtype and shape of each array.
        kept: Bytes that `tidy` leaves.

    Attributes:
        arrays: All of them, by name.
        files: What is in the files of some samples.
        whole: Names of arrays that are here as a whole.

    Raises:
        ConfigError: These are no arrays that can be in a batch.
        NoRoom: There are not so many addresses.
    """

    def __init__(self, sources: Iterable[Source], kept: int = KEPT_BYTES) -> None:
        specs = [ArraySpec(source.name, source.dtype, source.shape) for source in sources]
        checked, _ = places(specs, "")
        self.arrays: dict[str, Array] = {}
        self.files: dict[int, bytes] = {}
        self.whole: set[str] = set()
        self._maps: dict[str, mmap.mmap] = {}
        for source in checked:
            kind, count = np.dtype(source.dtype), math.prod(source.shape)
            self._maps[source.name] = memory = _untouched(kind.itemsize * count + SLACK)
            self.arrays[source.name] = np.frombuffer(memory, kind, count).reshape(source.shape)
        self._here: set[int] = set()
        self._kept = kept
        self._written = dict.fromkeys(self.arrays, 0)

    def missing(self, samples: Indexes) -> Indexes:
        """Those of some samples whose rows and files are not here, each once."""
        here = self._here
        lacking = [sample for sample in dict.fromkeys(samples.tolist()) if sample not in here]
        return np.array(lacking, np.int64)

    def lay(self, inputs: Inputs, loads: Mapping[str, bytearray]) -> None:
        """Put what has come where it belongs.

        Raises:
            RemoteProtocolError: It does not fit the dataset.
        """
        if len(inputs.samples) % 8 or len(inputs.ends) % 8:
            raise RemoteProtocolError(
                f"inputs: got {len(inputs.samples)} bytes of indexes and {len(inputs.ends)} of "
                "ends; wanted eight for each sample"
            )
        samples = np.frombuffer(inputs.samples, "<i8").astype(np.int64)
        for name, data in loads.items():
            if name == FILES:
                self._lay_files(samples, np.frombuffer(inputs.ends, "<i8"), data)
            elif name not in self.arrays:
                raise RemoteProtocolError(
                    f"inputs: got rows of {name!r:.80}; the dataset has {', '.join(self.arrays)}"
                )
            elif not len(samples) and not inputs.place.sequence:  # of no batch
                self._lay_whole(name, data)
            else:
                self._lay_rows(name, samples, data)
        self._here.update(samples.tolist())

    def tidy(self) -> None:
        """No batch is being made: forget files, and rows if they are too many."""
        self._here.difference_update(self.files)
        self.files.clear()
        # Rows share pages, and come more than once; there are never more than the array has.
        if sum(min(n, len(self._maps[name])) for name, n in self._written.items()) <= self._kept:
            return
        for name, memory in self._maps.items():
            if name not in self.whole:
                memory.madvise(mmap.MADV_DONTNEED)
        self._here.clear()
        self._written = dict.fromkeys(self.arrays, 0)

    def _lay_rows(self, name: str, samples: Indexes, data: bytearray) -> None:
        array = self.arrays[name]
        if not array.ndim or not all(0 <= sample < len(array) for sample in samples.tolist()):
            raise RemoteProtocolError(
                f"inputs: got samples {samples[:8].tolist()} of {name!r:.80}, whose shape is "
                f"{array.shape}"
            )
        row = array.dtype.itemsize * math.prod(array.shape[1:])
        _check_size(name, len(data), row * len(samples))
        if name in self.whole:
            return
        array[samples] = np.frombuffer(data, array.dtype).reshape(len(samples), *array.shape[1:])
        self._written[name] += len(samples) * (row + _PAGE)

    def _lay_whole(self, name: str, data: bytearray) -> None:
        array = self.arrays[name]
        _check_size(name, len(data), array.nbytes)
        array[...] = np.frombuffer(data, array.dtype).reshape(array.shape)
        self.whole.add(name)

    def _lay_files(self, samples: Indexes, ends: Indexes, data: bytearray) -> None:
        bounds = [0, *ends.tolist()]
        if len(ends) != len(samples) or bounds[-1] != len(data) or bounds != sorted(bounds):
            raise RemoteProtocolError(
                f"inputs: got {len(data)} bytes of {len(samples)} files with ends "
                f"{bounds[1:9]}; wanted one rising end for each, and the last to be the size"
            )
        for i, sample in enumerate(samples.tolist()):
            self.files[sample] = bytes(data[bounds[i] : bounds[i + 1]])


def _check_size(name: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise RemoteProtocolError(f"inputs: got {got} bytes of {name!r:.80}; wanted {wanted}")


def _untouched(size: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except (OSError, OverflowError, ValueError) as error:
        raise NoRoom(
            f"a dataset's array of {size} bytes has no room among this process's addresses "
            f"({error}): raise the limit of its address space (ulimit -v)"
        ) from error
    try:
        # A huge page for each row would be two megabytes for each picture.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError:  # a kernel that makes none
        pass
    except AttributeError as error:
        raise AugError("remote workers need an operating system with madvise: Linux") from error
    return memory
