"""The backend of `kernels`: what they take goes to them, all else to the reference.

Which of three ways a stream goes is settled when it is built:

* whole: the kernel makes finished pictures, and writes them into the batch;
* halves: the kernel resamples, and the reference finishes picture by picture: a user's function, or
  a mean over a picture, whose float32 sum depends on how the picture lies in memory;
* none: `build` gives the reference itself.

A kernel declines pictures that it cannot make bit for bit (not-a-numbers, brightness beyond 8
bits); those are the reference's as well.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augproto.transforms import NAMED, Statistic, Transforms
from augserver.draws import Draws
from augserver.transforms import affine
from augserver.transforms.reference import Reference
from augserver.transforms.room import (
    CAFFE,
    CONSTANT,
    FLOATS,
    NEAREST,
    NO_FUNCTION,
    OCTETS,
    PIXEL_BYTES,
    REFLECT,
    TF,
    TORCH,
    WRAP,
    Room,
    address,
)

_log = logging.getLogger("augserver.transforms")

_FILL_MODES = {
    "nearest": NEAREST,
    "reflect": REFLECT,
    "wrap": WRAP,
    "constant": CONSTANT,
}
_FUNCTIONS = {
    f"{NAMED}{name}:{data_format}": number
    for name, number in (("caffe", CAFFE), ("tf", TF), ("torch", TORCH))
    for data_format in ("channels_last", "channels_first")
}
#: Pictures that a user's function or numpy is to finish are made so many bytes at a time: they
#: should still be in the cache when they are finished.
_CHUNK = 1 << 19
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_SOURCES = {np.dtype(np.uint8): OCTETS, np.dtype(np.float32): FLOATS}


def takes(
    transforms: Transforms, *, dtype: str, image_shape: tuple[int, int, int], channel_axis: int
) -> bool:
    """Whether there are kernels for such a stream."""
    t, channels = transforms, image_shape[channel_axis]
    height, width = (n for axis, n in enumerate(image_shape) if axis != channel_axis)
    return bool(
        np.dtype(dtype) == np.float32
        and 1 <= channels <= 4
        and min(height, width) > 0
        and (height + 4) * (width + 2) * PIXEL_BYTES < 1 << 31
        and t.interpolation_order in (0, 1)
        and t.fill_mode in _FILL_MODES
        and abs(t.cval) < _FLOAT32_MAX
        and (t.cval != 0 or math.copysign(1, t.cval) > 0)  # a sum that begins with 0 loses -0.0
        and (t.brightness_range is None or t.floatx == "float32")
        and all(_single(f) for f in (t.prescale, t.offset) if f)
    )


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., int]] | None:
    """`matrices.find` and `kernels.transform`; None where numba fails.

    Found out with the first batch: a server that only checks specs needs no numba, which takes a
    third of a second and 20 MB.
    """
    try:
        from augserver.transforms import kernels, matrices
    except ImportError as error:  # of a numpy, say, that is too new for it
        _log.warning("numba cannot be used (%s): scipy makes the same pictures, slowly", error)
        return None
    return matrices.find, kernels.transform


class Compiled:
    """A `TransformBatch` for what it `takes`."""

    def __init__(
        self,
        transforms: Transforms,
        reference: Reference,
        *,
        data_format: str,
        image_shape: tuple[int, int, int],
    ) -> None:
        t = transforms
        function: int | None = NO_FUNCTION
        if t.function is not None:
            function = _FUNCTIONS.get(t.function)
            if not t.function.endswith(data_format):
                function = None  # it takes another axis for that of the channels
        self._reference = reference
        self._order, self._fill_mode = t.interpolation_order, _FILL_MODES[t.fill_mode]
        self._cval = np.float32(t.cval)
        self._axis = 0 if data_format == "channels_first" else 2
        self._shape = image_shape
        self._rows, self._columns = (axis for axis in range(3) if axis != self._axis)
        self._height, self._width = image_shape[self._rows], image_shape[self._columns]
        self._prescale = np.float32(_operand(t.prescale) if t.prescale else 1)
        mean, divisor = reference.mean, reference.divisor
        self._whole = (
            function is not None
            and not t.samplewise_center
            and not t.samplewise_std_normalization
            and (not t.rescale or _single(t.rescale))
            and all(x is None or _operand(x) is not None for x in (mean, divisor))
        )
        self._function = function if self._whole and function else NO_FUNCTION
        self._scale, self._offset = np.float32(1), np.float32(-0.0)
        self._spread_out: list[NDArray[Any] | None] = [None, None]
        if self._whole:
            if t.rescale:
                self._scale = np.float32(_operand(t.rescale))
            if t.offset:
                self._offset = np.float32(t.offset)
            self._spread_out = [self._spread(mean, 0), self._spread(divisor, 1)]
        self._statistics = [number for s in self._spread_out for number in _located(s)]
        self._local = threading.local()

    def transform_batch(
        self,
        source: NDArray[Any],
        indexes: NDArray[np.int64],
        draws: Draws,
        out: NDArray[Any],
        note: Callable[[int], None] | None = None,
    ) -> None:
        """See `TransformBatch`."""
        self._reference.check(source, indexes, out)
        if not len(indexes):
            return
        if _kernels() is None:
            self._reference.transform_batch(source, indexes, draws, out, note)
        elif self._whole:
            self._make(source, indexes, draws, out)
        else:
            self._make_and_finish(source, indexes, draws, out, note)

    def _make(
        self, source: NDArray[Any], indexes: NDArray[np.int64], draws: Draws, out: NDArray[Any]
    ) -> None:
        target = out
        if out.dtype != np.float32 or not (out.flags.behaved and out.dtype.isnative):
            target = np.zeros(out.shape, np.float32)
        left, declined = self._call(source, indexes, draws, target, self._axis)
        if target is not out:
            out[...] = target
        for i in np.flatnonzero(declined) if left else ():
            one, part = np.array([i]), out[i : i + 1]
            self._reference.transform_batch(source, indexes[one], draws.of(one), part)

    def _make_and_finish(
        self,
        source: NDArray[Any],
        indexes: NDArray[np.int64],
        draws: Draws,
        out: NDArray[Any],
        note: Callable[[int], None] | None,
    ) -> None:
        """The kernel's pictures lie in memory as Keras's do: channel by channel and flipped by
        their strides alone, or, when they have been 8 bits, pixel by pixel.
        """
        bright = draws.brightness is not None
        changed = bright or draws.channel_shift is not None
        warped = affine.needed(draws)
        height, width, channels = self._height, self._width, self._shape[self._axis]
        shape = (height, width, channels) if bright else (channels, height, width)
        laid = 2 if bright else 0
        step = max(1, _CHUNK // (4 * height * width * channels))
        for start in range(0, len(indexes), step):
            rows = np.arange(start, min(start + step, len(indexes)))
            skipped = np.zeros(len(rows), np.bool_) if changed else ~warped[rows]
            # Not used again: a function may keep its picture.
            pictures = np.empty((len(rows), *shape), np.float32)
            some = draws.of(rows)
            if not bright:
                no = np.zeros(len(rows), np.bool_)
                some = dataclasses.replace(some, flip_horizontal=no, flip_vertical=no)
            _, declined = self._call(source, indexes[rows], some, pictures, laid, skipped)
            for row, i in enumerate(rows.tolist()):
                sample = int(indexes[i])
                if declined[row]:
                    picture = self._reference.change(source[sample], draws, i, bool(warped[i]))
                else:
                    picture = np.moveaxis(pictures[row], laid, self._axis)
                    if draws.flip_horizontal[i] and not bright:
                        picture = np.flip(picture, self._columns)
                    if draws.flip_vertical[i] and not bright:
                        picture = np.flip(picture, self._rows)
                seeds = None if draws.seeds is None else draws.seeds[i]
                out[i] = self._reference.finish(picture, sample, seeds, note)

    def _call(
        self,
        source: NDArray[Any],
        indexes: NDArray[np.int64],
        draws: Draws,
        out: NDArray[np.float32],
        axis: int,
        skipped: NDArray[np.bool_] | None = None,
    ) -> tuple[int, NDArray[np.bool_]]:
        """Call the kernel.

        Args:
            axis: Where out has its channels.
            skipped: Samples that are left out, bool (n,).

        Returns:
            How many samples were left out or declined, and which: bool (n,). Of out nothing is
            said there.
        """
        if source.dtype not in _SOURCES or not (source.dtype.isnative and source.flags.aligned):
            source, indexes = source[indexes].astype(np.float32), np.arange(len(indexes))
        n = len(indexes)
        room = self._room(n)
        at = room.at
        room.indexes[:n] = indexes
        room.horizontal[:n] = draws.flip_horizontal
        room.vertical[:n] = draws.flip_vertical
        declined = room.declined[:n]
        declined[:] = False if skipped is None else skipped
        kernels = _kernels()
        assert kernels is not None
        find, transform = kernels
        find(draws, self._height, self._width, room)
        given = {"shifts": draws.channel_shift, "factors": draws.brightness}
        for name, values in given.items():
            if values is not None:
                column = getattr(room, name)[:n]
                with np.errstate(over="ignore"):
                    column[:] = values
                declined |= ~np.isfinite(column)
        shifts, factors = (0 if given[name] is None else at[name] for name in given)
        left = transform(
            address(source), len(source), *_strides(source, self._axis), _SOURCES[source.dtype],
            self._height, self._width, self._shape[self._axis], at["indexes"], n, self._prescale,
            at["matrices"], at["warped"], self._order, self._fill_mode, self._cval,
            at["horizontal"], at["vertical"], shifts, factors,
            self._function, self._scale, self._offset,
            *self._statistics, address(out), *_strides(out, axis),
            at["scratch"], at["canvas"], at["numbers"], at["places"], at["declined"],
        )  # fmt: skip
        return left, declined.copy()  # the room is the next call's

    def _room(self, samples: int) -> Room:
        """A thread's own."""
        room: Room | None = getattr(self._local, "room", None)
        if room is None or room.samples < samples:
            height, width = self._height, self._width
            wide = -(-width // 8) * 8
            room = self._local.room = Room(
                samples,
                scratch=PIXEL_BYTES * ((height + 4) * (width + 2) + 8),
                canvas=PIXEL_BYTES * (height * width + 8),
                numbers=6 * 8 * wide,
                places=4 * wide,
            )
        return room

    def _spread(self, statistic: NDArray[Any] | float | None, filler: float) -> NDArray[Any] | None:
        """A statistic as float32 or float64 (height or 1, width or 1, 4)."""
        if statistic is None:
            return None
        operand = _operand(statistic)
        assert operand is not None
        array = operand.reshape((1,) * (3 - operand.ndim) + operand.shape)
        array = np.moveaxis(array, self._axis, 2)
        channels = self._shape[self._axis]
        result = np.full((*array.shape[:2], 4), filler, array.dtype)
        result[:, :, :channels] = array
        return result


def _operand(value: Any) -> NDArray[Any] | None:
    """What numpy computes with when a float32 picture meets this; None: kernels cannot."""
    operand = value.operand() if isinstance(value, Statistic) else value
    dtype = np.result_type(np.empty((1, 1, 1), np.float32), operand)
    if dtype not in (np.float32, np.float64):
        return None
    with np.errstate(over="ignore"):
        array = np.asarray(operand, dtype)
    return array if np.isfinite(array).all() else None


def _single(value: Any) -> bool:
    """Whether a picture of float32 is changed by this in float32."""
    operand = _operand(value)
    return operand is not None and operand.dtype == np.float32


def _strides(array: NDArray[Any], channel_axis: int) -> tuple[int, ...]:
    """Of sample, row, column and channel."""
    sample, *of_picture = array.strides
    channel = of_picture.pop(channel_axis)
    return sample, *of_picture, channel


def _located(statistic: NDArray[Any] | None) -> tuple[int, int, int, bool]:
    """Address, strides of row and column, which are 0 where there is but one; whether doubles."""
    if statistic is None:
        return 0, 0, 0, False
    row, column = (
        stride if n > 1 else 0
        for stride, n in zip(statistic.strides[:2], statistic.shape[:2], strict=True)
    )
    return address(statistic), row, column, statistic.dtype == np.float64
