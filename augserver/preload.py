"""What the forkserver imports and runs once before the first worker.

Workers are forked from a process that has already paid for numpy, scipy and Pillow and has run one
small batch, so that a new worker is ready in milliseconds and shares those pages with all others.
That batch also has the kernels compiled, or fetched from numba's cache: there is one for all kinds
of sources, batches and transforms, so no worker ever compiles.
"""

from __future__ import annotations

import numpy as np

from augproto.spec import Spec
from augproto.transforms import Transforms
from augserver import worker as worker
from augserver.datasets import jpeg
from augserver.recipe import Recipe


def warm() -> None:
    """Make one small batch with everything switched on; kernels are compiled with the first."""
    transforms = Transforms(
        rotation_range=10, width_shift_range=0.1, channel_shift_range=5, horizontal_flip=True,
        brightness_range=(0.9, 1.1), rescale=1 / 255,
    )  # fmt: skip
    for dtype in ("float32", "uint8"):
        spec = Spec(data=("warm",), x="x", batch_size=2, transforms=transforms, dtype=dtype)
        recipe = Recipe(spec, 0, {"x": np.zeros((2, 8, 8, 3), np.uint8)})
        slot = np.zeros(recipe.layout.slot_bytes, np.uint8)
        recipe.fill(0, 0, recipe.layout.arrays(slot, 2))
    jpeg.available()
