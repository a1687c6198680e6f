"""Calls of an iterator in any order, drawn at random, and what comes of them."""

from __future__ import annotations

import contextlib
import hashlib
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

Call = tuple[str, int]


@dataclass(frozen=True)
class Sequence:
    """A flow over numbered pictures and what is asked of it.

    Attributes:
        order: "keras", where the global np.random decides and everything must be as with Keras,
            or "stream", where np.random must be left alone.
    """

    number: int
    order: str
    generator: dict[str, Any]
    flow: dict[str, Any]
    samples: int
    calls: tuple[Call, ...]

    def __str__(self) -> str:
        said = ", ".join(f"{name}({argument})" for name, argument in self.calls)
        return (
            f"sequence {self.number} ({self.order}): {self.generator} {self.flow} over "
            f"{self.samples}: {said}"
        )


def sequence(number: int, order: str) -> Sequence:
    """The sequence of that number."""
    rng = random.Random(f"{order}:{number}")
    generator: dict[str, Any] = {"rescale": 0.5}
    for name, value in {
        "rotation_range": 30, "width_shift_range": 2, "zoom_range": 0.2, "horizontal_flip": True,
        "brightness_range": (0.5, 1.5),
    }.items():  # fmt: skip
        if rng.random() < 0.5:
            generator[name] = value
    if rng.random() < 0.2:
        generator["preprocessing_function"] = _noisy
    shuffle = rng.random() < 0.6
    seed = rng.choice([0, 5, 99])
    flow: dict[str, Any] = {"batch_size": rng.choice([2, 3, 4, 16]), "shuffle": shuffle}
    # A seed of its own is drawn where there is none, and then Keras's batches are others.
    if order == "stream" or rng.random() < 0.5:
        flow["seed"] = seed
    samples = rng.choice([1, 5, 8, 12])
    steps = -(-samples // flow["batch_size"])
    calls = ["next"] * 6 + ["item"] * 5 + ["reset", "indexes", "look", "draw", "beyond", "seen"]
    if order == "keras":
        calls += ["on_epoch_end"] * 2 + ["set_index_array", "seed"]
    elif not shuffle:
        calls += ["on_epoch_end"]  # where nothing is drawn there is nothing to deviate in
    return Sequence(
        number,
        order,
        generator,
        flow,
        samples,
        tuple((rng.choice(calls), rng.randrange(steps)) for _ in range(rng.randint(4, 14))),
    )


def _noisy(picture: Any) -> Any:
    return picture + np.random.uniform(0, 1, picture.shape)


def outcome(face: ModuleType, sequence: Sequence, **own: Any) -> list[str]:
    """What each call gives, as text; where the order is Keras's, with np.random after it."""
    x = np.random.default_rng(3).integers(0, 256, (sequence.samples, 7, 6, 3)).astype("uint8")
    state = np.random.get_state()
    np.random.seed(sequence.number)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            generator = face.ImageDataGenerator(**sequence.generator, **own)
            flow = generator.flow(x, np.arange(sequence.samples), **sequence.flow)
            found = []
            for name, argument in sequence.calls:
                before = _state()
                try:
                    said = f"{name}({argument}): {_CALLS[name](flow, argument)}"
                except Exception as error:  # Keras gives none here
                    said = f"{name}({argument}): raised {error!r}"
                if sequence.order == "keras":
                    said += f", np.random {_state()}"
                elif own and name != "draw" and _state() != before:
                    said += ", np.random was not left alone"
                found.append(said)
            return found
    finally:
        np.random.set_state(state)


def _state() -> str:
    """np.random, in a few letters."""
    _, keys, *rest = np.random.get_state()
    return _digest(np.asarray(keys)) + f"+{rest}"


def _digest(array: Any) -> str:
    array = np.ascontiguousarray(array)
    return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()[:12]}"


def _batch(batch: Any) -> str:
    x, y = batch
    return f"{_digest(x)} {y.tolist()}"


def _beyond(flow: Any, _: int) -> str:
    with contextlib.suppress(ValueError):
        flow[len(flow)]
        return "no ValueError"
    return "ValueError"


def _seed(flow: Any, argument: int) -> str:
    np.random.seed(argument)
    return ""


def _array(flow: Any, _: int) -> str:
    return str(None if flow.index_array is None else flow.index_array.tolist())


_CALLS: dict[str, Callable[[Any, int], str]] = {
    "next": lambda flow, _: _batch(next(flow)),
    "item": lambda flow, step: _batch(flow[step]),
    "reset": lambda flow, _: str(flow.reset()),
    "on_epoch_end": lambda flow, _: str(flow.on_epoch_end()),
    "set_index_array": lambda flow, _: str(flow._set_index_array()),
    "indexes": lambda flow, _: str(next(flow.index_generator).tolist()),
    "look": _array,
    "seen": lambda flow, _: f"{flow.batch_index} {flow.total_batches_seen} {len(flow)} {flow.n}",
    "draw": lambda flow, _: str(np.random.random()),
    "seed": _seed,
    "beyond": _beyond,
}
