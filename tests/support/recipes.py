"""Batches of a recipe, made as a worker makes them: into a slot that was full of something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from augserver.recipe import Recipe

Array = np.ndarray[Any, Any]


def made(recipe: Recipe, epoch: int = 0, step: int = 0) -> dict[str, Array]:
    """The fields of one batch."""
    slot = np.full(recipe.layout.slot_bytes, 0xA5, np.uint8)
    out = recipe.layout.arrays(slot, recipe.count(epoch, step))
    samples = recipe.fill(epoch, step, out).samples
    return {name: array[:samples] for name, array in out.items()}


def batches(recipe: Recipe, epochs: int = 1) -> Iterator[dict[str, Array]]:
    """All batches of so many epochs, in order."""
    for epoch in range(epochs):
        for step in range(recipe.sampler.steps):
            yield made(recipe, epoch, step)
