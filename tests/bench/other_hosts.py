"""What do workers on other hosts add, and how near to a raw socket does one of them come?

    python tests/bench/other_hosts.py [ROUNDS [SECONDS]]

The hosts are network namespaces on one machine, so they share its processors: the rates say what
the way costs, and the CPU of an image, over all processes, what a real host would be spared. First
photographs (1,000 JPEG files to 224x224, batch 32, uint8) with 1 local worker, and 1 and 2 hosts
with a worker each beside it; then how many MB/s one host puts into the ring, in the clear and
encrypted, where nothing is computed (and as many bytes of inputs go the other way), beside the same
bytes through a socket into the same place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import everybodys_cpu_seconds

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from hosts import Host, Hosts, without_hosts
from processes import children, descendants, wait_until, workers
from real_data import DOGS_CATS

from augclient import Consumer
from augproto import keys
from augserver import health

ROUNDS, SECONDS = 3, 4.0
#: Samples of the plain stream, of 16 KiB each; a batch of 128 is 2 MiB.
SAMPLES, SAMPLE_BYTES, BATCH = 4096, 16 << 10, 128


class Site:
    """A server with one local worker, and agents on other hosts."""

    def __init__(
        self, folder: Path, hosts: Hosts, *, secure: bool, consumers: bool = False
    ) -> None:
        self.folder, self.hosts, self._secure = folder, hosts, secure
        self.home = hosts.add()
        self.address = f"ipc://{folder}/ctl.sock"
        self.running: list[subprocess.Popen[bytes]] = []
        listen = [self.address, *([f"tcp://{self.home.address}:5555"] if consumers else ())]
        settings = f"""
            [server]
            workers = 1
            worker_deadline = 3600.0
            listen = [{", ".join(f'"{each}"' for each in listen)}]
            listen_workers = ["tcp://{self.home.address}:5556"]
            roots = ["/"]
            """
        if secure:
            for name in ("server", "worker", "trainer"):
                keys.generate(folder, name)
            settings += 'key = "server.key"\nallow_workers = ["worker.pub"]\n'
            settings += 'allow_consumers = ["trainer.pub"]\n'
        else:
            settings += "insecure = true\n"
        (folder / "augserver.toml").write_text(settings)
        self._start(self.home, "serve", "--config", str(folder / "augserver.toml"))
        wait_until(self._serves, "the server to serve")

    def _serves(self) -> bool:
        with contextlib.suppress(Exception):
            return health.ask(self.address, 5.0)[1].workers_alive == 1
        return False

    def _start(self, host: Host, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "augserver", *arguments]
        started = host.start(command, {}, self.folder / "log")
        self.running.append(started)
        return started

    def join(self) -> None:
        """Another host with a worker."""
        before = len(self.remote())
        self.start_worker(self.hosts.add())
        wait_until(lambda: len(self.remote()) > before, "a host to join")

    def start_worker(self, host: Host) -> subprocess.Popen[bytes]:
        """One worker on that host."""
        secure = ("--key", f"{self.folder}/worker.key", "--server-key", f"{self.folder}/server.pub")
        return self._start(
            host, "worker", "--connect", f"tcp://{self.home.address}:5556",
            "--workers", "1", *(secure if self._secure else ()),
        )  # fmt: skip

    def remote(self) -> list[int]:
        """Batches that each remote worker has made."""
        return [worker.batches for worker in health.ask(self.address, 10.0)[1].remote]

    def close(self) -> None:
        for started in self.running[::-1]:
            if started.poll() is None:
                started.send_signal(signal.SIGTERM)
        for started in self.running[::-1]:
            started.wait(30)


@contextlib.contextmanager
def site(*, secure: bool, consumers: bool = False) -> Iterator[Site]:
    """Such a site until the end of the block."""
    with tempfile.TemporaryDirectory() as folder, Hosts() as hosts:
        made = Site(Path(folder), hosts, secure=secure, consumers=consumers)
        try:
            yield made
        finally:
            made.close()


def taken(consumer: Consumer, seconds: float) -> tuple[float, float]:
    """Images a second, and microseconds of CPU an image."""
    batches = iter(consumer)
    for _ in range(2 * consumer.slots):
        next(batches)
    images, cpu, began = 0, everybodys_cpu_seconds(), time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        images += len(next(batches).x)
    return images / took, (everybodys_cpu_seconds() - cpu) / images * 1e6


def photographs(rounds: int, seconds: float) -> None:
    """1 worker, and 1 and 2 hosts beside it."""
    with site(secure=True) as made:
        rows = []
        for hosts in range(3):
            if hosts:
                made.join()
            with Consumer(
                data=DOGS_CATS, target_size=(224, 224), batch_size=32, dtype="uint8",
                pictures={"label_mode": "binary"}, seed=1, address=made.address,
                transforms={"rotation_range": 15, "horizontal_flip": True},
            ) as consumer:  # fmt: skip
                found = [taken(consumer, seconds) for _ in range(rounds)]
            rows.append([statistics.median(column) for column in zip(*found, strict=True)])
    for hosts, (rate, cpu) in enumerate(rows):
        print(
            f"photographs, 1 local worker and {hosts} hosts: {rate:7.0f} images/s "
            f"({rate / rows[0][0]:.2f}), {cpu:6.0f} us of CPU an image"
        )


def into_the_ring(rounds: int, seconds: float, *, secure: bool) -> None:
    """MB/s of one host, against a socket."""
    with site(secure=secure) as made:
        path = made.folder / "plain.npz"
        np.savez(path, x=np.ones((SAMPLES, SAMPLE_BYTES), np.uint8))
        made.join()
        sender = made.hosts.add()
        with Consumer(data=path, x="x", batch_size=BATCH, seed=1, address=made.address) as consumer:
            batches = iter(consumer)
            wait_until(lambda: next(batches).step >= 0 and made.remote()[0] > 0, "the host to work")
            with quiet(made):
                ours, theirs = [], []
                for _ in range(rounds):
                    ours.append(_remote_rate(batches, seconds))
                    theirs.append(_socket_rate(made, sender, seconds))
    mine, socket_rate = statistics.median(ours), statistics.median(theirs)
    print(
        f"into the ring from one host, {'CURVE' if secure else 'clear'}: {mine:6.0f} MB/s; "
        f"a socket, clear: {socket_rate:6.0f}; {mine / socket_rate:.2f}"
    )


@contextlib.contextmanager
def quiet(made: Site) -> Iterator[None]:
    """Other hosts alone make batches.

    The local worker is dead, and whoever would fork another is stopped, which is noticed after a
    minute.
    """
    (local,) = workers(made.running[0].pid)
    below = descendants(made.running[0].pid)
    (forkserver,) = (pid for pid in below if local in children(pid))
    os.kill(forkserver, signal.SIGSTOP)
    os.kill(local, signal.SIGKILL)
    try:
        yield
    finally:
        os.kill(forkserver, signal.SIGCONT)


def _remote_rate(batches: Iterator[object], seconds: float) -> float:
    for _ in range(8):
        next(batches)
    began, count = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        next(batches)
        count += 1
    return count * BATCH * SAMPLE_BYTES / took / 1e6


_SEND = """
import socket, sys
data = bytes(int(sys.argv[3]))
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as out:
    try:
        while True:
            out.sendall(data)
    except OSError:
        pass
"""

_TAKE = """
import mmap, socket, sys, time
size, seconds = int(sys.argv[2]), float(sys.argv[3])
ring = memoryview(mmap.mmap(-1, 16 * size))
with socket.create_server((sys.argv[1], 5999)) as server:
    print("listens", flush=True)
    near, _ = server.accept()
    with near:
        got, slot, at, began = 0, 0, 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            n = near.recv_into(ring[slot * size + at : (slot + 1) * size])
            got, at = got + n, at + n
            if at == size:
                slot, at = (slot + 1) % 16, 0
    print(got / (time.perf_counter() - began) / 1e6)
"""


def _socket_rate(made: Site, sender: Host, seconds: float) -> float:
    size = str(BATCH * SAMPLE_BYTES)
    taker = subprocess.Popen(
        made.home.command(sys.executable, "-c", _TAKE, made.home.address, size, str(seconds)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert taker.stdout is not None
    assert taker.stdout.readline() == "listens\n"
    log = made.folder / "sender.log"
    out = sender.start([sys.executable, "-c", _SEND, made.home.address, "5999", size], {}, log)
    rate = float(taker.communicate(timeout=60)[0])
    out.wait(30)
    return rate


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    if without_hosts() is not None:
        sys.exit(f"other_hosts.py: {without_hosts()}")
    photographs(rounds, seconds)
    for secure in (False, True):
        into_the_ring(rounds, seconds, secure=secure)


if __name__ == "__main__":
    main()
