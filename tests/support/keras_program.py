"""Scenarios under one real Keras backend, run by test_keras.py: `keras_program.py BACKEND NAME...`.

Each scenario prints one line of JSON: its name and what it found. A scenario that takes longer
than its deadline ends the process with every thread's stack.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

BACKEND = sys.argv[1]
os.environ["KERAS_BACKEND"] = BACKEND
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras  # noqa: E402 - the backend is chosen by then
import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402
from processes import wait_until  # noqa: E402
from restarted import killed_at_random, restarted  # noqa: E402

from augclient import AugSequence, local  # noqa: E402
from augproto.segment import attach  # noqa: E402

DEADLINE = 400
Found = dict[str, Any]
SCENARIOS: dict[str, Callable[[], Found]] = {}
#: Each of these runs in a process of its own: what a framework looks like after it is not ours.
ALONE = ("ctrl_c_at_random_moments",)


def scenario(function: Callable[[], Found]) -> Callable[[], Found]:
    SCENARIOS[function.__name__] = function
    return function


def collect() -> None:
    """What a framework keeps for later is no lease that a user holds."""
    gc.collect()
    jaxlib = sys.modules.get("jaxlib._jax")
    if jaxlib is not None:
        jaxlib.collect_garbage()


def no_lease(*sequences: AugSequence) -> bool:
    def free() -> bool:
        collect()
        return all(s.consumer.leased == 0 for s in sequences)

    wait_until(free, "all slots to be released", 20)
    return True


class Recording(keras.Model):  # type: ignore[misc]
    """Predicts its input; notes the labels of every batch it is trained or tested on."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.trained: list[list[int]] = [[]]
        self.tested: list[int] = []
        self.kept: list[Any] = []
        self.keeps = False

    def call(self, x: Any) -> Any:
        return x[:, :1] + 0 * self.dense(x)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
        training: bool = True,
    ) -> Any:  # fmt: skip
        labels = [int(v) for v in np.asarray(keras.ops.convert_to_numpy(y)).ravel()]
        if training:
            self.trained[-1].extend(labels)
            if self.keeps:
                self.kept.append((labels[0], x))
        else:
            self.tested.extend(labels)
        return keras.ops.mean(keras.ops.abs(y_pred - keras.ops.cast(y, "float32")))


class NewEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        if self.model.trained[-1]:
            self.model.trained.append([])


def numbered(
    samples: int, batch_size: int, *, shuffle: bool, slots: int | None = None, width: int = 1024
) -> AugSequence:
    """x filled with its own index, y the same."""
    index = np.arange(samples, dtype=np.float32)
    x = np.repeat(index[:, None], width, axis=1)
    return AugSequence(
        x, index[:, None], batch_size=batch_size, shuffle=shuffle, slots=slots, seed=3, workers=2
    )


def recording() -> Recording:
    model = Recording()
    model.compile("sgd", run_eagerly=True)
    return model


# -- zero copy ----------------------------------------------------------------------------------


@scenario
def zero_copy() -> Found:
    """Addresses inside train_step, and a slot that is changed on purpose."""
    seen: list[tuple[int, ...]] = []
    kept: list[Any] = []

    def note(*arrays: Any) -> None:
        seen.append(tuple(a.__array_interface__["data"][0] for a in arrays))

    class Watching(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(keras.ops.mean(x, axis=(1, 2)))

        def train_step(self, *arguments: Any) -> Any:
            x, y, w = arguments[-1]
            if BACKEND == "tensorflow":
                import tensorflow as tf

                if self.run_eagerly:  # .numpy() copies; the buffer protocol does not
                    note(*(np.asarray(memoryview(t)) for t in (x, y, w)))
                else:
                    tf.numpy_function(note, [x, y, w], [])
            elif BACKEND == "torch":
                seen.append((x.data_ptr(), y.data_ptr(), w.data_ptr()))
            else:
                import jax

                on_device = jax.device_put(x)
                seen.append((on_device.unsafe_buffer_pointer(), y.ctypes.data, w.ctypes.data))
            if self.run_eagerly and not kept:
                kept.extend((on_device if BACKEND == "jax" else x, seen[-1][0]))
            return super().train_step(*arguments)

    rng = np.random.default_rng(0)
    sequence = AugSequence(
        rng.integers(0, 255, (96, 16, 16, 3), np.uint8),
        rng.normal(size=(96, 3)).astype("float32"),
        np.linspace(0, 1, 96, dtype="float32"),
        batch_size=16, workers=2, slots=12, transforms={"rescale": 1 / 255},
    )  # fmt: skip
    memory = sequence.consumer._source._attachment._ring.memory  # type: ignore[attr-defined]
    start = memory.ctypes.data
    for eagerly in (False, True) if BACKEND != "jax" else (True,):
        model = Watching()
        model.compile("sgd", "mse", run_eagerly=eagerly)
        model.fit(sequence, epochs=2, verbose=0)
    pointers = [p for batch in seen for p in batch]
    x, address = kept
    before = np.array(keras.ops.convert_to_numpy(x))
    opened = sequence.consumer._source.opened
    segment = attach(opened.segment, writable=True)
    segment[address - start : address - start + 4] = np.frombuffer(
        np.float32(1234.5).tobytes(), np.uint8
    )
    after = np.array(keras.ops.convert_to_numpy(x))
    return {
        "batches": len(seen),
        "in_ring": all(start <= p < start + memory.nbytes for p in pointers),
        "aligned": all(p % 64 == 0 for p in pointers),
        "changed": bool(after.ravel()[0] == 1234.5 and before.ravel()[0] != 1234.5),
        "copies": sequence.consumer.copies,
    }


# -- never torn ---------------------------------------------------------------------------------


def exact_model() -> Any:
    """Its loss is 0 if and only if every number of x equals y."""
    inputs = keras.Input((1024,))
    nothing = 0 * keras.layers.Dense(1)(inputs)
    most = keras.layers.Lambda(lambda t: keras.ops.max(t, axis=1, keepdims=True))(inputs)
    least = keras.layers.Lambda(lambda t: keras.ops.min(t, axis=1, keepdims=True))(inputs)
    model = keras.Model(inputs, keras.layers.Concatenate()([most + nothing, least]))
    model.compile("sgd", lambda y, p: keras.ops.max(keras.ops.abs(p - y)))
    return model


class Slow(keras.callbacks.Callback):  # type: ignore[misc]
    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        time.sleep(0.004)  # a slow training step, not a wait


@scenario
def never_torn() -> Found:
    """500 batches through rings of 2, 3 and 4 slots, a slow and a fast consumer."""
    found: Found = {}
    for slots in (2, 3, 4):
        for name, callbacks in (("fast", []), ("slow", [Slow()])):
            sequence = numbered(800, 8, shuffle=True, slots=slots)
            model = exact_model()
            history = model.fit(sequence, epochs=5, verbose=0, callbacks=callbacks)
            found[f"{slots} {name}"] = [float(v) for v in history.history["loss"]]
            del model
            no_lease(sequence)
            sequence.close()
    return found


@scenario
def never_torn_by_frames() -> Found:
    """The same over batches that come by message, while the server is killed twice."""
    x, y = np.repeat(np.arange(800.0), 1024).reshape(800, 1024), np.arange(800.0)[:, None]
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder, restarted(Path(folder)) as server:
        for memory in ("frames", "shared"):
            sequence = AugSequence(
                x.astype("float32"), y, batch_size=8, slots=3, address=server.address,
                memory=memory, timeout=120,
            )  # fmt: skip
            with killed_at_random(server, kills=2, seed=3):
                history = exact_model().fit(sequence, epochs=5, verbose=0, callbacks=[Slow()])
            found[sequence.consumer.memory] = [float(v) for v in history.history["loss"]]
            found[f"{memory}: copies"] = sequence.consumer.copies
            sequence.close()
        found["kills"] = server.kills
    return found


@scenario
def keeping_everything() -> Found:
    """A consumer that keeps every tensor still gets every batch, and none of its tensors moves."""
    sequence = numbered(800, 8, shuffle=True, slots=4)
    model = recording()
    model.keeps = True
    model.fit(sequence, epochs=5, verbose=0)
    wrong = sum(
        not bool((np.asarray(keras.ops.convert_to_numpy(x))[0] == first).all())
        for first, x in model.kept
    )
    return {"kept": len(model.kept), "wrong": wrong, "copies": sequence.consumer.copies}


# -- Keras as it is -----------------------------------------------------------------------------


class StopAt(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a fit in its second epoch, in one of three ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.batches = 0

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.batches += 1
        if self.batches == 14:
            if self.how == "early stopping":
                self.model.stop_training = True
            elif self.how == "exception":
                raise RuntimeError("on purpose")
            else:
                os.kill(os.getpid(), signal.SIGINT)


def whole(epochs: list[list[int]], samples: int) -> bool:
    return bool(epochs) and all(sorted(epoch) == list(range(samples)) for epoch in epochs)


@scenario
def every_epoch_is_whole() -> Found:
    """The multiset of delivered samples in each epoch of fit, after whatever came before."""
    found: Found = {}
    for stream_shuffles in (True, False):
        for fit_shuffles in (True, False):
            name = f"stream {stream_shuffles}, fit {fit_shuffles}"
            train = numbered(75, 8, shuffle=stream_shuffles, width=16)
            validation = numbered(20, 8, shuffle=False, width=16)
            model = recording()
            options = {"shuffle": fit_shuffles, "verbose": 0}
            model.fit(
                train, epochs=3, validation_data=validation, callbacks=[NewEpoch()], **options
            )
            found[f"{name}: three epochs"] = (len(model.trained), whole(model.trained, 75))
            tested = [model.tested[i : i + 20] for i in range(0, len(model.tested), 20)]
            found[f"{name}: validation"] = (len(tested), whole(tested, 20))
            model.trained = [[]]
            model.fit(train, epochs=5, steps_per_epoch=4, **options)
            two = [model.trained[0][:75], model.trained[0][75:]]
            found[f"{name}: steps_per_epoch"] = sorted(two[0]) == list(range(75)) and len(
                set(two[1])
            ) == len(two[1])
            for how in ("early stopping", "exception", "Ctrl-C"):
                ended = "no"
                try:
                    model.fit(train, epochs=4, callbacks=[StopAt(how)], **options)
                except (RuntimeError, KeyboardInterrupt) as error:
                    ended = type(error).__name__
                model.trained = [[]]
                model.fit(train, epochs=2, callbacks=[NewEpoch()], **options)
                found[f"{name}: after {how}"] = (ended, whole(model.trained, 75))
            found[f"{name}: released"] = no_lease(train, validation)
            train.close()
            validation.close()
    return found


@scenario
def predict_is_in_order() -> Found:
    """predict and evaluate on an unshuffled stream."""
    sequence = numbered(75, 8, shuffle=False, width=16)
    model = recording()
    twice = [model.predict(sequence, verbose=0).ravel().tolist() for _ in range(2)]
    model.evaluate(sequence, verbose=0)
    return {
        "in_order": twice == [list(range(75))] * 2,
        "evaluated": model.tested == list(range(75)),
        "released": no_lease(sequence),
    }


@scenario
def epochs_advance() -> Found:
    """Three epochs with validation: epochs 0, 1, 2 of the stream, whatever hooks are called."""
    x = np.full((40, 8, 8, 3), 100, np.uint8)
    train = AugSequence(
        x, np.zeros((40, 1), "float32"), batch_size=8, seed=0, workers=2,
        transforms={"brightness_range": (0.1, 2.0)},
    )  # fmt: skip
    validation = numbered(20, 8, shuffle=False, width=3)
    keys: list[tuple[int, int]] = []
    get = train.consumer.get

    def noting(epoch: int, step: int) -> Any:
        keys.append((epoch, step))
        return get(epoch, step)

    train.consumer.get = noting  # type: ignore[method-assign, assignment]
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(train, epochs=3, verbose=0)
    first = list(keys)
    one = [batch[0].copy() if BACKEND != "torch" else batch[0].numpy().copy() for batch in train]
    two = [batch[0].copy() if BACKEND != "torch" else batch[0].numpy().copy() for batch in train]
    validation.close()
    return {
        "epochs": [sorted({s for e, s in first if e == epoch}) for epoch in range(4)],
        "last": first[-15:] == [(e, s) for e in range(3) for s in range(5)],
        "differ": not any(np.array_equal(a, b) for a, b in zip(one, two, strict=True)),
    }


@scenario
def twenty_interrupted_fits() -> Found:
    """Early stops, exceptions and Ctrl-C, again and again: no lease is left, fit works again."""
    sequence = numbered(75, 8, shuffle=True, width=16, slots=8)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    for i in range(20):
        how = ("early stopping", "exception", "Ctrl-C")[i % 3]
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):
            model.fit(sequence, epochs=3, verbose=0, callbacks=[StopAt(how)])
        no_lease(sequence)
    history = model.fit(sequence, epochs=2, verbose=0)
    return {"released": no_lease(sequence), "epochs": len(history.history["loss"])}


@scenario
def ctrl_c_at_random_moments() -> Found:
    """Ctrl-C from outside, whatever a fit is doing: it ends, and the next fit is whole.

    The model was built before. Ctrl-C while Keras builds one may leave TensorFlow so that every
    later fit of the process fails ("EagerTensor has no attribute 'handle'", seen once in a hundred
    runs or so, in code that has no batch of ours).
    """
    sequence = numbered(75, 8, shuffle=True, width=16, slots=4)
    rng = random.Random(4)
    ended, pressed, spoiled = [], 0, 0
    for _ in range(20):
        over = threading.Event()
        delay = rng.uniform(0.0, 0.15)

        def press(over: threading.Event, delay: float) -> None:
            nonlocal pressed
            # Python loses a Ctrl-C that hits a finalizer; then a user presses again.
            while not over.wait(delay):
                pressed += 1
                os.kill(os.getpid(), signal.SIGINT)
                delay = 1.0

        presser = threading.Thread(target=press, args=(over, delay))
        model = recording()
        model.fit(sequence, epochs=1, verbose=0)
        try:
            presser.start()
            model.fit(sequence, epochs=10_000, verbose=0)
        except KeyboardInterrupt:
            ended.append("KeyboardInterrupt")
        except Exception as error:
            ended.append(f"{type(error).__name__}: {error}"[:300])
        over.set()
        presser.join()
        no_lease(sequence)
        try:
            forget_what_was_interrupted()
            model = recording()
            model.fit(sequence, epochs=1, verbose=0)
            trained = model.trained
        except Exception as error:
            # A framework that was interrupted half-way is not what it was, in places that nobody
            # has counted. What is promised is that the sequence is: a pass as Keras makes it.
            print(f"a fit after Ctrl-C: {error!r:.300}", file=sys.stderr)
            spoiled += 1
            trained = [
                [int(label) for i in range(sequence.num_batches) for label in sequence[i][1]]
            ]
        if not whole(trained, 75):
            ended.append(f"not whole: {trained}")
    return {
        "ended": sorted(set(ended)),
        "fits": len(ended),
        "again": pressed - 20,
        "spoiled": spoiled,
    }


def forget_what_was_interrupted() -> None:
    """What a Ctrl-C in the middle of a step has left behind in the frameworks themselves.

    Under JAX Keras leaves a model without its variables, and now and then a scope of its own open,
    in which nobody can make a model; under PyTorch, gradients switched off for the whole thread.
    """
    keras.utils.clear_session()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_grad_enabled(True)


@scenario
def keras_workers_are_refused() -> Found:
    """workers and use_multiprocessing of Keras do nothing but warn."""
    sequence = numbered(40, 8, shuffle=True, width=16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sequence.workers = 4
        sequence.use_multiprocessing = True
        other = AugSequence(np.zeros((8, 4)), batch_size=4, workers=4, use_multiprocessing=True)
    model = recording()
    model.fit(sequence, epochs=2, verbose=0, callbacks=[NewEpoch()])
    return {
        "warnings": sum("is ignored" in str(w.message) for w in caught),
        "workers": [sequence.workers, other.workers, sequence.use_multiprocessing],
        "whole": whole(model.trained, 40),
    }


@scenario
def close_with_a_live_tensor() -> Found:
    """close() unlinks the ring at once; what is alive stays readable."""
    sequence = numbered(40, 8, shuffle=False, width=16)
    x, _ = sequence[2]
    name = sequence.consumer._source.opened.segment
    sequence.close()
    wait_until(lambda: not os.path.exists(f"/dev/shm/{name}"), "the segment to be unlinked", 10)
    return {"readable": np.asarray(x)[:, 0].tolist() == list(range(16, 24))}


@scenario
def a_dead_server_is_an_error() -> Found:
    """SIGKILL of the private server in mid-epoch: fit raises, and the next sequence works."""

    class Kill(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            if batch == 3 and local._server is not None:
                os.kill(local._server.pid, signal.SIGKILL)

    sequence = numbered(4000, 8, shuffle=True, width=16)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    error = ""
    try:
        model.fit(sequence, epochs=50, verbose=0, callbacks=[Kill()])
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    again = numbered(40, 8, shuffle=True, width=16)
    history = model.fit(again, epochs=1, verbose=0)
    return {"lost": "ServerLost" in error, "error": error[:300], "again": len(history.history)}


@scenario
def structures() -> Found:
    """Several inputs and outputs, as dicts and as tuples, with sample weights."""
    rng = np.random.default_rng(1)
    picture, extra = rng.integers(0, 255, (40, 8, 8, 3), np.uint8), rng.normal(size=(40, 5))
    target, other = rng.normal(size=(40, 1)), rng.normal(size=(40, 2))
    a, b = keras.Input((8, 8, 3), name="picture"), keras.Input((5,), name="extra")
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(a), b])
    outputs = {
        "one": keras.layers.Dense(1, name="one")(joined),
        "two": keras.layers.Dense(2, name="two")(joined),
    }
    losses = {}
    for name, x, y, inputs, outs in (
        ("dict", {"picture": picture, "extra": extra}, {"one": target, "two": other},
         {"picture": a, "extra": b}, outputs),
        ("tuple", (picture, extra), (target, other), [a, b], list(outputs.values())),
    ):  # fmt: skip
        model = keras.Model(inputs, outs)
        model.compile("sgd", "mse" if name == "dict" else ["mse", "mse"])
        sequence = AugSequence(
            x, y, batch_size=8, workers=2, seed=1,
            transforms={"rescale": 1 / 255, "horizontal_flip": True},
        )  # fmt: skip
        history = model.fit(sequence, epochs=2, verbose=0)
        losses[name] = len(history.history["loss"])
    weighted = AugSequence(extra, target, np.linspace(0, 1, 40), batch_size=8, workers=2)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    losses["weighted"] = len(model.fit(weighted, epochs=2, verbose=0).history["loss"])
    classes = AugSequence(extra, np.arange(40) % 3, batch_size=8, workers=2)
    model = keras.Sequential([keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    weights = {0: 1.0, 1: 2.0, 2: 0.5}
    fitted = model.fit(classes, epochs=2, verbose=0, class_weight=weights)
    losses["class_weight"] = len(fitted.history["loss"])
    return losses


@scenario
def picture_files() -> Found:
    """Folders of files, one of them broken: batches of uneven length train, evaluate, predict."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(40):
            name = os.path.join(folder, ("dark", "light")[i % 2], f"{i:02}.png")
            os.makedirs(os.path.dirname(name), exist_ok=True)
            picture = np.full((12, 10, 3), 40 + 160 * (i % 2) + i, np.uint8)
            PIL.Image.fromarray(picture).save(name)
        with open(os.path.join(folder, "dark", "08.png"), "wb") as broken:
            broken.write(b"no picture")
        train, validation = (
            AugSequence(
                data=folder, pictures={"label_mode": "categorical"}, target_size=(8, 8),
                batch_size=8, seed=1, workers=2, validation_split=0.2, subset=subset,
                shuffle=subset == "training", bad_samples="skip",
                transforms={"rescale": 1 / 255, "horizontal_flip": True},
            )
            for subset in ("training", "validation")
        )  # fmt: skip
        model = keras.Sequential(
            [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, activation="softmax")]
        )
        model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(train, validation_data=validation, epochs=3, verbose=0)
        predicted = model.predict(validation, verbose=0)
        found = {
            "classes": list(train.consumer.class_names),
            "epochs": len(history.history["val_accuracy"]),
            "predicted": list(predicted.shape),
            "bad": [b.sample for b in train.consumer.bad_samples(2)],
            "released": no_lease(train, validation),
        }
        train.close()
        validation.close()
        return found


def main() -> None:
    for name in sys.argv[2:] or [name for name in SCENARIOS if name not in ALONE]:
        faulthandler.dump_traceback_later(DEADLINE, exit=True)
        started = time.monotonic()
        try:
            found = SCENARIOS[name]()
        except Exception as error:
            import traceback

            found = {"error": f"{error!r}", "traceback": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()
        found = {"scenario": name, "seconds": round(time.monotonic() - started, 1), **found}
        print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
