"""Workers that Ray has placed: when is a lost node's work done, when does a new one work, how fast?

    python tests/bench/placed.py [ROUNDS [SECONDS]]

Needs Ray, and the right to make network namespaces: server, head node and a second node have a host
each, on one machine, and everything between them is encrypted. Photographs (1,000 JPEG files to
224x224, batch 32, uint8). One worker of the server's own makes batches, too, but where rates are
compared.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from other_hosts import Site, quiet, site, taken

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from hosts import without_hosts
from processes import wait_until
from ray_nodes import Node, RayNodes, environment, without_ray
from real_data import DOGS_CATS

from augclient import Consumer
from augserver import health

ROUNDS, SECONDS = 5, 5.0
#: Batches that are looked at after a loss: what was held is among them.
AFTER = 40


class Cluster:
    """A head node that runs no worker, a second node that does, and a server."""

    def __init__(self, made: Site, ray: RayNodes) -> None:
        self.made, self.ray = made, ray
        self.head, self.other = made.hosts.add(), made.hosts.add()
        ray.head(self.head)
        self.node = self.join()

    def join(self) -> Node:
        """The second node."""
        return self.ray.add(self.other, "--resources", '{"far": 8}')

    def workers(self, number: int) -> None:
        """Have so many on the second node."""
        done = self.ray.run(
            sys.executable, "-m", "augserver", "ray-workers", "--address", self.ray.address,
            "--server", f"tcp://{self.made.home.address}:5556", "--workers", str(number),
            "--resources", '{"far": 1}', "--key", f"{self.made.folder}/worker.key",
            "--server-key", f"{self.made.folder}/server.pub", on=self.head,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def ready(self) -> dict[int, int]:
        """Batches by worker, of those that are ready."""
        status = health.ask(self.made.address, 10.0)[1]
        return {row.pid: row.batches for row in status.remote if row.state == "ready"}

    def until_more(self, batches: Iterator[Any], than: dict[int, int]) -> None:
        """Take batches until each of these has made more."""
        wait_until(
            lambda: (
                next(batches).step >= 0
                and all(self.ready().get(pid, 0) > made for pid, made in than.items())
            ),
            "each has made more",
        )

    def added(self, old: int, batches: Iterator[Any]) -> list[int]:
        """Take batches until there is another worker beside the old one; who it is."""
        wait_until(lambda: next(batches).step >= 0 and len(self.ready()) == 2, "there are two")
        return [pid for pid in self.ready() if pid != old]


def opened(made: Site) -> Consumer:
    return Consumer(
        data=DOGS_CATS, target_size=(224, 224), batch_size=32, dtype="uint8",
        pictures={"label_mode": "binary"}, seed=1, address=made.address,
        transforms={"rotation_range": 15, "horizontal_flip": True},
    )  # fmt: skip


def losses(
    cluster: Cluster, rounds: int, lose: Callable[[], None], mend: Callable[[], None]
) -> list[float]:
    """The longest wait for a batch after each loss: for what the lost node had in hand."""
    found = []
    with opened(cluster.made) as consumer:
        batches = iter(consumer)
        for _ in range(rounds):
            wait_until(lambda: len(cluster.ready()) == 2, "both are there")
            cluster.until_more(batches, cluster.ready())
            lose()
            waits = []
            for _ in range(AFTER):
                began = time.perf_counter()
                next(batches)
                waits.append(time.perf_counter() - began)
            found.append(max(waits))
            mend()
    return found


def growth(cluster: Cluster, rounds: int) -> list[float]:
    """From the command to the first batch of a worker that was not there before."""
    found = []
    with opened(cluster.made) as consumer:
        for _ in range(rounds):
            cluster.workers(1)
            wait_until(lambda: len(cluster.ready()) == 1, "one is there")
            (old,) = cluster.ready()
            batches = iter(consumer)
            grower = threading.Thread(target=cluster.workers, args=(2,))
            began = time.perf_counter()
            grower.start()
            cluster.until_more(batches, dict.fromkeys(cluster.added(old, batches), 0))
            found.append(time.perf_counter() - began)
            grower.join(120)
    return found


def rates(cluster: Cluster, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """Images a second of one worker, placed by Ray and started directly, in turns."""
    placed, direct = [], []
    with opened(cluster.made) as consumer:
        for _ in range(rounds):
            cluster.workers(1)
            placed.append(_alone(cluster, consumer, seconds))
            cluster.workers(0)
            wait_until(lambda: not cluster.ready(), "it is gone")
            agent = cluster.made.start_worker(cluster.other)
            direct.append(_alone(cluster, consumer, seconds))
            agent.terminate()
            agent.wait(20)
            wait_until(lambda: not cluster.ready(), "it is gone")
    return placed, direct


def _alone(cluster: Cluster, consumer: Consumer, seconds: float) -> float:
    """Of the one remote worker, while the server's own is away."""
    batches: Iterator[Any] = iter(consumer)
    wait_until(lambda: len(cluster.ready()) == 1, "it is there")
    wait_until(lambda: next(batches).step >= 0 and any(cluster.ready().values()), "it works")
    with quiet(cluster.made):
        rate = taken(consumer, seconds)[0]
    wait_until(
        lambda: health.ask(cluster.made.address, 10.0)[1].workers_alive == 1, "a local one again"
    )
    return rate


def _told(what: str, found: list[float], unit: str) -> None:
    ordered = " ".join(f"{each:.2f}" for each in sorted(found))
    print(f"{what}: median {statistics.median(found):.2f} {unit} ({ordered})", flush=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    for missing in (without_hosts(), without_ray()):
        if missing is not None:
            sys.exit(f"placed.py: {missing}")
    with site(secure=True) as made, RayNodes(dict(environment())) as ray:
        cluster = Cluster(made, ray)
        placed, direct = rates(cluster, rounds, seconds)
        _told("one worker placed by Ray", placed, "images/s")
        _told("one worker started directly", direct, "images/s")
        each = [p / d for p, d in zip(placed, direct, strict=True)]
        _told("the one by the other, pair by pair", each, "")
        _told(
            "from more workers asked for to a new one's first batch", growth(cluster, rounds), "s"
        )

        def kill() -> None:
            ray.kill(cluster.node)

        def join_again() -> None:
            cluster.node = cluster.join()

        cluster.workers(2)
        _told(
            "longest wait after kill -9 of a node", losses(cluster, rounds, kill, join_again), "s"
        )
        found = losses(cluster, rounds, cluster.other.pull_the_cable, cluster.other.plug_it_in)
        _told("longest wait after a cable was pulled", found, "s")


if __name__ == "__main__":
    main()
