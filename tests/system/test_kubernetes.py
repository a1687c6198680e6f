"""What the manifests run, run as they say: users, files, modes, mounts, environment, probes.

Each pod has a host of its own (`hosts`), and its containers are processes with a root file system
of theirs (`pods`). What a cluster does beyond that, placing and restarting, is not rehearsed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import Host, Hosts
from manifests import KUBERNETES, generators, pod_specs
from noise import digest_of, write_noise
from pods import Image, Pod, without_pods
from processes import alive, descendants, wait_until

from augclient import Consumer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(without_pods() is not None, reason=str(without_pods())),
]

SAMPLES = 4000
STREAMS = """
[streams.noise]
data = "/srv/augserver/data/noise.npz"
x = "x"
y = "y"
batch_size = 64
seed = 11
transforms = { rotation_range = 40, width_shift_range = 0.2, horizontal_flip = true, rescale = 0.5 }
"""
TRAINER = """
import hashlib, sys
from augclient import Consumer
sha = hashlib.sha256()
with Consumer(stream="noise") as consumer:
    for batch in consumer.epochs(2):
        sha.update(batch.x.tobytes() + batch.y.tobytes())
    print(consumer.memory, sha.hexdigest())
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume `data`."""
    folder = tmp_path_factory.mktemp("data")
    write_noise(folder / "noise.npz", SAMPLES)
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def truth(data: Path) -> str:
    told = tomllib.loads(STREAMS)["streams"]["noise"] | {"data": data / "noise.npz"}
    with Consumer(workers=0, **told) as consumer:
        return digest_of(consumer)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image has compiled when it was built."""
    folder = tmp_path_factory.mktemp("image") / "kernels"
    _augserver("warmup", NUMBA_CACHE_DIR=str(folder))
    return folder


def _augserver(*arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "augserver", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@dataclass
class Cluster:
    """Nodes, and what every pod of the tests has in common."""

    folder: Path
    data: Path
    hosts: Hosts
    images: Mapping[str, Image]
    secrets: Mapping[str, Mapping[str, bytes]]

    def pod(self, applied: str, name: str, host: Host, server: Host) -> Pod:
        """The pods of that name; the service `augserver` leads to the server's host."""
        configs = {
            generator["name"]: {
                file: (folder / file).read_bytes() + STREAMS.encode() for file in generator["files"]
            }
            for folder, generator in generators(KUBERNETES / applied, "configMap")
        }
        folder = self.folder / f"{applied}-{name}"
        folder.mkdir()
        return Pod(
            pod_specs(KUBERNETES / applied)[name],
            host,
            folder,
            images=self.images,
            names={"augserver": server.address},
            secrets=self.secrets,
            configs=configs,
            volumes={"data": self.data} if name != "augserver-worker" else {},
        )


@pytest.fixture
def cluster(tmp_path: Path, data: Path, kernels: Path) -> Iterator[Cluster]:
    keys = tmp_path / "keys"
    for name in ("server", "worker", "trainer"):
        _augserver("keygen", name, "--dir", str(keys))
    secrets = {
        generator["name"]: {file: (keys / file).read_bytes() for file in generator["files"]}
        for _, generator in generators(KUBERNETES / "service", "secret")
    }
    trainer = tmp_path / "train.py"
    trainer.write_text(TRAINER)
    trainer.chmod(0o644)
    images = {
        "augserver": Image.of_stage("server", {"/run/augserver/kernels": kernels}),
        "augserver-trainer": Image.of_stage("trainer", {"/srv/augserver/train.py": trainer}),
    }
    with Hosts() as hosts:
        yield Cluster(tmp_path, data, hosts, images, secrets)


def _figures(host: Host, server: Host) -> dict[str, float]:
    """What Prometheus would fetch of a server, from another host."""
    program = (
        "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=9).read().decode())"
    )
    done = subprocess.run(
        host.command(sys.executable, "-c", program, f"http://{server.address}:9464/metrics"),
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return {
        name: float(value)
        for name, value in re.findall(r"^(augserver\S+) (\S+)$", done.stdout, re.MULTILINE)
    }


def test_a_server_and_workers_run_as_their_manifests_say_serve_an_epoch_by_frames(
    cluster: Cluster, truth: str
) -> None:
    one, two, three = (cluster.hosts.add() for _ in range(3))
    with (
        cluster.pod("service", "augserver", one, one) as server,
        cluster.pod("service", "augserver-worker", two, one) as worker,
    ):
        server.run("kernels")
        server.start("augserver")
        worker.run("kernels")
        worker.start("worker")
        server.wait_until_started("augserver")
        worker.wait_until_started("worker")
        for kind in ("readiness", "liveness"):
            assert server.probe("augserver", kind).returncode == 0
        ready = worker.probe("worker", "readiness")
        assert "2 of 2 workers enlisted at tcp://augserver:5556" in ready.stdout, ready

        keys = cluster.folder / "keys"
        log = cluster.folder / "trainer.log"
        consumer = three.start(
            [sys.executable, "-c", TRAINER],
            {
                "AUGSERVER_ADDRESS": f"tcp://{one.address}:5555",
                "AUGSERVER_CLIENT_KEY": str(keys / "trainer.key"),
                "AUGSERVER_SERVER_KEY": str(keys / "server.pub"),
                "AUGSERVER_SHM_DIR": str(cluster.folder),  # another host has another one
            },
            log,
        )
        assert consumer.wait(120) == 0, f"{log.read_text()}\n{server.log('augserver').read_text()}"
        assert log.read_text().split()[-2:] == ["frames", truth]

        figures = _figures(three, one)
        assert figures['augserver_workers{where="remote"}'] == 2
        assert figures['augserver_worker_busy_seconds_total{where="remote"}'] > 0
        assert figures["augserver_batches_total"] >= 2 * SAMPLES // 64

        below = descendants(worker.pid("worker"))
        assert len(below) == 3, "a forkserver and two workers"
        assert worker.end("worker") == 0
        assert not any(map(alive, below))
        wait_until(
            lambda: _figures(three, one)['augserver_workers{where="remote"}'] == 0,
            "workers that were ended are gone at once",
        )
        below = descendants(server.pid("augserver"))
        assert len(below) == 3
        assert server.end("augserver") == 0
        assert not any(map(alive, below))


def test_a_sidecar_run_as_its_manifest_says_shares_its_memory_with_the_trainer(
    cluster: Cluster, truth: str
) -> None:
    one, two = (cluster.hosts.add() for _ in range(2))
    with (
        cluster.pod("sidecar", "augserver-training", one, one) as training,
        cluster.pod("sidecar", "augserver-worker", two, one) as worker,
    ):
        training.run("kernels")
        training.start("augserver")
        worker.run("kernels")
        worker.start("worker")
        training.wait_until_started("augserver")
        worker.wait_until_started("worker")
        training.run("trainer", 120)
        assert training.log("trainer").read_text().split()[-2:] == ["shared", truth]
        assert _figures(two, one)['augserver_worker_busy_seconds_total{where="remote"}'] > 0
        assert training.end("augserver") == 0


def test_a_worker_without_its_key_is_not_ready_and_says_why(cluster: Cluster) -> None:
    one, two = (cluster.hosts.add() for _ in range(2))
    stranger = dict(cluster.secrets)
    server_pub = cluster.secrets["augserver-worker"]["server.pub"]
    strange = cluster.secrets["augserver-trainer"]["trainer.key"]
    stranger["augserver-worker"] = {"worker.key": strange, "server.pub": server_pub}
    with cluster.pod("service", "augserver", one, one) as server:
        server.run("kernels")
        server.start("augserver")
        server.wait_until_started("augserver")
        cluster.secrets = stranger
        with cluster.pod("service", "augserver-worker", two, one) as worker:
            worker.run("kernels")
            worker.start("worker")
            wait_until(
                lambda: "5556 refuses: " in worker.log("worker").read_text(), "it is told so"
            )
            asked = worker.probe("worker", "startup")
            assert asked.returncode == 1
            assert "is enlisted with the server at tcp://augserver:5556" in asked.stderr
