"""A real `augserver worker`: remote workers of this machine, under test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Agent:
    """A real `augserver worker`, and its log."""

    process: subprocess.Popen[str]
    folder: Path
    runtime: str

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def health(self) -> subprocess.CompletedProcess[str]:
        """What `augserver worker-health` says of it."""
        return subprocess.run(
            [sys.executable, "-m", "augserver", "worker-health"],
            env=os.environ | {"XDG_RUNTIME_DIR": self.runtime},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def left(self) -> list[Path]:
        """What lies in its folder for sockets and locks."""
        return list((Path(self.runtime) / "augserver").iterdir())


@contextlib.contextmanager
def agent(
    folder: Path,
    address: str,
    workers: int = 1,
    *arguments: str,
    within: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Agent]:
    """Remote workers of this machine, until the end of the block.

    Args:
        within: A command that starts it.
    """
    command = [*within, sys.executable, "-m", "augserver", "worker", "--connect", address]
    command += ["--workers", str(workers), *arguments]
    # A path for sockets is a short one.
    with tempfile.TemporaryDirectory(prefix="aug-") as runtime, (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment or {}) | {"XDG_RUNTIME_DIR": runtime},
            text=True,
        )
        try:
            yield Agent(process, folder, runtime)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
