"""Starts, watches, kills and replaces the local workers; knows nothing of batches.

Nothing here waits. What a caller may rely on:

* A worker is reported as *gone* only when its process can write no more: its pidfd says so, or
  whoever reaped it. That its pipe or its forkserver has ended proves nothing.
* A worker that was killed and is not gone in time cannot be killed (it sleeps in the kernel, or is
  frozen). It is replaced and reported as *unkillable*; gone it is only when it is gone.
* Workers that die before they are ready are replaced with growing delays: what cannot start makes
  no storm of restarts, and after some of them `despair` says why there are none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from dataclasses import dataclass, field
from multiprocessing import Pipe as connections
from pathlib import Path

from augproto.codec import decode, encode
from augproto.errors import RemoteProtocolError
from augproto.messages import Message
from augserver.death import WHERE_ARE_YOU, Death, MemoryWitness, how_it_ended, last_words
from augserver.forkserver import Born, Duty, Ended, Forkserver, trace_path
from augserver.pipe import Pipe

#: Seconds before replacing the 1st, 2nd, ... workers in a row that never came up.
BACK_OFF = (0.0, 0.1, 0.5, 2.0, 10.0)
#: So many deaths at the start in a row, and those who wait for batches are told.
HOPELESS = 3
#: Seconds for a worker, and the forkserver before it, to be ready.
START_SECONDS = 60.0
#: Seconds for the exit code of a worker that is gone; its forkserver may be stopped.
CODE_SECONDS = 1.0
#: Seconds for a worker that is killed to be gone before it counts as unkillable.
KILL_SECONDS = 2.0
#: So many unkillable workers for each one wanted, and no more are started.
MOST_UNKILLABLE = 2
#: Seconds for a worker that is to be killed to write down where it is.
DUMP_SECONDS = 0.4

_log = logging.getLogger("augserver.supervisor")


@dataclass(slots=True)
class WorkerProcess:
    """One worker: its process and the server's end of its pipe.

    Attributes:
        pid, pidfd: Known when it runs; there are kernels without pidfds.
        code: Known when it was reaped.
        ready: It has come up.
        proven: It has answered an assignment.
        doomed: Why the server will kill it, or has.
        unkillable: It was killed and is not gone; it has been replaced.
    """

    number: int
    pipe: Pipe
    asked: float
    trace: Path
    pid: int | None = None
    pidfd: int | None = None
    code: int | None = None
    ready: bool = False
    proven: bool = False
    doomed: str = ""
    dump_until: float = 0.0
    killed: float | None = None
    gone_since: float | None = None
    unkillable: bool = False
    forkserver: Forkserver | None = field(default=None, repr=False)

    def send(self, message: Message) -> None:
        """Tell the worker; one that is dead is noticed elsewhere."""
        self.pipe.send(encode(message))

    def receive(self) -> list[Message]:
        """What it has said, without waiting.

        Raises:
            RemoteProtocolError: That was no message: something else writes to its pipe.
        """
        return [decode(frame) for frame in self.pipe.receive()]

    def signal(self, number: int) -> None:
        """Send its process a signal, and never another one that has got its number."""
        with contextlib.suppress(OSError):
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, number)
            elif self.pid is not None and self.code is None:
                os.kill(self.pid, number)

    def can_write(self) -> bool:
        """Whether the process may still write: it is not proven to be dead."""
        if self.code is not None or self.pid is None:
            return False
        if self.pidfd is not None:
            poller = select.poll()  # select() knows no descriptor above 1023
            poller.register(self.pidfd, select.POLLIN)
            return not poller.poll(0)
        return _state(self.pid) not in ("", "Z", "X")


def _state(pid: int) -> str:
    """A process's state as /proc has it; "" if there is none of that number."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


class Supervisor:
    """So many workers, always.

    Args:
        wanted: How many.
        runtime: The server's private folder.
        now: The time; all times here are of one clock.
        duty: What they do.
    """

    def __init__(self, wanted: int, runtime: Path, now: float, duty: Duty | None = None) -> None:
        self.wanted = wanted
        self.workers: dict[int, WorkerProcess] = {}
        self.restarts = 0
        self.forkserver: Forkserver | None = None
        self._runtime = runtime
        self._duty = duty or Duty()
        self._memory = MemoryWitness(now)
        self._next = 0
        self._unproven = 0
        self._never_ready = 0
        self._last = Death("")
        self._not_before = 0.0
        self._counted = -1.0
        self._hanging = 0
        self._too_slow = ""

    # -- starting -------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Bring the number up to what is wanted, if it is time; `hear` tells when they run."""
        missing = self.wanted - self._killable
        if missing <= 0 or now < self._not_before or self._too_many_hang:
            return
        try:
            self._start(missing, now)
        except OSError as error:  # no memory, or a limit of processes or descriptors
            self._never_ready += 1
            self._failed(Death(f"the server cannot start any: {error.strerror}"), now)

    def _start(self, missing: int, now: float) -> None:
        if self.forkserver is None:
            self.forkserver = Forkserver(self._runtime, self._duty)
        for _ in range(missing):
            mine, theirs = connections()
            with theirs:
                if not self.forkserver.ask(self._next, theirs):
                    mine.close()
                    return
            self.workers[self._next] = WorkerProcess(
                self._next,
                Pipe(mine),
                now,
                trace_path(self._runtime, f"worker-{self._next}"),
                forkserver=self.forkserver,
            )
            self._next += 1

    def hear(self, now: float) -> list[WorkerProcess]:
        """Take what the forkserver has told; returns the workers that now run."""
        born = []
        for told in self.forkserver.hear() if self.forkserver is not None else ():
            worker = self.workers.get(told.number)
            if worker is None:
                continue
            if isinstance(told, Born):
                worker.pid, worker.pidfd = told.pid, told.pidfd
                born.append(worker)
            elif isinstance(told, Ended):
                worker.code = told.code
            else:
                worker.pipe.close()
                del self.workers[worker.number]
                self._never_ready += self._first(worker)
                self._failed(Death(f"the last fork failed: {os.strerror(told.errno)}"), now)
        return born

    def _failed(self, death: Death, now: float) -> None:
        """A start has failed: the next one has to wait."""
        if death != self._last:
            _log.warning("no worker can be started: %s", death)
        self._last = death
        self._delay(now)

    def _first(self, worker: WorkerProcess) -> bool:
        """Whether it is the first to fail of those that were started together: they count once."""
        first = worker.asked > self._counted
        self._counted = max(self._counted, worker.asked)
        return first

    def is_ready(self, worker: WorkerProcess) -> None:
        """It has come up."""
        worker.ready = True
        self._never_ready = 0

    @property
    def alive(self) -> int:
        """How many have come up, and are not known to hang."""
        return sum(worker.ready and not worker.unkillable for worker in self.workers.values())

    @property
    def _killable(self) -> int:
        return len(self.workers) - self._hanging

    @property
    def _too_many_hang(self) -> bool:
        return self._hanging >= MOST_UNKILLABLE * max(1, self.wanted)

    @property
    def despair(self) -> Death | None:
        """Why there are no workers and will not be soon; None while there is hope."""
        if self._too_many_hang and not self._killable:
            return Death(
                f"{len(self.workers)} hang in the kernel and cannot be killed (a disk or a network "
                "file system that does not answer?)"
            )
        if self._never_ready < HOPELESS or any(
            worker.ready and not worker.unkillable for worker in self.workers.values()
        ):
            return None
        return self._last

    # -- watching -------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """What is to be looked at every now and then: deadlines, and the forkserver's life."""
        self._memory.look(now)
        for worker in self.workers.values():
            if not worker.ready and not worker.doomed and now - worker.asked > START_SECONDS:
                self.doom(worker, f"was not ready within {START_SECONDS:.0f} s", now)
                if worker.pid is None and worker.forkserver is not None:
                    worker.forkserver.kill()
                    self._too_slow = f"forked no worker within {START_SECONDS:.0f} s and was killed"
            if worker.doomed and worker.killed is None and now >= worker.dump_until:
                worker.killed = now
                worker.signal(signal.SIGKILL)

    def doom(self, worker: WorkerProcess, why: str, now: float) -> None:
        """Kill a worker, once it has had the time to write down where it is."""
        if not worker.doomed and (worker.pid is None or worker.can_write()):
            worker.doomed = why
            worker.dump_until = now + DUMP_SECONDS
            worker.signal(WHERE_ARE_YOU)

    def forkserver_has_ended(self) -> bool:
        """Whether it has; `hear` what it said last, then `lost_forkserver`."""
        return self.forkserver is not None and self.forkserver.code() is not None

    def lost_forkserver(self, now: float) -> Forkserver | None:
        """The forkserver, if it has ended: a new one starts when it is time, as do its workers."""
        forkserver = self.forkserver
        if forkserver is None or (code := forkserver.code()) is None:
            return None
        self.forkserver = None
        cause = self._too_slow or how_it_ended(code, self._memory.testimony())
        death = Death(cause, last_words(forkserver.trace))
        self._too_slow = ""
        _log.warning("the forkserver (pid %d) %s", forkserver.pid, death)
        served = proven = False
        for worker in [w for w in self.workers.values() if w.forkserver is forkserver]:
            served, proven = served or worker.ready, proven or worker.proven
            worker.forkserver = None
            if worker.pid is None:
                worker.pipe.close()  # it never was
                del self.workers[worker.number]
            elif worker.code is None:
                worker.signal(signal.SIGKILL)  # the kernel should have; it costs nothing
                worker.killed = now if worker.killed is None else worker.killed
        if not served:
            self._last = Death(f"the forkserver {death.cause}", death.traceback)
            self._never_ready += 1
        self._unproven = 0 if proven else self._unproven + 1
        self._delay(now)
        return forkserver

    def gone(self, now: float) -> list[WorkerProcess]:
        """Workers that can write no more, and of which all is known that can be."""
        gone = []
        for worker in self.workers.values():
            if worker.pid is None or worker.can_write():
                continue
            if worker.gone_since is None:
                worker.gone_since = now
            reaper_lives = worker.forkserver is not None
            if worker.code is None and reaper_lives and now - worker.gone_since < CODE_SECONDS:
                continue
            gone.append(worker)
        return gone

    def unkillable(self, now: float) -> list[WorkerProcess]:
        """Workers that were killed and are still there, each told once; they are replaced."""
        found = [
            worker
            for worker in self.workers.values()
            if not worker.unkillable
            and worker.killed is not None
            and worker.gone_since is None
            and now - worker.killed > KILL_SECONDS
        ]
        for worker in found:
            worker.unkillable = True
            self._hanging += 1
            _log.error(
                "worker %d (pid %s) was killed and does not die (state %s): it is replaced, and "
                "what it was writing to is not touched",
                worker.number,
                worker.pid,
                _state(worker.pid or 0) or "unknown",
            )
        return found

    def bury(self, worker: WorkerProcess, now: float) -> tuple[list[Message], Death]:
        """Take a worker that is gone off the list; returns what it said last, and its end."""
        del self.workers[worker.number]
        self._hanging -= worker.unkillable
        words: list[Message] = []
        with contextlib.suppress(RemoteProtocolError):
            words = worker.receive()
        worker.pipe.close()
        if worker.pidfd is not None:
            os.close(worker.pidfd)
        if worker.forkserver is None and worker.pid is not None:
            with contextlib.suppress(OSError):
                os.killpg(worker.pid, signal.SIGKILL)  # its forkserver would have
        self.restarts += 1
        cause = how_it_ended(worker.code, self._memory.testimony())
        if worker.doomed:
            cause = f"{worker.doomed} and was killed"
        elif worker.forkserver is None and worker.code is None:
            cause = "was killed with its forkserver"
        own = bool(worker.doomed) or worker.code is not None
        death = Death(cause, last_words(worker.trace), own)
        if own:  # the end of a forkserver is one end, however many it takes along
            first = self._first(worker)
            self._unproven = 0 if worker.proven else self._unproven + first
            if not worker.ready:
                self._never_ready += first
                self._last = Death(f"the last one {death.cause}", death.traceback)
            self._delay(now)
        return words, death

    def _delay(self, now: float) -> None:
        # What dies over its work is the dispatcher's to judge, and others wait for workers, too.
        failed = max(min(self._unproven, 2), self._never_ready)
        self._not_before = now + BACK_OFF[min(failed, len(BACK_OFF) - 1)]

    def stop(self, grace: float = 1.0) -> None:
        """End all workers. They hold nothing that matters, so they are not asked."""
        self.wanted = 0
        for worker in self.workers.values():
            worker.signal(signal.SIGKILL)
        if self.forkserver is not None:
            self.forkserver.close(grace)
            self.forkserver = None
        for worker in self.workers.values():
            worker.pipe.close()
            if worker.pidfd is not None:
                os.close(worker.pidfd)
        self.workers.clear()
