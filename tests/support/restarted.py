"""A standalone server that goes away and comes back at the same address, again and again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import processes

from augproto.keys import generate
from augproto.segment import sweep


class Restarted:
    """A server at one address; what it is now may be another process than before.

    Args:
        folder: Of its socket and its settings.
        settings: Lines of [server].
        keyed: Whether it listens by TCP, to those who show a key.

    Attributes:
        keys: What a consumer has to say beside the address.
    """

    def __init__(self, folder: Path, settings: str = "", *, keyed: bool = False) -> None:
        self.address = f"ipc://{folder}/s"
        self.keys: dict[str, Path] = {}
        if keyed:
            for name in ("server", "guest"):
                generate(folder, name)
            self.keys = {"key": folder / "guest.key", "server_key": folder / "server.pub"}
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
            settings += (
                '\nkey = "server.key"\nallow_consumers = "guest.pub"\nencrypt_loopback = true'
            )
        self._config = folder / "augserver.toml"
        self._config.write_text(
            f'[server]\nworkers = 1\nroots = ["{folder}"]\n{settings}\n', encoding="utf-8"
        )
        self._running = contextlib.ExitStack()
        self.process: subprocess.Popen[str] | None = None
        self.kills = 0

    def start(self) -> None:
        """Come back."""
        serving = processes.serving(self.address, "--config", str(self._config))
        self.process = self._running.enter_context(serving)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Go away."""
        assert self.process is not None
        os.kill(self.process.pid, number)
        self.process.wait(30)
        self._running.close()
        self.kills += 1

    def close(self) -> None:
        """Go for good; what killed ones have left is swept."""
        self._running.close()
        sweep()


@contextlib.contextmanager
def restarted(folder: Path, settings: str = "", *, keyed: bool = False) -> Iterator[Restarted]:
    """One that runs."""
    server = Restarted(folder, settings, keyed=keyed)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def killed_at_random(
    server: Restarted, kills: int, seed: int, within: float = 0.6
) -> Iterator[None]:
    """So many kills while the block runs, each followed by a start, in a thread; all done at its
    end, unless the block failed.

    Args:
        within: Seconds from a start to the next kill, at most.
    """
    draw = random.Random(seed)
    failed: list[BaseException] = []
    over = threading.Event()

    def disturb() -> None:
        try:
            for _ in range(kills):
                if over.wait(draw.random() * within):
                    return
                server.end()
                over.wait(draw.random() * 0.3)
                server.start()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=disturb, name="disturbs")
    thread.start()
    try:
        yield
        thread.join(60 + 20 * kills)
    finally:
        over.set()
        thread.join(60)
    assert not failed, failed
