"""fit, evaluate and predict over both modules' iterators on one backend: `fit_program.py BACKEND`.

What a model is really given is noted, batch by batch; one line of JSON for each scenario says what
came through Keras's own module and what through ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
import warnings
from types import ModuleType
from typing import Any

BACKEND = sys.argv[1]
os.environ["KERAS_BACKEND"] = BACKEND
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.simplefilter("ignore")

import faces  # noqa: E402 - the backend is chosen by then
import keras  # noqa: E402
import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402

RANDOM: dict[str, Any] = {
    "rotation_range": 30,
    "width_shift_range": 0.2,
    "zoom_range": 0.3,
    "horizontal_flip": True,
    "channel_shift_range": 20.0,
    "rescale": 1 / 255,
}
SAMPLES, BATCH, EPOCHS = 22, 4, 3
X = np.random.default_rng(0).integers(0, 256, (SAMPLES, 9, 8, 3), np.uint8)
Y = np.arange(SAMPLES)


class Noting(keras.Model):  # type: ignore[misc]
    """Notes what it is trained and tested on; its output is the mean of each picture."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.noted: list[str] = []

    def call(self, x: Any) -> Any:
        mean = keras.ops.mean(x, axis=(1, 2, 3))[:, None]
        return mean + 0 * self.dense(mean)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
        training: bool = True,
    ) -> Any:  # fmt: skip
        self.noted.append(("train " if training else "test ") + said(x, y))
        return keras.ops.mean(y_pred)


def said(x: Any, y: Any) -> str:
    """A batch in a few letters."""
    x, y = np.asarray(keras.ops.convert_to_numpy(x)), np.asarray(keras.ops.convert_to_numpy(y))
    pictures = hashlib.sha256(np.ascontiguousarray(x, np.float32).tobytes()).hexdigest()[:12]
    return f"{pictures} {y.reshape(len(y), -1).argmax(1).tolist() if y.ndim > 1 else y.tolist()}"


def model() -> Noting:
    noting = Noting()
    noting.compile("sgd", run_eagerly=True)
    noting.build(X.shape)
    return noting


def flows(face: ModuleType, folder: str | None, seed: int | None, own: dict[str, Any]) -> Any:
    """A flow to train on and one to test on."""
    train = face.ImageDataGenerator(**RANDOM, **own)
    test = face.ImageDataGenerator(rescale=1 / 255, **own)
    if folder is None:
        return (
            train.flow(X, Y, batch_size=BATCH, seed=seed),
            test.flow(X[:10], Y[:10], batch_size=BATCH, shuffle=False),
        )
    options: dict[str, Any] = {"target_size": (9, 8), "batch_size": BATCH}
    return (
        train.flow_from_directory(folder, seed=seed, **options),
        test.flow_from_directory(folder, shuffle=False, **options),
    )


def fitted(
    face: ModuleType, folder: str | None, seed: int | None, *, shuffle: bool = True, **own: Any
) -> list[str]:
    """What a model notes in fit with validation, then in evaluate, and what it predicts."""
    train, test = flows(face, folder, seed, own)
    noting = model()
    random.seed(5)
    np.random.seed(6)
    noting.fit(train, validation_data=test, epochs=EPOCHS, verbose=0, shuffle=shuffle)
    noting.fit(train, epochs=1, verbose=0, shuffle=shuffle)
    noting.evaluate(test, verbose=0)
    predicted = noting.predict(test, verbose=0)
    noting.noted.append(f"predicted {np.asarray(predicted).ravel().tolist()}")
    return noting.noted


def in_turn(folder: str | None, seed: int) -> list[str]:
    """What Keras's iterators give by next(), in that order."""
    train, test = flows(faces.theirs(), folder, seed, {})
    noted = []
    for epoch in range(EPOCHS + 1):
        noted += [f"train {said(*next(train))}" for _ in range(len(train))]
        if epoch < EPOCHS:
            noted += [f"test {said(*next(test))}" for _ in range(len(test))]
    return noted + [f"test {said(*next(test))}" for _ in range(len(test))]


def pictures(folder: str) -> None:
    for i in range(SAMPLES):
        path = os.path.join(folder, "abc"[i % 3], f"{i:02}.png")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        PIL.Image.fromarray(X[i]).save(path)


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        pictures(root)
        for name, folder in (("arrays", None), ("files", root)):
            for seed, shuffle in ((None, True), (7, True), (None, False))[: 2 if folder else 3]:
                wanted = fitted(faces.theirs(), folder, seed, shuffle=shuffle)
                own = faces.own(order="keras")
                got = fitted(faces.ours(), folder, seed, shuffle=shuffle, **own)
                tell(f"{name}, seed={seed}, shuffle={shuffle}, in Keras's order", wanted, got)
            if not faces.THEIRS_TWICE:
                got = fitted(faces.ours(), folder, 7, order="stream")
                tell(f"{name}, in stream order", in_turn(folder, 7), got[:-1])


def tell(scenario: str, wanted: list[str], got: list[str]) -> None:
    print("\n" + json.dumps({"scenario": scenario, "wanted": wanted, "got": got}), flush=True)


if __name__ == "__main__":
    main()
