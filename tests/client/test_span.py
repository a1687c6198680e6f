"""The batches of one slot: each is handed out once, and the slot is held by any of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest

from augclient.lease import Returns, lease
from augclient.span import Span
from augproto.layout import Layout
from augproto.messages import ArraySpec, Entry, Opened, Release

OPENED = Opened(
    1, "ring", 4, 4, (ArraySpec("x", "<f4", (2,)), ArraySpec("y", "<i8", ())), {"x": "x", "y": "y"},
    10, 38, True, 0, "f", (), 3,
)  # fmt: skip
LAYOUT = Layout.of(12, [("x", "f4", (2,)), ("y", "i8", ())])
RELEASE = Release(0, 9)


@pytest.fixture
def returns() -> Iterator[Returns]:
    yield Returns()
    gc.collect()


def taken(returns: Returns, step: int = 1, samples: int = 12) -> Span:
    """The slot of that number, full of rows that say their place in it."""
    slot = np.zeros(LAYOUT.slot_bytes, np.uint8)
    arrays = LAYOUT.arrays(slot, 12)
    arrays["x"][:, 0] = arrays["y"][:] = np.arange(12)
    entry = Entry(5, step, *RELEASE, samples)
    return Span(OPENED, LAYOUT, entry, lease(slot, RELEASE, returns), leased=True)


def test_each_batch_is_handed_out_once(returns: Returns) -> None:
    span = taken(returns)
    for step, rows in ((4, [4, 5, 6, 7]), (3, [0, 1, 2, 3]), (5, [8, 9, 10, 11])):
        assert not span.over
        arrays = span.hand_out((5, step))
        assert arrays is not None
        assert arrays["y"].tolist() == arrays["x"][:, 0].tolist() == rows
        assert span.hand_out((5, step)) is None
    assert span.over


def test_the_last_batch_of_an_epoch_may_be_smaller_and_slots_hold_fewer(returns: Returns) -> None:
    span = taken(returns, step=3, samples=2)
    assert span.hand_out((5, 10)) is None
    arrays = span.hand_out((5, 9))
    assert arrays is not None
    assert arrays["y"].tolist() == [0, 1]
    assert span.over


def test_batches_of_other_slots_and_epochs_are_not_here(returns: Returns) -> None:
    span = taken(returns)
    for key in ((5, 2), (5, 6), (4, 3), (6, 3)):
        assert span.hand_out(key) is None


def test_a_slot_is_held_until_the_last_view_of_any_of_its_batches_is_gone(
    returns: Returns,
) -> None:
    span = taken(returns)
    first, second = span.hand_out((5, 3)), span.hand_out((5, 4))
    assert first is not None
    assert second is not None
    part = second["y"][1:]
    del span, first, second
    assert returns.take() == ()
    assert part.tolist() == [5, 6, 7]
    del part
    assert returns.take() == (RELEASE,)


def test_a_slot_of_which_nobody_has_a_batch_is_idle(returns: Returns) -> None:
    span = taken(returns)
    assert span.idle
    batch = span.hand_out((5, 3))
    assert batch is not None
    assert not span.idle
    view = batch["x"][:2].reshape(-1)
    del batch
    assert not span.idle, "a view of a view is one"
    del view
    assert span.idle


def test_a_copy_holds_nothing_and_is_not_idle() -> None:
    entry = Entry(0, 0, 0, 1, 12)
    memory = np.zeros(LAYOUT.slot_bytes, np.uint8)
    assert not Span(OPENED, LAYOUT, entry, memory, leased=False).idle
