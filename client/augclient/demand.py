"""Which batches a consumer wants, now and next. Sans-I/O.

The server makes what it is asked for and nothing else, so running ahead is decided here. A
consumer that goes through its steps one by one, which is nearly always, has the whole ring filled
ahead of it, over the end of an epoch into the next. One that jumps about gets what it asks for and
little more: the horizon shrinks to one step and doubles with every step in order, like the
read-ahead of a file system.
"""

from __future__ import annotations

from collections.abc import Iterable

from augproto.messages import Bad, Entry, Fault, Release, Run

Key = tuple[int, int]


class Demand:
    """The wishes of one consumer.

    Args:
        steps: Of an epoch.
        slots: Of the ring.
    """

    def __init__(self, steps: int, slots: int) -> None:
        self._steps = steps
        self._slots = slots
        self._horizon = slots
        self._current: Key | None = None
        self._expected: Key = (0, 0)
        self.ready: dict[Key, Entry] = {}
        self.faults: dict[Key, Fault] = {}
        self.bad: dict[Key, tuple[Bad, ...]] = {}  #: samples that a batch had to do without
        self.seen = 0  #: number of the last announcement or fault received
        self._outstanding: set[Key] = set()

    def ask(self, key: Key) -> None:
        """The consumer wants this batch now."""
        if key == self._current:
            return  # still waiting for it
        horizon = 1
        if key == self._expected or key[1] == 0:
            horizon = min(self._slots, max(1, self._horizon * 2))
        expected = divmod(self._position(key) + 1, self._steps)
        # All or nothing, whatever signal comes: there is no call between these.
        self._horizon, self._current, self._expected = horizon, key, expected

    def take(self, key: Key) -> Entry | None:
        """The batch, if it is there; it is the consumer's from now on."""
        entry = self.ready.pop(key, None)
        if entry is not None:
            self.taken(key)
        return entry

    def taken(self, key: Key) -> None:
        """The batch has left `ready`: it is the consumer's."""
        if key == self._current:
            self._current = None

    def crowded(self, leased: int) -> bool:
        """Whether batches for later may be in the way of the one that is waited for."""
        return bool(self.ready) and len(self.ready) + leased >= self._slots

    def announced(
        self, number: int, entries: Iterable[Entry], bad: Iterable[Bad] = ()
    ) -> list[Release]:
        """The server has made these; returns the slots of any that were here already."""
        self.seen = number
        twice = []
        for entry in entries:
            before = self.ready.get(entry[:2])
            if before is not None:
                twice.append(Release(before.slot, before.sequence))
            self.ready[entry[:2]] = entry
            self._outstanding.discard(entry[:2])
            self.bad.pop(entry[:2], None)  # of an earlier making of the same batch
        for sample in bad:
            key = (sample.epoch, sample.step)
            self.bad[key] = (*self.bad.get(key, ()), sample)
        return twice

    def failed(self, fault: Fault) -> None:
        """The server cannot make this one; what was not asked for is not kept."""
        key = (fault.epoch, fault.step)
        self.seen = fault.number
        if key in self._outstanding:
            self.faults[key] = fault
            self._outstanding.discard(key)

    def excess(self, leased: int, *, waiting: bool) -> list[Release]:
        """Batches that are ready but should go: not wanted any more, or in the way.

        In the way means: the consumer waits for a batch that is not there, and every slot is
        either leased or holds a batch for later. Without room the server could never make it.
        """
        wanted = self._wanted()
        gone = [key for key in self.ready if self._position(key) not in wanted]
        if waiting and self._current is not None and self._current not in self.ready:
            kept = sorted(key for key in self.ready if self._position(key) in wanted)
            while kept and len(kept) + leased >= self._slots:
                gone.append(kept.pop())
        for key in gone:
            self.bad.pop(key, None)
        return [Release(self.ready[key].slot, self.ready.pop(key).sequence) for key in gone]

    def runs(self) -> tuple[Run, ...]:
        """Everything wanted that has not come, for a Want."""
        keys = [divmod(position, self._steps) for position in self._wanted()]
        missing = [key for key in keys if key not in self.ready and key not in self.faults]
        self._outstanding = set(missing)
        runs: list[list[int]] = []
        for epoch, step in missing:
            if runs and runs[-1][0] == epoch and runs[-1][1] + runs[-1][2] == step:
                runs[-1][2] += 1
            else:
                runs.append([epoch, step, 1])
        return tuple(Run(*run) for run in runs)

    def unsaid(self) -> int:
        """How many wanted batches the server has not been asked for."""
        known = len(self.ready) + len(self._outstanding)
        return max(0, self._horizon - known)

    def asked(self, key: Key) -> bool:
        """Whether the server has been asked for this one, or has answered."""
        return key in self._outstanding or key in self.ready or key in self.faults

    def restart(self, slots: int) -> None:
        """A new server knows nothing: nothing is ready, nothing was asked for.

        Args:
            slots: Of the new ring; where memory is short it has another number than the last.
        """
        self._slots = slots
        self._horizon = min(self._horizon, slots)
        self.ready.clear()
        self.faults.clear()
        self._outstanding.clear()
        self.seen = 0

    def _position(self, key: Key) -> int:
        """Counted from the first step of epoch 0."""
        return key[0] * self._steps + key[1]

    def _wanted(self) -> range:
        """Positions of the current batch, until it was taken, and those after it."""
        first = self._position(self._current or self._expected)
        return range(first, first + self._horizon + 1)
