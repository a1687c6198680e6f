"""What an epoch had to do without, told when it ends. Sans-I/O.

An epoch ends when each of its steps has been handed out once, in whatever order; a pass that is
broken off and begun again does not count its batches twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from augproto.messages import Bad

#: Epochs whose steps are remembered: the one that ends and the one that begins.
_KEPT = 2
#: Bad samples that a report lists; it counts all of them.
_LISTED = 20


@dataclass(slots=True)
class _Epoch:
    handed: set[int] = field(default_factory=set)
    bad: dict[tuple[int, int], Bad] = field(default_factory=dict)


class Report:
    """The bad samples of a consumer's epochs.

    Args:
        steps: Of an epoch.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._epochs: dict[int, _Epoch] = {}
        self._told: frozenset[int] = frozenset()

    def handed(self, epoch: int, step: int, bad: Iterable[Bad]) -> str | None:
        """A batch was handed out; returns what to say if that ends an epoch with bad samples."""
        noted = self._epochs.get(epoch)
        if noted is None:
            noted = self._epochs[epoch] = _Epoch()
            for old in list(self._epochs)[:-_KEPT]:
                del self._epochs[old]
        for sample in bad:
            noted.bad[step, sample.sample] = sample
        before = len(noted.handed)
        noted.handed.add(step)
        ends = before < self._steps == len(noted.handed)
        return self._tell(epoch, noted.bad.values()) if ends and noted.bad else None

    def bad_samples(self, epoch: int) -> tuple[Bad, ...]:
        """Those of the batches that have been handed out."""
        noted = self._epochs.get(epoch)
        return () if noted is None else tuple(noted.bad.values())

    def _tell(self, epoch: int, bad: Iterable[Bad]) -> str:
        samples = sorted(bad, key=lambda b: b.sample)
        count = f"{len(samples)} bad sample{'s' if len(samples) != 1 else ''}"
        before, self._told = self._told, frozenset(b.sample for b in samples)
        if before == self._told:  # nearly always, and a list is read once
            return f"epoch {epoch} went on without the same {count}"
        lines = [
            f"sample {b.sample}{f' ({b.path})' if b.path else ''}: {b.reason}"
            for b in samples[:_LISTED]
        ]
        if len(samples) > _LISTED:
            lines.append(f"... and {len(samples) - _LISTED} more")
        return "\n  ".join([f"epoch {epoch} went on without {count}:", *lines])
