"""Whether drawn numbers follow their law: Kolmogorov-Smirnov for the continuous, chi-square else.

The numbers come of fixed seeds, so a test gives the same answer each time. LEVEL is the share of
true laws that would be refused; with a hundred thousand numbers, a range that is off by a
fiftieth, or one value that comes in two hundredths more of the cases, is refused for certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray[Any, Any]

LEVEL = 1e-4
COUNT = 100_000


@dataclass(frozen=True)
class Uniform:
    """Any number between two."""

    low: float
    high: float

    def p(self, numbers: Array) -> float:
        """How likely numbers so far from this law are."""
        law = stats.uniform(self.low, self.high - self.low)
        return float(stats.kstest(numbers, law.cdf).pvalue)

    def part(self, numbers: Array, parts: int) -> Array:
        """Which of so many equally likely parts each number lies in."""
        share = (numbers - self.low) / (self.high - self.low)
        part: Array = np.clip(np.floor(share * parts), 0, parts - 1).astype(int)
        return part


@dataclass(frozen=True)
class Choice:
    """One of several values, each as likely (a value that is there twice is twice as likely)."""

    values: tuple[float, ...]

    def p(self, numbers: Array) -> float:
        """How likely numbers so far from this law are; 0 where one is none of the values."""
        known, weights = np.unique(self.values, return_counts=True)
        found, counts = np.unique(numbers, return_counts=True)
        if not set(found.tolist()) <= set(known.tolist()):
            return 0.0
        seen = dict(zip(found.tolist(), counts.tolist(), strict=True))
        observed = [seen.get(value, 0) for value in known.tolist()]
        expected = weights / weights.sum() * len(numbers)
        return float(stats.chisquare(observed, expected).pvalue)

    def part(self, numbers: Array, parts: int) -> Array:
        """Which of the values each number is."""
        part: Array = np.searchsorted(np.unique(self.values), numbers)
        return part


Law = Uniform | Choice


def independent_p(one: Array, other: Array) -> float:
    """How likely it is that two columns of parts that have nothing to do with each other look so
    much as if they had."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1)
    return float(stats.chi2_contingency(table).pvalue)
