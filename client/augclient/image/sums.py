"""Sums of each channel, chunk by chunk, in the very order in which numpy adds the whole array.

A sum of floats depends on the order of its additions, so Keras's `np.mean(x, (0, 1, 2))` is
matched by a streaming pass only if that adds in the same order. numpy walks through an array as
it lies in memory. Seen from the channels that is (A, C, B): A blocks of C planes of B values.

* One channel, or A = 1: all values of a channel are one *run*; its sum is the channel's.
* Otherwise each plane is a run, and the sums of the runs are added block after block. (Channels
  last is B = 1: plain addition in memory's order.)

A run is added pairwise: up to 128 values in a loop; more are split in two, the first half a
multiple of 8 (numpy/_core/src/umath/loops_utils.h.src). What `np.add.reduce` makes of a part of
that split is what it is in the whole. Before numpy 2.3 a run was cut into pieces of a buffer's
size (8192) first, and the sums of the pieces were added one after the other. Which of these it is
is found out by trying, and a numpy that does neither is not `understood`.

All that holds for float32 and float64 in the machine's byte order. Others are converted while they
are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
#: (values of shape (A, some channels, B) in the wanted dtype, which channels) -> what is added;
#: it may work in place.
Change = Callable[[Array, slice], Array]

#: Values that are worked on at once.
CHUNK = 1 << 18
#: The largest buffer for which it is found out what numpy does with it.
MAX_BUFFER = 1 << 16


def understood(dtype: DTypeLike) -> bool:
    """Whether numpy's order of adding this dtype is one of those described here."""
    wanted = np.dtype(dtype)
    plain = wanted.isnative and wanted in (np.dtype(np.float32), np.dtype(np.float64))
    return plain and _longest_run(np.getbufsize()) is not None


def channel_sums(
    x: Array,
    channel_axis: int,
    dtype: DTypeLike,
    change: Change,
    advance: Callable[[int], None],
    chunk: int = CHUNK,
) -> Array:
    """Equal to `change(np.array(x, dtype)).sum(all axes but one)`, without making that array.

    Args:
        x: Rank 4, not empty, of any dtype and in any layout.
        dtype: One that is `understood`.
        change: Applied to each value before it is added.
        advance: Told how many values were read.
        chunk: At most about so many values are held at once (but at least one row of the array's
            outermost axis).

    Returns:
        (channels,), of that dtype.
    """
    longest = _longest_run(np.getbufsize())
    assert longest is not None, "the caller has asked whether it is understood"
    return _Adding(dtype, change, advance, chunk, longest).sums(x, channel_axis)


@dataclass(frozen=True, slots=True)
class _Adding:
    """How to add; see `channel_sums`.

    Attributes:
        longest: Values of a run that are added pairwise; infinite since numpy 2.3.
    """

    dtype: DTypeLike
    change: Change
    advance: Callable[[int], None]
    chunk: int
    longest: float

    def sums(self, x: Array, channel_axis: int) -> Array:
        # How a copy would lie in memory: numpy keeps the order of the axes and closes the gaps.
        # Two along each axis are enough to see it.
        strides = np.empty_like(x[:2, :2, :2, :2], dtype=self.dtype).strides
        order = sorted(range(4), key=lambda axis: -strides[axis])
        place = order.index(channel_axis)
        lying = x.transpose(order)
        channels = x.shape[channel_axis]
        if channels > 1 and math.prod(lying.shape[:place]) > 1:
            return self._by_blocks(lying, place)
        total = np.zeros(channels, self.dtype)
        for c in range(channels):
            plane = lying[(slice(None),) * place + (c,)]
            run: Any = plane.reshape(-1) if plane.flags.c_contiguous else plane.flat
            for start, stop in self._pieces(plane.size):
                total[c] += self._pairwise(run, start, stop, slice(c, c + 1))
        return total

    def _by_blocks(self, lying: Array, place: int) -> Array:
        """The channels lie inside the outermost axis: whole rows of that at a time."""
        channels, behind = lying.shape[place], math.prod(lying.shape[place + 1 :])
        rows = max(1, self.chunk * len(lying) // lying.size)
        total = np.zeros(channels, self.dtype)
        for start in range(0, len(lying), rows):
            values = self._read(lying[start : start + rows])
            if behind == 1:
                # Lying by channels meanwhile: numpy is slow where its innermost loop is so short.
                planes = np.ascontiguousarray(values.reshape(-1, channels).T)
                terms = self.change(planes[np.newaxis], slice(None))[0].T
            else:
                planes = self.change(values.reshape(-1, channels, behind), slice(None))
                pieces = [
                    np.add.reduce(planes[..., first:last], axis=2)
                    for first, last in self._pieces(behind)
                ]
                terms = np.stack(pieces, axis=1)
            # One after the other, which is what `at` promises. `np.add.reduce` would do so as
            # well here, and take several times as long.
            places = np.tile(np.arange(channels), terms.size // channels)
            np.add.at(total, places, terms.reshape(-1))
        return total

    def _pairwise(self, run: Any, start: int, stop: int, channel: slice) -> Any:
        """The sum of a part of a run, as a scalar of the dtype."""
        count = stop - start
        if count <= self.chunk:
            values = self._read(run[start:stop]).reshape(1, 1, -1)
            return np.add.reduce(self.change(values, channel).reshape(-1))
        half = count // 2
        middle = start + half - half % 8
        first = self._pairwise(run, start, middle, channel)
        return first + self._pairwise(run, middle, stop, channel)

    def _pieces(self, length: int) -> Iterator[tuple[int, int]]:
        """What is added pairwise of a run of that length: (start, stop) of each piece."""
        step = int(min(length, self.longest))
        for start in range(0, length, step):
            yield start, min(start + step, length)

    def _read(self, part: Any) -> Array:
        values = np.array(part, self.dtype, order="C")
        self.advance(values.size)
        return values


@cache
def _longest_run(buffer: int) -> float | None:
    """How many values of a run numpy adds pairwise, with a buffer of that size; None: unknown."""
    if buffer > MAX_BUFFER:
        return None
    # So many channels that two orders do not agree by chance in all of them.
    x = np.random.RandomState(0).random_sample((2, 16, 2, buffer + 1000)).astype(np.float32)
    for longest in (math.inf, buffer):
        adding = _Adding(np.float32, lambda values, channels: values, _nobody, CHUNK, longest)
        if all(
            np.array_equal(adding.sums(part, 1), part.sum(axis=(0, 2, 3))) for part in (x, x[:1])
        ):
            return longest
    return None


def _nobody(count: int) -> None:
    """Who is told how far it is."""
