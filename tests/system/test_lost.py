"""A server that is killed, stopped, absent or ends: which error, with which words, how soon.

On TensorFlow the error comes wrapped, as text, out of another thread; everywhere the program goes
on with a new sequence, and ends when it wants to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import DEADLINE, alive, descendants, python, serving, wait_until

from augclient import Consumer, local
from augclient.link import Link
from augproto.errors import ConnectTimeout, ServerLost
from augproto.messages import Open, Scale, Serving
from augproto.segment import sweep

X = np.arange(4000.0)[:, None]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a standalone server with a stream; whatever was done to it, it ends."""
    np.savez(tmp_path / "numbers.npz", x=X)
    config = tmp_path / "augserver.toml"
    config.write_text(
        '[server]\nworkers = 1\n[streams.numbers]\ndata = "numbers.npz"\nx = "x"\nbatch_size = 4\n'
    )
    address = f"ipc://{tmp_path}/a.sock"
    with serving(address, "--config", str(config)) as server:
        _servers[address] = server.pid
        yield address
    sweep()  # what a killed one has left, as the next one would


_servers: dict[str, int] = {}


def _lost(consumer: Consumer, pid: int, number: signal.Signals) -> str:
    """What the consumer is told when that happens to its server while it waits for a batch."""
    step = 0
    consumer.get(0, 0)
    below = descendants(pid)
    timer = threading.Timer(0.2, os.kill, (pid, number))
    timer.start()
    try:
        while True:  # what is in the ring already comes whatever became of the server
            consumer.get(*divmod(step, 1000))
            step += 1
    except ServerLost as error:
        return str(error)
    finally:
        timer.join()
        for child in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_a_private_server_that_is_killed_is_lost_at_once_and_the_next_one_serves() -> None:
    with Consumer(X, batch_size=4, workers=1) as consumer:
        assert local._server is not None
        said = _lost(consumer, local._server.pid, signal.SIGKILL)
        assert "the private server's process has ended" in said
        with pytest.raises(ServerLost, match="has ended"):
            consumer.get(3, 0)
    with Consumer(X, batch_size=4, workers=1) as consumer:
        assert consumer.get(0, 0).step == 0


def test_a_private_server_that_is_terminated_is_lost_with_a_reason() -> None:
    with Consumer(X, batch_size=4, workers=1) as consumer:
        assert local._server is not None
        said = _lost(consumer, local._server.pid, signal.SIGTERM)
        assert "SIGTERM was received" in said or "has ended" in said
    with Consumer(X, batch_size=4, workers=1) as consumer:
        assert consumer.get(0, 0).step == 0


def test_a_private_server_that_is_stopped_is_lost_and_does_not_stop_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "ANSWER_TIMEOUT", 1.0)
    monkeypatch.setattr("augclient.talk.SILENCE", 2.0)
    with Consumer(X, batch_size=4, workers=1) as consumer:
        server = local._server
        assert server is not None
        said = _lost(consumer, server.pid, signal.SIGSTOP)
        assert "has not answered for" in said
        with pytest.raises(ServerLost, match="does not answer"):
            server.ask(Scale(1), Serving)
    monkeypatch.undo()
    with Consumer(X, batch_size=4, workers=1) as consumer:
        assert local._server is not server
        assert consumer.get(0, 0).step == 0
    monkeypatch.setattr(local, "GRACE", 0.5)
    local.shut_down()
    wait_until(lambda: not alive(server.pid), "the stopped server to be killed")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_standalone_server_that_stands_still_is_lost_within_the_deadline(
    address: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augclient.talk.SILENCE", 3.0)  # so that it is greeted anew, in vain
    with Consumer(stream="numbers", address=address, timeout=6) as consumer:
        said = _lost(consumer, _servers[address], number)
        assert address in said
        assert "has not answered for" in said
        assert "killed, stopped, or its machine is gone" in said
        assert "did not come within 6 s (timeout=)" in said
        assert not consumer.connected
        with pytest.raises(ServerLost, match="has not answered for"):  # and again, for its next one
            consumer.get(5, 0, timeout=0.5)


def test_a_standalone_server_that_is_ended_says_so(address: str) -> None:
    with Consumer(stream="numbers", address=address, timeout=4) as consumer:
        said = _lost(consumer, _servers[address], signal.SIGTERM)
        assert said.startswith(f"the server at {address} has ended: SIGTERM was received. None has")


def test_what_came_before_a_server_s_end_is_still_handed_out(address: str) -> None:
    with Consumer(stream="numbers", address=address, slots=8) as consumer:
        first = consumer.get(0, 0)
        link = consumer._source
        assert isinstance(link, Link)
        wait_until(lambda: len(link._demand.ready) >= 6 if link._demand else False, "a full ring")
        os.kill(_servers[address], signal.SIGTERM)
        wait_until(lambda: not consumer.connected, "the server's goodbye")
        got = [consumer.get(0, step) for step in range(1, 6)]
        assert [batch.step for batch in got] == [1, 2, 3, 4, 5]
        assert len({float(np.asarray(b.x)[0, 0]) for b in (first, *got)}) == 6
        with pytest.raises(ServerLost, match="has ended: SIGTERM was received"):
            consumer.get(5, 0, timeout=0.5)


def test_an_absent_server_is_a_time_out_that_says_what_to_do(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/nobody.sock"
    started = time.monotonic()
    with pytest.raises(ConnectTimeout, match=r"augserver serve") as caught:
        Link(address, Open("s", None, None), writable=False, connect_timeout=0.5)
    assert address in str(caught.value)
    assert time.monotonic() - started < DEADLINE


def test_closing_a_consumer_ends_a_wait_in_another_thread(address: str) -> None:
    consumer = Consumer(stream="numbers", address=address)
    os.kill(_servers[address], signal.SIGSTOP)
    ended: list[str] = []

    def wait() -> None:
        try:
            for step in range(1000):
                consumer.get(5, step)
        except Exception as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: consumer._source._bell._awaited, "it to wait")  # type: ignore[attr-defined]
    consumer.close()
    thread.join(DEADLINE)
    assert ended == ["ConsumerClosed"]


EXITS = """
import os, signal, sys, time
import numpy as np
from augclient import Consumer, local
address, pid = sys.argv[1], int(sys.argv[2])
if address:
    consumer = Consumer(stream="numbers", address=address)
else:
    consumer = Consumer(np.zeros((400, 1)), batch_size=4, workers=1)
    pid = local._server.pid
batch = consumer.get(0, 0)
os.kill(pid, signal.SIGSTOP)
print(pid, time.monotonic())
"""


@pytest.mark.parametrize("kind", ["private", "standalone"])
def test_a_program_ends_though_its_server_is_stopped(kind: str, address: str) -> None:
    where = address if kind == "standalone" else ""
    done = python(EXITS, where, str(_servers[address]), timeout=60)
    ended = time.monotonic()
    assert done.returncode == 0, done.stderr
    pid, stopped = done.stdout.split()
    assert ended - float(stopped) < DEADLINE / 2
    assert alive(int(pid)) is (kind == "standalone")
