"""What a fetch waits on, outside the link's lock.

threading.Condition would do, were it not for Ctrl-C: it is written in Python, and a signal that is
raised in the middle of it leaves the lock taken, or given back twice. SimpleQueue is C code.
"""

from __future__ import annotations

import math
import queue
import threading
import time

#: Seconds after which a wait looks for itself, whether the bell rang or not.
ROUND = 1.0


class Bell:
    """One waits, another rings; under the same lock both say so and look."""

    def __init__(self) -> None:
        self._rung: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._awaited = False
        self.cut = -math.inf  #: waits that began until then were ended by Ctrl-C

    def expect(self) -> None:
        """Somebody will wait; under the lock, so that no ring is missed from here on."""
        self._awaited = True

    def ring(self) -> None:
        """Something has changed; under the lock. Nobody is told who does not wait."""
        if self._awaited:
            self._awaited = False
            self._rung.put(None)

    def wait(self, deadline: float) -> bool:
        """Wait until it rings, for a round at most; whether it did. Not under the lock."""
        left = min(deadline - time.monotonic(), ROUND)
        try:
            self._rung.get(timeout=max(0.0, left))
        except queue.Empty:
            return False
        return True

    def raise_interrupt(self, began: float, what: str) -> None:
        """End a wait outside the main thread that Ctrl-C was pressed in.

        Args:
            began: When it began.
            what: Was done meanwhile.
        """
        if began <= self.cut and threading.current_thread() is not threading.main_thread():
            raise KeyboardInterrupt(f"Ctrl-C was pressed while {what}")
