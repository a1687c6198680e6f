"""How many photographs a second come in a first epoch, and in later ones from decoded pictures?

    python tests/bench/decoded.py [ROUNDS]

JPEG files of 500x375 to 299x299 in batches of 64, two workers: decoded each time, with half of them
in a cache of decoded pictures, with all of them, and by Keras's own class, in turns.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
from measure import SECONDS, drawn, medians  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402
from processes import serving  # noqa: E402
from real_data import DOGS_CATS  # noqa: E402

from augclient import Consumer, local  # noqa: E402

ROUNDS = 5
FILES = 1024
BATCH = 64
SIZE = (299, 299)
WORKERS = 2
TRANSFORMS: dict[str, Any] = {
    "rotation_range": 45,
    "width_shift_range": 0.1,
    "height_shift_range": 0.1,
    "horizontal_flip": True,
    "zoom_range": (0.8, 1.0),
    "channel_shift_range": 20,
    "rescale": 1 / 255,
}
KERAS, FIRST, HALF, ALL = (
    "Keras's ImageDataGenerator", "decoded each time", "half of them cached", "all of them cached",
)  # fmt: skip


def photographs(folder: Path) -> None:
    """Real photographs cut to 500x375 and written as small JPEGs, each several times."""
    photos = sorted(DOGS_CATS.glob("*/*.jpg"))
    if not photos:
        sys.exit(f"real photographs are not at {DOGS_CATS}")
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
    for number, photo in enumerate(photos):
        picture = ImageOps.fit(Image.open(photo).convert("RGB"), (500, 375))
        for copy in range(number, FILES, len(photos)):
            picture.save(folder / photo.parent.name / f"{copy:05d}.jpg", quality=75)


def rate(consumer: Consumer, keys: Iterator[tuple[int, int]]) -> float:
    """Images a second; what was made while others were measured is thrown away first."""
    for _ in range(2 * consumer.slots):
        consumer.get(*next(keys))
    started, count = time.perf_counter(), 0
    while time.perf_counter() < started + SECONDS:
        count += len(np.asarray(consumer.get(*next(keys)).x))
    return count / (time.perf_counter() - started)


def main() -> None:
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = place / "pets"
        photographs(folder)
        options: dict[str, Any] = {
            "data": folder, "pictures": {}, "target_size": SIZE, "batch_size": BATCH,
            "transforms": TRANSFORMS, "slots": 4,
        }  # fmt: skip
        config, address = place / "augserver.toml", f"ipc://{place}/s"
        config.write_text(
            f'[server]\nworkers = {WORKERS}\nroots = ["{place}"]\n'
            f"cache_bytes = {FILES // 2 * (SIZE[0] * SIZE[1] * 3 + 1) + 512}\n"
        )
        stack.enter_context(serving(address, "--config", str(config)))
        consumers = {
            FIRST: Consumer(**options, workers=WORKERS),
            HALF: Consumer(**options, address=address, cache="decoded"),
            ALL: Consumer(**options, workers=WORKERS, cache="decoded"),
        }
        questions: dict[str, Callable[[], float]] = {}
        for name, consumer in consumers.items():
            stack.enter_context(consumer)
            for _ in consumer.epoch(0):
                pass
            whole = consumer.samples // BATCH
            keys = ((e, s) for e in range(1, 10**6) for s in range(whole))
            questions[name] = partial(rate, consumer, keys)
        flow = ImageDataGenerator(**TRANSFORMS).flow_from_directory(
            folder, target_size=SIZE, batch_size=BATCH
        )
        questions[KERAS] = partial(drawn, flow)
        answers = medians(questions, rounds=rounds)
        for name, answer in answers.items():
            print(
                f"{name:28} {answer:8,.1f} images/s; {answer / answers[FIRST]:5.2f} times decoding "
                f"each time, {answer / answers[KERAS]:6.2f} times Keras's class"
            )
    local.shut_down()


if __name__ == "__main__":
    main()
