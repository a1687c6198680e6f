"""Who may make batches of a stream: whoever's probe of it gives the bytes of this machine.

The reference is a local worker's probe, asked for when a remote worker first needs it. A host
whose processor or libraries give other bytes is refused for that stream, with both named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from augproto.messages import Probed

#: Local workers that are asked for a reference; a function may end each of them.
MAX_ASKED = 2

_log = logging.getLogger("augserver.server")


@dataclass(slots=True)
class Standing:
    """One stream: its reference, and what came of it.

    Attributes:
        unsuited: Why no remote worker makes its batches, if so.
        reference: What a local worker's probe gave.
        asked: The local worker that was asked for it.
        attempts: How many were asked.
        probes: What remote workers' probes gave, by number.
        refused: Why, by the number of the remote worker.
    """

    unsuited: str | None = None
    reference: Probed | None = None
    asked: int | None = None
    attempts: int = 0
    probes: dict[int, Probed] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


class Standings:
    """The standing of all remote workers in all streams.

    Args:
        idlest: A local worker that has time; None if there is none.
        ask: Has that local worker probe a stream.
        admit: Told of (worker, stream) when a remote worker's probe was right.
    """

    def __init__(
        self,
        idlest: Callable[[], int | None],
        ask: Callable[[int, int], None],
        admit: Callable[[int, int], None],
    ) -> None:
        self._idlest = idlest
        self._ask = ask
        self._admit = admit
        self._streams: dict[int, Standing] = {}
        self._names: dict[int, str] = {}

    def open(self, stream: int, unsuited: str | None) -> None:
        """A stream begins; `unsuited` says why remote workers cannot make its batches, if so."""
        self._streams[stream] = Standing(unsuited)
        if unsuited is not None and self._names:
            _log.warning("stream %d is left to local workers: %s", stream, unsuited)

    def close(self, stream: int) -> None:
        """It is over."""
        self._streams.pop(stream, None)

    def join(self, worker: int, name: str) -> list[int]:
        """A remote worker begins anew; returns the streams that it is to probe."""
        self.leave(worker)
        self._names[worker] = name
        return [stream for stream, s in self._streams.items() if s.unsuited is None]

    def leave(self, worker: int) -> None:
        """A remote worker is gone."""
        self._names.pop(worker, None)
        for s in self._streams.values():
            s.probes.pop(worker, None)
            s.refused.pop(worker, None)

    def ask(self) -> None:
        """Ask for references that are wanted and not asked for."""
        if not self._names:
            return
        for stream, s in self._streams.items():
            if s.unsuited is not None or s.reference is not None or s.asked is not None:
                continue
            if s.attempts >= MAX_ASKED:
                s.unsuited = (
                    f"{s.attempts} local workers ended while they made its first batch, so there "
                    "is nothing to compare remote ones with"
                )
                _log.warning("stream %d is left to local workers: %s", stream, s.unsuited)
                continue
            worker = self._idlest()
            if worker is None:
                return
            s.asked = worker
            s.attempts += 1
            self._ask(worker, stream)

    def local_left(self, worker: int) -> None:
        """A local worker is gone: what it was asked is asked another."""
        for s in self._streams.values():
            if s.asked == worker:
                s.asked = None

    def referred(self, worker: int, probed: Probed) -> None:
        """A local worker has answered."""
        s = self._streams.get(probed.stream)
        if s is not None and s.asked == worker and s.reference is None:
            s.reference, s.asked = probed, None
            for remote in list(s.probes):
                self._judge(probed.stream, remote)

    def probed(self, worker: int, probed: Probed) -> None:
        """A remote worker has answered."""
        s = self._streams.get(probed.stream)
        if s is not None and worker not in s.probes:
            s.probes[worker] = probed
            self._judge(probed.stream, worker)

    def refuse(self, worker: int, stream: int, why: str) -> None:
        """A remote worker gets nothing of a stream any more."""
        s = self._streams.get(stream)
        if s is not None:
            s.refused[worker] = why
            _log.warning(
                "stream %d: %s is refused: %s", stream, self._names.get(worker, "somebody"), why
            )

    def state(self, worker: int) -> tuple[str, str]:
        """A remote worker's state in words, and a remark."""
        suited = [s for s in self._streams.values() if s.unsuited is None]
        refused = [s.refused[worker] for s in suited if worker in s.refused]
        right = sum(
            s.reference is not None and worker in s.probes and worker not in s.refused
            for s in suited
        )
        remark = refused[0] if refused else ""
        if right or not suited:
            return "ready", remark
        return ("refused" if len(refused) == len(suited) else "starting"), remark

    def _judge(self, stream: int, worker: int) -> None:
        s = self._streams[stream]
        probed, reference = s.probes[worker], s.reference
        if reference is None or worker in s.refused:
            return
        if probed.digest == reference.digest:
            self._admit(worker, stream)
            return
        self.refuse(worker, stream, _difference(probed, reference))


def _difference(there: Probed, here: Probed) -> str:
    """Why a probe is not right, with both machines."""
    if there.digest.startswith("failed"):
        ours = "fails in another way" if here.digest.startswith("failed") else "can be made"
        return (
            f"its first batch cannot be made on {_shown(there.machine)}: "
            f"{_shown(there.reason) or _shown(there.digest)}; it {ours} here, "
            f"on {_shown(here.machine)}"
        )
    return (
        f"its first batch is {_short(there.digest)} on {_shown(there.machine)}, but "
        f"{_short(here.digest)} here, on {_shown(here.machine)}. The same bytes need the same "
        "processor's arithmetic and the same versions of libraries and of the stream's function"
    )


def _short(digest: str) -> str:
    return _shown(digest if digest.startswith("failed") else digest[:12])


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:500])
