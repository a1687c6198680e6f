"""The workers as the loop sees them: processes, or the server itself where there are none.

`--workers 0` computes in the server's own process, one assignment a turn, through the same worker
program and the same messages. The loop does not know the difference.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from augproto.errors import RemoteProtocolError
from augproto.messages import Assign, Define, Forget, Function, Message, Probe, Ready
from augserver.death import Death
from augserver.forkserver import Duty
from augserver.supervisor import Supervisor, WorkerProcess
from augserver.worker import Worker

#: Seconds for a process to be gone after its pipe has ended; then it has closed it itself.
PIPE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Dead:
    """A worker that is gone: what it said last, and of what it died."""

    worker: int
    pid: int
    last_words: list[Message]
    death: Death


class _Inline:
    """A worker without a process; it is its own channel."""

    def __init__(self) -> None:
        self._worker = Worker(self)
        self._inbox: deque[Message] = deque()
        self._outbox: list[Message] = [Ready(os.getpid())]

    @property
    def busy(self) -> bool:
        return bool(self._inbox or self._outbox)

    def tell(self, message: Message) -> None:
        self._inbox.append(message)

    def send(self, message: Message) -> None:
        self._outbox.append(message)

    def receive(self) -> Message | None:
        return None

    def work(self) -> list[Message]:
        """Everything up to and including one assignment; returns what was reported."""
        while self._inbox:
            message = self._inbox.popleft()
            self._worker.take(message)
            if isinstance(message, Assign):
                break
        reports, self._outbox = self._outbox, []
        return reports


class Crew:
    """So many workers, 0 included.

    Args:
        workers: How many processes; 0 for none.
        runtime: The server's private folder.
        poller: The loop's; workers' pipes and ends are registered there.
        now: The time.
        duty: What processes do.
    """

    def __init__(
        self,
        workers: int,
        runtime: Path,
        poller: zmq.Poller,
        now: float,
        duty: Duty | None = None,
    ) -> None:
        self._inline = _Inline() if workers == 0 else None
        self._supervisor = Supervisor(workers, runtime, now, duty) if workers else None
        self._poller = poller
        self._forkserver: int | None = None
        self._pipes: dict[int, WorkerProcess] = {}
        self._ends: set[int] = set()
        self._some_ended = False
        self._functions: list[Function] = []
        self._since: dict[int, float] = {}
        self._evidence: dict[int, object] = {}
        self._mute: dict[int, float] = {}

    @property
    def busy(self) -> bool:
        """Whether the server has work of its own to do, and should not wait."""
        return self._inline is not None and self._inline.busy

    @property
    def wanted(self) -> int:
        """How many worker processes there should be."""
        return self._supervisor.wanted if self._supervisor else 0

    @property
    def alive(self) -> int:
        """How many worker processes have come up."""
        return self._supervisor.alive if self._supervisor else 0

    @property
    def restarts(self) -> int:
        """How many workers have ended since the start."""
        return self._supervisor.restarts if self._supervisor else 0

    @property
    def despair(self) -> Death | None:
        """Why there are no workers; None while there is hope."""
        return self._supervisor.despair if self._supervisor else None

    @property
    def forkserver(self) -> int | None:
        """Its process, if there is one now."""
        forkserver = self._supervisor.forkserver if self._supervisor else None
        return forkserver.pid if forkserver is not None else None

    def scale(self, workers: int) -> None:
        """Have at least so many worker processes, where there are any."""
        if self._supervisor is not None:
            self._supervisor.wanted = max(self._supervisor.wanted, workers)

    def start(self, now: float) -> None:
        """Start what is missing, if it is time."""
        if self._supervisor is None:
            return
        self._supervisor.start(now)
        forkserver = self._supervisor.forkserver
        if forkserver is not None and self._forkserver is None:
            self._forkserver = forkserver.fileno()
            self._poller.register(self._forkserver, zmq.POLLIN)

    def tell_all(self, message: Define | Forget | Function) -> None:
        """Tell every worker; those that start later get definitions when they are ready."""
        if isinstance(message, Function):
            # Said again (after Ctrl-C, say), it takes the place of the one before.
            others = [function for function in self._functions if function.name != message.name]
            self._functions = [*others, message]
        if self._inline is not None:
            self._inline.tell(message)
        for worker in self._pipes.values():
            self._tell(worker, message)

    def assign(self, worker: int, message: Assign | Probe, now: float) -> None:
        """Give a worker an assignment, or a stream to probe, and note the time for `look`."""
        self._since.setdefault(worker, now)
        self.tell(worker, message)

    def tell(self, worker: int, message: Message) -> None:
        """Tell one worker; one that is dead is noticed elsewhere."""
        if self._inline is not None:
            self._inline.tell(message)
        elif self._supervisor is not None and worker in self._supervisor.workers:
            self._tell(self._supervisor.workers[worker], message)

    def _tell(self, worker: WorkerProcess, message: Message) -> None:
        worker.send(message)
        self._watch(worker)

    def _watch(self, worker: WorkerProcess) -> None:
        """Poll for what it says, and for room where something waits to be said to it."""
        if worker.pipe.fileno() in self._pipes and worker.number not in self._mute:
            room = zmq.POLLOUT if worker.pipe.pending else 0
            self._poller.register(worker.pipe.fileno(), zmq.POLLIN | room)

    def receive(self, ready: dict[Any, int], now: float) -> list[tuple[int, Message]]:
        """What workers have reported: (worker, message)."""
        if self._inline is not None:
            return [(0, message) for message in self._inline.work()]
        assert self._supervisor is not None
        if self._forkserver in ready:
            self._hear(now)
            self._some_ended = True
        reports = []
        for fd in ready:
            if fd in self._ends:
                self._ends.remove(fd)
                self._poller.unregister(fd)
                self._some_ended = True
            worker = self._pipes.get(fd)
            if worker is None or worker.number in self._mute:
                continue
            reports += [(worker.number, message) for message in self._listen(worker, now)]
            if worker.pipe.pending:
                worker.pipe.flush()
                self._watch(worker)
        return reports

    def _hear(self, now: float) -> None:
        """Take what the forkserver tells; watch the workers that it has forked."""
        assert self._supervisor is not None
        for worker in self._supervisor.hear(now):
            self._pipes[worker.pipe.fileno()] = worker
            if worker.pidfd is not None:
                self._poller.register(worker.pidfd, zmq.POLLIN)
                self._ends.add(worker.pidfd)
            self._watch(worker)
            for function in self._functions:
                self._tell(worker, function)

    def _listen(self, worker: WorkerProcess, now: float) -> list[Message]:
        assert self._supervisor is not None
        try:
            messages = worker.receive()
        except RemoteProtocolError as error:
            self.distrust(worker.number, f"said what is no message ({error})", now)
            return []
        for message in messages:
            if isinstance(message, Ready):
                self._supervisor.is_ready(worker)
        if worker.pipe.ended:
            # Its process ends, too, in a moment; or a function has closed what is not its own.
            self._mute[worker.number] = now
            self._poller.unregister(worker.pipe.fileno())
        return messages

    def distrust(self, worker: int, why: str, now: float) -> None:
        """A worker has said what no worker says: something else writes to its pipe. Kill it."""
        if self._supervisor is not None and worker in self._supervisor.workers:
            self._supervisor.doom(self._supervisor.workers[worker], why, now)
            if worker not in self._mute:
                self._mute[worker] = now
                self._poller.unregister(self._supervisor.workers[worker].pipe.fileno())

    def progress(self, worker: int, working_since: float | None) -> None:
        """The worker has reported something: its deadline starts anew, or it is idle (None)."""
        if self._supervisor is not None and worker in self._supervisor.workers:
            self._supervisor.workers[worker].proven = True
        if working_since is None:
            self._since.pop(worker, None)
        else:
            self._since[worker] = working_since

    @property
    def working(self) -> list[int]:
        """Workers that have something to do."""
        return list(self._since)

    def witness(self, worker: int, evidence: object, now: float) -> None:
        """What a worker is at, as far as can be seen; another thing than before is progress.

        A batch of six thousand photographs takes minutes, and none of them is stuck.
        """
        if evidence is not None and evidence != self._evidence.get(worker):
            self._evidence[worker] = evidence
            self._since[worker] = now

    def look(self, now: float, deadline: float) -> None:
        """Doom workers that have got on with nothing for too long; to be called now and then."""
        if self._supervisor is None:
            return
        self._some_ended = True  # not every death wakes the loop
        for number, since in self._since.items():
            worker = self._supervisor.workers.get(number)
            if worker is not None and now - since > deadline:
                self._supervisor.doom(
                    worker, f"got on with nothing for more than {deadline:g} s", now
                )
        for number, since in self._mute.items():
            if now - since > PIPE_SECONDS:
                self._supervisor.doom(
                    self._supervisor.workers[number],
                    "lives, but has closed its pipe to the server (a function that closes file "
                    "descriptors which are not its own?)",
                    now,
                )
        self._supervisor.look(now)

    def reap(self, now: float) -> list[Dead]:
        """Workers that are gone and can write no more."""
        if self._supervisor is None or not self._some_ended:
            return []
        self._some_ended = False
        if self._supervisor.forkserver_has_ended():
            self._mourn_forkserver(now)
        dead = []
        for worker in self._supervisor.gone(now):
            # Its descriptors must be out of the poller before they are closed and used again.
            if worker.number not in self._mute:
                self._poller.unregister(worker.pipe.fileno())
            if worker.pidfd in self._ends:
                self._ends.remove(worker.pidfd)
                self._poller.unregister(worker.pidfd)
            del self._pipes[worker.pipe.fileno()]
            self._mute.pop(worker.number, None)
            self._since.pop(worker.number, None)
            self._evidence.pop(worker.number, None)
            words, death = self._supervisor.bury(worker, now)
            dead.append(Dead(worker.number, worker.pid or 0, words, death))
        return dead

    def _mourn_forkserver(self, now: float) -> None:
        assert self._supervisor is not None
        self._hear(now)
        lost = self._supervisor.lost_forkserver(now)
        if lost is not None and self._forkserver is not None:
            self._poller.unregister(self._forkserver)
            self._forkserver = None
            lost.close(0)

    def unkillable(self, now: float) -> list[int]:
        """Workers that were killed and do not die; each is told once."""
        if self._supervisor is None:
            return []
        found = [worker.number for worker in self._supervisor.unkillable(now)]
        for number in found:
            self._since.pop(number, None)
        return found

    def stop(self) -> None:
        """End all workers."""
        if self._supervisor is not None:
            self._supervisor.stop()
