"""How a stream's ring is laid out, and how large, before there is one.

The server asks this before it makes the ring; `augserver check-config` asks the same of a ring that
nobody makes, so that what it says is what will be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from augproto.layout import Layout
from augproto.messages import Open
from augproto.spec import Spec
from augserver import spans
from augserver.config import Config
from augserver.desk import Desk, recipe_of
from augserver.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stream's ring is to be.

    Attributes:
        recipe: Of its slots.
        steps: Batches in an epoch.
        batch_size: Samples in the largest batch.
        span: Batches in a slot.
        slots: As many as are wanted; less room makes fewer.
    """

    recipe: Recipe | Desk
    steps: int
    batch_size: int
    span: int
    slots: int

    @property
    def layout(self) -> Layout:
        """Of a slot."""
        return self.recipe.layout


def plan(
    wish: Open,
    spec: Spec,
    seed: int,
    arrays: Mapping[str, npt.NDArray[Any]],
    config: Config,
    holds: Callable[[int], bool],
) -> Plan:
    """Lay out the ring that a wish is to get.

    Args:
        arrays: Of the dataset.
        holds: Whether memory holds a segment of so many bytes with room left for the next.

    Raises:
        ConfigError: The spec does not fit the dataset, or the ring not the config.
    """
    recipe = recipe_of(spec, seed, arrays, describes=True)
    steps, batch_size = recipe.sampler.steps, recipe.layout.batch_size
    span = spans.span_of(wish, recipe)
    if span > 1:
        joined = recipe_of(spec, seed, arrays, span=span, describes=True)
        slots = spans.slots(joined.layout, span)
        within = slots <= config.max_slots and config.holds(slots, joined.layout.slot_bytes)
        if within and holds(joined.layout.segment_bytes(slots)):
            return Plan(joined, steps, batch_size, span, slots)
        # Small slots make more of little room.
    slots = config.slots(wish.slots, recipe.layout.slot_bytes)
    return Plan(recipe, steps, batch_size, 1, slots)
