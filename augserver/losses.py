"""Workers lost over one batch, and what its consumer is told of them when it is given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loss:
    """How a worker was lost over a batch.

    Attributes:
        cause: In words that follow "a worker".
        sample: That it was at, if it could say.
        traceback: Its own, if it left one.
        path: Of the sample's file, if it has one.
    """

    cause: str = "ended"
    sample: int | None = None
    traceback: str = ""
    path: str = ""

    def __str__(self) -> str:
        return self.cause + self.at

    @property
    def at(self) -> str:
        """The sample in words, where it is known."""
        if self.sample is None:
            return ""
        return f", at sample {self.sample}" + (f" ({self.path})" if self.path else "")


def summed_up(losses: Sequence[Loss]) -> Loss:
    """All of them in one: each cause once, with the latest sample and traceback that are known."""
    counts = Counter(map(str, losses))
    causes = (text if count == 1 else f"{count} times: {text}" for text, count in counts.items())
    latest = losses[::-1]
    at = next((loss for loss in latest if loss.sample is not None), Loss())
    text = next((loss.traceback for loss in latest if loss.traceback), "")
    return Loss("; ".join(causes), at.sample, text, at.path)
