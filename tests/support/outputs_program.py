"""What tf.data and PyTorch make of a stream, run by test_outputs.py: `outputs_program.py BACKEND`.

Each scenario prints one line of JSON: its name and what it found.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

BACKEND = sys.argv[1]
os.environ["KERAS_BACKEND"] = BACKEND
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np  # noqa: E402
from processes import wait_until  # noqa: E402

from augclient import Consumer  # noqa: E402
from augproto.errors import ConfigError  # noqa: E402

DEADLINE = 100
Found = dict[str, Any]
SCENARIOS: dict[str, list[Callable[[], Found]]] = {"tensorflow": [], "torch": []}

RNG = np.random.default_rng(5)
X = RNG.integers(0, 256, (53, 8, 8, 3), np.uint8)
Y = np.arange(53, dtype=np.float32)
OPTIONS: dict[str, Any] = {
    "batch_size": 8, "seed": 5, "workers": 2, "slots": 8,
    "transforms": {"rotation_range": 30, "horizontal_flip": True, "rescale": 1 / 255},
}  # fmt: skip
STEPS = 7


def scenario(backend: str) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    def note(function: Callable[[], Found]) -> Callable[[], Found]:
        SCENARIOS[backend].append(function)
        return function

    return note


def free(consumer: Consumer) -> bool:
    """Wait until nothing holds a slot."""

    def released() -> bool:
        gc.collect()
        return consumer.leased == 0

    wait_until(released, "all slots to be released", 20)
    return True


def memory(consumer: Consumer) -> tuple[int, int]:
    """Where the ring lies."""
    ring = consumer._source._attachment._ring.memory  # type: ignore[attr-defined]
    return ring.ctypes.data, ring.ctypes.data + ring.nbytes


def epochs_of(count: int) -> list[list[bytes]]:
    """The bytes of each batch of the first epochs, by a plain consumer."""
    with Consumer(X, Y, **OPTIONS) as consumer:
        return [
            [b"".join(np.asarray(a).tobytes() for a in b.as_tuple()) for b in consumer.epoch(e)]
            for e in range(count)
        ]


# -- tf.data --------------------------------------------------------------------------------------


def joined(element: tuple[Any, ...]) -> bytes:
    return b"".join(np.asarray(memoryview(tensor)).tobytes() for tensor in element)


def labels_of(dataset: Any) -> list[int]:
    return [int(label) for _, y in dataset for label in y.numpy().ravel()]


@scenario("tensorflow")
def values() -> Found:
    from augclient import AugSequence

    wanted = epochs_of(3)
    with_sequence = AugSequence(X, Y, **OPTIONS)
    dataset = with_sequence.as_tf_dataset()
    low, high = memory(with_sequence.consumer)
    got: list[list[bytes]] = []
    inside = []
    for _ in range(3):
        got.append([])
        for element in dataset:
            got[-1].append(joined(element))
            inside += [
                low <= np.asarray(memoryview(t)).__array_interface__["data"][0] < high
                for t in element
            ]
        del element
    found = {
        "equal": got == wanted,
        "differ": len({batch for epoch in got for batch in epoch}) == 3 * STEPS,
        "in_ring": all(inside),
        "cardinality": int(dataset.cardinality()),
        "spec": [str(spec.shape) + spec.dtype.name for spec in dataset.element_spec],
        "copies": with_sequence.consumer.copies,
        "released": free(with_sequence.consumer),
    }
    with_sequence.close()
    return found


@scenario("tensorflow")
def breaking_off() -> Found:
    from augclient import tf_data

    wanted = epochs_of(4)
    with Consumer(X, Y, **OPTIONS) as consumer:
        dataset = tf_data.as_dataset(consumer)
        first = joined(next(iter(dataset)))
        for element in dataset:
            second = joined(element)
            break
        del element
        whole = [joined(element) for element in dataset]
        after = [joined(element) for element in dataset]
        later = [joined(element) for element in tf_data.as_dataset(consumer, epoch=3, prefetch=0)]
        return {
            "again": first == second == wanted[0][0],
            "whole": whole == wanted[0],
            "after": after == wanted[1],
            "later": later == wanted[3],
            "released": free(consumer),
        }


@scenario("tensorflow")
def few_slots_are_held() -> Found:
    from augclient import AugSequence

    sequence = AugSequence(X, Y, **OPTIONS | {"batch_size": 1, "slots": 16})
    most, get = 0, sequence.consumer.get

    def counted(*key: Any, **how: Any) -> Any:
        nonlocal most
        most = max(most, sequence.consumer.leased)
        return get(*key, **how)

    sequence.consumer.get = counted  # type: ignore[method-assign]
    for _ in sequence.as_tf_dataset(prefetch=2).repeat(8):
        pass
    found = {"few": most <= 6, "copies": sequence.consumer.copies}
    sequence.close()
    return found


@scenario("tensorflow")
def structures() -> Found:
    from augclient import AugSequence

    weights = np.linspace(0, 1, 53)
    some = AugSequence(
        {"picture": X, "number": Y}, (Y, Y + 1), weights, batch_size=8, shuffle=False, workers=2
    )
    dataset = some.as_tf_dataset()
    elements = list(dataset)
    x, y, w = elements[-1]
    found = {
        "names": sorted(x), "y": [part.numpy().tolist() for part in y], "w": w.dtype.name,
        "x": x["number"].numpy().tolist(),
        "spec": sorted(dataset.element_spec[0]),
    }  # fmt: skip
    del elements, x, y, w
    found["released"] = free(some.consumer)
    some.close()
    alone = AugSequence(X, batch_size=53, workers=2)
    found["alone"] = [len(element) for element in alone.as_tf_dataset()]
    found["refused"] = []
    for wrong in ({"prefetch": -1}, {"prefetch": "x"}, {"epoch": -1}):
        try:
            alone.as_tf_dataset(**wrong)
        except ConfigError as error:
            found["refused"].append(str(error).partition(";")[0])
    alone.close()
    return found


@scenario("tensorflow")
def fit() -> Found:
    import keras
    import tensorflow as tf

    from augclient import AugSequence

    seen: list[list[int]] = []

    class Noting(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.dense(keras.ops.mean(x, axis=(1, 2)))

        def train_step(self, data: Any) -> Any:
            x, y = data
            tf.numpy_function(lambda y: seen[-1].extend(y.astype(int).tolist()), [y], [])
            return super().train_step((x, y))

    class Epochs(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            seen.append([])

    train = AugSequence(X, Y, **OPTIONS)
    validation = AugSequence(X, Y, **OPTIONS | {"shuffle": False})
    model = Noting()
    model.compile("sgd", "mse")
    watched = validation.as_tf_dataset()
    history = model.fit(
        train.as_tf_dataset(), validation_data=watched, epochs=3, verbose=0, callbacks=[Epochs()]
    )
    whole = [sorted(labels) == list(range(53)) for labels in seen]
    orders = {tuple(labels) for labels in seen}
    seen.clear()
    model.fit(
        train.as_tf_dataset(epoch=3).repeat(), epochs=2, steps_per_epoch=STEPS, verbose=0,
        callbacks=[Epochs()],
    )  # fmt: skip
    repeated = [sorted(labels) == list(range(53)) for labels in seen]
    predicted = model.predict(watched, verbose=0)
    again = model.predict(watched, verbose=0)
    found = {
        "whole": whole, "orders": len(orders), "repeated": repeated,
        "losses": len(history.history["val_loss"]),
        "predicted": list(predicted.shape), "drawn_anew": not np.array_equal(predicted, again),
        "in_order": labels_of(watched) == list(range(53)),
        "released": free(train.consumer) and free(validation.consumer),
    }  # fmt: skip
    train.close()
    validation.close()
    return found


@scenario("tensorflow")
def an_error() -> Found:
    import tensorflow as tf

    from augclient import AugSequence

    def fails(picture: Any) -> Any:
        raise ValueError("no such picture")

    sequence = AugSequence(X, Y, function=fails, batch_size=8, workers=2)
    try:
        list(sequence.as_tf_dataset())
        told = ""
    except tf.errors.OpError as error:
        told = str(error)
    found = {
        "named": "WorkerError" in told and "no such picture" in told,
        "released": free(sequence.consumer),
    }
    sequence.close()
    return found


@scenario("tensorflow")
def ctrl_c() -> Found:
    from augclient import AugSequence

    sequence = AugSequence(X, Y, **OPTIONS)
    dataset = sequence.as_tf_dataset().repeat()
    taken = threading.Event()

    def press() -> None:
        taken.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    try:
        for _ in dataset:
            taken.set()
        ended = "exhausted"
    except KeyboardInterrupt:
        ended = "KeyboardInterrupt"
    del _
    found = {"ended": ended, "released": free(sequence.consumer)}
    found["whole"] = sorted(labels_of(sequence.as_tf_dataset())) == list(range(53))
    sequence.close()
    return found


@scenario("tensorflow")
def ctrl_c_where_no_batch_comes() -> Found:
    from augclient import AugSequence

    def stands_still(picture: Any) -> Any:
        while True:
            time.sleep(1)

    sequence = AugSequence(X, Y, function=stands_still, batch_size=8, workers=1)
    asked = threading.Event()
    get = sequence.consumer.get

    def asked_for(*key: Any, **how: Any) -> Any:
        asked.set()
        return get(*key, **how)

    sequence.consumer.get = asked_for  # type: ignore[method-assign]

    def press() -> None:
        asked.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    started = time.monotonic()
    try:
        list(sequence.as_tf_dataset())
        ended = "exhausted"
    except KeyboardInterrupt:
        ended = "KeyboardInterrupt"
    except RuntimeError as error:
        # Before Python 3.12, pybind11 (TensorFlow's) makes this of an error that meets Ctrl-C.
        if sys.version_info >= (3, 12) or "REPLACED BY KeyboardInterrupt" not in str(error):
            raise
        ended = "KeyboardInterrupt"
    # Before the batch's own deadline of a minute, that is.
    found = {"ended": ended, "soon": time.monotonic() - started < 50}
    sequence.close()
    return found


# -- PyTorch --------------------------------------------------------------------------------------


@scenario("torch")
def loader() -> Found:
    from torch.utils.data import DataLoader

    from augclient import TorchDataset

    wanted = epochs_of(3)
    with Consumer(X, Y, writable=True, **OPTIONS) as consumer:
        dataset = TorchDataset(consumer)
        batches = DataLoader(dataset, batch_size=None, num_workers=0)
        low, high = memory(consumer)
        got: list[list[bytes]] = []
        inside = []
        for _ in range(2):
            got.append([])
            for x, y in batches:
                got[-1].append(x.numpy().tobytes() + y.numpy().tobytes())
                inside += [low <= tensor.data_ptr() < high for tensor in (x, y)]
                x *= 2  # may be written to, and is nobody else's
            del x, y
        for x, _y in batches:
            broken = x.numpy().tobytes()
            break
        del x, _y
        again = [x.numpy().tobytes() + y.numpy().tobytes() for x, y in batches]
        return {
            "equal": got == wanted[:2], "differ": got[0] != got[1], "in_ring": all(inside),
            "length": [len(dataset), len(batches)],
            "again": wanted[2][0].startswith(broken) and again == wanted[2],
            "copies": consumer.copies, "released": free(consumer),
        }  # fmt: skip


@scenario("torch")
def a_kept_tensor() -> Found:
    from augclient import TorchDataset

    with Consumer(X, Y, writable=True, **OPTIONS) as consumer:
        kept = [x[0, 0] for x, _ in TorchDataset(consumer)]
        held = consumer.leased
        del kept
        return {"held": held, "released": free(consumer)}


@scenario("torch")
def workers_of_a_loader() -> Found:
    from torch.utils.data import DataLoader

    from augclient import TorchDataset

    said = []
    with Consumer(X, Y, writable=True, **OPTIONS) as consumer:
        dataset = TorchDataset(consumer)
        for how in ("fork", "spawn"):
            batches = DataLoader(
                dataset, batch_size=None, num_workers=1, multiprocessing_context=how
            )
            try:
                list(batches)
                said.append("")
            except ConfigError as error:
                said.append(str(error))
        with_pickle = ""
        try:
            pickle.dumps(dataset)
        except ConfigError as error:
            with_pickle = str(error)
        whole = len(list(dataset))
    return {
        "said": ["num_workers=0" in text for text in [*said, with_pickle]],
        "whole": whole,
    }


@scenario("torch")
def read_only_memory() -> Found:
    from augclient import TorchDataset

    with Consumer(X, Y, **OPTIONS) as consumer:
        try:
            TorchDataset(consumer)
            said = ""
        except ConfigError as error:
            said = str(error)
    try:
        TorchDataset(X)  # type: ignore[arg-type]
        no_consumer = ""
    except ConfigError as error:
        no_consumer = str(error)
    with Consumer(X, Y, batch_size=8, workers=0) as inline:  # private memory
        x, _ = next(iter(TorchDataset(inline)))
        x += 1
    return {
        "said": "writable=True" in said,
        "no_consumer": "got ndarray; wanted Consumer" in no_consumer,
        "inline": list(x.shape),
    }


@scenario("torch")
def other_dtypes() -> Found:
    from augclient import AugSequence, TorchDataset

    options = OPTIONS | {"dtype": "float16"}
    with Consumer(X, Y > 20, writable=True, **options) as consumer:
        x, y = next(iter(TorchDataset(consumer)))
        dtypes = [str(x.dtype), str(y.dtype)]
    sequence = AugSequence(X, Y, **OPTIONS | {"dtype": "uint8", "transforms": {}})
    x, y = sequence[0]
    found = {"dtypes": dtypes, "sequence": [type(x).__name__, str(x.dtype)]}
    sequence.close()
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    for run in SCENARIOS[BACKEND]:
        faulthandler.dump_traceback_later(DEADLINE, exit=True)
        started = time.monotonic()
        try:
            found = run()
        except Exception as error:
            found = {"error": f"{error!r}", "traceback": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()
        found = {"scenario": run.__name__, "seconds": round(time.monotonic() - started, 1), **found}
        print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
