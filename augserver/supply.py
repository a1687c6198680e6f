"""What one remote worker is sent, in order: inputs before the assignment that needs them.

Portions are read by the feeder's threads, some ahead of others, and leave in the order in which
they were asked for. How much is on its way to a worker at a time is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from augproto.messages import Message, Place
from augserver.feeder import Fed, Feeder, Frames, Portion

#: Bytes of inputs that are read ahead, or on their way, for one worker; a single portion may have
#: more.
MOST_UNDER_WAY = 256 << 20

#: A stream, and a place in its ring.
At = tuple[int, Place]


@dataclass(slots=True)
class Errand:
    """Inputs to be sent, and what is said after them.

    Attributes:
        portion: What is to be read, if anything.
        then: Called when the inputs are on the wire; returns what follows them.
        fed: What was read; None until that is begun.
    """

    portion: Portion | None
    then: Callable[[], list[Message]]
    fed: Future[Fed] | None = None

    @property
    def at(self) -> At | None:
        """The place whose inputs these are."""
        return None if self.portion is None else (self.portion.stream, self.portion.place)


@dataclass(frozen=True, slots=True)
class Ready:
    """An errand whose inputs are read, or cannot be: then with the error."""

    errand: Errand
    fed: Fed | None
    error: Exception | None

    @property
    def messages(self) -> list[Frames]:
        """What brings the inputs."""
        return self.fed.messages if self.fed is not None else []


class Supply:
    """The errands of one remote worker.

    Args:
        feeder: Reads.
    """

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder
        self._errands: deque[Errand] = deque()
        self._answers: deque[Errand] = deque()
        self._under_way: dict[At, int] = {}

    @property
    def under_way(self) -> int:
        """Bytes that are read, or on the wire, and of which nothing has come back."""
        return sum(self._under_way.values())

    @property
    def answers(self) -> int:
        """How many answers are still to be sent."""
        return len(self._answers)

    def order(self, errand: Errand) -> None:
        """Have something sent after all else."""
        self._errands.append(errand)
        self._read_ahead()

    def answer(self, errand: Errand) -> None:
        """Have something sent as soon as it is read: the worker waits for it."""
        self._begin(errand)
        self._answers.append(errand)

    def settled(self, at: At) -> None:
        """That place's inputs have done what they were for."""
        self._under_way.pop(at, None)

    def drop(self, stream: int) -> None:
        """That stream is over."""
        for kept in (self._errands, self._answers):
            for errand in [e for e in kept if e.at is not None and e.at[0] == stream]:
                kept.remove(errand)
        self._under_way = {at: n for at, n in self._under_way.items() if at[0] != stream}

    def ready(self) -> Iterator[Ready]:
        """What can be sent now, in order; reading goes on behind it."""
        while self._answers and _is_read(self._answers[0]):
            yield _result(self._answers.popleft())
        self._read_ahead()
        while self._errands and _is_read(self._errands[0]):
            yield _result(self._errands.popleft())
            self._read_ahead()

    def _read_ahead(self) -> None:
        for errand in self._errands:
            if errand.portion is None or errand.fed is not None:
                continue
            under_way = self.under_way
            if under_way and under_way + errand.portion.nbytes > MOST_UNDER_WAY:
                return
            self._begin(errand)

    def _begin(self, errand: Errand) -> None:
        assert errand.portion is not None
        at = errand.portion.stream, errand.portion.place
        self._under_way[at] = self._under_way.get(at, 0) + errand.portion.nbytes
        errand.fed = self._feeder.feed(errand.portion)


def _is_read(errand: Errand) -> bool:
    return errand.portion is None or (errand.fed is not None and errand.fed.done())


def _result(errand: Errand) -> Ready:
    if errand.fed is None:
        return Ready(errand, None, None)
    error = errand.fed.exception(0)
    if error is None:
        return Ready(errand, errand.fed.result(0), None)
    return Ready(errand, None, error if isinstance(error, Exception) else RuntimeError(str(error)))
