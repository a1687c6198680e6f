"""A state of np.random goes over the wire and draws go on from it."""

from __future__ import annotations

import numpy as np
import pytest

from augproto.errors import RemoteProtocolError
from augproto.twister import STATE_BYTES, pack, random_state, unpack


@pytest.mark.parametrize("before", [0, 1, 7, 624, 1000])
def test_draws_go_on_where_they_were(before: int) -> None:
    here = np.random.RandomState(5)
    here.random_sample(before)
    here.normal()  # leaves a deviate for later
    there = random_state(pack(here.get_state()))
    assert there.normal() == here.normal()
    assert (there.random_sample(700) == here.random_sample(700)).all()
    assert there.choice([1, 2, 3]) == here.choice([1, 2, 3])


def test_the_programs_own_state_is_one() -> None:
    before = np.random.get_state()
    first = random_state(pack(before)).random_sample(3)
    try:
        assert (np.random.random_sample(3) == first).all()
    finally:
        np.random.set_state(before)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(STATE_BYTES - 1),
        bytes(STATE_BYTES + 1),
        bytes(2496) + b"\xff" * 4 + bytes(12),
        bytes(2500) + b"\x02" + bytes(11),
    ],
)
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"np\.random"):
        unpack(data)
