"""What does changing one import bring: `augclient.image` beside Keras's own class?

    python tests/bench/drop_in.py [PICTURES [ROUNDS]]

Images a second of the three flows, the time of fit with whitening on PICTURES of CIFAR-10, and how
long a fresh program waits for its first generator's first batch and for its second's. Everything
is asked of both in one run and in turns. `drop_in.py 5000 5` is the long pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.simplefilter("ignore")
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import faces  # noqa: E402
import numpy as np  # noqa: E402
from measure import TRANSFORMS, drawn, medians, pictures  # noqa: E402
from real_data import DOGS_CATS  # noqa: E402

SIZE, BATCH = (150, 150), 32
#: Seconds in which what was made while others were measured is used up, untimed.
WARM_UP = 1.0
WORKERS = 2

Array = np.ndarray[Any, Any]
KERAS, OURS = "Keras", f"augclient.image, {WORKERS} workers"


def generator(face: ModuleType, **options: Any) -> Any:
    own = faces.own(workers=WORKERS) if face is faces.ours() else {}
    return face.ImageDataGenerator(**options, **own)


def in_memory(face: ModuleType) -> Any:
    x, y = pictures()
    return generator(face, **TRANSFORMS).flow(x, y, batch_size=BATCH, seed=1)


def directory(face: ModuleType) -> Any:
    return generator(face, **TRANSFORMS).flow_from_directory(
        str(DOGS_CATS), target_size=SIZE, batch_size=BATCH, seed=1
    )


def dataframe(face: ModuleType) -> Any:
    import pandas

    paths = sorted(str(path) for path in DOGS_CATS.glob("*/*.jpg"))
    frame = pandas.DataFrame({"filename": paths, "class": [Path(p).parent.name for p in paths]})
    return generator(face, **TRANSFORMS).flow_from_dataframe(
        frame, target_size=SIZE, batch_size=BATCH, seed=1
    )


def flows(rounds: int) -> None:
    for name, make in (
        ("flow, CIFAR-10 in memory", in_memory),
        (f"flow_from_directory, photographs at {SIZE[0]}x{SIZE[1]}", directory),
        (f"flow_from_dataframe, photographs at {SIZE[0]}x{SIZE[1]}", dataframe),
    ):
        if make is not in_memory and not DOGS_CATS.exists():
            print(f"{name}: real photographs are not at {DOGS_CATS}")
            continue
        faces.shut_down()
        both = {KERAS: make(faces.theirs()), OURS: make(faces.ours())}
        for flow in both.values():
            next(flow)
        answers = medians({who: partial(rate, flow) for who, flow in both.items()}, rounds)
        print(
            f"{name}: {OURS} {answers[OURS]:,.0f} images/s; {KERAS} {answers[KERAS]:,.0f}; "
            f"ratio {answers[OURS] / answers[KERAS]:.2f}",
            flush=True,
        )
    faces.shut_down()


def rate(flow: Any) -> float:
    """Images a second, of what is made meanwhile."""
    end = time.perf_counter() + WARM_UP
    while time.perf_counter() < end:
        next(flow)
    return drawn(flow)


def whitening(count: int) -> None:
    x = pictures()[0][:count]
    fitted, seconds = {}, {}
    for who, face in ((KERAS, faces.theirs()), (OURS, faces.ours())):
        fitting = generator(face, zca_whitening=True, rescale=1 / 255)
        started = time.perf_counter()
        fitting.fit(x)
        seconds[who] = time.perf_counter() - started
        fitted[who] = fitting
    print(
        f"fit(zca_whitening=True), {len(x)} pictures: {OURS} {seconds[OURS]:.1f} s; "
        f"{KERAS} {seconds[KERAS]:.1f} s; ratio {seconds[KERAS] / seconds[OURS]:.2f}",
        flush=True,
    )
    if len(x) > x[0].size:  # else the smallest singular value is noise, in any arithmetic
        whitened = whitened_in_double(x)
        off = {who: _off(fitting, x[:100], whitened) for who, fitting in fitted.items()}
        print(
            "  whitened pictures, beside the same in double precision, are off by "
            f"{off[OURS]:.1g} of the largest value; {KERAS}'s by {off[KERAS]:.1g}"
        )
    faces.shut_down()


def whitened_in_double(x: Array) -> Array:
    """The first hundred pictures, whitened as Keras's formula says, all in float64."""
    flat = x.reshape(len(x), -1) / 255.0
    flat = (flat.reshape(x.shape) - flat.reshape(x.shape).mean((0, 1, 2))).reshape(flat.shape)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    scale = np.sqrt(len(x)) / (np.sqrt(np.maximum(values, 0)) + 1e-6)
    whitened: Array = (flat[:100] @ (vectors * scale)) @ vectors.T
    return whitened


def _off(fitting: Any, x: Array, wanted: Array) -> float:
    got = np.array([fitting.standardize(picture.astype(np.float32)) for picture in x])
    off = np.abs(got.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
    return float(off)


START = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
started = time.perf_counter()
import numpy as np
x = np.zeros((500, 32, 32, 3), np.uint8)
if sys.argv[1] == "ours":
    from augclient.image import ImageDataGenerator
else:
    from keras.src.legacy.preprocessing.image import ImageDataGenerator
imported = time.perf_counter()
seconds = {"import": imported - started}
kept = []
for which in ("first", "second"):
    before = time.perf_counter()
    flow = ImageDataGenerator(rotation_range=20, rescale=1 / 255).flow(x, batch_size=32)
    next(flow)
    kept.append(flow)
    seconds[which] = time.perf_counter() - before
print(json.dumps(seconds))
"""


def start(which: str) -> dict[str, float]:
    """Seconds of a fresh program: importing, its first generator's first batch, its second's."""
    done = subprocess.run(
        [sys.executable, "-c", START, which],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def starting(rounds: int) -> None:
    names = {"import": "importing", "first": "first batch of the first generator",
             "second": "first batch of the second"}  # fmt: skip
    noted: dict[str, dict[str, float]] = {}

    def ask(which: str, what: str) -> float:
        if what == "import":  # it comes first in each round
            noted[which] = start(which)
        return noted[which][what]

    sides = ("keras", "ours" if not faces.THEIRS_TWICE else "keras")
    questions: dict[str, Callable[[], float]] = {
        f"{side} {what}": partial(ask, which, what)
        for side, which in zip(("keras", "ours"), sides, strict=True)
        for what in names
    }
    answers = medians(questions, rounds)
    for what, name in names.items():
        ours, keras = answers[f"ours {what}"], answers[f"keras {what}"]
        print(
            f"a fresh program, {name}: augclient.image {ours:.3f} s; {KERAS} {keras:.3f} s; "
            f"ratio {ours / keras:.2f}"
        )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    flows(rounds)
    starting(rounds)
    whitening(count)


if __name__ == "__main__":
    main()
