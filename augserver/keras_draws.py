"""Random parameters and orders as Keras's `ImageDataGenerator` draws them: the `keras` scheme.

Keras's iterator seeds np.random with `seed + k` before its k-th batch, counted from the first one
ever. Before the first batch of an epoch it draws the epoch's order from that state; what is left
of the state gives the parameters of the batch's samples, one sample after the other. So a batch is
a function of (seed, k) and its place in it: any worker can make any batch, and the k-th one taken
is Keras's k-th. (keras 3.15, keras/src/legacy/preprocessing/image.py: `Iterator._flow_index`,
`ImageDataGenerator.get_random_transform`.)

numpy has frozen these generators: `RandomState` gives the same numbers for ever (NEP 19).
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from augproto.errors import AugError
from augproto.spec import MAX_KERAS_SEED
from augproto.transforms import ShiftRange, Transforms
from augproto.twister import unpack
from augserver.draws import Draws

_own = threading.local()


class State(Protocol):
    """What is drawn from: a RandomState, or the module np.random, which is one."""

    def get_state(self) -> Any:
        """What `twister.pack` takes."""

    def random_sample(self, size: Any = None) -> Any:
        """Doubles in [0, 1)."""

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """Doubles in [low, high)."""

    def choice(self, a: Any) -> Any:
        """One of several values."""

    def randint(self, low: Any, high: Any = None, size: Any = None) -> Any:
        """Whole numbers in [0, low) where there is no high."""


def state_before(seed: int, batch: int) -> np.random.RandomState:
    """np.random as it is before the batch of that number; valid until this thread's next one.

    Raises:
        AugError: Keras itself could not seed it.
    """
    if seed + batch > MAX_KERAS_SEED:
        raise AugError(
            f"draws: batch {batch} of seed {seed} would need the seed {seed + batch}; np.random "
            f"takes at most {MAX_KERAS_SEED}. Choose a smaller seed, or scheme='counter'"
        )
    state = _generator()
    state.seed(seed + batch)
    return state


def state_of(data: bytes) -> np.random.RandomState:
    """np.random in a state of `twister.pack`; valid until this thread's next one.

    Raises:
        RemoteProtocolError: These bytes are no state.
    """
    state = _generator()
    state.set_state(unpack(data))
    return state


def _generator() -> np.random.RandomState:
    """This thread's own. A new one fetches entropy that is thrown away: 75 us beside 1.5."""
    if not hasattr(_own, "state"):
        _own.state = np.random.RandomState(0)
    state: np.random.RandomState = _own.state
    return state


def draw(transforms: Transforms, state: State, samples: int, height: int, width: int) -> Draws:
    """Draw the parameters of so many samples; the state moves on as Keras's would.

    Args:
        state: A generator, or np.random itself, where a user's function draws from it as well.
        height, width: Of a picture, in pixels: a shift may be a share of it.
    """
    if chosen(transforms):
        return _stacked(
            [_one(transforms, state, height, width) for _ in range(samples)], transforms
        )
    t, drawn_from = transforms, ranges(transforms)
    # Each number is one double, so one call draws what Keras draws one by one.
    numbers = iter(state.random_sample((samples, len(drawn_from))).T)
    bounds = iter(drawn_from)

    def uniform(drawn: object, neutral: float = 0.0) -> NDArray[np.float64]:
        if not drawn:
            return np.full(samples, neutral)
        low, high = next(bounds)
        between: NDArray[np.float64] = low + (high - low) * next(numbers)
        return between

    def shift(limit: ShiftRange, length: int) -> NDArray[np.float64]:
        pixels = uniform(limit)
        return pixels * length if limit and np.max(limit) < 1 else pixels

    zoomed = bool(_zoom(t))
    return Draws(
        theta=uniform(t.rotation_range),
        tx=shift(t.height_shift_range, height),
        ty=shift(t.width_shift_range, width),
        shear=uniform(t.shear_range),
        zx=uniform(zoomed, 1.0),
        zy=uniform(zoomed, 1.0),
        # Both are drawn in any case.
        flip_horizontal=(uniform(True) < 0.5) & t.horizontal_flip,
        flip_vertical=(uniform(True) < 0.5) & t.vertical_flip,
        channel_shift=uniform(True) if t.channel_shift_range else None,
        brightness=uniform(True) if t.brightness_range else None,
    )


def chosen(t: Transforms) -> bool:
    """Whether a shift is one of several values: np.random.choice rejects words as it likes."""
    return _list(t.height_shift_range) or _list(t.width_shift_range)


def ranges(t: Transforms) -> list[tuple[float, float]]:
    """The range of each double that is drawn for a sample, in Keras's order, if none is chosen."""
    return [
        *_if(t.rotation_range, -t.rotation_range, t.rotation_range),
        *_shift(t.height_shift_range),
        *_shift(t.width_shift_range),
        *_if(t.shear_range, -t.shear_range, t.shear_range),
        *(_zoom(t) * 2),
        (0.0, 1.0), (0.0, 1.0),
        *_if(t.channel_shift_range, -t.channel_shift_range, t.channel_shift_range),
        *([t.brightness_range] if t.brightness_range else []),
    ]  # fmt: skip


def hashes(state: State, bound: int, samples: int) -> NDArray[np.int64]:
    """The numbers in the names of a batch's files: Keras draws one a sample (`save_to_dir`) when
    the whole batch is made.

    Args:
        bound: They lie below it: 10 000 where pictures are arrays, 10 000 000 where they are files.

    Returns:
        int64 (samples,).
    """
    return np.asarray(state.randint(bound, size=samples), np.int64)


def _if(drawn: object, low: float, high: float) -> list[tuple[float, float]]:
    return [(low, high)] if drawn else []


def _shift(limit: ShiftRange) -> list[tuple[float, float]]:
    return [(-limit, limit)] if isinstance(limit, float) and limit else []


def _zoom(t: Transforms) -> list[tuple[float, float]]:
    assert isinstance(t.zoom_range, tuple)  # Transforms turns a single number into a pair
    return [] if t.zoom_range == (1.0, 1.0) else [t.zoom_range]


def _list(limit: ShiftRange) -> bool:
    return bool(limit) and not isinstance(limit, float)


def _one(t: Transforms, state: State, height: int, width: int) -> dict[str, float | bool | None]:
    """One sample's parameters, call for call as Keras draws them."""

    def symmetric(limit: float) -> float:
        return float(state.uniform(-limit, limit)) if limit else 0.0

    def shift(limit: ShiftRange, length: int) -> float:
        if not limit:
            return 0.0
        if isinstance(limit, float):
            pixels = float(state.uniform(-limit, limit))
        else:
            pixels = float(state.choice(limit)) * float(state.choice([-1, 1]))
        return pixels * length if np.max(limit) < 1 else pixels

    assert isinstance(t.zoom_range, tuple)
    theta = symmetric(t.rotation_range)
    tx = shift(t.height_shift_range, height)
    ty = shift(t.width_shift_range, width)
    shear = symmetric(t.shear_range)
    zx, zy = state.uniform(*t.zoom_range, 2) if _zoom(t) else (1.0, 1.0)
    horizontal, vertical = bool(state.random_sample() < 0.5), bool(state.random_sample() < 0.5)
    return {
        "theta": theta,
        "tx": tx,
        "ty": ty,
        "shear": shear,
        "zx": zx,
        "zy": zy,
        "flip_horizontal": horizontal and t.horizontal_flip,
        "flip_vertical": vertical and t.vertical_flip,
        "channel_shift": symmetric(t.channel_shift_range) if t.channel_shift_range else None,
        "brightness": state.uniform(*t.brightness_range) if t.brightness_range else None,
    }


def _stacked(samples: list[dict[str, float | bool | None]], t: Transforms) -> Draws:
    def column(name: str) -> NDArray[np.float64]:
        return np.array([sample[name] for sample in samples], np.float64)

    return Draws(
        theta=column("theta"),
        tx=column("tx"),
        ty=column("ty"),
        shear=column("shear"),
        zx=column("zx"),
        zy=column("zy"),
        flip_horizontal=column("flip_horizontal") != 0,
        flip_vertical=column("flip_vertical") != 0,
        channel_shift=column("channel_shift") if t.channel_shift_range else None,
        brightness=column("brightness") if t.brightness_range else None,
    )
