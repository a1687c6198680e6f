"""What the dispatcher knows of a worker on another host: what it may make, how far away it is.

Sans-I/O. Two things are different over there. Every answer takes a link's delay, which is hidden
by more work under way at once. And such a worker never writes a slot: what it has made comes by
message, and whoever owns the place by then decides whose bytes are taken. So a place that it holds
for too long can be given to somebody else at any moment, without waiting for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from augproto.messages import Place

#: Numbers of remote workers begin here.
FIRST_REMOTE = 1 << 32
#: Assignments that such a worker holds at once, and what each is cut to last (seconds).
REMOTE_DEPTH = 4
REMOTE_LASTS = 0.05
#: A place is overdue after this many times what the fastest takes for all that its worker holds.
TIMES_FASTEST = 4.0
#: ... and this many times the delay of its link, of which no more (seconds) is believed.
TIMES_LAG = 2.0
MOST_LAG = 1.0
#: ... but never sooner than this; and than that before anything is known.
LEAST_HELD = 0.1
LEAST_UNKNOWN = 1.0
#: How fast an old best is forgotten.
_FORGETS = 0.05
#: A place that was taken from somebody has twice as long then; no more often than this.
_MOST_DOUBLINGS = 10


class Writing(NamedTuple):
    """Who is at a batch, and where; since when, and how often it was taken from somebody."""

    worker: int
    place: Place
    since: float = 0.0
    thefts: int = 0


@dataclass(slots=True)
class Afar:
    """A remote worker.

    Attributes:
        streams: It makes batches of these: its probe of them was right.
        lag: Seconds of its best answers that were not work: what its link takes.
    """

    streams: set[int] = field(default_factory=set)
    lag: float | None = None

    def answered(self, after: float, worked: float) -> None:
        """A batch came so long after it was assigned, of which it worked so long, as it says."""
        self.lag = best(self.lag, min(max(after - worked, 0.0), MOST_LAG))

    def patience(self, fastest: float | None, holds: int, thefts: int) -> float:
        """Seconds for which it may hold a place before somebody idle gets it.

        Args:
            fastest: Seconds of a batch by the fastest worker; None until one was made.
            holds: Batches that it holds.
            thefts: How often the place was taken from somebody.
        """
        if fastest is None:
            least, due = LEAST_UNKNOWN, 0.0
        else:
            least, due = LEAST_HELD, TIMES_FASTEST * fastest * holds
        due += TIMES_LAG * (self.lag or 0.0)
        return float(max(least, due) * 2 ** min(thefts, _MOST_DOUBLINGS))


def best(known: float | None, seen: float) -> float:
    """The least that was seen, which rises slowly where it is not seen again."""
    if known is None or seen < known:
        return seen
    return known + _FORGETS * (seen - known)
