"""Fields and slots lie where frameworks alias them, and nothing overlaps."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from augproto.errors import ConfigError, RemoteProtocolError
from augproto.layout import (
    FIELD_ALIGNMENT,
    MAX_FIELDS,
    MAX_RANK,
    MAX_SLOT_BYTES,
    SEGMENT_HEADER_BYTES,
    SLOT_ALIGNMENT,
    SLOT_HEADER_BYTES,
    Layout,
)

DTYPES = ("?", "u1", "i2", "f4", "f8", "c16")


def some_layout(rng: random.Random) -> Layout:
    samples = [
        (f"x/{i}", rng.choice(DTYPES), tuple(rng.randrange(5) for _ in range(rng.randrange(4))))
        for i in range(rng.randrange(1, 6))
    ]
    return Layout.of(rng.randrange(1, 40), samples)


def page_aligned(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    raw = np.zeros(nbytes + SLOT_ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % SLOT_ALIGNMENT
    return raw[start : start + nbytes]


def test_a_known_batch_lies_where_it_is_drawn() -> None:
    layout = Layout.of(32, [("x", np.float32, (32, 32, 3)), ("y", np.int64, ())])
    x, y = layout.fields
    assert (x.offset, x.sample_bytes) == (64, 32 * 32 * 3 * 4)
    assert y.offset == 64 + 32 * x.sample_bytes
    assert layout.slot_bytes == 397312 == 97 * 4096
    assert layout.slot_offset(2) == 4096 + 2 * 397312
    assert layout.segment_bytes(3) == layout.slot_offset(3)


@pytest.mark.parametrize("seed", range(50))
def test_fields_are_aligned_apart_and_within_their_slot(seed: int) -> None:
    layout = some_layout(random.Random(seed))
    end = SLOT_HEADER_BYTES
    for field in layout.fields:
        assert field.offset % FIELD_ALIGNMENT == 0
        assert end <= field.offset < end + FIELD_ALIGNMENT, "padding only, and no more than needed"
        end = field.offset + layout.batch_size * field.sample_bytes
    assert layout.slot_bytes % SLOT_ALIGNMENT == 0
    assert end <= layout.slot_bytes < end + FIELD_ALIGNMENT + SLOT_ALIGNMENT
    assert layout.slot_offset(0) == SEGMENT_HEADER_BYTES


@pytest.mark.parametrize("seed", range(50))
def test_what_is_written_through_one_field_shows_in_no_other(seed: int) -> None:
    rng = random.Random(seed)
    layout = some_layout(rng)
    slot = page_aligned(layout.slot_bytes)
    count = rng.randrange(layout.batch_size + 1)
    arrays = layout.arrays(slot, count)
    assert list(arrays) == [field.name for field in layout.fields]
    for field, array in zip(layout.fields, arrays.values(), strict=True):
        assert array.shape == (count, *field.shape)
        assert array.dtype == field.dtype
        assert np.shares_memory(array, slot) or array.size == 0
        assert array.ctypes.data % FIELD_ALIGNMENT == 0 or array.size == 0
        before = slot.copy()
        array.reshape(-1).view(np.uint8)[:] = 255
        changed = np.flatnonzero(before != slot)
        assert len(changed) == array.nbytes
        slot[:] = 0


def test_views_of_memory_that_is_read_only_are_read_only() -> None:
    layout = Layout.of(2, [("x", "f4", (3,))])
    slot = np.zeros(layout.slot_bytes, np.uint8)
    slot.flags.writeable = False
    assert not layout.arrays(slot, 2)["x"].flags.writeable


def test_views_keep_the_memory_alive() -> None:
    layout = Layout.of(2, [("x", "f4", (3,))])
    x = layout.arrays(np.full(layout.slot_bytes, 7, np.uint8), 1)["x"]
    assert x.reshape(-1).view(np.uint8).tolist() == [7] * 12


def test_both_ends_compute_the_same_from_what_travels() -> None:
    layout = Layout.of(5, [("x", ">f4", (2, 2)), ("y", "uint8", ())])
    again = Layout.of(layout.batch_size, [(f.name, f.dtype, f.shape) for f in layout.fields])
    assert again == layout
    assert layout.fields[0].dtype == np.dtype("=f4").str, "a batch has this machine's byte order"


@pytest.mark.parametrize("count", [-1, 6, 2**64 - 1])
def test_a_batch_of_impossibly_many_samples_is_refused(count: int) -> None:
    layout = Layout.of(5, [("x", "f4", ())])
    with pytest.raises(RemoteProtocolError, match=f"{count} samples; wanted 0..5"):
        layout.arrays(np.zeros(layout.slot_bytes, np.uint8), count)


@pytest.mark.parametrize(
    ("batch_size", "samples", "complaint"),
    [
        (1, [], "of 0 arrays"),
        (0, [("x", "f4", ())], "a batch of 0 samples"),
        (-3, [("x", "f4", ())], "a batch of -3 samples"),
        (1, [("x", "f4", ())] * (MAX_FIELDS + 1), f"of {MAX_FIELDS + 1} arrays"),
        (1, [("x", "f4", (1,) * (MAX_RANK + 1))], "array 'x': got the shape"),
        (1, [("x", "f4", (3, -1))], "array 'x': got the shape"),
        (1, [("x", "O", ())], "array 'x': got dtype object"),
        (1, [("x", "U3", ())], "array 'x': got dtype <U3"),
        (1, [("x", "M8[s]", ())], "array 'x': got dtype datetime64"),
        (1, [("x", "f4,f4", ())], "array 'x': got dtype"),
        (2, [("x", "u1", (MAX_SLOT_BYTES,))], "bytes; wanted at most"),
        (2**64 - 1, [("x", "f4", (2**64 - 1,) * MAX_RANK)], "bytes; wanted at most"),
    ],
)
def test_a_batch_that_cannot_lie_in_a_slot_is_refused(
    batch_size: int, samples: list[tuple[str, str, tuple[int, ...]]], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Layout.of(batch_size, samples)


def test_the_largest_of_everything_is_served() -> None:
    most = Layout.of(1, [(f"x/{i}", "f4", (1,) * MAX_RANK) for i in range(MAX_FIELDS)])
    assert most.fields[-1].offset == SLOT_HEADER_BYTES + (MAX_FIELDS - 1) * FIELD_ALIGNMENT
