"""Workers that Ray places: nodes die and come back, fleets grow and shrink, and no byte changes.

Real nodes, by `ray start` with a token; where there may be hosts (`hosts`), each node has its own,
and everything between it and the server is encrypted. The kernels are scipy's, so that an epoch
lasts long enough for something to happen in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import Host, Hosts, without_hosts
from noise import digest_of, write_noise
from one_truth import TRANSFORMS, bytes_of
from processes import wait_until
from ray_nodes import CPUS, Node, RayNodes, environment, without_ray

from augclient import Consumer
from augclient.request import SpecOptions
from augproto.messages import Status
from augserver import health

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(without_ray() is not None, reason=str(without_ray())),
]

OPTIONS: SpecOptions = {"batch_size": 64, "seed": 11, "transforms": TRANSFORMS}
SAMPLES = 12_000
SLOW = {"AUGSERVER_KERNELS": "scipy"}
PROGRAM = (sys.executable, "-m", "augserver")


@dataclass
class Site:
    """A server, a Ray cluster, and hosts for both if there may be some."""

    folder: Path
    hosts: Hosts | None
    home: Host | None
    ray: RayNodes
    head: Node | None = None

    @property
    def address(self) -> str:
        """Where this test's own consumers come in."""
        return f"ipc://{self.folder}/ctl.sock"

    @property
    def workers_address(self) -> str:
        """Where the nodes' workers dial in."""
        return f"tcp://{self.home.address if self.home is not None else '127.0.0.1'}:{PORT}"

    def host(self) -> Host | None:
        """Another host, if there may be some."""
        return self.hosts.add() if self.hosts is not None else None

    def command(self, *more: str) -> list[str]:
        """`augserver ray-workers` for this server."""
        keys = ["--key", f"{self.folder}/worker.key", "--server-key", f"{self.folder}/server.pub"]
        return [
            *PROGRAM, "ray-workers", "--address", self.ray.address,
            "--server", self.workers_address, *(keys if self.home is not None else ()), *more,
        ]  # fmt: skip

    def ray_workers(self, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run it, on the head node."""
        head = self.head.host if self.head is not None else None
        return self.ray.run(*self.command(*more), on=head, env=env)

    def status(self) -> Status:
        return health.ask(self.address, 10.0)[1]

    def made(self) -> dict[int, int]:
        """Batches by the pid of the worker that is ready and has made them."""
        return {w.pid: w.batches for w in self.status().remote if w.state == "ready"}


PORT = 5556


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("data") / "noise.npz", SAMPLES)


@pytest.fixture(scope="module")
def truth(archive: Path) -> str:
    with Consumer(data=archive, x="x", y="y", workers=0, **OPTIONS) as consumer:
        return digest_of(consumer)


def _serving(site: Site, archive: Path) -> subprocess.Popen[bytes]:
    config = site.folder / "augserver.toml"
    keys = """
        key = "server.key"
        allow_workers = ["worker.pub"]
    """
    config.write_text(
        f"""
        [server]
        workers = 1
        listen = ["{site.address}"]
        listen_workers = ["{site.workers_address}"]
        roots = ["{archive.parent}"]
        {keys if site.home is not None else ""}
        """
    )
    command = [*PROGRAM, "serve", "--config", str(config)]
    if site.home is not None:
        return site.home.start(command, SLOW, site.folder / "server.log")
    with (site.folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            command, env={**os.environ, **SLOW}, stdout=log, stderr=log, start_new_session=True
        )


@contextlib.contextmanager
def _site(folder: Path, archive: Path) -> Iterator[Site]:
    """A server on one host, a head node on a second."""
    with contextlib.ExitStack() as started:
        hosts = None if without_hosts() is not None else started.enter_context(Hosts())
        home = hosts.add() if hosts is not None else None
        ray = started.enter_context(RayNodes(dict(environment(**SLOW))))
        site = Site(folder, hosts, home, ray)
        for name in ("server", "worker"):
            made = subprocess.run(
                [*PROGRAM, "keygen", name, "--dir", str(folder)],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert made.returncode == 0, made.stderr
        server = _serving(site, archive)
        try:
            site.head = ray.head(site.host())
            wait_until(lambda: _serves(site), "the server serves")
            yield site
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            finally:
                print(f"--- server\n{(folder / 'server.log').read_text()[-6000:]}")


def _serves(site: Site) -> bool:
    try:
        return site.status().workers_alive == 1
    except Exception:
        return False


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def test_a_fleet_on_two_nodes_that_grows_loses_a_node_gets_it_back_and_shrinks(
    tmp_path: Path, archive: Path, truth: str
) -> None:
    with _site(tmp_path, archive) as site:
        other = site.host()
        node = [site.ray.add(other)]
        done = site.ray_workers("--workers", "2")
        assert done.returncode == 0, _said(done)
        assert re.search(r"augserver: 2 of 2 workers enlisted\n$", done.stdout), done.stdout
        if other is not None:
            assert site.head is not None
            assert site.head.host is not None
            for host in (other, site.head.host):  # spread over both
                assert f" on {host.address} (" in done.stdout
        wait_until(lambda: len(site.made()) == 2, "both are known to the server")
        origins = {w.origin for w in site.status().remote}
        assert origins == {"Ray's worker 0 of augserver", "Ray's worker 1 of augserver"}

        growing: list[subprocess.Popen[str]] = []
        two = dict(site.made())
        after_loss: dict[int, int] = {}

        def grow() -> None:
            head = site.head.host if site.head is not None else None
            growing.append(site.ray.begin(*site.command("--workers", "6"), on=head))

        def lose_a_node() -> None:
            wait_until(lambda: len(site.made()) == 6, "there are six")
            said, _ = growing[0].communicate(timeout=60)
            assert growing[0].returncode == 0, said
            site.ray.kill(node[0])

        def have_it_back() -> None:
            wait_until(lambda: 0 < len(site.made()) < 6, "the server has noticed")
            after_loss.update(site.made())
            node.append(site.ray.add(other))
            wait_until(lambda: len(site.made()) == 6, "there are six again")

        def shrink() -> None:
            fresh = set(site.made()) - set(after_loss)
            wait_until(
                lambda: any(site.made().get(pid, 0) for pid in fresh), "those that are back work"
            )
            shrunk = site.ray_workers("--workers", "2")
            assert shrunk.returncode == 0, _said(shrunk)
            wait_until(lambda: len(site.made()) == 2, "there are two")

        acts: list[Callable[[], None]] = [grow, lose_a_node, have_it_back, shrink]
        sha, seen = hashlib.sha256(), []
        with Consumer(data=archive, x="x", y="y", address=site.address, **OPTIONS) as consumer:
            # The last two go on in the second epoch: those that are back need something to do.
            due = dict(zip([(0, 10), (0, 60), (0, 120), (1, 60)], acts, strict=True))
            for batch in consumer.epochs(2):
                sha.update(bytes_of(batch))
                seen.append((batch.epoch, batch.step))
                if (batch.epoch, batch.step) in due:
                    due.pop((batch.epoch, batch.step))()
            assert not due
            assert sha.hexdigest() == truth
            assert seen == [(e, s) for e in range(2) for s in range(consumer.steps)]
        assert len(two) == 2

        ended = site.ray_workers("--workers", "0")
        assert ended.returncode == 0, _said(ended)
        wait_until(lambda: not site.made(), "a fleet of none is gone")


def test_tokens_versions_rooms_and_keys_that_do_not_fit_are_refused_with_the_reason(
    tmp_path: Path, archive: Path
) -> None:
    with _site(tmp_path, archive) as site:
        none = site.ray_workers("--workers", "1", RAY_AUTH_TOKEN="")
        assert none.returncode == 2
        assert "RAY_AUTH_TOKEN: got none" in none.stderr
        wrong = site.ray_workers("--workers", "1", RAY_AUTH_TOKEN="f" * 64)
        assert wrong.returncode == 2
        assert f"{site.ray.address} refuses: the token is not the cluster's" in wrong.stderr
        open_one = site.ray_workers("--workers", "1", "--no-token", RAY_AUTH_MODE="")
        assert open_one.returncode == 2
        assert "refuses: the token is not the cluster's" in open_one.stderr
        unsaid = site.ray_workers("--workers", "1", RAY_AUTH_MODE="")
        assert unsaid.returncode == 2
        assert "RAY_AUTH_MODE: got ''; wanted token" in unsaid.stderr

        many = site.ray_workers("--workers", str(CPUS + 1), "--wait", "4")
        assert many.returncode == 1
        assert f"worker {CPUS}: waiting; " in many.stdout, _said(many)
        nowhere = ("--key", "/nowhere.key", "--server-key", "/nowhere.pub")
        keyless = site.ray_workers("--workers", "1", *nowhere)
        assert keyless.returncode == 1
        assert re.search(
            r"worker 0 on .*: failed; ConfigError: key: cannot read /nowhere\.key", keyless.stdout
        ), _said(keyless)
        assert not site.made(), "those that were told otherwise are ended"
        other = site.ray.run(
            sys.executable, "-c", OTHER_VERSION, site.ray.address, site.workers_address,
            on=site.head.host if site.head is not None else None,
        )  # fmt: skip
        assert other.returncode == 0, _said(other)
        assert re.search(
            r"failed; VersionMismatch: the node \S+ has augserver \S+, whoever asked for workers "
            r"has 99\.0",
            other.stdout,
        ), _said(other)


#: Asks as an augserver would that the nodes do not have.
OTHER_VERSION = """
import sys
from augserver.placement.fleet import Fleet
from augserver.placement.ray_workers import place
fleet = Fleet(workers=1, server=sys.argv[2], version="99.0")
for placed in place(fleet, sys.argv[1], wait=20):
    print(placed)
place(Fleet(workers=0), sys.argv[1])
"""


def test_another_python_than_the_cluster_s_is_refused_with_both(
    tmp_path: Path, archive: Path
) -> None:
    """Ray compares them; here its client is told that it is another."""
    with RayNodes(dict(environment())) as ray:
        ray.head()
        done = ray.run(sys.executable, "-c", OTHER_PYTHON, ray.address)
        assert done.returncode == 1
        assert "VersionMismatch" in done.stderr
        for words in (
            "is another",
            f"Python: {sys.version_info[0]}.{sys.version_info[1]}.77",
            f"Python: {sys.version.split()[0]}",
        ):
            assert words in done.stderr, done.stderr


ANOTHER = """
import sys
real = sys.version_info
class Another(tuple):
    major, minor, micro = real[0], real[1], 77
sys.version_info = Another((*real[:2], 77, *real[3:]))
"""
OTHER_PYTHON = f"""
ANOTHER = {ANOTHER!r}
import os, sys, tempfile
from augserver.placement.fleet import Fleet
from augserver.placement.ray_workers import place
with tempfile.TemporaryDirectory() as folder:
    with open(folder + "/sitecustomize.py", "w") as file:
        file.write(ANOTHER)
    place(Fleet(), sys.argv[1], environ=dict(os.environ, PYTHONPATH=folder))
"""
