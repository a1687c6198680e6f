"""Programs that hand over arrays and servers that have them, killed: what goes on."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from one_truth import bytes_of
from processes import alive, serving, wait_until

from augclient import Consumer, handing
from augclient.request import SpecOptions
from augproto.errors import ServerLost
from augproto.segment import sweep

X = np.arange(4000.0)[:, None]
OPTIONS: SpecOptions = {"batch_size": 4, "seed": 3}


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where servers are started one after another; what a killed one leaves is swept at the end."""
    # To start a server again takes its time on a busy machine.
    monkeypatch.setattr("augclient.talk.SILENCE", 60.0)
    yield f"ipc://{tmp_path}/s"
    sweep()


def settings(address: str, lease: float = 30.0) -> list[str]:
    config = Path(address.removeprefix("ipc://")).parent / "augserver.toml"
    config.write_text(f"[server]\nworkers = 1\nlease = {lease}\n")
    return ["--config", str(config)]


def segments(pid: int) -> list[Path]:
    """Those of a server."""
    return list(Path("/dev/shm").glob(f"augserver-*-{pid:x}??????-*"))


def kill(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.wait(20)


def test_a_server_that_is_started_again_is_handed_the_arrays_again_and_the_stream_goes_on(
    address: str,
) -> None:
    right = hashlib.sha256()
    with Consumer(X, workers=0, **OPTIONS) as alone:
        for batch in alone.epoch(0):
            right.update(bytes_of(batch))
    got = hashlib.sha256()
    with serving(address, *settings(address)) as first:
        consumer = Consumer(X, address=address, slots=4, **OPTIONS)
        other = Consumer(X, address=address, slots=4, **OPTIONS)
        for step in range(100):
            got.update(bytes_of(consumer.get(0, step)))
        kill(first)
    with consumer, other, serving(address, *settings(address)) as second:
        for step in range(100, consumer.steps):
            got.update(bytes_of(consumer.get(0, step, timeout=60)))
        assert got.hexdigest() == right.hexdigest()
        assert bytes_of(other.get(0, 0, timeout=60)) == bytes_of(consumer.get(0, 0))
        assert len(segments(second.pid)) == 4, "a door, one dataset, two rings"


def test_arrays_that_were_changed_meanwhile_are_not_taken_for_the_same(address: str) -> None:
    x = X.copy()
    with serving(address, *settings(address)) as first:
        consumer = Consumer(x, address=address, slots=4, **OPTIONS)
        consumer.get(0, 0)
        kill(first)
    x[3999] = -1
    with consumer, serving(address, *settings(address)):
        with pytest.raises(ServerLost, match=r"have been changed since they were handed over"):
            consumer.get(1, 0, timeout=60)
        with Consumer(x, address=address, **OPTIONS) as fresh:
            assert fresh.fingerprint != consumer.fingerprint


STOPPING = """
import sys, time
import numpy as np
from augclient import Consumer, handing

class Stops(handing.HandOver):
    def work(self):
        print("hands over", flush=True)
        time.sleep(600)

handing.HandOver = Stops
Consumer(np.zeros((1 << 20, 4)), address=sys.argv[1])
"""


def test_a_program_killed_while_it_hands_over_leaves_nothing(address: str) -> None:
    with serving(address, *settings(address, lease=1.0)) as server:
        program = subprocess.Popen(
            [sys.executable, "-c", STOPPING, address], stdout=subprocess.PIPE, text=True
        )
        assert program.stdout is not None
        assert program.stdout.readline() == "hands over\n"
        assert sum(path.stat().st_size for path in segments(server.pid)) >= 32 << 20
        program.kill()
        program.communicate(timeout=20)
        wait_until(lambda: len(segments(server.pid)) == 1, "nothing but the door")


HANDING = """
import sys
import numpy as np
from augclient import Consumer
with Consumer(np.zeros((1 << 16, 4)), address=sys.argv[1], batch_size=4) as consumer:
    consumer.get(0, 0)
    print("trains", flush=True)
    sys.stdin.readline()
"""


def test_a_program_killed_while_it_trains_takes_its_arrays_along_at_once(address: str) -> None:
    with serving(address, *settings(address, lease=600.0)) as server:
        program = subprocess.Popen(
            [sys.executable, "-c", HANDING, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        assert program.stdout.readline() == "trains\n"
        assert len(segments(server.pid)) == 3
        program.kill()
        program.communicate(timeout=20)
        wait_until(lambda: len(segments(server.pid)) == 1, "nothing but the door", 20)


def test_a_program_and_its_server_killed_together_leave_what_the_next_server_sweeps(
    address: str,
) -> None:
    with serving(address, *settings(address)) as server:
        program = subprocess.Popen(
            [sys.executable, "-c", HANDING, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        assert program.stdout.readline() == "trains\n"
        os.kill(server.pid, signal.SIGKILL)
        program.kill()
        program.communicate(timeout=20)
        kill(server)
    assert segments(server.pid)
    with serving(address, *settings(address)):
        assert not segments(server.pid)


def test_a_program_ends_in_the_middle_of_a_hand_over_when_it_is_asked_to(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handing, "COPY_BYTES", 64)  # so that it takes long
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    with serving(address, *settings(address)) as server:
        with pytest.raises(KeyboardInterrupt):
            _interrupted(address, server.pid)
        wait_until(lambda: len(segments(server.pid)) == 1, "nothing but the door")
    signal.signal(signal.SIGINT, before)
    assert not alive(server.pid)


def _interrupted(address: str, server: int) -> None:
    def interrupt() -> None:
        wait_until(lambda: len(segments(server)) == 2, "room to be made")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        Consumer(np.zeros((1 << 22, 4)), address=address)
    finally:
        thread.join(60)
