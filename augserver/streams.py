"""One stream as the dispatcher knows it: slots, wishes, what became of each. Sans-I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from augproto.messages import Fault
from augproto.ring import SlotTable
from augserver.afar import Writing, best
from augserver.losses import Loss
from augserver.wishes import Key, Wishes

#: An assignment is cut to last about this long (seconds): long enough that messages cost little
#: beside the work, short enough that workers share a ring and a death loses little.
ASSIGNMENT_SECONDS = 0.005
#: ... and carries at most this many batches.
ASSIGNMENT_BATCHES = 16
#: How much of what a batch takes is what the last ones took.
_RECENT = 0.3


@dataclass(slots=True)
class Stream:
    """A stream, which belongs to one consumer and has one ring.

    Attributes:
        steps: Batches of an epoch.
        span: How many of them lie in a slot; a key's step is all of these.
        writing: What workers are at: who, and where.
        announced: What its consumer was told of each slot: key, number, sequence.
        losses: Of batches over which workers have died.
        quarantined: Slots that a worker may still write that cannot be killed.
        distrusted: A worker has died over it, and nothing has come of it since.
        told: Its consumer knows that there are no workers.
        number: Of the last thing that its consumer was told.
        batch_seconds: What a slot full takes; None until one was made.
        fastest: ... of whoever makes it fastest.
        remote: Workers on other hosts that may make its batches.
    """

    slots: SlotTable
    wishes: Wishes
    steps: int
    span: int
    writing: dict[Key, Writing] = field(default_factory=dict)
    announced: dict[int, tuple[Key, int, int]] = field(default_factory=dict)
    losses: dict[Key, list[Loss]] = field(default_factory=dict)
    quarantined: int = 0
    distrusted: bool = False
    told: bool = False
    number: int = 0
    batch_seconds: float | None = None
    fastest: float | None = None
    remote: int = 0

    def took(self, seconds: float, batches: int) -> None:
        """So many were made in that time, says a worker; a function in it may have said so."""
        each = seconds / batches if 0 <= seconds < 1e6 else 0.0
        if self.batch_seconds is None:
            self.batch_seconds = each
        else:
            self.batch_seconds += _RECENT * (each - self.batch_seconds)
        self.fastest = best(self.fastest, each)

    def share(self, possible: int, workers: int, seconds: float = ASSIGNMENT_SECONDS) -> int:
        """Batches in one assignment: a few milliseconds' worth, but a fair share of the ring."""
        if self.batch_seconds is None:
            return 1
        lasting = int(seconds / max(self.batch_seconds, 1e-9))
        fair = -(-possible // max(1, workers))
        return max(1, min(lasting, fair, ASSIGNMENT_BATCHES))

    def where(self, key: Key) -> str:
        """A batch in words; of several in a slot, the first."""
        return f"epoch {key[0]}, step {key[1] * self.span}"

    def refuse(
        self,
        key: Key,
        message: str,
        *,
        sample: int | None = None,
        traceback: str = "",
        path: str = "",
    ) -> Fault:
        """What its consumer is told of a batch that will not be made."""
        self.number += 1
        self.wishes.refused(key, self.number)
        return Fault("WorkerError", message, self.number, *key, sample, traceback, path)
