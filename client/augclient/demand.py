"""Which batches a consumer wants, now and next. Sans-I/O.

The server makes what it is asked for and nothing else, so running ahead is decided here. A
consumer that goes through its steps one by one, which is nearly always, has the whole ring filled
ahead of it, over the end of an epoch into the next. One that jumps about gets what it asks for and
little more: the horizon shrinks to one step and doubles with every step in order, like the
read-ahead of a file system.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import repeat

from augproto.messages import After, Bad, Entry, Fault, Release, Run, Script
from augproto.spec import MAX_EPOCH

Key = tuple[int, int]


class Demand:
    """The wishes of one consumer.

    Args:
        steps: Of an epoch. Where a slot holds several batches, a step is all of them.
        slots: Of the ring.
    """

    def __init__(self, steps: int, slots: int) -> None:
        self._steps = steps
        self._slots = slots
        self._horizon = slots
        self._end = (MAX_EPOCH + 1) * steps - 1
        self._current: Key | None = None
        self._expected: Key = (0, 0)
        self.ready: dict[Key, Entry] = {}
        self.faults: dict[Key, Fault] = {}
        self.bad: dict[Key, tuple[Bad, ...]] = {}  #: samples that a batch had to do without
        self.after: dict[Key, bytes] = {}  #: states that scripts have left
        self.seen = 0  #: number of the last announcement or fault received
        self._outstanding: set[Key] = set()
        self._strayed = False

    def ask(self, key: Key) -> None:
        """The consumer wants this batch now."""
        if key == self._current:
            return  # still waiting for it
        epoch, step = key
        expected = (epoch, step + 1) if step + 1 < self._steps else (epoch + 1, 0)
        if key == self._expected and self._horizon == self._slots and self._current is None:
            # As nearly always. All or nothing, whatever signal comes: no call between these.
            self._current, self._expected = key, expected
            return
        horizon = 1
        if key == self._expected or step == 0:
            horizon = min(self._slots, max(1, self._horizon * 2))
        self._strayed = self._strayed or key != self._expected or self._current is not None
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

    def refused(self, key: Key) -> Fault | None:
        """Why the server could not make this one, if so; asked for again, it is tried again."""
        return self.faults.pop(key, None)

    def scripts(self) -> tuple[Script, ...]:
        """What is to be said with the next Want, before its runs."""
        return ()

    def announced(
        self,
        number: int,
        entries: Iterable[Entry],
        bad: Iterable[Bad] = (),
        after: Iterable[After] = (),
    ) -> list[Release]:
        """The server has made these; returns the slots of any that were here already."""
        self.seen = number
        twice = []
        ready, outstanding, wanted = self.ready, self._outstanding, self._wanted()
        for entry in entries:
            key = entry[:2]
            before = ready.get(key)
            if before is not None:
                twice.append(Release(before.slot, before.sequence))
            ready[key] = entry
            outstanding.discard(key)
            if self.bad:
                self.bad.pop(key, None)  # of an earlier making of the same batch
            if key[0] * self._steps + key[1] not in wanted:
                self._strayed = True
        for sample in bad:
            key = (sample.epoch, sample.step)
            self.bad[key] = (*self.bad.get(key, ()), sample)
        self.after |= {(left.epoch, left.step): left.state for left in after}
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
        blocked = waiting and self._current is not None and self._current not in self.ready
        blocked = blocked and len(self.ready) + leased >= self._slots
        if not self._strayed and not blocked:
            return []  # as nearly always, and it is asked whenever something is said or heard
        self._strayed = False
        wanted = self._wanted()
        gone = [key for key in self.ready if self._position(key) not in wanted]
        if blocked:
            kept = sorted(key for key in self.ready if self._position(key) in wanted)
            while kept and len(kept) + leased >= self._slots:
                gone.append(kept.pop())
        for key in gone:
            self.bad.pop(key, None)
            self.after.pop(key, None)
        return [Release(self.ready[key].slot, self.ready.pop(key).sequence) for key in gone]

    def runs(self) -> tuple[Run, ...]:
        """Everything wanted that has not come, for a Want."""
        ready, faults = self.ready, self.faults
        keys = map(divmod, self._wanted(), repeat(self._steps))
        missing = [key for key in keys if key not in ready and key not in faults]
        self._outstanding = set(missing)
        runs: list[list[int]] = []
        follower = None
        for key in missing:
            if key == follower:
                runs[-1][2] += 1
            else:
                runs.append([*key, 1])
            follower = (key[0], key[1] + 1)
        return tuple(Run(*run) for run in runs)

    def unsaid(self) -> int:
        """How many wanted batches the server has not been asked for."""
        known = len(self.ready) + len(self._outstanding)
        return max(0, self._horizon - known)

    def asked(self, key: Key) -> bool:
        """Whether the server has been asked for this one, or has answered."""
        return key in self._outstanding or key in self.ready or key in self.faults

    def restart(self, steps: int, slots: int) -> None:
        """A new server knows nothing: nothing is ready, nothing was asked for.

        Args:
            steps, slots: Of the new ring. Where memory is short it has another number of slots than
                the last; and where a slot holds another number of batches, an epoch has another
                number of steps, and what was foreseen is forgotten.
        """
        if steps != self._steps:
            self._steps, self._current, self._expected = steps, None, (0, 0)
            self._end = (MAX_EPOCH + 1) * steps - 1
        self._slots = slots
        self._horizon = min(self._horizon, slots)
        self.ready.clear()
        self.faults.clear()
        self._outstanding.clear()
        self.seen = 0

    def _position(self, key: Key) -> int:
        """Counted from the first step of epoch 0."""
        return key[0] * self._steps + key[1]

    def _wanted(self) -> Collection[int]:
        """Positions of the current batch, until it was taken, and those after it."""
        first = self._position(self._current or self._expected)
        return range(first, min(first + self._horizon, self._end) + 1)


#: Bytes of scripts in one Want; what is left follows in the next.
SCRIPT_BYTES = 4 << 20
#: ... and of those that a server was told and has not made: half of what it keeps.
UNMADE_BYTES = 32 << 20


class Scripted(Demand):
    """The wishes of a consumer that writes a script for each of its batches, and foresees none."""

    def __init__(self, steps: int, slots: int) -> None:
        super().__init__(steps, slots)
        self._written: dict[Key, Script] = {}
        self._said: set[Key] = set()

    def write(self, script: Script) -> None:
        """A batch is wanted, and this is what it is made of."""
        self._written[script.epoch, script.step] = script

    def strike(self, key: Key) -> None:
        """It is wanted no more; if it comes, it is given back."""
        self._written.pop(key, None)
        self._said.discard(key)

    def taken(self, key: Key) -> None:
        """See `Demand`."""
        super().taken(key)
        self.strike(key)

    def refused(self, key: Key) -> Fault | None:
        """See `Demand`; the script is over, too."""
        fault = super().refused(key)
        if fault is not None:
            self.strike(key)
        return fault

    def scripts(self) -> tuple[Script, ...]:
        """See `Demand`."""
        size, chosen = 0, list[Script]()
        unmade = sum(_size(self._written[key]) for key in self._said - self.ready.keys())
        # What is waited for goes first, and in any case: others that are ready may fill the ring,
        # and their threads wait for their turn.
        for key, script in sorted(self._written.items(), key=lambda item: item[0] != self._current):
            if key in self._said:
                continue
            size += _size(script)
            full = (chosen and size > SCRIPT_BYTES) or (unmade and unmade + size > UNMADE_BYTES)
            if full and key != self._current:
                break
            chosen.append(script)
        self._said |= {script[:2] for script in chosen}
        return tuple(chosen)

    def excess(self, leased: int, *, waiting: bool) -> list[Release]:
        """See `Demand`; what had to go, but is wanted, is asked for again with its script."""
        before = set(self.ready)
        self._strayed = True  # what is struck is ready and not wanted
        releases = super().excess(leased, waiting=waiting)
        self._said -= before - self.ready.keys()
        return releases

    def unsaid(self) -> int:
        """See `Demand`."""
        return len(self._written) - len(self._said)

    def restart(self, steps: int, slots: int) -> None:
        """See `Demand`."""
        super().restart(steps, slots)
        self._said.clear()

    def _wanted(self) -> Collection[int]:
        # A batch that is ready stays wanted until it is taken; the server hears of said ones only.
        # What is waited for first, or others would be made before it, have to make room for it, and
        # be wanted before it again.
        said = sorted(self._said, key=lambda key: (key != self._current, self._position(key)))
        return dict.fromkeys(map(self._position, said))


def _size(script: Script) -> int:
    return len(script.pictures) + len(script.indexes) + len(script.state) + len(script.matrices)
