"""Ranges of parameters, as programs write them: how they are kept, and drawn from np.random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def within(limit: Any) -> Any:
    """Draw from -limit..limit."""
    return np.random.uniform(-limit, limit)


def shift(limit: Any, img_shape: Sequence[int], axis: int) -> Any:
    """Draw a shift in pixels.

    Args:
        limit: A sequence or a whole number above 0 is chosen from, with either sign; a float is
            the end of a range. If all is below 1 it is a share of the picture's axis.
    """
    if not limit:
        return 0
    try:
        pixels = np.random.choice(limit)
        pixels *= np.random.choice([-1, 1])
    except ValueError:  # nothing to choose from: a float, or a whole number below 0
        pixels = within(limit)
    if np.max(limit) < 1:
        pixels *= img_shape[axis]
    return pixels


def low_and_high(zoom_range: Any) -> list[float]:
    """The zoom range as a generator keeps it.

    Raises:
        ValueError: It is neither a number nor two.
    """
    if isinstance(zoom_range, (float, int)):
        return [1 - zoom_range, 1 + zoom_range]
    if len(zoom_range) == 2 and all(isinstance(bound, (float, int)) for bound in zoom_range):
        return list(zoom_range)
    raise ValueError(
        f"`zoom_range` should be a float or a tuple or list of two floats. Received: {zoom_range}"
    )
