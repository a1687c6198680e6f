"""Workers and consumers on hosts of their own: cables are pulled, hosts die, and no byte changes.

The hosts are network namespaces on a switch (tests/support/hosts.py). Everything between them is
encrypted, as it has to be beyond a loopback address. The server's kernels are scipy's, so that an
epoch lasts long enough for something to happen in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hosts import Host, Hosts, without_hosts
from noise import digest_of, write_noise
from one_truth import TRANSFORMS, bytes_of
from processes import descendants, wait_until

from augclient import Consumer
from augclient.request import SpecOptions
from augproto.messages import Status, Working
from augserver import health

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(without_hosts() is not None, reason=str(without_hosts())),
]

OPTIONS: SpecOptions = {"batch_size": 64, "seed": 11, "transforms": TRANSFORMS}
SAMPLES = 12_000
SLOW = {"AUGSERVER_KERNELS": "scipy"}
KEYS = ("server", "worker", "consumer")


@dataclass
class Site:
    """A server on its host, and what joins it."""

    folder: Path
    hosts: Hosts
    home: Host
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where this test's own consumers come in: sockets in files know no hosts."""
        return f"ipc://{self.folder}/ctl.sock"

    def augserver(self, host: Host, *arguments: str) -> subprocess.Popen[bytes]:
        """Run the command on a host."""
        command = [sys.executable, "-m", "augserver", *arguments]
        started = host.start(command, SLOW, self.folder / f"{host.address}.log")
        self.running.append(started)
        return started

    def worker(self, host: Host, workers: int = 1) -> subprocess.Popen[bytes]:
        """Workers of a host that join."""
        return self.augserver(
            host, "worker", "--connect", f"tcp://{self.home.address}:5556",
            "--workers", str(workers), "--key", str(self.folder / "worker.key"),
            "--server-key", str(self.folder / "server.pub"),
        )  # fmt: skip

    def status(self) -> Status:
        return health.ask(self.address, 10.0)[1]

    def of(self, started: subprocess.Popen[bytes]) -> list[Working]:
        """The workers of an agent that the server has in its list."""
        pids = {started.pid, *descendants(started.pid)}
        return [worker for worker in self.status().remote if worker.pid in pids]

    def made(self, started: subprocess.Popen[bytes]) -> int:
        """Batches that the workers of an agent have made, as the server counts."""
        return sum(worker.batches for worker in self.of(started))

    def kill_all(self, started: subprocess.Popen[bytes]) -> None:
        """kill -9 of everything below, and of itself."""
        for pid in (*descendants(started.pid), started.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.wait(10)

    def end(self) -> None:
        for started in self.running:
            if started.poll() is None:
                started.send_signal(signal.SIGTERM)
        for started in self.running:
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                self.kill_all(started)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("data") / "noise.npz", SAMPLES)


@pytest.fixture(scope="module")
def truth(archive: Path) -> str:
    with Consumer(data=archive, x="x", y="y", workers=0, **OPTIONS) as consumer:
        return digest_of(consumer)


@pytest.fixture
def site(archive: Path, tmp_path: Path) -> Iterator[Site]:
    for name in KEYS:
        made = subprocess.run(
            [sys.executable, "-m", "augserver", "keygen", name, "--dir", str(tmp_path)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    with Hosts() as hosts:
        site = Site(tmp_path, hosts, hosts.add())
        (tmp_path / "augserver.toml").write_text(
            f"""
            [server]
            workers = 1
            listen = ["{site.address}", "tcp://{site.home.address}:5555"]
            listen_workers = ["tcp://{site.home.address}:5556"]
            key = "server.key"
            allow_consumers = ["consumer.pub"]
            allow_workers = ["worker.pub"]
            roots = ["{archive.parent}"]
            """
        )
        site.augserver(site.home, "serve", "--config", str(tmp_path / "augserver.toml"))
        try:
            wait_until(lambda: _serves(site), "the server serves")
            yield site
        finally:
            site.end()
            with contextlib.suppress(OSError):
                for log in sorted(tmp_path.glob("*.log")):
                    print(f"--- {log.name}\n{log.read_text()[-3000:]}")


def _serves(site: Site) -> bool:
    try:
        return site.status().workers_alive == 1
    except Exception:
        return False


def test_three_hosts_make_the_same_bytes_as_one_process(
    site: Site, archive: Path, truth: str
) -> None:
    agents = [site.worker(site.hosts.add()) for _ in range(2)]
    wait_until(
        lambda: (
            all(w.state == "ready" for a in agents for w in site.of(a))
            and all(map(site.of, agents))
        ),
        "both hosts' workers are known",
    )
    with Consumer(data=archive, x="x", y="y", address=site.address, **OPTIONS) as consumer:
        assert digest_of(consumer) == truth
        assert all(site.made(agent) > 0 for agent in agents)


def test_hosts_that_die_are_cut_off_come_back_and_join_change_no_byte(
    site: Site, archive: Path, truth: str
) -> None:
    """And a cable of 100 ms that loses one frame in fifty is there all the time."""
    doomed, cut, late = (site.hosts.add() for _ in range(3))
    far = site.hosts.add(delay=0.05, loss=0.02)
    dies, stays, slow = site.worker(doomed, 2), site.worker(cut), site.worker(far)
    wait_until(lambda: all(map(site.of, (dies, stays, slow))), "all three hosts are known")
    started: dict[str, subprocess.Popen[bytes]] = {}
    made: dict[str, int] = {}
    cut_at = [0.0]

    def kill_one_host() -> None:
        site.kill_all(dies)

    def pull_a_cable() -> None:
        cut.pull_the_cable()
        cut_at[0] = time.monotonic()

    def have_a_host_join() -> None:
        started["late"] = site.worker(late)

    def mend_the_cable() -> None:
        # Long enough for its lease to be over: what it holds is another's by then.
        wait_until(
            lambda: time.monotonic() - cut_at[0] > 4 and not _ready(site, stays),
            "the host that is cut off is given up",
        )
        cut.plug_it_in()

    def await_all() -> None:
        wait_until(lambda: _ready(site, stays), "the healed host is known again")
        wait_until(lambda: _ready(site, started["late"]), "the fourth host has joined")
        made["healed"] = site.made(stays)

    acts = (kill_one_host, pull_a_cable, have_a_host_join, mend_the_cable, await_all)
    sha, seen = hashlib.sha256(), []
    with Consumer(data=archive, x="x", y="y", address=site.address, **OPTIONS) as consumer:
        due = {consumer.steps * (2 * i + 1) // 10: act for i, act in enumerate(acts)}
        for batch in consumer.epochs(2):
            sha.update(bytes_of(batch))
            seen.append((batch.epoch, batch.step))
            if batch.epoch == 0 and batch.step in due:
                due.pop(batch.step)()
        assert not due
        assert sha.hexdigest() == truth
        assert seen == [(e, s) for e in range(2) for s in range(consumer.steps)]
        assert site.made(stays) > made["healed"], "the healed host works again"
        assert site.made(started["late"]) > 0
        assert not _ready(site, dies)


def _ready(site: Site, agent: subprocess.Popen[bytes]) -> bool:
    """Whether all workers of an agent may be given work now."""
    workers = site.of(agent)
    return bool(workers) and all(worker.state == "ready" for worker in workers)


CONSUMER = """
import hashlib, sys
import numpy as np
from augclient import Consumer
sha = hashlib.sha256()
with Consumer(data=sys.argv[1], x="x", y="y", address=sys.argv[2], **eval(sys.argv[3])) as consumer:
    for batch in consumer.epochs(2):
        sha.update(batch.x.tobytes() + batch.y.tobytes())
    print(consumer.memory, sha.hexdigest())
"""


def test_a_consumer_on_another_host_gets_the_same_bytes_by_frames(
    site: Site, archive: Path, truth: str
) -> None:
    agent = site.worker(site.hosts.add())
    wait_until(lambda: bool(site.of(agent)), "a worker on a second host")
    third = site.hosts.add()
    log = site.folder / "consumer.log"
    program = third.start(
        [sys.executable, "-c", CONSUMER, str(archive), f"tcp://{site.home.address}:5555",
         repr(dict(OPTIONS))],
        {
            "AUGSERVER_CLIENT_KEY": str(site.folder / "consumer.key"),
            "AUGSERVER_SERVER_KEY": str(site.folder / "server.pub"),
            # What another host has not: the same directory for shared memory.
            "AUGSERVER_SHM_DIR": str(site.folder),
        },
        log,
    )  # fmt: skip
    site.running.append(program)
    assert program.wait(120) == 0, log.read_text()
    assert log.read_text().split()[-2:] == ["frames", truth]
    assert site.made(agent) > 0
