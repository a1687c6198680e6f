"""How long does a consumer wait when a worker is killed, beside Keras's own worker processes?"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time

from measure import TRANSFORMS, pictures, processes

from augclient import Consumer, local

KILLS = 100
#: Batches between two kills; the first half of each stretch is without one, and is compared with.
STRETCH = 60
#: Seconds without a batch after which Keras's own loop counts as hung.
PATIENCE = 60.0

KERAS = """
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, multiprocessing, numpy as np

class Data(keras.utils.PyDataset):
    def __len__(self):
        return 10**4
    def __getitem__(self, index):
        time.sleep(0.005)
        return np.zeros((32, 4), "float32"), np.zeros((32, 1), "float32")

class Say(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        pids = [child.pid for child in multiprocessing.active_children()]
        print(batch, *pids, flush=True)

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse", run_eagerly=False)
model.fit(Data(workers=2, use_multiprocessing=True), verbose=0, callbacks=[Say()])
"""


def worst(gaps: list[float]) -> str:
    ordered = sorted(gaps)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {statistics.median(ordered) * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms"


def ours() -> None:
    x, y = pictures()
    chance = random.Random(0)
    quiet: list[float] = []
    killed: list[float] = []
    gaps: list[float] = []
    with Consumer(x, y, batch_size=32, workers=2, transforms=TRANSFORMS) as consumer:
        keys = ((e, s) for e in range(10**6) for s in range(consumer.steps))
        for _ in range(4 * consumer.slots):
            consumer.get(*next(keys))
        for _ in range(KILLS):
            for into in (quiet, killed):
                if into is killed:
                    os.kill(chance.choice(_two_workers()), signal.SIGKILL)
                longest = 0.0
                for _ in range(STRETCH // 2):
                    before = time.perf_counter()
                    consumer.get(*next(keys))
                    gap = time.perf_counter() - before
                    longest = max(longest, gap)
                    gaps.append(gap)
                into.append(longest)
    local.shut_down()
    half = STRETCH // 2
    print(f"augserver, 2 workers, {KILLS} times kill -9; the longest wait among {half} batches:")
    print(f"  without a kill: {worst(quiet)}")
    print(f"  after a kill:   {worst(killed)}")
    print(f"  (every batch of both: {worst(gaps)})", flush=True)


def _two_workers() -> list[int]:
    """Both, once the replacement of the last one runs."""
    while len(pids := processes()["workers"]) < 2:
        time.sleep(0.001)
    return pids


def theirs() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", KERAS],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert program.stdout is not None
    try:
        os.set_blocking(program.stdout.fileno(), False)
        kill_at, last, victim, seen = 50, time.perf_counter(), 0, 0
        while program.poll() is None and time.perf_counter() - last < PATIENCE:
            lines = (program.stdout.read() or b"").splitlines()
            if not lines:
                time.sleep(0.01)
                continue
            last = time.perf_counter()
            seen, *pids = map(int, lines[-1].split())
            if not victim and seen >= kill_at and pids:
                victim = pids[0]
                os.kill(victim, signal.SIGKILL)
                at = seen
        waited = time.perf_counter() - last
        name = "Keras PyDataset(workers=2, use_multiprocessing=True), one pool process killed"
        if not victim:
            print(f"{name}: never got so far")
        elif program.poll() is None:
            print(f"{name} at batch {at}: hung for {waited:.0f} s after batch {seen}, then ended")
        else:
            print(f"{name} at batch {at}: ended with code {program.returncode} at batch {seen}")
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
        program.wait(30)


if __name__ == "__main__":
    ours()
    theirs()
