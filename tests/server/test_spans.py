"""Small batches that share a slot: which streams, and the same bytes as one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from recipes import made

from augproto.layout import MAX_SPAN
from augproto.messages import Entry, Open, Release, Run
from augproto.spec import Spec
from augserver.dispatcher import Dispatcher
from augserver.recipe import Recipe
from augserver.spans import BATCHES, FEWEST_SPANS, RING_BYTES, slots, span_of

Array = np.ndarray[Any, Any]

N = 1000
X = np.random.default_rng(0).integers(0, 256, (N, 16, 8, 3), np.uint8)
Y = np.arange(N, dtype=np.int64)
ARRAYS = {"x": X, "y": Y}
TRANSFORMS = {"rotation_range": 40, "horizontal_flip": True, "rescale": 1 / 255}
OPEN = Open(None, {}, None, {}, MAX_SPAN)


def recipe(span: int = 1, arrays: dict[str, Array] | None = None, **options: Any) -> Recipe:
    wanted = {"x": "x", "y": "y", "batch_size": 4, "transforms": TRANSFORMS, **options}
    spec = Spec.from_wire({"data": ["-"], **wanted})
    return Recipe(spec, 5, ARRAYS if arrays is None else arrays, span=span)


def split(joined: dict[str, Array], batch_size: int) -> list[dict[str, Array]]:
    """What a slot of several batches holds, batch by batch."""
    samples = len(joined["x"])
    return [
        {name: array[first : first + batch_size] for name, array in joined.items()}
        for first in range(0, samples, batch_size)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 7},
        {"batch_size": 7, "drop_remainder": True},
        {"shard": [1, 3]},
        {"validation_split": 0.3, "subset": "training"},
        {"sample_weight": "y", "target_size": [8, 8]},
        {"transforms": {"samplewise_center": True, "channel_shift_range": 20.0}},
        {"dtype": "uint8", "transforms": {"vertical_flip": True}},
        {"scheme": "keras", "batch_size": 7},
        {"scheme": "keras", "transforms": {"width_shift_range": [1, 2], "zoom_range": 0.2}},
    ],
    ids=str,
)
@pytest.mark.parametrize("span", [2, 5, MAX_SPAN])
def test_batches_of_a_slot_are_those_that_are_made_one_by_one(
    span: int, options: dict[str, Any]
) -> None:
    alone, joined = recipe(**options), recipe(span, **options)
    steps, size = alone.sampler.steps, alone.spec.batch_size
    for epoch in (0, 3):
        got = [
            batch
            for step in range(-(-steps // span))
            for batch in split(made(joined, epoch, step), size)
        ]
        assert len(got) == steps
        for step, batch in enumerate(got):
            wanted = made(alone, epoch, step)
            assert batch.keys() == wanted.keys()
            for name in wanted:
                assert np.array_equal(batch[name], wanted[name]), (epoch, step, name)


def test_small_batches_share_a_slot() -> None:
    assert span_of(OPEN, recipe()) == MAX_SPAN


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False},
        {"bad_samples": "skip"},
        {"scheme": "keras", "hashes": 10000},
        {"transforms": {"function": "package:function"}},
    ],
    ids=str,
)
def test_batches_that_somebody_could_tell_apart_have_slots_of_their_own(
    options: dict[str, Any],
) -> None:
    assert span_of(OPEN, recipe(**options)) == 1


def test_whitened_batches_have_slots_of_their_own() -> None:
    arrays = {**ARRAYS, "w": np.eye(16 * 8 * 3, dtype=np.float32)}
    assert span_of(OPEN, recipe(arrays=arrays, whitening="w")) == 1


def test_who_asks_for_slots_or_cannot_take_them_apart_gets_one_batch_in_each() -> None:
    assert span_of(Open(None, {}, 9, {}, MAX_SPAN), recipe()) == 1
    assert span_of(Open(None, {}, None), recipe()) == 1
    assert span_of(Open(None, {}, None, {}, 3), recipe()) == 3


def test_an_epoch_has_spans_enough_to_share() -> None:
    few = recipe(batch_size=50)  # 20 steps
    assert span_of(OPEN, few) == few.sampler.steps // FEWEST_SPANS == 2
    assert span_of(OPEN, recipe(batch_size=100)) == 1


def test_a_ring_of_spans_is_no_larger_than_its_bytes() -> None:
    for side, fits in ((8, 15), (96, 11), (160, 1)):
        x = np.broadcast_to(np.zeros((), np.uint8), (2000, side, side, 3))
        arrays: dict[str, Array] = {"x": x, "y": np.arange(2000)}
        span = span_of(OPEN, recipe(arrays=arrays, batch_size=16))
        assert span == fits, side
        if span > 1:
            layout = recipe(span, arrays=arrays, batch_size=16).layout
            assert slots(layout, span) * layout.slot_bytes <= RING_BYTES
            assert slots(layout, span) * span >= BATCHES


def test_fields_of_batches_that_would_not_be_aligned_have_slots_of_their_own() -> None:
    arrays: dict[str, Array] = {
        "x": np.zeros((2000, 41, 41, 3), np.uint8),
        "y": np.arange(2000),
    }
    assert span_of(OPEN, recipe(arrays=arrays, batch_size=3)) == 1
    # What is small may lie anywhere: a framework's copy of it costs nothing.
    assert span_of(OPEN, recipe(arrays={"x": X, "y": Y.astype(np.uint8)})) == MAX_SPAN


def test_what_was_made_is_counted_in_batches() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(1, slots=4, steps=10, span=4)
    dispatcher.join(0)
    dispatcher.want(1, [Run(0, 0, 3)], 0)
    while assignments := dispatcher.assign():
        for assignment in assignments:
            entries = [Entry(*place, 16) for place in assignment.places]
            dispatcher.done(0, 1, entries, 0.001)
            dispatcher.release(1, [Release(e.slot, e.sequence) for e in entries])
    assert dispatcher.batches == 10
