"""What does a link have to carry, and what comes through a slow one?

    python tests/bench/links.py [SECONDS]

Hosts are network namespaces on one machine; everything is encrypted. First a consumer on a host of
its own, whose batches come by message; then a worker on a host of its own, which gets its inputs
and sends what it has made. Bytes are counted by the cable, headers and all; rates are measured over
cables of 100 and 1,000 Mbit/s each way. CIFAR-10's size at batch 256, photographs (JPEG files) at
224x224 and batch 32, as uint8 and as float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from other_hosts import Site, quiet, site

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from hosts import Host, without_hosts
from processes import wait_until
from real_data import DOGS_CATS

from augclient import Consumer

SECONDS = 4.0
CABLES = (100.0, 1000.0)
TRANSFORMS = {"rotation_range": 15, "horizontal_flip": True}
#: Runs on the consumer's host: takes batches for a while, and says how many pictures those had.
_TAKE = """
import json, sys, time
from augclient import Consumer
options, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
with Consumer(memory="frames", **options) as consumer:
    batches = iter(consumer)
    for _ in range(4):
        next(batches)
    print("begins", flush=True)
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        images += len(next(batches).x)
    print(images / (time.perf_counter() - began), images, flush=True)
    sys.stdin.readline()
"""


def streams(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is measured: in words, and as a consumer says it."""
    rng = np.random.default_rng(0)
    path = folder / "cifar.npz"
    np.savez(path, x=rng.integers(0, 256, (20_000, 32, 32, 3), np.uint8))
    for dtype in ("uint8", "float32"):
        common = {"dtype": dtype, "seed": 1, "transforms": TRANSFORMS}
        yield f"32x32 {dtype}", {"data": str(path), "x": "x", "batch_size": 256, **common}
        pictures = {"target_size": [224, 224], "pictures": {"label_mode": "binary"}}
        yield (
            f"224x224 {dtype}",
            {"data": str(DOGS_CATS), "batch_size": 32, **pictures, **common},
        )  # fmt: skip


def by_message(made: Site, host: Host, options: dict[str, Any], seconds: float) -> list[float]:
    """Pictures a second, and bytes that came for each."""
    said = options | {
        "address": f"tcp://{made.home.address}:5555",
        "key": f"{made.folder}/trainer.key",
        "server_key": f"{made.folder}/server.pub",
    }
    program = subprocess.Popen(
        host.command(sys.executable, "-c", _TAKE, json.dumps(said), str(seconds)),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline() == "begins\n"
    before = host.carried()
    rate, images = map(float, program.stdout.readline().split())
    brought = host.carried()[0] - before[0]
    program.communicate("\n", timeout=60)
    return [rate, brought / images]


def by_worker(
    made: Site, host: Host, options: dict[str, Any], cable: float, seconds: float
) -> list[float]:
    """Pictures a second that a host makes, bytes that came to it and went from it for each."""
    with Consumer(address=made.address, **options) as consumer:
        batches = iter(consumer)
        before = made.remote()[0]
        wait_until(lambda: next(batches).step >= 0 and made.remote()[0] > before, "it works")
        host.limit(cable)  # not before: beside it the local worker would make them all
        with quiet(made):
            for _ in range(2 * consumer.slots):
                next(batches)
            carried, (images, took) = host.carried(), _took(batches, seconds)
            after = host.carried()
    brought, taken = (after[way] - carried[way] for way in (0, 1))
    return [images / took, brought / images, taken / images]


def _took(batches: Iterator[Any], seconds: float) -> tuple[int, float]:
    began, images = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        images += len(next(batches).x)
    return images, took


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    if without_hosts() is not None:
        sys.exit(f"links.py: {without_hosts()}")
    with site(secure=True, consumers=True) as made:
        for name, options in streams(made.folder):
            rates = []
            for cable in CABLES:
                host = made.hosts.add()
                host.limit(cable)
                rates.append((cable, *by_message(made, host, options, seconds)))
            size = rates[-1][2]
            through = ", ".join(
                f"{rate:7.0f} images/s over {c:4.0f} Mbit/s" for c, rate, _ in rates
            )
            print(
                f"to a consumer, {name:16}: {size:7.0f} bytes an image, "
                f"{size * 8e-3:5.0f} Mbit/s for 1,000 a second; {through}", flush=True
            )  # fmt: skip
    for cable in CABLES:
        with site(secure=True) as made:
            made.join()
            host = made.hosts.last
            for name, options in streams(made.folder):
                host.unlimit()
                rate, brought, taken = by_worker(made, host, options, cable, seconds)
                print(
                    f"one worker, {name:16}: {brought:7.0f} bytes to it and {taken:7.0f} from it "
                    f"an image; {rate:7.0f} images/s over {cable:4.0f} Mbit/s", flush=True
                )  # fmt: skip


if __name__ == "__main__":
    main()
