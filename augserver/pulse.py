"""How an agent of remote workers is, for a health check of the same machine or container.

The agent writes it into its private folder, whole and anew each time. Whoever reads it looks at the
clock as well, which all processes of a machine share: an agent that was stopped writes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from augserver import runtime

#: Seconds between two writings.
BEAT_SECONDS = 0.25
#: Seconds after which a pulse, or a server's last word to a worker, is out of date.
FRESH_SECONDS = 3.0

_FILE = "agent"


@dataclass(frozen=True, slots=True)
class Pulse:
    """An agent at a moment.

    Attributes:
        pid: Of the agent.
        address: That its workers dial.
        wanted, alive, enlisted: Its workers: how many there should be, have come up, and are
            enlisted with a server.
        trouble: Why one of them has none, in words, if the server or the line has told.
        at: When, by the machine's monotonic clock.
    """

    pid: int
    address: str
    wanted: int
    alive: int
    enlisted: int
    trouble: str
    at: float

    def write(self, folder: Path) -> None:
        """Put it into the agent's folder, whole or not at all."""
        path = folder / _FILE
        draft = path.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk stops no worker, and the pulse gets old
            draft.write_text(json.dumps(astuple(self)))
            os.replace(draft, path)

    @property
    def complaint(self) -> str | None:
        """What is wrong, if anything."""
        silent = time.monotonic() - self.at
        if silent > FRESH_SECONDS:
            return f"has not moved for {silent:.0f} s"
        if not self.enlisted:
            return (
                f"none of its {self.wanted} workers ({self.alive} alive) is enlisted with the "
                f"server at {self.address}: {self.trouble or 'the log says more'}"
            )
        return None


def pulses() -> list[Pulse]:
    """Of all agents of this user that live."""
    runtime.sweep()  # what a dead one has left is none
    found = []
    for path in sorted(runtime.root().glob(f"*/{_FILE}")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # it has just ended
            found.append(Pulse(*json.loads(path.read_text())))
    return found
