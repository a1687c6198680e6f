"""What is said of those who were turned away, and what it costs."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from augserver.doorkeeper import AGAIN_SECONDS, MOST_KINDS, Refusals, _peer


def test_a_refusal_is_said_once_and_then_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "augserver.doorkeeper")
    refusals = Refusals()
    for now in (0.0, 1.0, 2.0):
        refusals.tell("10.0.0.1", "no key", now)
        refusals.look(now)
    refusals.tell("10.0.0.2", "no key", 2.0)
    assert caplog.messages == [
        "refused a connection from 10.0.0.1: no key",
        "refused a connection from 10.0.0.2: no key",
    ]
    refusals.look(AGAIN_SECONDS)
    refusals.look(2 * AGAIN_SECONDS)
    assert caplog.messages[2:] == ["refused 2 more connections from 10.0.0.1: no key"]


def test_a_swarm_of_addresses_fills_neither_memory_nor_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "augserver.doorkeeper")
    refusals = Refusals()
    for number in range(10 * MOST_KINDS):
        refusals.tell(f"address {number}", "no key", 0.0)
    assert len(caplog.messages) == MOST_KINDS + 1
    assert "many addresses" in caplog.messages[-1]


def test_whatever_a_number_has_become_nothing_of_it_is_kept_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        with near, far, (tmp_path / "file").open() as file:
            before = os.listdir("/proc/self/fd")
            assert _peer(far.fileno()) == "127.0.0.1"
            assert _peer(file.fileno()) == "an address that is gone"
            assert _peer(server.fileno()) == "an address that is gone"
            assert _peer(9999) == "an address that is gone"
            assert os.listdir("/proc/self/fd") == before
            assert far.fileno() >= 0
            os.fstat(file.fileno())
    mine, theirs = socket.socketpair()
    with mine, theirs:
        assert _peer(mine.fileno()) == "this machine"
