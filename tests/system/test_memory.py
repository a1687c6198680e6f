"""Memory stays what it is (a short version of tests/bench/memory_flat.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import memory_flat

#: MiB; a batch of this stream has 25 KiB, so one that was kept in each of 40 epochs would show.
ALLOWED = {"server": 3.0, "forkserver": 3.0, "workers": 6.0, "consumer": 6.0}


@pytest.mark.slow
def test_forty_epochs_and_forty_consumers_later_memory_is_what_it_was() -> None:
    for who, (warm, end) in memory_flat.measure(40, 40).items():
        assert end - warm < ALLOWED[who], f"{who}: {warm:.1f} MiB, then {end:.1f}"
