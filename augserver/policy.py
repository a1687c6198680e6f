"""What becomes of a batch when one of its samples cannot be made.

`raise` gives the batch up, `skip` makes it shorter, `substitute` takes the next sample of the
dataset instead. (Where nothing of a batch is left to `skip`, one substitute stands for all of it:
Keras takes no empty batch, and a run of weeks should not end over one.)

All of it follows from the order of samples and from which of them are bad, and that is a property
of the dataset: whoever makes the batch, and however often, leaves out the same samples. (What is no
property of the dataset, like a lack of memory, is `final`: no policy goes on.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from augserver.sampling import Sampler
from augserver.transforms import SampleError

#: Samples in a row that are tried in the place of a bad one before the batch is given up.
MAX_SUBSTITUTES = 64

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that a batch had to do without, and why."""

    sample: int
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a batch.

    Attributes:
        samples: How many it has; fewer than the sampler says where bad ones were skipped.
        bad: The samples that it had to do without.
        state: Of np.random after the draws of a batch whose script came with one; else empty.
    """

    samples: int
    bad: tuple[BadSample, ...] = ()
    state: bytes = b""


class Rows:
    """Which samples stand in a batch, as more and more of them turn out to be bad.

    Args:
        order: The batch's samples, where they are not those that the sampler says.

    Attributes:
        places: Where in the whole batch the rows stand; None where all of it does.
        drawn: The samples that the epoch's order names, and whose draws the rows have.
        taken: The samples that are read; another one where a substitute stands for a bad one.
    """

    def __init__(
        self,
        sampler: Sampler,
        epoch: int,
        step: int,
        policy: str,
        order: Indexes | None = None,
    ) -> None:
        self.epoch, self.step = epoch, step
        self._sampler = sampler
        self._policy = policy
        self._bad: dict[int, SampleError] = {}
        self.drawn: Indexes = sampler.batch(epoch, step) if order is None else order
        self._order: Indexes = self.drawn
        self.places: Indexes | None = None
        self.taken: Indexes = self.drawn

    def without(self, *errors: SampleError) -> None:
        """Go on without some samples.

        Raises:
            SampleError: The policy, or what is left, does not allow it.
        """
        for error in errors:
            if self._policy == "raise" or error.final or error.sample in self._bad:
                raise error
        self._bad |= {error.sample: error for error in errors}
        good = np.isin(self._order, list(self._bad), invert=True)
        if self._policy == "skip" and good.any():
            self.places = np.flatnonzero(good)
            self.drawn = self.taken = self._order[good]
            return
        if self._policy == "skip":  # nothing is left, and Keras takes no empty batch
            self.places, self.drawn = np.arange(1), self._order[:1]
        self.taken = np.array([self._substitute(s) for s in self.drawn.tolist()], np.int64)

    @property
    def whole(self) -> int:
        """Samples of the batch of which none is left out."""
        return len(self._order)

    def made(self, state: bytes = b"") -> Made:
        """The batch is whole."""
        if not self._bad:
            return Made(len(self.taken), (), state)
        # A substitute that was no good either is none that the batch was to have.
        bad = [
            BadSample(e.sample, e.path, e.message)
            for e in self._bad.values()
            if e.sample in self._order
        ]
        return Made(len(self.taken), tuple(bad), state)

    def _substitute(self, sample: int) -> int:
        for distance in range(MAX_SUBSTITUTES + 1):
            candidate = self._sampler.after(sample, distance)
            if candidate not in self._bad:
                return candidate
        error = self._bad[sample]
        raise SampleError(
            sample,
            f"{error.message}. None of the {MAX_SUBSTITUTES} samples after it can be made either "
            f"(bad_samples={self._policy!r})",
            error.path,
        ) from error
