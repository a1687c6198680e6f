"""Hostile peers on every socket: the server serves on, the client ends with a typed error.

A small part of what `make fuzz` does (fuzz_rounds.py), always the same; AUGSERVER_FUZZ_SEED=N takes
another.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fuzz
import hostile
import pytest
from besieged import HOLES, Besieged, besieged, undisturbed
from processes import alive, wait_until

#: MiB that a server may have more after an attack than before it, the first one not counted.
ALLOWED_MIB = 10.0
SEED = int(os.environ.get("AUGSERVER_FUZZ_SEED", "1"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    with besieged(tmp_path_factory.mktemp("besieged")) as server:
        # Whatever is imported, cached or allocated once is not what is measured.
        fuzz.attack_router(server.ipc, server.path, SEED, 2500)
        server.settle()
        yield server


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_broken_conversations_disturb_nobody(server: Besieged, kind: str) -> None:
    address = server.ipc if kind == "ipc" else server.tcp
    before = server.memory()
    with undisturbed(server) as wrong:
        answers = fuzz.attack_router(address, server.path, SEED + 1, 2000)
    server.settle()
    after = server.memory()
    assert not wrong
    assert answers > 200
    server.check()
    assert after["server"] - before["server"] < ALLOWED_MIB, (before, after)
    wait_until(
        lambda: server.memory()["descriptors"] <= before["descriptors"] + 4,
        "the attackers' descriptors to be given back",
    )


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_what_is_not_zeromq_at_all_disturbs_nobody(server: Besieged, kind: str) -> None:
    before = server.memory()
    with undisturbed(server) as wrong:
        fuzz.attack_raw(server.ipc if kind == "ipc" else server.tcp, SEED, 1000)
    assert not wrong
    server.check()

    def closed() -> bool:
        return server.memory()["descriptors"] <= before["descriptors"] + 4

    wait_until(closed, "the connections to be closed")
    assert server.memory()["server"] - before["server"] < ALLOWED_MIB


def test_a_client_of_a_hostile_server_ends_with_a_typed_error(tmp_path: Path) -> None:
    ended: dict[str, int] = {}
    with hostile.hostile(SEED, tmp_path) as server:
        for _ in range(100):
            how = hostile.meet(server)
            ended[how] = ended.get(how, 0) + 1
    assert ended.get("RemoteProtocolError", 0) > 40, ended
    assert len(ended) > 3, ended


def test_nonsense_on_a_lifeline_is_answered_and_ends_nothing() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "augserver.private", str(theirs.fileno()), "1"],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        try:
            mine.settimeout(60)
            fuzz.hear(mine)  # Serving
            answers = fuzz.attack_lifeline(mine, SEED, 400)
            assert answers > 200
            assert server.poll() is None
        finally:
            mine.close()
            _, said = server.communicate(timeout=60)
    assert server.returncode == 0
    assert not any(hole in said for hole in HOLES), said[-3000:]


def test_a_length_that_cannot_be_ends_a_private_server_and_nothing_else() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "augserver.private", str(theirs.fileno()), "1"],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        mine.settimeout(60)
        fuzz.hear(mine)
        mine.sendall(b"\xff" * 64)
        assert server.wait(60) == 0
    assert not alive(server.pid)
