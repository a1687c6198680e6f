"""A standalone server whose workers can be held, starved and kept from starting, by files.

The stream `gate` passes pictures through a function that stops at sample 13 as long as the file
`hold` exists, and says in the file `at` which process stands there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from processes import children, command, wait_until, workers

from augclient import Consumer

STEPS = 8

_FUNCTIONS = """
import os, time
from pathlib import Path

HERE = Path(__file__).parent

def gate(picture):
    if picture[0, 0, 0] == 77:
        wait_for_the_gate()
        if (HERE / "hungry").exists():
            (HERE / "hungry").unlink()
            hoard = [bytearray(os.urandom(1 << 20)) for _ in range(4096)]
    return picture + 1

def wait_for_the_gate():
    while (HERE / "hold").exists():
        (HERE / "at").write_text(str(os.getpid()))
        time.sleep(0.01)
"""

#: Python imports this at its start, wherever it finds it first.
_SITE = """
import os, sys
from pathlib import Path

HERE = Path(__file__).parent
if "augserver.forkserver" in " ".join(sys.orig_argv):
    if (HERE / "no-forkserver").exists():
        os._exit(7)
    if (HERE / "no-preload").exists():
        sys.modules["PIL"] = None
    os.register_at_fork(after_in_child=lambda: (HERE / "no-worker").exists() and os._exit(6))
"""


@dataclass
class Faulty:
    """The server, its folder and its log."""

    folder: Path
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        return f"ipc://{self.folder}/s"

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def flag(self, name: str, *, up: bool) -> None:
        """Make or remove one of the files that the functions look at."""
        if up:
            (self.folder / name).touch()
        else:
            (self.folder / name).unlink(missing_ok=True)

    def consumer(self, slots: int = 4) -> Consumer:
        """With four slots it runs ahead no further than to one step 1."""
        return Consumer(stream="gate", address=self.address, timeout=60, slots=slots)

    def crew(self) -> list[int]:
        """Both workers, once they run."""
        wait_until(lambda: len(workers(self.process.pid)) == 2, "two workers")
        return workers(self.process.pid)

    def forkserver(self) -> int:
        (pid,) = [c for c in children(self.process.pid) if "forkserver" in command(c)]
        return pid

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A worker stands at the gate, in the middle of step 1; afterwards the gate is open."""
        self.flag("hold", up=True)
        self.flag("at", up=False)
        try:
            yield
        finally:
            self.flag("hold", up=False)

    def at_the_gate(self) -> int:
        """Which worker stands there."""
        at = self.folder / "at"
        wait_until(lambda: at.exists() and at.read_text() != "", "a worker at the gate")
        return int(at.read_text())


def truth() -> list[bytes]:
    """The batches of an epoch of `gate`, by plain numpy."""
    x = pictures().astype(np.float32) + 1
    return [x[step * 8 : step * 8 + 8].tobytes() for step in range(STEPS)]


def pictures() -> Any:
    x = np.random.default_rng(0).integers(0, 70, (STEPS * 8, 16, 16, 3), np.uint8)
    x[13] = 77
    return x


@contextlib.contextmanager
def faulty(folder: Path, *, deadline: float = 60.0, cgroup: Path | None = None) -> Iterator[Faulty]:
    """A server of two workers, until the end of the block.

    Args:
        deadline: The workers'.
        cgroup: For the server and all that it starts.
    """
    np.savez(folder / "pictures.npz", x=pictures())
    (folder / "faulty_functions.py").write_text(_FUNCTIONS)
    (folder / "sitecustomize.py").write_text(_SITE)
    config = folder / "augserver.toml"
    config.write_text(
        f"[server]\nworkers = 2\nworker_deadline = {deadline}\n"
        '[streams.long]\ndata = "long.csv"\ntarget_size = [8, 8]\n'
        'pictures = { label_mode = "none" }\n'
        '[streams.gate]\ndata = "pictures.npz"\nx = "x"\nbatch_size = 8\nshuffle = false\n'
        '[streams.gate.transforms]\nfunction = "faulty_functions:gate"\n'
    )
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "augserver",
                "serve",
                "--config",
                str(config),
                "--listen",
                f"ipc://{folder}/s",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
            text=True,
        )
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(server.pid))
    made = Faulty(folder, server)
    try:
        wait_until(lambda: "listens" in made.log() or server.poll() is not None, "the server")
        assert server.poll() is None, made.log()
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGCONT)
            server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)
