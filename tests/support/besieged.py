"""A server under fire, and what must hold meanwhile and afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import memory
import numpy as np
from processes import descendants, wait_until

from augclient import Consumer
from augproto.errors import ConfigError
from augserver import health

#: Words of a server's log that nothing a peer says may bring about.
HOLES = ("Traceback", "met an error", "Assertion", "core dumped")
SAMPLES = 64

CONFIG = """
[server]
listen = ["{ipc}", "{tcp}"]
workers = 2
roots = ["{folder}"]
lease = 3.0
max_consumers = 24
max_ring_bytes = 8388608

[streams.numbers]
data = "{path}"
x = "x"
y = "y"
batch_size = 4
seed = 5
transforms = {{ rotation_range = 30, horizontal_flip = true }}
"""


class Besieged:
    """A standalone server with two workers, on an ipc and a tcp address.

    Attributes:
        ipc, tcp: Where it listens.
        path: A file that consumers may name.
    """

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "numbers.npz")
        rng = np.random.default_rng(1)
        pictures = rng.integers(0, 256, (SAMPLES, 8, 8, 1), np.uint8)
        np.savez(self.path, x=pictures, y=np.arange(SAMPLES))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.ipc, self.tcp = f"ipc://{folder}/a.sock", f"tcp://127.0.0.1:{port}"
        config = folder / "augserver.toml"
        config.write_text(CONFIG.format(ipc=self.ipc, tcp=self.tcp, folder=folder, path=self.path))
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "augserver", "serve", "--config", str(config)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.process.pid
        with self.consumer() as consumer:
            self.right = digest(consumer)

    def consumer(self) -> Consumer:
        """Somebody who behaves."""
        return Consumer(stream="numbers", address=self.ipc)

    def log(self) -> str:
        """What the server has said."""
        return self._log.read_text(errors="replace")

    def settle(self) -> None:
        """Wait until all rings of those who attacked are gone: they are silent or dead."""

        def alone() -> bool:
            try:
                return self._consumers() == 0
            except ConfigError:  # too many conversations: they are forgotten in a moment
                return False

        wait_until(alone, "the attackers' rings to be retired")

    def _consumers(self) -> int:
        return health.ask(self.tcp, 30.0)[1].consumers

    def memory(self) -> dict[str, float]:
        """MiB that the server and its workers have for themselves, and descriptors."""
        workers = descendants(self.pid)
        return {
            "server": memory.private(self.pid) / 2**20,
            "workers": sum(memory.private(pid) for pid in workers) / 2**20,
            "descriptors": memory.descriptors(self.pid),
        }

    def check(self) -> None:
        """It lives, has said nothing of a hole, and gives the right bytes."""
        assert self.process.poll() is None, self.log()[-4000:]
        for hole in HOLES:
            at = self.log().find(hole)
            assert at == -1, self.log()[max(0, at - 1000) : at + 3000]
        with self.consumer() as consumer:
            assert digest(consumer) == self.right

    def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)


@contextlib.contextmanager
def besieged(folder: Path) -> Iterator[Besieged]:
    """Such a server until the end of the block."""
    server = Besieged(folder)
    try:
        yield server
    finally:
        server.close()


def digest(consumer: Consumer) -> str:
    """Of an epoch."""
    found = hashlib.sha256()
    for batch in consumer.epoch(0):
        found.update(np.asarray(batch.x).tobytes())
        found.update(np.asarray(batch.y).tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def undisturbed(server: Besieged) -> Iterator[list[str]]:
    """Somebody who goes through epoch after epoch meanwhile; the list gets what was wrong."""
    over = threading.Event()
    wrong: list[str] = []
    epochs = 0

    def go_on() -> None:
        nonlocal epochs
        try:
            with server.consumer() as consumer:
                while not epochs or not over.is_set():  # some attacks are short
                    if digest(consumer) != server.right:
                        wrong.append(f"the digest of epoch {epochs}")
                    epochs += 1
        except Exception as error:
            wrong.append(repr(error))

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield wrong
    finally:
        over.set()
        thread.join(120)
        assert epochs > 0 or wrong
