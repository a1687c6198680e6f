"""The workers as the loop sees them: processes, or the server itself where there are none.

`--workers 0` computes in the server's own process, one assignment a turn, through the same worker
program and the same messages. The loop does not know the difference.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path
from typing import Any

import zmq

from augproto.messages import Assign, Define, Forget, Function, Message, Ready
from augserver.supervisor import Supervisor, WorkerProcess
from augserver.worker import Worker

_log = logging.getLogger("augserver.supervisor")


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
    """

    def __init__(self, workers: int, runtime: Path, poller: zmq.Poller) -> None:
        self._inline = _Inline() if workers == 0 else None
        self._supervisor = Supervisor(workers, runtime) if workers else None
        self._poller = poller
        self._fds: dict[int, int] = {}
        self._sentinels: dict[int, int] = {}
        self._functions: list[Function] = []
        self._since: dict[int, float] = {}
        self._some_ended = False

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
        """How many worker processes there are."""
        return len(self._supervisor.workers) if self._supervisor else 0

    @property
    def restarts(self) -> int:
        """How many workers have ended since the start."""
        return self._supervisor.restarts if self._supervisor else 0

    def scale(self, workers: int) -> None:
        """Have at least so many worker processes, where there are any."""
        if self._supervisor is not None:
            self._supervisor.wanted = max(self._supervisor.wanted, workers)

    def start(self, now: float) -> None:
        """Start what is missing, if it is time."""
        if self._supervisor is None:
            return
        for worker in self._supervisor.start(now):
            self._fds[worker.pipe.fileno()] = worker.number
            self._sentinels[worker.process.sentinel] = worker.number
            self._poller.register(worker.process.sentinel, zmq.POLLIN)
            self._watch(worker)
            for function in self._functions:
                self._tell(worker, function)

    def tell_all(self, message: Define | Forget | Function) -> None:
        """Tell every worker; those that start later get definitions when they are ready."""
        if isinstance(message, Function):
            # Said again (after Ctrl-C, say), it takes the place of the one before.
            others = [function for function in self._functions if function.name != message.name]
            self._functions = [*others, message]
        if self._inline is not None:
            self._inline.tell(message)
        if self._supervisor is not None:
            for worker in self._supervisor.workers.values():
                self._tell(worker, message)

    def assign(self, worker: int, message: Assign, now: float) -> None:
        """Give a worker an assignment, and note the time for `kill_stuck`."""
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
        room = zmq.POLLOUT if worker.pipe.pending else 0
        self._poller.register(worker.pipe.fileno(), zmq.POLLIN | room)

    def receive(self, ready: dict[Any, int]) -> list[tuple[int, Message]]:
        """What workers have reported: (worker, message)."""
        if self._inline is not None:
            return [(0, message) for message in self._inline.work()]
        assert self._supervisor is not None
        reports = []
        for fd in ready:
            if fd in self._fds:
                worker = self._supervisor.workers[self._fds[fd]]
                reports += [(worker.number, message) for message in worker.receive()]
                if worker.pipe.pending:
                    worker.pipe.flush()
                    self._watch(worker)
            elif fd in self._sentinels:
                self._some_ended = True
        return reports

    def progress(self, worker: int, working_since: float | None) -> None:
        """The worker has reported something: its deadline starts anew, or it is idle (None)."""
        if self._supervisor is not None and worker in self._supervisor.workers:
            self._supervisor.workers[worker].proven = True
        if working_since is None:
            self._since.pop(worker, None)
        else:
            self._since[worker] = working_since

    def kill_stuck(self, now: float, deadline: float) -> None:
        """Kill workers that have reported nothing for too long; they are replaced like any dead."""
        if self._supervisor is None:
            return
        for number, since in list(self._since.items()):
            worker = self._supervisor.workers.get(number)
            if worker is not None and now - since > deadline:
                _log.warning(
                    "worker %d (pid %s) has worked on one assignment for %.0f s: killed",
                    number,
                    worker.process.pid,
                    now - since,
                )
                worker.process.kill()
                self._since[number] = now

    def reap(self, now: float) -> list[tuple[int, list[Message]]]:
        """Workers that have ended and can write no more, with what they said last."""
        if self._supervisor is None or not self._some_ended:
            return []
        self._some_ended = False
        dead = []
        for worker in self._supervisor.ended():
            # Its descriptors must be out of the poller before they are closed and used again.
            self._unregister(worker.pipe.fileno(), worker.process.sentinel)
            self._since.pop(worker.number, None)
            dead.append((worker.number, self._supervisor.bury(worker, now)))
        return dead

    def _unregister(self, pipe: int, sentinel: int) -> None:
        self._poller.unregister(pipe)
        self._poller.unregister(sentinel)
        del self._fds[pipe]
        del self._sentinels[sentinel]

    def stop(self) -> None:
        """End all workers."""
        if self._supervisor is not None:
            self._supervisor.stop()
