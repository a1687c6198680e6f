"""How a stream draws its parameters: what both schemes mean, by the kernels where there are any.

draws.py ("counter") and keras_draws.py ("keras") say what is drawn, in numpy. A batch of 32 costs
numpy some thirty calls there, more than its pictures are worth; a `Drawing` works out once what
follows from the spec alone, and then asks a kernel for the whole batch.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augproto.transforms import ShiftRange, Transforms
from augserver import draws as counter_draws
from augserver import keras_draws
from augserver.backend import compiled
from augserver.draws import Draws, Lane

_NUMBERS = 8  # of a sample's ten parameters; the other two are flips
_NO_CHOICES = np.zeros(1)


def _kernels() -> ModuleType | None:
    return compiled("augserver.draw_kernels")


class Drawing:
    """The parameters of a stream's pictures of one size.

    Args:
        transforms: The ranges.
        height, width: Of a picture, in pixels: a shift may be a share of it.
    """

    def __init__(self, transforms: Transforms, height: int, width: int) -> None:
        self._transforms = t = transforms
        self._size = height, width
        self._lists = keras_draws.chosen(t)
        self._seeded = t.function is not None and not t.named
        self._doubles = len(keras_draws.ranges(t))
        self._ranges = _ranges(t, height, width)
        self._rows = _choices(t.height_shift_range)
        self._columns = _choices(t.width_shift_range)
        self._counter_lanes = _counter_lanes(t)
        self._keras_lanes = _keras_lanes(t)

    def counter(self, seed: int, epoch: int, indexes: NDArray[np.int64]) -> Draws:
        """The parameters of some samples, in the counter scheme; see `draws.draw`."""
        compiled = _kernels()
        if compiled is None:
            height, width = self._size
            return counter_draws.draw(
                self._transforms,
                seed=seed,
                epoch=epoch,
                indexes=indexes,
                height=height,
                width=width,
            )
        n = len(indexes)
        numbers, flips = np.empty((_NUMBERS, n)), np.empty((2, n), np.bool_)
        seeds = np.empty((n if self._seeded else 0, 4), np.uint32)
        compiled.from_counters(
            np.uint64(seed), np.uint64(epoch), indexes, self._counter_lanes, self._ranges,
            self._rows, self._columns, numbers, flips, seeds,
        )  # fmt: skip
        return self._named(numbers, flips, seeds if self._seeded else None)

    def keras(self, state: keras_draws.State, samples: int) -> Draws:
        """The parameters of so many samples, in the keras scheme; see `keras_draws.draw`."""
        compiled = None if self._lists else _kernels()
        if compiled is None:
            return keras_draws.draw(self._transforms, state, samples, *self._size)
        numbers, flips = np.empty((_NUMBERS, samples)), np.empty((2, samples), np.bool_)
        compiled.from_doubles(
            state.random_sample((samples, self._doubles)), self._keras_lanes, self._ranges,
            self._rows, self._columns, numbers, flips,
        )  # fmt: skip
        return self._named(numbers, flips, None)

    def _named(self, numbers: Any, flips: Any, seeds: NDArray[np.uint32] | None) -> Draws:
        t = self._transforms
        theta, tx, ty, shear, zx, zy, channel_shift, brightness = numbers
        return Draws(
            theta, tx, ty, shear, zx, zy, flips[0], flips[1],
            channel_shift if t.channel_shift_range else None,
            brightness if t.brightness_range else None,
            seeds,
        )  # fmt: skip


def _ranges(t: Transforms, height: int, width: int) -> NDArray[np.float64]:
    """Low, high - low and scale of each parameter, as `draw_kernels` wants them."""

    def symmetric(limit: float) -> tuple[float, float, float]:
        return (-limit, limit - -limit, 1.0) if limit else (0.0, 0.0, 1.0)

    def shift(limit: ShiftRange, length: int) -> tuple[float, float, float]:
        low, span, _ = symmetric(limit) if isinstance(limit, float) else symmetric(0.0)
        return low, span, float(length) if limit and np.max(limit) < 1 else 1.0

    def between(low: float, high: float) -> tuple[float, float, float]:
        return low, high - low, 1.0

    assert isinstance(t.zoom_range, tuple)  # Transforms turns a single number into a pair
    zoom = between(*t.zoom_range)
    unit = between(0.0, 1.0)
    rows = [
        symmetric(t.rotation_range),
        shift(t.height_shift_range, height),
        shift(t.width_shift_range, width),
        symmetric(t.shear_range),
        zoom,
        zoom,
        symmetric(t.channel_shift_range),
        between(*t.brightness_range) if t.brightness_range else unit,
        unit,
        unit,
    ]
    return np.array(rows, np.float64)


def _choices(limit: ShiftRange) -> NDArray[np.float64]:
    if not limit or isinstance(limit, float):
        return _NO_CHOICES
    return np.array(range(limit) if isinstance(limit, int) else limit, np.float64)


def _counter_lanes(t: Transforms) -> NDArray[np.int64]:
    """Which doubles make each parameter, and its sign, in the counter scheme."""
    used = counter_draws.lanes(t)
    table = [
        (Lane.THETA, None),
        (Lane.HEIGHT_SHIFT, Lane.HEIGHT_SIGN),
        (Lane.WIDTH_SHIFT, Lane.WIDTH_SIGN),
        (Lane.SHEAR, None),
        (Lane.ZOOM_X, None),
        (Lane.ZOOM_Y, None),
        (Lane.CHANNEL_SHIFT, None),
        (Lane.BRIGHTNESS, None),
        (Lane.FLIP_HORIZONTAL, None),
        (Lane.FLIP_VERTICAL, None),
    ]
    return np.array(
        [[int(lane) if lane in used else -1 for lane in pair] for pair in table], np.int64
    )


def _keras_lanes(t: Transforms) -> NDArray[np.int64]:
    """Which of the doubles that Keras draws for a sample makes each parameter."""
    zoomed = t.zoom_range != (1.0, 1.0)
    # In Keras's order. Both flips are drawn in any case, and used where they are wanted.
    drawn = [
        (0, t.rotation_range, True),
        (1, t.height_shift_range, True),
        (2, t.width_shift_range, True),
        (3, t.shear_range, True),
        (4, zoomed, True),
        (5, zoomed, True),
        (8, True, t.horizontal_flip),
        (9, True, t.vertical_flip),
        (6, t.channel_shift_range, True),
        (7, t.brightness_range, True),
    ]
    lanes = np.full((len(drawn), 2), -1, np.int64)
    places = iter(range(len(drawn)))
    for parameter, needed, used in drawn:
        if needed:
            place = next(places)
            lanes[parameter, 0] = place if used else -1
    return lanes
