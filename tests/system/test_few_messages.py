"""The control plane says little, and says nothing when nothing happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import serving, wait_until, workers

from augclient import Consumer
from augclient.link import Link
from augclient.talk import Talk
from augproto.messages import Announce, Message, Want
from augserver.server import TICK

#: Seconds for which nothing is done. A loop that spins turns a hundred thousand times meanwhile.
IDLE = 2.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """Its pid, and where it listens."""
    np.savez(tmp_path / "data.npz", x=np.zeros((6400, 8, 8, 3), np.uint8))
    config = tmp_path / "augserver.toml"
    config.write_text(
        "[server]\nworkers = 2\n"
        f'[streams.small]\ndata = "{tmp_path}/data.npz"\nx = "x"\nbatch_size = 16\n'
    )
    address = f"ipc://{tmp_path}/s"
    with serving(address, "--config", str(config)) as process:
        yield process.pid, address


def waits(pid: int) -> int:
    """How often a process has waited for something since its start."""
    fields = dict(
        line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(fields["voluntary_ctxt_switches"])


def test_a_server_with_nothing_to_do_hardly_looks_up(server: tuple[int, str]) -> None:
    pid, address = server
    with Consumer(stream="small", address=address) as consumer:
        consumer.get(0, 0)
        link = consumer._source
        assert isinstance(link, Link)
        assert link._demand is not None
        ready = link._demand.ready
        # The first slot is the consumer's until all of its batches were handed out.
        wait_until(lambda: len(ready) >= consumer.slots - 1, "a ring that is full")
        everybody = [pid, *workers(pid)]
        before = [waits(each) for each in everybody]
        began = time.monotonic()
        while time.monotonic() - began < IDLE:
            time.sleep(TICK)  # this is the idleness that is measured
        turns = [waits(each) - b for each, b in zip(everybody, before, strict=True)]
    # A tick, a heartbeat each second and its answer; ZeroMQ's own thread waits elsewhere.
    assert len(turns) == 3
    assert turns[0] <= 4 * (IDLE / TICK), turns
    assert max(turns[1:]) <= 4, turns


def test_small_batches_come_many_to_a_message(
    server: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Message] = []
    said: list[Message] = []
    take, say = Talk._take, Talk._say

    def hearing(self: Talk, dealer: object, message: Message) -> None:
        heard.append(message)
        take(self, dealer, message)

    def saying(self: Talk, dealer: object, message: Message) -> None:
        said.append(message)
        say(self, dealer, message)

    monkeypatch.setattr(Talk, "_take", hearing)
    monkeypatch.setattr(Talk, "_say", saying)
    with Consumer(stream="small", address=server[1]) as consumer:
        for epoch in range(4):
            for batch in consumer.epoch(epoch):
                assert len(np.asarray(batch.x)) == 16
    announced = [message for message in heard if isinstance(message, Announce)]
    wants = [message for message in said if isinstance(message, Want)]
    batches = 4 * consumer.steps
    assert len(announced) <= batches / 4, f"{batches} batches in {len(announced)} messages"
    assert len(wants) <= batches / 4, f"{len(wants)} messages for {batches} batches"
