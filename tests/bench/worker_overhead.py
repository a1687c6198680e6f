"""Where does a worker's time for one batch go: into draws, into the transform, or into the rest?

One process, no server: batches are made as a worker makes them, header to header, in slots of a
ring in private memory. The rest is all of it but draws and transform: headers, the order, labels,
and Python between them. It is measured by taking both away, not by subtraction.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from measure import TRANSFORMS, pictures

from augproto.layout import aligned_empty
from augproto.messages import Place
from augproto.ring import Ring
from augproto.spec import Spec
from augproto.transforms import Transforms
from augserver import worker
from augserver.draws import Draws
from augserver.recipe import Recipe

SLOTS = 8
ROUNDS = 7
SECONDS = 0.15  # of one answer


class _Nothing:
    """Stands where the transform is, and leaves the slot as it is."""

    def __init__(self) -> None:
        self.draws: Draws | None = None

    def transform_batch(
        self, source: Any, indexes: Any, draws: Draws, out: Any, note: Any = None
    ) -> None:
        """Keep the draws."""
        self.draws = draws


def main() -> None:
    arrays = dict(zip(("x", "y"), pictures(), strict=True))
    for scheme in sys.argv[1:] or ("counter", "keras"):
        for batch_size in (32, 256, 1024):
            us = _measure(arrays, scheme, batch_size)
            whole = us["draws"] + us["transform"] + us["rest"]
            shares = ", ".join(f"{k} {v:9.1f} us ({v / whole:6.1%})" for k, v in us.items())
            print(f"{scheme:7} batch {batch_size:4}: {shares}", flush=True)


def _measure(arrays: dict[str, Any], scheme: str, batch_size: int) -> dict[str, float]:
    """Microseconds a batch, medians of interleaved rounds."""
    spec = Spec(
        data=("a.npz",),
        x="x",
        y="y",
        batch_size=batch_size,
        scheme=scheme,
        transforms=Transforms(**TRANSFORMS),
    )
    nothing = _Nothing()
    whole, drawn, bare = (_Filler(spec, arrays) for _ in range(3))
    drawn.replace_transform(nothing)
    bare.replace_transform(nothing)
    drawn()
    assert nothing.draws is not None
    bare.replace_draws(nothing.draws)
    fillers: dict[str, Callable[[], None]] = {"whole": whole, "drawn": drawn, "bare": bare}
    answers: dict[str, list[float]] = {name: [] for name in fillers}
    for _ in range(ROUNDS):
        for name, fill in fillers.items():
            answers[name].append(_timed(fill))
    median = {name: statistics.median(values) for name, values in answers.items()}
    return {
        "draws": median["drawn"] - median["bare"],
        "transform": median["whole"] - median["drawn"],
        "rest": median["bare"],
    }


class _Filler:
    """Fills one batch after the other, of epoch 0, round and round."""

    def __init__(self, spec: Spec, arrays: dict[str, Any]) -> None:
        self.recipe = Recipe(spec, 7, arrays)
        layout = self.recipe.layout
        memory = aligned_empty(layout.segment_bytes(SLOTS))
        self._work = worker._Work(self.recipe, Ring(memory, layout, SLOTS))
        self._full = len(arrays["x"]) // spec.batch_size
        self._sequence = 0

    def replace_transform(self, transform: _Nothing) -> None:
        """Of all parts that have one."""
        listed = self.recipe._parts.listed
        for i, part in enumerate(listed):
            if part.transform is not None:
                listed[i] = dataclasses.replace(part, transform=transform)

    def replace_draws(self, draws: Draws) -> None:
        """By ready ones."""
        self.recipe._draws_of = lambda *_: (draws, b"")  # type: ignore[method-assign]

    def __call__(self) -> None:
        self._sequence += 1
        step = self._sequence % (self._full - 1) + 1  # the first one draws the order in any case
        place = Place(0, step, self._sequence % SLOTS, self._sequence)
        worker._fill(self._work, 1, place, None)


def _timed(fill: Callable[[], None]) -> float:
    """Microseconds of CPU of one batch: what others do on this machine does not count."""
    count, end, started = 0, time.perf_counter() + SECONDS, time.thread_time()
    while time.perf_counter() < end:
        fill()
        count += 1
    return 1e6 * (time.thread_time() - started) / count


if __name__ == "__main__":
    main()
