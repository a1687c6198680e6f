"""Kill everything that augserver starts, in every combination, and look at what is left.

    python tests/support/residue_rounds.py [ROUNDS [SEED]]

In a round a program with a private server runs, and a standalone server with two consumers, one of
which hands over arrays of its own and does not read. Then some or all of their processes
(programs, servers, forkservers, workers, resource trackers) are killed by SIGKILL, after the first
batch or at any moment before, and sometimes workers are stopped first. What was spared is ended
politely. Then there must be no process of theirs, nothing of the resource tracker on standard
error, no file of theirs in /dev/shm once another server has started, and no socket and no folder.
What a round does follows from its seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from processes import alive, command, wait_until

#: Everything that a round starts carries this in its environment, with the round's own mark.
MARK = "AUGSERVER_RESIDUE_ROUND"
#: Rounds at a time, each with processes and folders of its own: most of a round is waiting.
AT_ONCE = 2
#: Seconds for a program's first batch.
STARTING = 90.0
#: Seconds for processes to end that were killed, or whose program was.
ENDING = 20.0
#: What nobody wants to read after a program has ended.
NOISE = re.compile(r"resource_tracker|leaked|KeyError|Exception ignored|Traceback")

PRIVATE = """
import sys
import numpy as np
from augclient import Consumer
from augproto.errors import AugError
try:
    with Consumer(np.zeros((256, 16, 16, 3), np.uint8), batch_size=8, workers=2, timeout=30) as c:
        for batch in c:
            print(batch.step, flush=True)
            c.timeout = 3  # a stopped worker keeps the next one back
            if not sys.stdin.readline():
                break
except AugError as error:
    print(type(error).__name__, flush=True)
"""

JOINING = """
import os, sys
from augclient import Consumer
from augproto.errors import AugError
try:
    with Consumer(stream="zeros", address=sys.argv[1], timeout=30) as c:
        for batch in c:
            print(batch.step, flush=True)
            c.timeout = 3  # a stopped worker keeps the next one back
            if not sys.stdin.readline():
                break
except AugError as error:
    print(type(error).__name__, flush=True)
"""


HANDING = """
import os, sys
import numpy as np
from augclient import Consumer
from augproto.errors import AugError
try:
    x = np.zeros((256, 64, 64, 3), np.uint8)
    with Consumer(x, address=sys.argv[1], batch_size=8, timeout=30) as c:
        for batch in c:
            print(batch.step, flush=True)
            c.timeout = 3  # a stopped worker keeps the next one back
            if not sys.stdin.readline():
                break
except AugError as error:
    print(type(error).__name__, flush=True)
"""


@dataclass
class Round:
    """One round: what it did, and what was wrong after it."""

    seed: int
    folder: Path
    killed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    servers: set[int] = field(default_factory=set)

    @property
    def mark(self) -> str:
        return f"{os.getpid()}-{self.seed}"

    def environment(self) -> dict[str, str]:
        return os.environ | {MARK: self.mark, "XDG_RUNTIME_DIR": str(self.folder / "run")}

    def __str__(self) -> str:
        wrong = "; ".join(self.wrong) or "nothing left"
        return f"round {self.seed}: killed {', '.join(self.killed) or 'nobody'}: {wrong}"


def marked(mark: str) -> dict[int, str]:
    """The processes of a round, and what each is."""
    found = {}
    sought = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and sought in (entry / "environ").read_bytes().split(b"\0"):
                pid = int(entry.name)
                if alive(pid):
                    found[pid] = role(pid)
    return found


def role(pid: int) -> str:
    """What a process is, by its command line and its parent."""
    line = command(pid)
    if "resource_tracker" in line:
        return "tracker"
    if "augserver.forkserver" in line:
        with contextlib.suppress(OSError, ValueError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if "augserver.forkserver" in command(parent):
                return "worker"
        return "forkserver"
    if "augserver.private" in line:
        return "private server"
    return "server" if "augserver serve" in line.replace("-m ", "") else "program"


def play(seed: int, folder: Path) -> Round:
    """Play one round in a folder of its own."""
    chance = random.Random(seed)
    this = Round(seed, folder)
    address = f"ipc://{folder}/s"
    log = folder / "stderr"
    with open(log, "wb") as errors:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=this.environment(),
            )

        started = [
            start("-c", PRIVATE),
            start("-m", "augserver", "serve", "--config", f"{folder}/augserver.toml", "--listen",
                  address),
            start("-c", JOINING, address),
            start("-c", HANDING, address),
        ]  # fmt: skip
        server = started[1]
        this.servers.add(server.pid)
        programs = [p for p in started if p is not server]
        if chance.random() < 0.7:
            for process in programs:
                assert process.stdout is not None
                told = select.select([process.stdout], [], [], STARTING)[0]
                if not told or not process.stdout.readline().strip().isdigit():
                    this.wrong.append("a program got no first batch")
            for process in programs[:2]:  # the third reads no more
                _go_on(process)
        else:
            time.sleep(chance.uniform(0.0, 1.5))
        _kill_some(this, chance)
        # What was spared ends as it would: a program with its input, the server when it is asked.
        if "server" in this.killed:
            for process in programs[1:]:  # they would look for it for half a minute
                process.terminate()
        chance.shuffle(programs)
        for process in programs:
            _wait(this, process, "a program")
        with contextlib.suppress(ProcessLookupError):
            server.terminate()
        _wait(this, server, "the server")
        try:
            wait_until(lambda: not marked(this.mark), "everybody to end", ENDING)
        except AssertionError:
            this.wrong.append(f"still there: {marked(this.mark)}")
            for pid in marked(this.mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    said = log.read_text()
    if NOISE.search(said):
        this.wrong.append(f"it was said:\n{said}")
    return this


def _go_on(process: subprocess.Popen[bytes]) -> None:
    """Have a program take more batches, as many as come until it is killed."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(b"\n" * 1000)
        process.stdin.flush()


def _kill_some(this: Round, chance: random.Random) -> None:
    found = marked(this.mark)
    this.servers |= {pid for pid, what in found.items() if what.endswith("server")}
    pids = sorted(found, key=lambda pid: (found[pid], pid))
    chance.shuffle(pids)
    if chance.random() < 0.3:  # who is stopped hears of nothing
        for pid in [pid for pid in pids if found[pid] == "worker"][:2]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                this.killed.append("(stopped) worker")
    if chance.random() > 0.3:
        pids = pids[: chance.randint(1, len(pids))]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            this.killed.append(found[pid])
        if chance.random() < 0.2:
            time.sleep(chance.uniform(0.0, 0.05))
    # What was started meanwhile (a worker in place of a dead one) is not in this list.
    this.servers |= {pid for pid, what in marked(this.mark).items() if what.endswith("server")}


def _wait(this: Round, process: subprocess.Popen[bytes], what: str) -> None:
    try:
        process.communicate(timeout=ENDING)
    except subprocess.TimeoutExpired:
        ended = process.poll() is not None
        state = "has ended, but somebody still holds its output" if ended else "did not end"
        this.wrong.append(f"{what} (pid {process.pid}) {state}")
        process.kill()
        process.wait(ENDING)


def files(this: Round) -> list[str]:
    """What lies about after another server has started and ended."""
    left = [str(path) for path in Path("/dev/shm").iterdir() if _made_by(path.name, this.servers)]
    for folder in (this.folder, this.folder / "run" / "augserver"):
        if folder.exists():
            left += [str(p) for p in folder.iterdir() if p.name not in KEPT]
    return left


KEPT = {"augserver.toml", "stderr", "run"}


def _made_by(segment: str, servers: set[int]) -> bool:
    match = re.match(r"augserver-\d+-([0-9a-f]+)[0-9a-f]{6}-", segment)
    return match is not None and int(match[1], 16) in servers


def sweep(this: Round) -> None:
    """Start another server, elsewhere, as the next program would, and end it."""
    with subprocess.Popen(
        [sys.executable, "-m", "augserver", "serve", "--workers", "0", "--listen",
         f"ipc://{this.folder}/run/other"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=this.environment(),
        cwd=this.folder / "run",
    ) as server:  # fmt: skip
        assert server.stdout is not None
        if b"listens" not in server.stdout.readline():
            this.wrong.append("no server could be started any more")
        server.terminate()
    left = files(this)
    if left:
        this.wrong.append(f"left: {', '.join(left)}")


def rounds(number: int, seed: int) -> Iterator[Round]:
    """So many rounds, with the seeds from `seed` on."""
    # Sockets lie in it, whose paths have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="aug-") as root:
        np.savez(f"{root}/zeros.npz", x=np.zeros((256, 16, 16, 3), np.uint8))

        def whole(this_seed: int) -> Round:
            folder = Path(root) / str(this_seed)
            (folder / "run").mkdir(parents=True)
            (folder / "augserver.toml").write_text(
                f'[server]\nworkers = 2\nlease = 5\n[streams.zeros]\ndata = "{root}/zeros.npz"\n'
                'x = "x"\nbatch_size = 8\n'
            )
            this = play(this_seed, folder)
            sweep(this)
            return this

        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(whole, range(seed, seed + number))


def main(number: int, seed: int) -> int:
    """Play, tell, and return how many rounds left something."""
    bad = 0
    killed: dict[str, int] = {}
    began = time.monotonic()
    for this in rounds(number, seed):
        for what in this.killed:
            killed[what] = killed.get(what, 0) + 1
        if this.wrong:
            bad += 1
            print(this, flush=True)
    seconds = time.monotonic() - began
    told = ", ".join(f"{count} times a {what}" for what, count in sorted(killed.items()))
    print(f"{number} rounds in {seconds:.0f} s, {bad} left something; killed: {told}")
    return bad


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]] + [200, 0][len(sys.argv) - 1 :]
    sys.exit(min(1, main(*arguments)))
