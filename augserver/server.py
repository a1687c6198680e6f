"""The loop: sockets, dispatcher, supervisor, clock and signals meet here and nowhere else.

One thread, one wait. Everything that can happen wakes `zmq.Poller`: a consumer's message, a
worker's report, a worker's end, a dataset that was loaded, a signal, the program behind a private
server. Each turn takes what is there, lets the dispatcher decide, and sends what it decided.
Nothing in a turn waits for anybody.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING

import zmq

from augproto import segment as segments
from augproto.messages import (
    Assign,
    Done,
    Failed,
    Function,
    Message,
    Place,
    Probe,
    Probed,
    Ready,
)
from augserver import runtime
from augserver.afar import FIRST_REMOTE
from augserver.config import Config
from augserver.consumers import Consumers
from augserver.conversation import with_seeds
from augserver.crew import Crew
from augserver.death import Death
from augserver.dispatcher import Dispatcher
from augserver.doors import Door, Doors, Guest
from augserver.lifeline import Lifeline
from augserver.losses import Loss
from augserver.remotes import Remotes

if TYPE_CHECKING:
    from augserver.observe.metrics import Figures

#: How often (seconds) the dead, the silent and the stuck are looked for.
TICK = 0.25
#: Seconds for assigned work to be finished when the server is asked to end.
DRAIN_SECONDS = 1.5

_log = logging.getLogger("augserver.server")


class Server:
    """One augmentation server; a context manager around its processes, memory and sockets.

    Args:
        config: What to serve.
        lifeline: The program behind a private server; its end is this server's end.

    Attributes:
        addresses: Where it listens for consumers.
        workers_addresses: ... and for workers.
        figures: What Prometheus may fetch, if anything.

    Raises:
        ConfigError: An address is taken or cannot be bound.
    """

    def __init__(self, config: Config, lifeline: Connection | None = None) -> None:
        self.config = with_seeds(config)
        self.addresses: list[str] = []
        self.workers_addresses: list[str] = []
        self._stopping: str | None = None
        self._hurried = False
        self._ticked = 0.0
        runtime.sweep()
        segments.sweep()
        with contextlib.ExitStack() as started:
            folder = runtime.RuntimeFolder()
            started.callback(folder.close)
            self._wake_r, self._wake_w = socket.socketpair()
            self._wake_r.setblocking(False)
            self._wake_w.setblocking(False)
            started.callback(self._wake_r.close)
            started.callback(self._wake_w.close)
            self._poller = zmq.Poller()
            self._poller.register(self._wake_r.fileno(), zmq.POLLIN)
            self._doors = Doors(self.config, folder, self._poller, started)
            self.addresses = self._doors.addresses(Guest.CONSUMER)
            self.workers_addresses = self._doors.addresses(Guest.WORKER)
            self._dispatcher = Dispatcher()
            now = time.monotonic()
            self._crew = Crew(self.config.workers, folder.path, self._poller, now)
            started.callback(self._crew.stop)
            self._remotes = Remotes(
                self.config,
                self._dispatcher,
                self._doors.send,
                self.wake,
                ask=lambda worker, stream: self._crew.assign(
                    worker, Probe(stream), time.monotonic()
                ),
                tell=lambda stream, message: self._consumers.tell(stream, message),
                note_bad=lambda stream, bad: self._consumers.note_bad(stream, bad),
            )
            started.callback(lambda: self._remotes.close(self._stopping or "the server has failed"))
            self._consumers = Consumers(
                self.config,
                self._dispatcher,
                self._crew,
                self.wake,
                self._doors.send,
                self._remotes,
            )
            started.callback(
                lambda: self._consumers.close(self._stopping or "the server has failed")
            )
            self.figures: Figures | None = None
            if self.config.metrics:
                from augserver.observe.metrics import Figures

                self.figures = started.enter_context(Figures(self.config.metrics))
            self._lifeline: Lifeline | None = None
            if lifeline is not None:
                self._lifeline = Lifeline(lifeline, self._consumers.datasets, self._crew)
                self._poller.register(lifeline.fileno(), zmq.POLLIN)
                self._lifeline.serving(self.addresses[0])
            self._busy = (time.monotonic(), 0, 0)  # when the last wait was over, and in it
            self._resources = started.pop_all()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to stop, and finish what is assigned, but not for long."""
        self._crew.start(time.monotonic())
        while self._stopping is None:
            self.turn()
        _log.info("stops: %s", self._stopping)
        deadline = time.monotonic() + DRAIN_SECONDS
        while not self._hurried and self._dispatcher.at_work and time.monotonic() < deadline:
            self.turn()
        if self._dispatcher.at_work:
            how = "at once, as it was asked to" if self._hurried else "with unfinished work"
            _log.info("ends %s: the workers are killed", how)

    def stop(self, reason: str, *, hurry: bool = False) -> None:
        """Ask the loop to end; callable from a signal handler and from any thread.

        Who asks a second time, or in a hurry, does not wait for what is assigned.
        """
        self._hurried = hurry or self._stopping is not None
        self._stopping = self._stopping or reason
        self.wake()

    def wake(self) -> None:
        """End the loop's wait; callable from anywhere."""
        with contextlib.suppress(OSError):
            self._wake_w.send(b"\0")

    def turn(self) -> None:
        """One wait, and everything that came of it."""
        due = TICK - (time.monotonic() - self._ticked)
        wait = 0.0 if self._crew.busy else max(0.0, due)
        ready = self._wait(wait)
        if self._wake_r.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_r.recv(4096)
            self._consumers.open_loaded()
        if self._lifeline is not None and self._lifeline.fileno() in ready:
            self._take_lifeline(self._lifeline)
        self._doors.take_strangers(ready, time.monotonic())
        for door in self._doors.all:
            if door.socket in ready:
                self._take_guests(door)
        now = time.monotonic()
        self._remotes.send_ready()
        for worker, message in self._crew.receive(ready, now):
            self._take_worker(worker, message, now)
        if now - self._ticked >= TICK:
            self._ticked = now
            self._consumers.drop_dead_and_silent(now)
            self._doors.keeper.look(now)
            for worker in self._crew.working:
                evidence = self._consumers.being_written(self._dispatcher.held(worker))
                self._crew.witness(worker, evidence, now)
            self._crew.look(now, self.config.worker_deadline)
            self._remotes.look(now)
            if self.figures is not None:
                self.figures.show(self._consumers.status(), self._dispatcher.backlog)
        self._bury(now)
        if self._stopping is not None:
            return  # drains: nothing new is begun
        self._crew.start(now)
        self._tell_who_waits_in_vain()
        for assignment in self._dispatcher.assign(now):
            if assignment.worker >= FIRST_REMOTE:
                self._remotes.assign(assignment, now)
                continue
            told = Assign(assignment.stream, assignment.places, assignment.scripts)
            self._crew.assign(assignment.worker, told, now)

    def _wait(self, seconds: float) -> dict[object, int]:
        """What is ready, after no more than that time; meanwhile workers are what they were."""
        if self.figures is None:
            return dict(self._poller.poll(int(seconds * 1000)))
        # While a turn lasts, workers that have reported go on with what they hold besides: it
        # counts with the mean of before and after.
        (was, local_was, remote_was), (local, remote) = self._busy, self._dispatcher.busy
        begun = time.monotonic()
        self.figures.turned(begun - was, (local_was + local) / 2, (remote_was + remote) / 2)
        ready = dict(self._poller.poll(int(seconds * 1000)))
        woken = time.monotonic()
        self.figures.turned(woken - begun, local, remote)
        self._busy = (woken, local, remote)
        return ready

    def _take_lifeline(self, lifeline: Lifeline) -> None:
        try:
            messages = lifeline.take()
        except EOFError as error:
            self.stop(str(error), hurry=True)
            return
        for message in messages:
            if isinstance(message, Function):
                self._crew.tell_all(message)
        room = zmq.POLLOUT if lifeline.pending else 0
        self._poller.register(lifeline.fileno(), zmq.POLLIN | room)

    def _take_guests(self, door: Door) -> None:
        for identity, *frames in door.take():
            if door.guest is Guest.WORKER:
                self._remotes.take(identity, frames, time.monotonic())
            elif len(frames) == 1:  # a consumer says nothing else
                self._consumers.take(identity, frames[0])

    def _take_worker(self, worker: int, message: Message, now: float) -> None:
        match message:
            case Ready():
                for definition in self._consumers.definitions():
                    self._crew.tell(worker, definition)
                self._dispatcher.join(worker)
            case Done():
                announce = self._dispatcher.done(
                    worker,
                    message.stream,
                    message.entries,
                    message.seconds,
                    message.bad,
                    message.after,
                    now,
                )
                self._progress(worker)
                self._consumers.note_bad(message.stream, message.bad)
                self._consumers.tell(message.stream, announce)
            case Failed():
                fault = self._dispatcher.failed(
                    worker,
                    message.stream,
                    message.place,
                    message=message.message,
                    sample=message.sample,
                    traceback=message.traceback,
                    path=message.path,
                )
                self._progress(worker)
                self._consumers.tell(message.stream, fault)
            case Probed():
                self._progress(worker)
                self._remotes.referred(worker, message)
            case _:
                self._crew.distrust(worker, f"said {message!r:.120}", now)

    def _progress(self, worker: int) -> None:
        idle = self._dispatcher.load(worker) == 0
        self._crew.progress(worker, None if idle else time.monotonic())

    def _bury(self, now: float) -> None:
        for worker in self._crew.unkillable(now):
            suspect, loss = self._inquest(worker, Death("was killed and does not die"))
            for stream, fault in self._dispatcher.quarantine(worker, suspect, loss):
                self._consumers.tell(stream, fault)
        for dead in self._crew.reap(now):
            for message in dead.last_words:
                self._take_worker(dead.worker, message, now)
            self._remotes.local_left(dead.worker)
            suspect, loss = self._inquest(dead.worker, dead.death)
            _log.warning(
                "worker %d (pid %d) %s%s", dead.worker, dead.pid, loss.cause, _at(suspect, loss)
            )
            guess = dead.death.own
            for stream, fault in self._dispatcher.leave(dead.worker, suspect, loss, guess=guess):
                self._consumers.tell(stream, fault)

    def _inquest(self, worker: int, death: Death) -> tuple[tuple[int, Place] | None, Loss]:
        """What a worker was at when it died, as the slots' headers tell."""
        found = self._consumers.being_written(self._dispatcher.held(worker))
        suspect, sample = found if found is not None else (None, None)
        path = ""
        if suspect is not None and sample is not None:
            path = self._consumers.path(suspect[0], sample)
        return suspect, Loss(death.cause, sample, death.traceback, path)

    def _tell_who_waits_in_vain(self) -> None:
        """For workers that do not come up, or for slots that do not come back."""
        despair = self._crew.despair
        if despair is not None:
            loss = Loss(f"no worker can be started; {despair.cause}", None, despair.traceback)
            for stream, fault in self._dispatcher.tell_waiting(loss):
                self._consumers.tell(stream, fault)
        for stream in self._dispatcher.starved():
            self._consumers.retire(stream, "a worker that cannot be killed holds slots of it")


def _at(suspect: tuple[int, Place] | None, loss: Loss) -> str:
    """Where a worker died, and its traceback, as the end of a line of the log."""
    where = "; no slot says what it was at"
    if suspect is not None:
        stream, place = suspect
        where = f", making stream {stream}, epoch {place.epoch}, step {place.step}"
        where += loss.at
    return where + (f"\n{loss.traceback}" if loss.traceback else "")
