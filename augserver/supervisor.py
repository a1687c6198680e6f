"""Starts, watches and replaces the local workers; knows nothing of batches.

Workers are forked by a *forkserver*: a process that has imported what they need and has no other
threads (forking beside threads deadlocks). Two facts hold for everyone who relies on this file:

* A worker is reported as gone only when it has been *reaped*: from then on it cannot write.
* A worker that dies before it has ever answered an assignment is replaced with a growing delay:
  workers that cannot start make no storm of restarts. A proven one is replaced at once; a batch
  that kills every worker is the dispatcher's to give up.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from augproto.messages import Message, decode, encode
from augserver.pipe import Pipe

#: Seconds before replacing the 1st, 2nd, ... worker in a row that never answered.
BACK_OFF = (0.0, 0.1, 0.5, 2.0, 10.0)

_log = logging.getLogger("augserver.supervisor")


def _worker_main(pipe: Connection) -> None:
    from augserver import preload
    from augserver.worker import PipeChannel, run

    preload.die_with_parent()  # a fork does not inherit it
    # Ctrl-C reaches a whole terminal; ending is the server's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run(PipeChannel(pipe), os.getpid())


@dataclass(slots=True)
class WorkerProcess:
    """One worker: its process and the server's end of its pipe."""

    number: int
    process: ForkServerProcess
    pipe: Pipe
    proven: bool = False

    def send(self, message: Message) -> None:
        """Tell the worker; one that is dead is noticed by its sentinel, not here."""
        self.pipe.send(encode(message))

    def receive(self) -> list[Message]:
        """What it has said, without waiting."""
        return [decode(frame) for frame in self.pipe.receive()]


class Supervisor:
    """So many workers, always.

    Args:
        wanted: How many.
        runtime: A private directory for the forkserver's socket; swept with the server's own.
    """

    def __init__(self, wanted: int, runtime: Path) -> None:
        self.wanted = wanted
        self.workers: dict[int, WorkerProcess] = {}
        self.restarts = 0
        self._next = 0
        self._unproven = 0
        self._not_before = 0.0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["augserver.preload"])
        self._start_forkserver(runtime)

    @staticmethod
    def _start_forkserver(runtime: Path) -> None:
        # One numerical thread in each worker: they are as many as the cores already. The
        # forkserver's socket file goes where a later server sweeps, even if this one is killed.
        for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(variable, "1")
        os.environ["AUGSERVER_SERVER_PID"] = str(os.getpid())  # see preload.die_with_parent
        # Named here, multiprocessing's folder is also ours to remove, before its own exit hooks.
        config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        config["tempdir"] = str(runtime)
        # Python starts a resource tracker beside it, which we tell nothing: its end harms nobody.
        warnings.filterwarnings("ignore", "resource_tracker: process died", UserWarning)
        forkserver.ensure_running()

    def start(self, now: float) -> list[WorkerProcess]:
        """Bring the number up to what is wanted, if it is time; returns the new ones."""
        new = []
        while len(self.workers) < self.wanted and now >= self._not_before:
            mine, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_worker_main, args=(theirs,), name=f"augserver-worker-{self._next}"
            )
            try:
                process.start()
            except (OSError, EOFError) as error:
                # The forkserver has just been killed; the next attempt starts another.
                _log.warning("no worker could be started: %s", error)
                mine.close()
                self._unproven += 1
                self._not_before = now + BACK_OFF[min(self._unproven, len(BACK_OFF) - 1)]
                break
            finally:
                theirs.close()
            worker = WorkerProcess(self._next, process, Pipe(mine))
            self.workers[self._next] = worker
            self._next += 1
            new.append(worker)
        return new

    def ended(self) -> list[WorkerProcess]:
        """Workers that have ended and were reaped: they write no more."""
        return [w for w in self.workers.values() if w.process.exitcode is not None]

    def bury(self, worker: WorkerProcess, now: float) -> list[Message]:
        """Take an ended worker off the list; returns what it said last."""
        del self.workers[worker.number]
        last_words = worker.receive()
        worker.pipe.close()
        worker.process.join(1.0)
        self.restarts += 1
        self._unproven = 0 if worker.proven else self._unproven + 1
        self._not_before = now + BACK_OFF[min(self._unproven, len(BACK_OFF) - 1)]
        cause = cause_of_death(worker.process.exitcode or 0)
        _log.warning("worker %d (pid %s) %s", worker.number, worker.process.pid, cause)
        return last_words

    def stop(self, grace: float = 1.0) -> None:
        """End all workers: politely, then not."""
        self.wanted = 0
        workers = list(self.workers.values())
        for ask in (ForkServerProcess.terminate, ForkServerProcess.kill):
            _tell(workers, ask)
            for worker in workers:
                worker.process.join(grace)
        for worker in workers:
            worker.pipe.close()
        self.workers.clear()
        _stop_forkserver()


def _tell(workers: Sequence[WorkerProcess], ask: Callable[[ForkServerProcess], None]) -> None:
    for worker in workers:
        if worker.process.exitcode is None:
            ask(worker.process)


def _stop_forkserver() -> None:
    stop = getattr(forkserver._forkserver, "_stop", None)
    if stop is not None:
        stop()


def cause_of_death(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        hint = " (the kernel's out-of-memory killer uses this signal)" if code == -9 else ""
        return f"was killed by {name}{hint}"
    return f"exited with code {code}"
