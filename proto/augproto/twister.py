"""The state of np.random's Mersenne Twister as bytes, so that draws can go on in another process.

numpy has frozen this generator (NEP 19), and its state is what `RandomState.get_state` gives: 624
words, the place in them, and a normal deviate that was drawn beforehand, if there is one.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from augproto.errors import RemoteProtocolError

_WORDS = 624
#: Place, whether there is a deviate, the deviate.
_REST = struct.Struct("<IId")
#: Bytes of a state.
STATE_BYTES = 4 * _WORDS + _REST.size

State = tuple[str, Any, int, int, float]


def pack(state: Any) -> bytes:
    """A state as `RandomState.get_state()` gives it (not as a dict), as bytes."""
    _, words, place, has_gauss, gauss = state
    return np.asarray(words, "<u4").tobytes() + _REST.pack(place, has_gauss, gauss)


def unpack(data: bytes) -> State:
    """What `RandomState.set_state` takes.

    Raises:
        RemoteProtocolError: These bytes are no state.
    """
    if len(data) != STATE_BYTES:
        raise RemoteProtocolError(
            f"a state of np.random: got {len(data)} bytes; wanted {STATE_BYTES}"
        )
    place, has_gauss, gauss = _REST.unpack_from(data, 4 * _WORDS)
    if place > _WORDS or has_gauss > 1:
        raise RemoteProtocolError(
            f"a state of np.random: got the place {place} and the flag {has_gauss}; wanted at "
            f"most {_WORDS} and 1"
        )
    words = np.frombuffer(data, "<u4", _WORDS).astype(np.uint32)
    return "MT19937", words, place, has_gauss, gauss


def random_state(data: bytes) -> np.random.RandomState:
    """A generator in that state."""
    generator = np.random.RandomState(0)
    generator.set_state(unpack(data))
    return generator
