"""Nothing but the work: a recipe that fills memory in a loop, without server, ring and consumer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from augclient.request import request
from augproto.layout import aligned_empty
from augserver.desk import recipe_of
from peers.work import Array, Work

#: Slots that are filled in turn, so that the processor's caches see what they see elsewhere.
SLOTS = 8


def bare(work: Work) -> Iterator[Array]:
    """Batches of a work, made in this process: order, draws, reading, kernel."""
    options: Any = {
        "batch_size": work.batch_size,
        "transforms": work.transforms,
        "seed": 1,
    }
    if work.x is not None:
        wanted = request(work.x, work.y, None, data=None, stream=None, options=options)
    else:
        wanted = request(
            None, work.y, None, data=None, files=work.files, stream=None,
            options=options | {"target_size": work.size},
        )  # fmt: skip
    assert wanted.spec is not None
    recipe = recipe_of(wanted.spec, 1, wanted.arrays, None)
    layout = recipe.layout
    slots = [
        layout.arrays(aligned_empty(layout.slot_bytes), layout.batch_size) for _ in range(SLOTS)
    ]
    x = next(field.name for field in layout.fields)
    whole = work.samples // work.batch_size
    for n in itertools.count():
        out = slots[n % SLOTS]
        recipe.fill(n // whole, n % whole, out, None, None)
        yield out[x]
