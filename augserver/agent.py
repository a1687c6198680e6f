"""`augserver worker`: as many remote workers as asked for, always, on this machine.

The agent talks to no server and makes no batch. It has worker processes forked, each of which dials
the server by itself; it replaces those that die, and gives the successor the name of the dead and
what it died of, for the server to judge over which batch that was. Nothing outlives it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import time
from pathlib import Path
from types import TracebackType

import zmq

from augproto.errors import AugError
from augproto.faults import error_of
from augproto.messages import Bye, Dismiss, Enlisted, Fault, Heartbeat, Message, Ready
from augserver import runtime
from augserver.crew import Crew, Dead
from augserver.dial import Orders, papers
from augserver.forkserver import Duty
from augserver.pulse import BEAT_SECONDS, FRESH_SECONDS, Pulse

#: Seconds for workers to say that they resign.
GRACE_SECONDS = 0.8
#: Seconds without a sign of life after which a worker is killed: stopped, or in code that lets no
#: other thread run.
STUCK_SECONDS = 15.0
#: Seconds between two turns after which the agent has slept itself.
PAUSE_SECONDS = 2.0

_log = logging.getLogger("augserver.agent")


@dataclasses.dataclass(frozen=True, slots=True)
class _Loss:
    """A worker that is dead and has no successor yet."""

    name: str
    cause: str
    traceback: str


class Agent:
    """The parent of some remote workers; a context manager around them.

    Args:
        orders: What they are to do.
        workers: How many.
        origin: Who has placed them here, in words for `augserver status`.

    Attributes:
        pulse: How it was a moment ago.
    """

    def __init__(self, orders: Orders, workers: int, origin: str = "") -> None:
        self._orders = orders
        self._workers = workers
        self._origin = origin
        self._names: dict[int, str] = {}
        self._enlisted: dict[int, float] = {}
        self._dismissed: dict[int, str] = {}
        self._losses: list[_Loss] = []
        self._stopping: str | None = None
        self._hurried = False
        self._fault: AugError | None = None
        self._despaired = ""
        self._looked = 0.0
        self._trouble = ""
        self.pulse: Pulse | None = None
        runtime.sweep()
        with contextlib.ExitStack() as started:
            folder = runtime.RuntimeFolder()
            started.callback(folder.close)
            self._woken, self._wakes = socket.socketpair()
            started.callback(self._woken.close)
            started.callback(self._wakes.close)
            self._woken.setblocking(False)
            self._wakes.setblocking(False)
            self._poller = zmq.Poller()
            self._poller.register(self._woken.fileno(), zmq.POLLIN)
            duty = Duty("augserver.dial:attend", orders.to_word())
            self._crew = Crew(workers, folder.path, self._poller, time.monotonic(), duty)
            started.callback(self._crew.stop)
            self._folder: Path = folder.path
            self._resources = started.pop_all()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    def run(self) -> None:
        """Keep the workers up until told to stop.

        Raises:
            AugError: No worker will ever be of use: the address is none, or the server speaks
                another version.
        """
        while self._stopping is None and self._fault is None:
            self._turn()
        for number in self._names:
            self._crew.tell(number, Bye(self._stopping or f"{self._fault}"))
        deadline = time.monotonic() + GRACE_SECONDS
        while self._names and not self._hurried and time.monotonic() < deadline:
            self._turn()
        if self._fault is not None:
            raise self._fault

    def stop(self, reason: str) -> None:
        """Ask for the end; callable from a signal handler. A second time it comes at once."""
        self._hurried = self._stopping is not None
        self._stopping = self._stopping or reason
        with contextlib.suppress(OSError):
            self._wakes.send(b"\0")

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._looked > PAUSE_SECONDS:  # who slept is no judge of who was silent
            for number in self._names:
                self._crew.progress(number, now)
        if self._stopping is None and self._fault is None:
            self._crew.start(now)
            self._despair()
        ready = dict(self._poller.poll(int(BEAT_SECONDS * 1000)))
        if self._woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        now = time.monotonic()
        for number, message in self._crew.receive(ready, now):
            self._take(number, message, now)
        if now - self._looked >= BEAT_SECONDS:
            self._looked = now
            self._crew.look(now, STUCK_SECONDS)
            self._reap_strangers()
            enlisted = sum(now - at < FRESH_SECONDS for at in self._enlisted.values())
            alive, trouble = len(self._names), self._trouble or self._despaired
            self.pulse = Pulse(
                os.getpid(), self._orders.address, self._workers, alive, enlisted, trouble, now
            )
            self.pulse.write(self._folder)
        for dead in self._crew.reap(now):
            self._mourn(dead, now)

    def _take(self, number: int, message: Message, now: float) -> None:
        self._crew.progress(number, now)
        match message:
            case Ready():
                loss = self._losses.pop(0) if self._losses else _Loss("", "", "")
                named = papers(loss.name, loss.cause, loss.traceback, self._origin)
                self._names[number] = named.worker
                self._crew.tell(number, named)
            case Enlisted():
                self._enlisted[number] = now
                self._trouble = ""
            case Bye():
                self._enlisted.pop(number, None)
                self._trouble = message.reason
            case Dismiss():
                self._dismissed[number] = message.reason
            case Fault():
                self._fault = self._fault or error_of(message)
            case Heartbeat():
                pass
            case _:
                self._crew.distrust(number, f"said {message!r:.120}", now)

    def _mourn(self, dead: Dead, now: float) -> None:
        for message in dead.last_words:
            self._take(dead.worker, message, now)
        name = self._names.pop(dead.worker, "")
        self._enlisted.pop(dead.worker, None)
        reason = self._dismissed.pop(dead.worker, "")
        cause = f"was dismissed: {reason}" if reason else dead.death.cause
        if self._stopping is not None or self._fault is not None:
            return
        _log.warning("worker %d (pid %d) %s", dead.worker, dead.pid, cause)
        if dead.death.traceback:
            _log.warning("%s", dead.death.traceback)
        if name and dead.death.own:
            self._losses.append(_Loss(name, cause, dead.death.traceback))
            # Those that are wanted have each a successor, and no more than these come.
            del self._losses[: -self._workers]

    def _despair(self) -> None:
        """Say why there are no workers, once for each reason."""
        despair = self._crew.despair
        words = str(despair) if despair is not None else ""
        if words and words != self._despaired:
            _log.error("no worker can be started; %s", words)
        self._despaired = words

    def _reap_strangers(self) -> None:
        """As the first process of a container: reap whoever was left to this process.

        The forkserver is waited for elsewhere. All others, workers of a forkserver that was killed
        among them, are of no use here, but would stay in the table of processes.
        """
        if os.getpid() != 1:
            return
        with contextlib.suppress(ChildProcessError):
            while (
                found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            ) is not None and found.si_pid != self._crew.forkserver:
                os.waitpid(found.si_pid, os.WNOHANG)


def run(orders: Orders, workers: int) -> None:
    """The command: until SIGTERM, SIGINT, or the end of its terminal.

    Raises:
        AugError: See `Agent.run`.
    """
    told: list[str] = []
    agent: Agent | None = None

    def on_signal(number: int, frame: object) -> None:
        told.append(f"{signal.Signals(number).name} was received")
        if agent is not None:
            agent.stop(told[0])

    # As the first process of a container one without handlers would ignore both; and before there
    # is an agent, the end must not leave half of one behind.
    polite = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup says
        polite.append(signal.SIGHUP)  # the end of a terminal, as of `ssh -t`
    before = {s: signal.signal(s, on_signal) for s in polite}
    try:
        with Agent(orders, workers) as agent:
            if told:
                agent.stop(told[0])
            _log.info("%d worker%s dial %s", workers, "" if workers == 1 else "s", orders.address)
            agent.run()
            _log.info("ends: %s", told[0] if told else "asked to")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
