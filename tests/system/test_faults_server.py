"""The server's own end: polite, hurried, in the middle of a start, of a load and of a fault."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from faulty import Faulty, faulty
from processes import alive, descendants, python, wait_until

from augproto.messages import (
    VERSION,
    Announce,
    Bye,
    Hello,
    Message,
    Open,
    Opened,
    Run,
    Want,
    Welcome,
)
from augproto.segment import Holder
from augproto.session import Role, Session
from augserver.config import Config
from augserver.server import Server


class Talker:
    """A consumer that says and hears plain messages."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer: Any = self._context.socket(zmq.DEALER)
        self._dealer.connect(address)
        self._session = Session(Role.CONSUMER, time.monotonic())
        self._holder: Holder | None = None

    def say(self, message: Message) -> None:
        self._dealer.send(self._session.send(message, time.monotonic()))

    def hear(self, kind: type[Message]) -> Message:
        """The next message, which must be of this kind."""
        assert self._dealer.poll(30_000), f"no {kind} within 30 s"
        message = self._session.receive(self._dealer.recv(), time.monotonic())
        assert isinstance(message, kind), message
        return message

    def opens(self) -> None:
        self.say(Hello(VERSION, "test", os.getpid()))
        self.hear(Welcome)
        self.say(Open("gate", None, 4))
        opened = self.hear(Opened)
        assert isinstance(opened, Opened)
        self._holder = Holder(opened.segment)

    def close(self) -> None:
        if self._holder is not None:
            self._holder.close()
        self._context.destroy(linger=0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Faulty]:
    with faulty(tmp_path) as made:
        made.crew()
        yield made
        ended(made)


@pytest.fixture
def talker(server: Faulty) -> Iterator[Talker]:
    made = Talker(server.address)
    made.opens()
    yield made
    made.close()


def ended(server: Faulty) -> None:
    """It has ended as it should, and taken everything along."""
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.log()
    names = f"augserver*-{os.getuid()}-{server.process.pid:x}??????-*"
    assert list(Path("/dev/shm").glob(names)) == []


def test_a_polite_end_finishes_what_is_assigned_and_begins_nothing(
    server: Faulty, talker: Talker
) -> None:
    below = descendants(server.process.pid)
    with server.held():
        talker.say(Want((Run(0, 1, 1),), 0, ()))
        server.at_the_gate()
        server.process.terminate()
        wait_until(lambda: "stops: SIGTERM was received" in server.log(), "the server to drain")
        talker.say(Want((Run(0, 1, 4),), 0, ()))  # too late: not begun
    announce = talker.hear(Announce)
    assert isinstance(announce, Announce)
    assert [entry[:2] for entry in announce.entries] == [(0, 1)]
    bye = talker.hear(Bye)
    assert bye == Bye("SIGTERM was received")
    ended(server)
    wait_until(lambda: not any(map(alive, below)), "all its processes to end")
    assert "unfinished" not in server.log()


@pytest.mark.parametrize("state", ["stuck", "stopped"])
def test_a_polite_end_does_not_wait_for_a_worker_that_is(
    server: Faulty, talker: Talker, state: str
) -> None:
    below = descendants(server.process.pid)
    with server.held():
        talker.say(Want((Run(0, 1, 1),), 0, ()))
        worker = server.at_the_gate()
        if state == "stopped":
            os.kill(worker, signal.SIGSTOP)
        server.process.terminate()
        assert talker.hear(Bye) == Bye("SIGTERM was received")
        ended(server)
    wait_until(lambda: not any(map(alive, below)), "all its processes to end")
    assert "ends with unfinished work" in server.log()


def test_who_asks_twice_does_not_wait_for_what_is_assigned(server: Faulty, talker: Talker) -> None:
    with server.held():
        talker.say(Want((Run(0, 1, 1),), 0, ()))
        server.at_the_gate()
        server.process.terminate()
        wait_until(lambda: "stops: SIGTERM was received" in server.log(), "the server to drain")
        server.process.terminate()
        assert talker.hear(Bye) == Bye("SIGTERM was received")
        ended(server)
    assert "ends at once" in server.log()


def test_an_end_with_a_stopped_forkserver_takes_everything_along(server: Faulty) -> None:
    below = descendants(server.process.pid)
    os.kill(server.forkserver(), signal.SIGSTOP)
    server.process.terminate()
    ended(server)
    wait_until(lambda: not any(map(alive, below)), "all its processes to end")


def _has_open(pid: int, path: Path) -> bool:
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if fd.readlink() == path:
                return True
    return False


def test_an_end_in_the_middle_of_a_load_does_not_wait_for_it(tmp_path: Path) -> None:
    listed = tmp_path / "long.csv"
    listed.write_text("file\n" + "long.csv\n" * 500_000)  # seconds of listing
    with faulty(tmp_path) as server:
        talker = Talker(server.address)
        talker.say(Hello(VERSION, "test", os.getpid()))
        talker.hear(Welcome)
        talker.say(Open("long", None, 4))
        wait_until(lambda: _has_open(server.process.pid, listed), "the load to begin")
        server.process.terminate()
        assert talker.hear(Bye) == Bye("SIGTERM was received")
        ended(server)
        talker.close()


ENDLESS = """
import threading, sys
from augserver.datasets.loader import Loader
loader, begun = Loader(), threading.Event()
def load():
    begun.set()
    threading.Event().wait(1000)
loader.submit(load)
waiting = [loader.submit(load) for _ in range(5)]
assert begun.wait(30)
loader.close()
print(sum(future.cancelled() for future in waiting))
"""


def test_a_load_that_never_ends_lets_its_process_end() -> None:
    done = python(ENDLESS, timeout=60)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


@pytest.mark.parametrize("flag", ["no-worker", "no-forkserver"])
def test_a_polite_end_while_no_worker_can_be_started(tmp_path: Path, flag: str) -> None:
    (tmp_path / flag).touch()
    with faulty(tmp_path) as server:
        wait_until(lambda: "exited with code" in server.log(), "a start to fail")
        server.process.terminate()
        ended(server)


def test_a_killed_server_takes_all_its_processes_along(tmp_path: Path) -> None:
    with faulty(tmp_path) as server:
        server.crew()
        below = descendants(server.process.pid)
        server.process.kill()
    wait_until(lambda: not any(map(alive, below)), "all its processes to end")
    # What cannot end is its memory, the key at its door; the next server removes it.
    with Server(Config(workers=0, listen=(f"ipc://{tmp_path}/next",))):
        pass
