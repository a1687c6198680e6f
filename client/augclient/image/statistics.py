"""What `fit` finds out about pictures: each channel's mean and deviation, and the whitening.

Keras holds the pictures up to four times in the generator's dtype. Here they are read where they
lie, a chunk at a time, once for the mean and twice more for the deviation; the numbers are Keras's
to the last bit (see sums.py). The whitening is Keras's within its own rounding (see whitening.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from augclient.image.sums import CHUNK, channel_sums, understood
from augclient.image.whitening import by_decomposition, whitening_matrix

Array = NDArray[Any]

#: Pictures that go into the whitening at once: adding a product up costs as much as a few hundred.
ROWS = 1024

#: Keras adds it to every deviation that it divides by.
EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to find, as a generator's settings ask for it.

    Attributes:
        mean: If it is found it is subtracted before the rest.
        std: If it is found it divides before the whitening.
        epsilon: Of the whitening.
    """

    mean: bool
    std: bool
    whitening: bool
    epsilon: float

    @property
    def passes(self) -> int:
        """How often the pictures are read."""
        return self.mean + 2 * self.std + self.whitening


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What was found; None what was not wanted.

    Attributes:
        mean, std: Broadcast over a picture: (1, 1, C) or (C, 1, 1), in the pictures' dtype.
        whitening: (values of a picture, values of a picture).
    """

    mean: Array | None = None
    std: Array | None = None
    whitening: Array | None = None


def fit(
    x: Array,
    wanted: Wanted,
    *,
    channel_axis: int,
    dtype: DTypeLike,
    rescale: float | None = None,
    advance: Callable[[int], None] = lambda count: None,
    chunk: int = CHUNK,
) -> Fitted:
    """Find it.

    Args:
        x: Pictures, rank 4, of any dtype and in any layout; they are not changed.
        channel_axis: In x, 1 or 3.
        dtype: Everything is computed in it.
        rescale: Factor that comes before everything.
        advance: Told how many values were read, `wanted.passes` times all of them.
        chunk: About so many values are held at once.
    """
    if not wanted.passes:
        return Fitted()
    if not (understood(dtype) and x.size):
        # As Keras: its warnings and errors for no pictures or whole numbers, too.
        return _of_the_whole(x, wanted, channel_axis, dtype, rescale)
    return _Reading(x, channel_axis, dtype, rescale, advance, chunk).fit(wanted)


def gathered(chunks: Iterable[Array], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Pictures that come in chunks, as one array."""
    pictures = np.empty(shape, dtype)
    filled = 0
    for chunk in chunks:
        pictures[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return pictures


class _Reading:
    """Reads pictures as often as need be; see `fit` for the arguments."""

    def __init__(
        self,
        x: Array,
        channel_axis: int,
        dtype: DTypeLike,
        rescale: float | None,
        advance: Callable[[int], None],
        chunk: int,
    ) -> None:
        self._x = x
        self._channel_axis = channel_axis
        self._dtype = dtype
        self._rescale = rescale
        self._advance = advance
        self._chunk = chunk
        self._mean: Array | None = None  # (C, 1)
        self._std: Array | None = None

    def fit(self, wanted: Wanted) -> Fitted:
        if wanted.mean:
            self._mean = self._average(self._prepared)[:, None]
        if wanted.std:
            self._std = self._deviation()[:, None]
        fitted = Fitted(mean=self._over_a_picture(self._mean), std=self._over_a_picture(self._std))
        if not wanted.whitening:
            return fitted
        count = len(self._x)
        matrix = whitening_matrix(self._rows, count, self._x.size // count, wanted.epsilon)
        return Fitted(mean=fitted.mean, std=fitted.std, whitening=matrix)

    def _prepared(self, values: Array, channels: slice) -> Array:
        """What Keras has made of the values so far, in place: (A, channels, B)."""
        if self._rescale:
            values *= self._rescale
        if self._mean is not None:
            values -= self._mean[channels]
        if self._std is not None:
            values /= self._std[channels] + EPSILON
        return values

    def _average(self, change: Callable[[Array, slice], Array]) -> Array:
        """`np.mean`, one for each channel."""
        totals = channel_sums(
            self._x, self._channel_axis, self._dtype, change, self._advance, self._chunk
        )
        # numpy's own words: the count decides in which dtype it divides.
        count = np.intp(self._x.size // len(totals))
        return np.true_divide(totals, count, out=totals, casting="unsafe")

    def _deviation(self) -> Array:
        """`np.std`, one for each channel: it finds a mean of its own before it squares."""
        mean = self._average(self._prepared)[:, None]

        def squared(values: Array, channels: slice) -> Array:
            distances = np.subtract(self._prepared(values, channels), mean[channels])
            return np.multiply(distances, distances, out=distances)

        variance = self._average(squared)
        return np.sqrt(variance, out=variance)

    def _rows(self) -> Iterator[Array]:
        """The pictures as rows, prepared."""
        x, axis = self._x, self._channel_axis
        for start in range(0, len(x), ROWS):
            values = np.array(x[start : start + ROWS], self._dtype, order="C")
            self._advance(values.size)
            planes = values.reshape(-1, x.shape[axis], int(np.prod(x.shape[axis + 1 :])))
            self._prepared(planes, slice(None))
            yield values.reshape(len(values), -1)

    def _over_a_picture(self, found: Array | None) -> Array | None:
        if found is None:
            return None
        return found.reshape((-1, 1, 1) if self._channel_axis == 1 else (1, 1, -1))


def _of_the_whole(
    x: Array, wanted: Wanted, channel_axis: int, dtype: DTypeLike, rescale: float | None
) -> Fitted:
    """As Keras does it, with Keras's memory: for dtypes of which numpy adds up pieces."""
    x = np.array(x, dtype)
    axes = tuple(axis for axis in range(4) if axis != channel_axis)
    shape = (-1, 1, 1) if channel_axis == 1 else (1, 1, -1)
    mean = std = whitening = None
    if rescale:
        x *= rescale
    if wanted.mean:
        mean = np.mean(x, axis=axes).reshape(shape)
        x -= mean
    if wanted.std:
        std = np.std(x, axis=axes).reshape(shape)
        x /= std + EPSILON
    if wanted.whitening:
        whitening = by_decomposition(x.reshape(len(x), -1), wanted.epsilon)
    return Fitted(mean=mean, std=std, whitening=whitening)
