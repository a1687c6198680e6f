"""How long from fit to the first batch, what does an epoch's boundary cost, and which memory?

    python tests/bench/first_batch.py [ROUNDS]

Fresh programs, TensorFlow imported: from `AugSequence(...)` and `fit` to the first batch that the
private server hands out (the kernels' cache is warm after the first round, which is shown apart).
Then, in one program, what the step after an epoch's end takes beyond a step within, beside the same
for constant data: Keras does something of its own there. At last each process's memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import report
from measure import TRANSFORMS, pictures, processes, pss_mib

from augclient import Consumer, local

ROUNDS = 3

START = """
import json, os, sys, time, warnings
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"
warnings.simplefilter("ignore")
import keras, tensorflow
from augclient import AugSequence
from measure import TRANSFORMS, pictures

x, y = pictures()
model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(),
                          keras.layers.Dense(10)])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
first, ends = [], []

class Noting(AugSequence):
    def __getitem__(self, index):
        batch = super().__getitem__(index)
        first.append(time.perf_counter())
        return batch

class Constant(keras.utils.PyDataset):
    def __len__(self):
        return len(x) // 256
    def __getitem__(self, index):
        return x[:256].astype("float32"), y[:256]

class Steps(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.within, self.across, self.last = [], [], None
    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if self.last is not None:
            (self.within if batch else self.across).append(now - self.last)
        self.last = now

started = time.perf_counter()
data = Noting(x, y, batch_size=256, workers=2, transforms=TRANSFORMS, drop_remainder=True)
ours = Steps()
model.fit(data, epochs=int(sys.argv[1]), verbose=0, callbacks=[ours])
said = {"first": first[0] - started, "within": ours.within, "across": ours.across}
data.close()
nothing = Steps()
if int(sys.argv[1]) > 1:
    model.fit(Constant(), epochs=int(sys.argv[1]), verbose=0, callbacks=[nothing])
print(json.dumps(said | {"within, constant": nothing.within, "across, constant": nothing.across}))
"""


def program(epochs: int) -> dict[str, Any]:
    """What a fresh program says of itself."""
    done = subprocess.run(
        [sys.executable, "-c", START, str(epochs)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        sys.exit(f"the measured program failed:\n{done.stderr[-3000:]}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def first_batch(rounds: int) -> None:
    cold = program(1)["first"]
    warm = statistics.median(program(1)["first"] for _ in range(rounds))
    report.answer(
        "fit to first batch on a private server, beside 1.5 s",
        warm / 1.5,
        f"{warm:.2f} s (the round before, perhaps with cold caches: {cold:.2f} s)",
    )


def boundary() -> None:
    said = program(9)
    step = {name: statistics.median(said[name]) for name in said if name != "first"}
    ours = step["across"] - step["within"]
    keras_own = step["across, constant"] - step["within, constant"]
    report.answer(
        "an epoch's boundary in fit, beyond Keras's own, beside a step",
        (ours - keras_own) / step["within"],
        f"{1e3 * ours:.1f} ms more than a step of {1e3 * step['within']:.1f} ms; with constant "
        f"data {1e3 * keras_own:.1f} ms more than {1e3 * step['within, constant']:.1f} ms",
    )


def consumers() -> None:
    x, y = pictures()
    for attempt in ("a program's first consumer", "its second"):
        started = time.perf_counter()
        with Consumer(x, y, batch_size=32, workers=2, transforms=TRANSFORMS) as consumer:
            opened = time.perf_counter()
            consumer.get(0, 0)
            print(
                f"{attempt}: opened after {opened - started:.2f} s, first batch after "
                f"{time.perf_counter() - started:.2f} s"
            )
            for step in range(60):
                consumer.get(0, step)
            if attempt.startswith("a"):
                for name, pids in processes().items():
                    if pids:
                        each = pss_mib(pids) / len(pids)
                        print(f"  {name}: {each:.1f} MiB PSS each, {len(pids)} of them")
    local.shut_down()


def main() -> None:
    first_batch(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
    boundary()
    consumers()


if __name__ == "__main__":
    main()
