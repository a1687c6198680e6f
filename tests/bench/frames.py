"""How much of a raw socket's throughput does a consumer reach whose batches come by frames?

    python tests/bench/frames.py [--seconds 3] [--rounds 5] [--megabytes 3]

Both over TCP on the loopback, in turns in the same run. The socket sends the same number of bytes
from one process to another, which takes them by `recv_into` into one place. The consumer's batches
are made without any transform, so that a worker costs little more than a copy. Its ratio is the
figure; 1 would be the socket itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from augclient import Consumer

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from processes import serving

#: Samples of the dataset; they have 16 KiB each.
SAMPLES, SAMPLE_BYTES = 4096, 16 << 10


def _send(port: int, nbytes: int) -> None:
    """Send the same bytes again and again, until the other side has enough."""
    data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8).data
    with socket.create_connection(("127.0.0.1", port)) as connection:
        try:
            while True:
                connection.sendall(data)
        except OSError:
            return


def raw(nbytes: int, seconds: float) -> float:
    """MB/s of a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = multiprocessing.get_context("spawn").Process(
            target=_send, args=(listener.getsockname()[1], nbytes), daemon=True
        )
        sender.start()
        connection, _ = listener.accept()
        room = memoryview(bytearray(nbytes))
        with connection:
            received = 0
            began = time.perf_counter()
            while time.perf_counter() - began < seconds:
                received += connection.recv_into(room)
            took = time.perf_counter() - began
    sender.join(10)
    return received / took / 1e6


def consumed(consumer: Consumer, first: int, seconds: float) -> tuple[float, int]:
    """MB/s of a consumer that looks at nothing, from an epoch on; and which comes next."""
    received, epoch = 0, first
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for batch in consumer.epoch(epoch):
            received += batch.x.nbytes  # type: ignore[union-attr]
        epoch += 1
    return received / (time.perf_counter() - began) / 1e6, epoch


def main(connect: Callable[..., Consumer] = Consumer) -> None:
    """Args: connect: Opens a consumer; another one may bring keys."""
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=3)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--megabytes", type=float, default=3)
    chosen = options.parse_args()
    batch = max(1, int(chosen.megabytes * 1e6) // SAMPLE_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "x.npy"
        np.save(data, np.random.default_rng(1).integers(0, 256, (SAMPLES, SAMPLE_BYTES), np.uint8))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        config = Path(folder) / "augserver.toml"
        config.write_text(f'[server]\nworkers = 1\nroots = ["{folder}"]\n')
        ratios = {"frames": list[float](), "shared": list[float]()}
        with serving(address, "--config", str(config)):
            consumers = {
                memory: connect(
                    "x", data=data, address=address, memory=memory, batch_size=batch, dtype="uint8"
                )
                for memory in ratios
            }
            epochs = dict.fromkeys(ratios, 0)
            for _ in range(chosen.rounds):
                socket_s = raw(batch * SAMPLE_BYTES, chosen.seconds)
                line = f"raw socket {socket_s:7,.0f} MB/s"
                for memory, consumer in consumers.items():
                    rate, epochs[memory] = consumed(consumer, epochs[memory], chosen.seconds)
                    ratios[memory].append(rate / socket_s)
                    line += f"; {memory} {rate:7,.0f} MB/s"
                print(line, flush=True)
            for consumer in consumers.values():
                consumer.close()
    for memory, found in ratios.items():
        print(
            f"batches of {batch * SAMPLE_BYTES / 1e6:.1f} MB, {memory}: "
            f"{statistics.median(found):.2f} of a raw socket (median of {len(found)})"
        )


if __name__ == "__main__":
    main()
