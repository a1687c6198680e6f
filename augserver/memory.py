"""All shared memory of one server: who needs a segment gets it from here, or learns why not.

Asked for a segment, it compares what is wanted with everything that bounds it: the room in
/dev/shm, the memory cgroups and the machine (each less a reserve for the server's own processes),
and the config's `max_total_bytes`. So a ring becomes smaller or is refused with all sizes named,
where the kernel would have killed somebody (`augserver.limits`). A private server, whose program
runs beside it, needs no name in /dev/shm and takes nameless memory where more fits there.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable

from augproto.errors import NoRoom
from augproto.layout import Layout
from augproto.segment import HOME, PREFIX, Segment, room
from augserver.config import NO_BOUND
from augserver.limits import Limit, memory_limits, mib

#: With less room than asked for, a ring gets as many slots as fit, but at least these.
FEWEST_SLOTS = 3
#: Tries to get what others may take between the question and the creation.
ATTEMPTS = 3
#: Bytes that segments leave to the server itself and to each of its workers.
SERVER_RESERVE = 64 << 20
WORKER_RESERVE = 32 << 20
#: ... or, if that is more, this part of all memory, within those bytes.
RESERVE_PART = 16
RESERVE_MOST = 1 << 30

_NPY = "save them as .npy files and name those (data=): they are mapped where they lie"

_log = logging.getLogger("augserver.memory")


class Memory:
    """Makes a server's segments and knows what it has made; any thread may ask.

    Args:
        most: Bytes of all segments together.
        workers: How many processes beside the server need memory of their own.
        private: Whether every peer is a process of this machine and user, and sees its /proc.
        limits: Tells what bounds memory.
    """

    def __init__(
        self,
        *,
        most: int,
        workers: int,
        private: bool,
        limits: Callable[[], list[Limit]] = memory_limits,
    ) -> None:
        # Nobody else's name, and the process can be read from it.
        self._prefix = f"{PREFIX}{os.getuid()}-{os.getpid():x}{secrets.token_hex(3)}"
        self._most = most
        self._reserve = SERVER_RESERVE + workers * WORKER_RESERVE
        self._nameless = private
        self._memory_limits = limits
        self._named = 0
        self._segments: list[Segment] = []
        self._pending = 0
        self._closed = False
        self._lock = threading.Lock()

    def close(self) -> None:
        """Unlink everything, also what a load that nobody waits for any more still makes."""
        with self._lock:
            self._closed = True
            segments, self._segments = self._segments, []
        for segment in segments:
            segment.close()

    def segment(self, size: int) -> Segment:
        """A segment for arrays.

        Raises:
            NoRoom: They do not fit.
        """
        return self._make(
            lambda left: size if size <= left else 0,
            f"arrays of {mib(size)} do not fit into shared memory",
            _NPY,
        )

    def part(self, part: float, size_of: Callable[[int], int], what: str, remedy: str) -> Segment:
        """A segment for what is useful at any size and written by others, like a cache.

        Args:
            part: Of what is left, which is not exceeded, so that others find some.
            size_of: The size to make of so many bytes; 0 for none.

        Raises:
            NoRoom: That part is too little.
        """
        return self._make(lambda left: size_of(int(left * part)), what, remedy, populate=False)

    def check(self, size: int) -> None:
        """Refuse what this process is about to take for itself, before the kernel kills it.

        Raises:
            NoRoom: So many bytes are not left.
        """
        with self._lock:
            limits = self._memory_limits_kept()
            short = [limit.remedy for limit in limits if size > limit.left - self._pending]
        if short:
            raise _no_room(f"{mib(size)} are needed to unpack the arrays", limits, [_NPY, *short])

    def holds(self, size: int) -> bool:
        """Whether a segment of that size would fit now, with as much again left for the next."""
        with self._lock:
            named, nameless = self._lefts()
        return 2 * size <= max(named, nameless)

    def fitting(self, layout: Layout, wanted: int) -> int:
        """How many of these slots `ring` would give now; 0 where it would refuse."""
        with self._lock:
            size = max(_ring_bytes(layout, wanted, left) for left in self._lefts())
        return max(0, size - layout.segment_bytes(0)) // layout.slot_bytes

    def ring(self, layout: Layout, wanted: int) -> tuple[Segment, int]:
        """A segment for a ring, and its number of slots: all wanted, or as many as fit.

        A ring that has to be smaller takes half of what is left, if that holds the fewest, so that
        the next one finds some.

        Raises:
            NoRoom: Not even the fewest fit.
        """
        fewest = min(FEWEST_SLOTS, wanted)
        asked = f"{wanted} slots, {mib(layout.segment_bytes(wanted))}"
        segment = self._make(
            lambda left: _ring_bytes(layout, wanted, left),
            f"a ring of {fewest} slots, {mib(layout.segment_bytes(fewest))}, does not fit into "
            f"shared memory (asked: {asked})",
            "make the ring smaller (slots, batch_size, target_size)",
        )
        slots = (segment.size - layout.segment_bytes(0)) // layout.slot_bytes
        if slots < wanted:
            _log.warning(
                "memory is short: a ring of %d slots, %s, where %s were asked for",
                slots,
                mib(segment.size),
                asked,
            )
        return segment, slots

    def _make(
        self, choose: Callable[[int], int], what: str, remedy: str, *, populate: bool = True
    ) -> Segment:
        """A segment of the size that `choose` makes of the bytes left; 0 means too few."""
        for _ in range(ATTEMPTS):
            with self._lock:
                named, nameless = map(choose, self._lefts())
                size = max(named, nameless)
                if not size:
                    break
                self._pending += size
                self._named += 1
                name = f"{self._prefix}-{self._named}"
            segment = None
            try:
                # Not under the lock: for a large one this takes a while.
                segment = Segment(name, size, nameless=nameless > named, populate=populate)
            except NoRoom:
                continue  # somebody else was faster
            except OSError as error:
                if nameless <= named:
                    raise
                _log.warning("this system lets nobody make nameless memory: %s", error)
                self._nameless = False
                continue
            finally:
                with self._lock:
                    self._pending -= size
                    closed = self._closed
                    if segment is not None and not closed:
                        self._segments.append(segment)
            if closed:
                segment.close()
                raise NoRoom(errno.ENOSPC, f"{what}: the server has ended")
            return segment
        with self._lock:
            limits = [_shm(), *self._limits()]
            short = [
                limit.remedy
                for limit in limits[self._nameless :]
                if not choose(limit.left - self._pending)
            ]
        raise _no_room(what, limits, [remedy, *short])

    def _lefts(self) -> tuple[int, int]:
        """Bytes that a segment in /dev/shm may have, and a nameless one; under the lock."""
        limits = self._limits()
        named = _left([*limits, _shm()]) - self._pending
        return named, _left(limits) - self._pending if self._nameless else 0

    def _limits(self) -> list[Limit]:
        """What bounds a segment, wherever it lies."""
        self._segments = [segment for segment in self._segments if not segment.closed]
        held = sum(segment.size for segment in self._segments)
        limits = self._memory_limits_kept()
        if self._most < NO_BOUND:
            free = max(0, self._most - held)
            remedy = "raise max_total_bytes in the server's config"
            limits.append(Limit("this server's max_total_bytes", self._most, free, remedy))
        return limits

    def _memory_limits_kept(self) -> list[Limit]:
        """What bounds memory, each less what the processes themselves need."""
        return [
            dataclasses.replace(
                limit, kept=max(self._reserve, min(limit.total // RESERVE_PART, RESERVE_MOST))
            )
            for limit in self._memory_limits()
        ]


def _ring_bytes(layout: Layout, wanted: int, left: int) -> int:
    """Of a ring that has so much room: with all slots, or as many as fit; 0 if too few do."""
    if layout.segment_bytes(wanted) <= left:
        return layout.segment_bytes(wanted)
    for part in (left // 2, left):
        slots = (part - layout.segment_bytes(0)) // layout.slot_bytes
        if slots >= min(FEWEST_SLOTS, wanted):
            return layout.segment_bytes(slots)
    return 0


def _no_room(what: str, limits: list[Limit], remedies: list[str]) -> NoRoom:
    sizes = "; ".join(map(str, limits))
    return NoRoom(errno.ENOSPC, f"{what}: {sizes}. To do: {', or '.join(remedies)}")


def _shm() -> Limit:
    try:
        free, total = room()
    except OSError:  # a sandbox may have none
        free = total = 0
    remedy = "give the container more shared memory (compose: shm_size; docker run: --shm-size)"
    return Limit(str(HOME), total, free, remedy)


def _left(limits: list[Limit]) -> int:
    return min((limit.left for limit in limits), default=sys.maxsize)
