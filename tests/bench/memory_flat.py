"""Does memory stay what it is? 200 epochs, with consumers that come and go beside them.

    python tests/bench/memory_flat.py [EPOCHS [COMERS]]

A standalone server with two workers; proportional set sizes (shared pages by shares) of the server,
its workers and this consumer, after a tenth of the epochs and at the end.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import memory
import numpy as np
from processes import children, command, serving, workers

from augclient import Consumer

SAMPLES, BATCH = 256, 8

CONFIG = """
[server]
workers = 2
[streams.small]
data = "small.npz"
x = "x"
y = "y"
batch_size = 8
seed = 1
transforms = { rotation_range = 20, horizontal_flip = true, brightness_range = [0.5, 1.5] }
"""


def measure(epochs: int, comers: int) -> dict[str, tuple[float, float]]:
    """(MiB when warm, MiB at the end), by who has them."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(1)
        pictures = rng.integers(0, 256, (SAMPLES, 16, 16, 3), np.uint8)
        np.savez(f"{folder}/small.npz", x=pictures, y=np.arange(SAMPLES))
        Path(folder, "augserver.toml").write_text(CONFIG)
        address = f"ipc://{folder}/a.sock"
        with (
            serving(address, "--config", f"{folder}/augserver.toml") as server,
            Consumer(stream="small", address=address) as consumer,
        ):
            warm_at, warm = max(1, epochs // 10), {}
            for epoch in range(epochs):
                labels = [int(v) for batch in consumer.epoch(epoch) for v in np.asarray(batch.y)]
                assert sorted(labels) == list(range(SAMPLES)), f"epoch {epoch}"
                # All that come do so evenly; an error in one would be its own.
                for _ in range((epoch + 1) * comers // epochs - epoch * comers // epochs):
                    with Consumer(stream="small", address=address) as other:
                        other.get(0, 0)
                if epoch + 1 == warm_at:
                    warm = _sizes(server.pid)
            end = _sizes(server.pid)
    return {who: (warm[who], end[who]) for who in end}


def _sizes(server: int) -> dict[str, float]:
    gc.collect()
    forkserver = [pid for pid in children(server) if "forkserver" in command(pid)]
    return {
        "server": memory.pss(server) / 2**20,
        "forkserver": sum(map(memory.pss, forkserver)) / 2**20,
        "workers": sum(map(memory.pss, workers(server))) / 2**20,
        "consumer": memory.pss(os.getpid()) / 2**20,
    }


def main() -> None:
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    comers = int(sys.argv[2]) if len(sys.argv) > 2 else epochs
    print(f"{epochs} epochs of {SAMPLES // BATCH} batches, {comers} consumers came and went")
    found = measure(epochs, comers)
    for who, (warm, end) in found.items():
        print(f"  {who:10} {warm:7.1f} MiB warm, {end:7.1f} at the end: {end - warm:+.1f}")
    whole = sum(end - warm for warm, end in found.values())
    print(f"  {'all':10} {whole:+.1f} MiB")


if __name__ == "__main__":
    main()
