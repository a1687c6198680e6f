"""A Ray cluster of real nodes, by the commands that people use; each on a host of its own or here.

Nodes are killed as a power cut would: `ray start` and all below it, with SIGKILL.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hosts import Host
from processes import descendants, wait_until

RAY = Path(sys.executable).parent / "ray"
CPUS = 4


def without_ray() -> str | None:
    """Why there can be no cluster here; None if there can."""
    if importlib.util.find_spec("ray") is None or not RAY.exists():
        return "Ray is not installed here (make test RAY=1)"
    return None


@dataclass
class Node:
    """One node: what runs it, and where."""

    started: subprocess.Popen[bytes]
    host: Host | None
    log: Path


@dataclass
class RayNodes:
    """A cluster with a token; a context manager that leaves nothing behind.

    Attributes:
        env: What `ray start` and whoever talks to the cluster have in their environment.
    """

    env: dict[str, str] = field(default_factory=dict)
    address: str = ""
    _nodes: list[Node] = field(default_factory=list)

    def __enter__(self) -> RayNodes:
        self._folder = Path(tempfile.mkdtemp(prefix="augray-"))  # its sockets want short paths
        self.env = {
            **self.env,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return self

    def __exit__(self, *error: object) -> None:
        for node in reversed(self._nodes):
            self.kill(node)
        if any(error):
            for log in sorted(self._folder.rglob("*.err")):
                with contextlib.suppress(OSError):
                    print(f"--- {log.name}\n{log.read_text()[-2000:]}")
        shutil.rmtree(self._folder, ignore_errors=True)

    def head(self, host: Host | None = None) -> Node:
        """Start the head node; `address` is where it listens."""
        ip = host.address if host is not None else "127.0.0.1"
        port = 6379 if host is not None else _free_port()
        self.address = f"{ip}:{port}"
        return self._start(
            host,
            "--head", f"--port={port}", f"--node-ip-address={ip}", "--include-dashboard=false",
            f"--temp-dir={self._folder}",
        )  # fmt: skip

    def add(self, host: Host | None = None, *more: str) -> Node:
        """Have another node join; `ray start` is told more, if there is more."""
        ip = host.address if host is not None else "127.0.0.1"
        return self._start(host, f"--address={self.address}", f"--node-ip-address={ip}", *more)

    def run(
        self, *command: str, on: Host | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with the cluster's token, on the head's host."""
        return subprocess.run(
            self._on(on, command),
            env={**os.environ, **self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    def begin(self, *command: str, on: Host | None = None) -> subprocess.Popen[str]:
        """Begin to run a command, likewise."""
        return subprocess.Popen(
            self._on(on, command),
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self, node: Node) -> None:
        """kill -9 of a node, and of all that it runs."""
        for pid in (node.started.pid, *descendants(node.started.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.started.wait(10)
        if node in self._nodes:
            self._nodes.remove(node)

    def _start(self, host: Host | None, *arguments: str) -> Node:
        log = self._folder / f"node{len(self._nodes)}.log"
        command = [
            str(RAY), "start", "--block", f"--num-cpus={CPUS}", "--disable-usage-stats",
            "--object-store-memory=80000000", *arguments,
        ]  # fmt: skip
        with log.open("wb") as out:
            started = subprocess.Popen(
                self._on(host, command),
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        node = Node(started, host, log)
        self._nodes.append(node)
        wait_until(lambda: _is_up(node), "a node of Ray is up")
        return node

    def _on(self, host: Host | None, command: Sequence[str]) -> list[str]:
        return host.command(*command) if host is not None else list(command)


def _is_up(node: Node) -> bool:
    said = node.log.read_text(errors="replace")
    assert node.started.poll() is None, said
    return "--block" in said and "Ray runtime started" in said


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> Mapping[str, str]:
    """What every node of a test's cluster has."""
    return {"PYTHONUNBUFFERED": "1", **more}
