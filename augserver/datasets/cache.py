"""Pictures as they are read, decoded and resized: read once, and there for all later epochs.

A cache is two arrays in a segment that all workers write: for each of the first samples of the
dataset a place for its picture, and a mark that says whether the picture there is whole. Nothing is
locked, owned or thrown out. Whoever needs a sample that is not marked decodes it, puts it into its
place and marks it; two who do so at the same time write the same bytes, since a picture is a
function of its file and of what the cache is for. A worker that is killed on the way has marked
nothing.

What is cached is as the file was when it was read, at the size and time that the dataset lists;
later no file is opened, so that one which is changed or removed then is not noticed. A file that
cannot be read has no picture, so it is tried, and fails, each time.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.messages import ArraySpec, Source
from augproto.spec import Spec
from augserver.datasets.arrays import attach, places
from augserver.limits import memory_limits

#: The arrays of a cache.
MARKS, PICTURES = "cache.marks", "cache.pictures"
#: Bytes beside pictures and marks: for alignment, and because a kernel may load four bytes where
#: it wants the last three.
SLACK = 256
#: Where no number of bytes was asked for: at most so many, and this part of what is left.
MOST = 4 << 30
PART = 1 / 4
#: Where one was, this part is the bound beside it: the next consumer wants a ring.
PART_ASKED = 3 / 4

Array = npt.NDArray[Any]
Indexes = npt.NDArray[np.int64]


def _fence() -> None:
    """Nothing that memory sees moves from before this to after it, or the other way.

    x86 keeps the order of stores, and of loads, by itself; ARM keeps neither. A lock that is taken
    orders what comes after, one that is released what comes before; so a release followed by an
    acquisition is a barrier for everything, which a single critical section is not: from both
    sides things may move into it. Whose lock that is does not matter: this one is nobody else's,
    so there is nothing to wait for, in a forked child neither.
    """
    lock = threading.Lock()
    with lock:
        pass
    with lock:
        pass


class DecodedCache:
    """A cache as those see it who make batches.

    Args:
        marks: uint8 (places,), 1 for what is whole.
        pictures: (places, height, width, channels), writable.

    Attributes:
        pictures: The same, read only.
    """

    def __init__(self, marks: Array, pictures: Array) -> None:
        self._marks = marks
        self._pictures = pictures
        self.pictures = pictures.view()
        self.pictures.flags.writeable = False

    @classmethod
    def attach(cls, sources: Sequence[Source]) -> DecodedCache | None:
        """The cache that lies there; None where these are none."""
        if not sources:
            return None
        arrays = attach(sources, writable=True)
        return cls(arrays[MARKS], arrays[PICTURES])

    @classmethod
    def private(cls, spec: Spec, samples: int) -> DecodedCache | None:
        """A cache of this process alone, within the usual bounds; None where nothing fits."""
        left = min((limit.left for limit in memory_limits()), default=MOST)
        fit = min(samples, fitting(spec, min(MOST, int(left * PART))))
        if fit < 1:
            return None
        marks, pictures = arrays_of(spec, fit)
        # Pages that nobody has written take no memory.
        return cls(np.zeros(marks.shape, marks.dtype), np.empty(pictures.shape, pictures.dtype))

    def __len__(self) -> int:
        """How many samples, from the first on, have a place."""
        return len(self._marks)

    def whole(self, samples: Indexes) -> npt.NDArray[np.bool_]:
        """Which of these samples are there; their pictures may be read from now on."""
        placed = samples < len(self._marks)
        there = placed.copy()
        there[placed] = self._marks[samples[placed]] == 1
        _fence()  # no pixel is loaded before its mark
        return there

    def place(self, sample: int) -> Array:
        """Where a picture is to be written, each number once and with its final value: others may
        be reading the same one, which was finished by somebody else."""
        row: Array = self._pictures[sample]
        return row

    def mark(self, sample: int) -> None:
        """The picture is written."""
        _fence()  # no mark is stored before its pixels
        self._marks[sample] = 1


def _picture(spec: Spec) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """Shape and dtype of one picture."""
    assert spec.target_size is not None, "a spec of pictures has a size"
    assert spec.pictures is not None, "only pictures of files are cached"
    return (*spec.target_size, spec.pictures.channels), np.dtype(spec.pictures.dtype)


def each(spec: Spec) -> int:
    """Bytes of one sample in a cache."""
    shape, dtype = _picture(spec)
    return int(np.prod(shape)) * dtype.itemsize + 1


def size(spec: Spec, samples: int) -> int:
    """Bytes of a cache for so many samples."""
    return samples * each(spec) + SLACK


def fitting(spec: Spec, room: int) -> int:
    """How many samples a cache of so many bytes has places for."""
    return max(0, room - SLACK) // each(spec)


def arrays_of(spec: Spec, samples: int) -> tuple[ArraySpec, ArraySpec]:
    """Marks and pictures of a cache for so many samples."""
    shape, dtype = _picture(spec)
    return (
        ArraySpec(MARKS, "|u1", (samples,)),
        ArraySpec(PICTURES, dtype.str, (samples, *shape)),
    )


def sources_of(spec: Spec, samples: int, path: str) -> tuple[Source, ...]:
    """Where they lie in a segment of that path."""
    sources, end = places(arrays_of(spec, samples), path)
    assert end <= size(spec, samples), "the slack is enough for two arrays"
    return sources


def settings(spec: Spec) -> str:
    """All that a picture in a cache depends on beside its file, as a text.

    The bounds on files are among it: a stream whose bounds a file exceeds must not get its picture
    because another stream's are wider.
    """
    assert spec.pictures is not None, "only pictures of files are cached"
    decoding = dataclasses.replace(spec.pictures, label_mode="none", class_names=(), recursive=True)
    return f"{spec.target_size} {spec.interpolation} {decoding}"
