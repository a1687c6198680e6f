"""What one consumer wants and has not received: its latest list, in order, and its scripts.

A list replaces the one before. Lists and answers cross on the wire, so each is told apart by the
number of the last answer that its writer had seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice, repeat

from augproto.errors import RemoteProtocolError
from augproto.messages import Run, Script

#: (epoch, step).
Key = tuple[int, int]

#: No wish list is followed further than this.
MAX_WANTED = 4096
#: Bytes of scripts that a stream's unmade batches may have.
MAX_SCRIPT_BYTES = 64 << 20


@dataclass(slots=True)
class Wishes:
    """The wishes of one stream.

    Attributes:
        steps: Of an epoch.
        wanted: What nobody is at, the most urgent first.
        urgent: What its consumer waits for, also where a worker is at it.
        faulted: What was refused, and with which number, until the consumer has seen that.
        scripts: What unmade batches are made of, where the consumer said so.
    """

    steps: int
    wanted: deque[Key] = field(default_factory=deque)
    urgent: Key | None = None
    faulted: dict[Key, int] = field(default_factory=dict)
    scripts: dict[Key, Script] = field(default_factory=dict)

    def replace(
        self,
        runs: Iterable[Run],
        scripts: Iterable[Script],
        seen: int,
        *,
        crossed: Collection[Key],
        writing: Collection[Key],
    ) -> None:
        """Take a new list.

        Args:
            seen: The last number that its writer had seen.
            crossed: What was announced with a later one: it is not made again.
            writing: What workers are at.

        Raises:
            RemoteProtocolError: The scripts are too much to keep.
        """
        faulted = {key: number for key, number in self.faulted.items() if number > seen}
        keys = chain.from_iterable(
            zip(repeat(run.epoch), range(run.first, min(run.first + run.steps, self.steps)))
            for run in runs
        )
        # Bounded in what is looked at, too: 65536 runs may name what is known again and again. And
        # what was refused is remembered until it was seen, so somebody who never sees gets no more.
        room = max(0, MAX_WANTED - len(faulted))
        answered = {*crossed, *faulted}
        looked_at = islice(keys, MAX_WANTED + len(answered) + len(writing))
        unanswered = [key for key in looked_at if key not in answered]
        urgent = unanswered[0] if unanswered else None
        fresh = [key for key in unanswered if key not in writing]
        wanted = deque(dict.fromkeys(fresh[:room]))
        said = self.scripts | {script[:2]: script for script in scripts}
        if said:
            kept = {*wanted, *writing}
            said = {key: script for key, script in said.items() if key in kept}
            _check_size(said.values())
        # Nothing has changed until here: a list is refused whole.
        self.faulted, self.urgent, self.wanted, self.scripts = faulted, urgent, wanted, said

    def again(self, key: Key) -> None:
        """Want something before all else that a worker has lost; but what is waited for goes first,
        also among what others have died of: each of its prefetched followers would else cost three
        workers before it is tried again."""
        self.wanted.appendleft(key)
        if self.urgent is not None and self.urgent in self.wanted:
            self.wanted.remove(self.urgent)
            self.wanted.appendleft(self.urgent)

    def refused(self, key: Key, number: int) -> None:
        """It will not be made, and that is told with this number."""
        self.faulted[key] = number
        self.scripts.pop(key, None)

    def most_urgent(self) -> Key:
        """Of what is wanted: what is waited for, if nobody is at it."""
        # What a dead worker owed comes first in the list, though it may be wished no more.
        urgent = self.urgent
        return urgent if urgent is not None and urgent in self.wanted else self.wanted[0]


def _check_size(scripts: Iterable[Script]) -> None:
    size = sum(len(s.indexes) + len(s.pictures) + len(s.state) + len(s.matrices) for s in scripts)
    if size > MAX_SCRIPT_BYTES:
        raise RemoteProtocolError(
            f"Want.scripts: got {size} bytes with those before it; wanted at most "
            f"{MAX_SCRIPT_BYTES}"
        )
