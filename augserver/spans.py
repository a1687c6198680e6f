"""How many batches of a stream lie in one slot: its span.

What it costs to say where a batch is does not depend on its size. Of 32 small pictures it is as
much as a third of what the pictures themselves cost; so small batches share a slot, are assigned,
made, announced and released together, and their consumer takes them out one by one. The bytes of a
batch are the same in any span, and so is everything that its consumer is told of it.

Only where nobody can tell the difference: in a shuffled stream, which is taken in order, whose
batches are full of samples that nothing can be wrong with one by one (arrays, no user's function),
and whose consumer leaves the ring to the server. A span also waits for its last batch, and is held
as long as any of its batches is; so there are many slots to a ring and many spans to an epoch.
"""

from __future__ import annotations

from augproto.layout import FIELD_ALIGNMENT, MAX_SPAN, Layout
from augproto.messages import Open
from augserver.desk import Desk
from augserver.recipe import Recipe

#: Bytes of a ring whose slots have a span, about as many as 48 slots of the largest of such batches
#: would take. Where they do not fit, each batch has a slot of its own.
RING_BYTES = 192 << 20
#: Slots of such a ring, at least, of which workers hold four.
FEWEST_SLOTS = 10
#: Batches of such a ring, about, beside those that workers are at: JAX keeps 34 when nobody reads
#: its logs.
BATCHES = 60
#: Spans of an epoch, at least, so that the workers share one and its end is not waited for.
FEWEST_SPANS = 8
#: Fields up to so many bytes of a batch need not be aligned: frameworks copy them, which is nothing
#: beside a slot of their own.
SMALL_FIELD = 4096


def slots(layout: Layout, span: int) -> int:
    """How many slots a ring gets whose slots have a span, before looking at the room there is."""
    enough = 4 + -(-BATCHES // span)
    return max(FEWEST_SLOTS, min(RING_BYTES // layout.slot_bytes, enough))


def span_of(wish: Open, recipe: Recipe | Desk) -> int:
    """Batches in a slot of the stream that a consumer asks for.

    Args:
        recipe: Of the stream, with one batch in a slot.
    """
    if isinstance(recipe, Desk) or wish.slots is not None or not recipe.joins:
        return 1
    size = recipe.layout.batch_size
    for field in recipe.layout.fields:
        nbytes = size * field.sample_bytes
        if nbytes > SMALL_FIELD and nbytes % FIELD_ALIGNMENT:
            return 1
    by_memory = RING_BYTES // FEWEST_SLOTS // recipe.layout.slot_bytes
    by_epoch = recipe.sampler.steps // FEWEST_SPANS
    if by_memory * FEWEST_SLOTS < BATCHES:
        return 1
    return max(1, min(wish.span, MAX_SPAN, by_memory, by_epoch))
