"""The long run against hostile peers: `python tests/system/fuzz_rounds.py [FRAMES [SEED]]`.

FRAMES broken and valid messages go to a server through each of ipc and tcp, FRAMES connections of
nonsense to each of its ports, and FRAMES frames to clients and to a private server's lifeline. For
each it prints how much there was and what became of the memory; what breaks is printed with the
seed and the round that break it again. Never collected by pytest.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import fuzz
import hostile
import memory
from besieged import Besieged, besieged, undisturbed

ROUND = 2000


def rounds(frames: int, seed: int, what: str, attack: Callable[[int, int], int]) -> None:
    """Attack until there were so many; name the round that breaks something."""
    started, done, number, answers = time.monotonic(), 0, 0, 0
    while done < frames:
        count = min(ROUND, frames - done)
        try:
            answers += attack(seed + number, count)
        except BaseException:
            print(f"BROKEN: {what}, seed {seed + number}, {count} frames", flush=True)
            raise
        done += count
        number += 1
    seconds = time.monotonic() - started
    print(f"{what}: {done} in {seconds:.0f} s, {answers} answers", flush=True)


def against_a_server(frames: int, seed: int) -> None:
    """Everything that a standalone server listens to."""
    with tempfile.TemporaryDirectory() as folder, besieged(Path(folder)) as server:
        # The most that the allocator ever keeps shows only after many large frames.
        with undisturbed(server):
            for address in (server.ipc, server.tcp):
                rounds(frames // 4, seed + 10_000, "warm-up", _router(server, address))
                rounds(frames // 20, seed + 10_000, "warm-up", _raw(server, address))
        server.settle()
        before = server.memory()
        print(f"before: {_mib(before)}", flush=True)
        with undisturbed(server) as wrong:
            for kind, address in (("ipc", server.ipc), ("tcp", server.tcp)):
                rounds(frames, seed, f"messages through {kind}", _router(server, address))
                rounds(frames, seed, f"connections to {kind}", _raw(server, address))
                print(f"now: {_mib(server.memory())}", flush=True)
        server.settle()
        server.check()
        after = server.memory()
        print(f"after: {_mib(after)}; the server has {after['server'] - before['server']:+.1f} MiB")
        print(f"the undisturbed consumer: {'; '.join(wrong) or 'every digest right'}", flush=True)


def _router(server: Besieged, address: str) -> Callable[[int, int], int]:
    def attack(seed: int, count: int) -> int:
        answers = fuzz.attack_router(address, server.path, seed, count)
        assert server.process.poll() is None, server.log()[-4000:]
        return answers

    return attack


def _raw(server: Besieged, address: str) -> Callable[[int, int], int]:
    def attack(seed: int, count: int) -> int:
        fuzz.attack_raw(address, seed, count)
        assert server.process.poll() is None, server.log()[-4000:]
        return 0

    return attack


def _mib(memory: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in memory.items())


def against_clients(frames: int, seed: int) -> None:
    """Clients that meet a hostile server; each ends with a typed error, and soon."""
    ended: collections.Counter[str] = collections.Counter()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        hostile.hostile(seed, Path(folder)) as server,
    ):
        before: float | None = None
        while server.frames < frames:
            ended[hostile.meet(server)] += 1
            if before is None and server.frames > min(6000, frames // 2):
                before = _own()
        seconds = time.monotonic() - started
        print(f"to clients: {server.frames} in {seconds:.0f} s; {dict(ended.most_common())}")
        print(f"the client: {_own() - (before or 0):+.1f} MiB since the warm-up", flush=True)


def _own() -> float:
    gc.collect()
    return memory.private(os.getpid()) / 2**20


def against_a_lifeline(frames: int, seed: int) -> None:
    """A private server whose program talks nonsense."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "augserver.private", str(theirs.fileno()), "1"],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            mine.settimeout(60)
            fuzz.hear(mine)
            fuzz.attack_lifeline(mine, seed + 10_000, min(frames, 6000))
            before = memory.private(server.pid) / 2**20

            def attack(seed: int, count: int) -> int:
                return fuzz.attack_lifeline(mine, seed, count)

            rounds(frames, seed, "frames to a lifeline", attack)
            after = memory.private(server.pid) / 2**20
            print(f"its server: {after - before:+.1f} MiB since the warm-up", flush=True)
        finally:
            mine.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(60)
            server.kill()


def main() -> None:
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"{frames} frames on each socket, seed {seed}", flush=True)
    against_a_server(frames, seed)
    against_clients(frames, seed)
    against_a_lifeline(frames, seed)


if __name__ == "__main__":
    main()
