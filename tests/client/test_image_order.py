"""Keras's order of batches: call for call on np.random, and by number without it."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE, image_data_generators
from recipe_feed import Feeds, instead_of_a_server

Array = np.ndarray[Any, Any]

pytestmark = SCIPY_NOISE

OPTIONS: dict[str, Any] = {
    "rotation_range": 20, "width_shift_range": 0.2, "horizontal_flip": True, "rescale": 1 / 255,
}  # fmt: skip


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """The module with Keras's iterators."""
    yield from image_data_generators()


@pytest.fixture
def ours(keras: ModuleType) -> SimpleNamespace:
    """Our iterators, by Keras's names."""
    from augclient.image import array_iterator, iterator

    return SimpleNamespace(
        NumpyArrayIterator=array_iterator.NumpyArrayIterator, Iterator=iterator.Iterator
    )


@pytest.fixture
def feeds(ours: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Feeds:
    """What iterators open in the place of a server's streams."""
    from augclient.image import supply

    return instead_of_a_server(monkeypatch, supply)


def pictures(n: int) -> Array:
    return np.random.default_rng(n).integers(0, 256, (n, 6, 5, 3)).astype(np.uint8)


def pair(
    keras: ModuleType, ours: SimpleNamespace, order: str, n: int = 23, **arguments: Any
) -> tuple[Any, Any]:
    """Keras's iterator and ours over the same pictures."""
    generator = keras.ImageDataGenerator(**OPTIONS)
    generator.order = order  # as ours has it; Keras's iterator does not look
    x, y = pictures(n), np.arange(n)
    theirs, own = (
        module.NumpyArrayIterator(x, y, generator, **arguments) for module in (keras, ours)
    )
    return theirs, own


def same(got: Any, wanted: Any) -> bool:
    """Whether two batches are, bit for bit."""
    if isinstance(wanted, (tuple, list)):
        return type(got) is type(wanted) and len(got) == len(wanted) and all(map(same, got, wanted))
    if not isinstance(wanted, np.ndarray):
        return bool(got == wanted)
    return (
        isinstance(got, np.ndarray)
        and (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        and np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(wanted).tobytes()
    )


COUNTERS = ("batch_index", "total_batches_seen", "index_array", "n", "batch_size", "seed")


def counters(iterator: Any) -> list[Any]:
    return [getattr(iterator, name) for name in COUNTERS]


Call = Callable[[Any], Any]
CALLS: dict[str, Call] = {
    "next": next,
    "item": lambda it: it[len(it) // 2],
    "first": lambda it: it[0],
    "last": lambda it: it[len(it) - 1],
    "from the end": lambda it: it[-1],
    "reset": lambda it: it.reset(),
    "epoch end": lambda it: it.on_epoch_end(),
    "indexes": lambda it: next(it.index_generator),
    "draw": lambda it: it._set_index_array(),
    "batch": lambda it: it._get_batches_of_transformed_samples(np.array([3, 1])),
    "length": len,
    "num_batches": lambda it: it.num_batches,
    "batch size": lambda it: setattr(it, "batch_size", 4),
}


def played(iterator: Any, calls: list[str], start: int | None) -> list[Any]:
    """What an iterator gives and counts, and np.random's state after every call."""
    if start is not None:
        np.random.seed(start)
    heard = []
    for name in calls:
        heard.append(CALLS[name](iterator))
        heard.append([*counters(iterator)[:2], np.copy(iterator.index_array)])
        heard.append(int(np.random.get_state(legacy=False)["state"]["pos"]))
    return heard


@pytest.mark.parametrize("case", range(12))
def test_any_mix_of_calls_gives_in_keras_order_what_keras_gives(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, case: int
) -> None:
    rng = random.Random(case)
    arguments: dict[str, Any] = {
        "batch_size": rng.choice([5, 7, 40]),
        "shuffle": rng.random() < 0.7,
        "seed": rng.choice([None, 0, 99]),
    }
    theirs, own = pair(keras, ours, "keras", **arguments)
    calls = rng.choices(list(CALLS), k=20)
    before = np.random.get_state()
    try:
        wanted = played(theirs, calls, 7)
        got = played(own, calls, 7)
    finally:
        np.random.set_state(before)
    for i, (mine, keras_s) in enumerate(zip(got, wanted, strict=True)):
        assert same(mine, keras_s), (calls, i // 3, calls[i // 3])
    assert not any(asked[0] == "in order" for asked in feeds.asked)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("calls", [
    ["next"] * 12,
    ["next"] * 3 + ["reset"] + ["next"] * 7,
    ["next", "item", "next", "last", "next", "next", "next", "next"],
    ["first", "next", "next", "next", "next"],
    ["last", "item", "first", "item", "next", "reset", "next"],
    ["next", "indexes", "next", "indexes", "next", "next"],
    ["from the end", "next", "next"],
    ["next", "next", "batch size", "next", "next", "item", "reset", "next"],
], ids=lambda calls: " ".join(calls[:5]))  # fmt: skip
def test_calls_of_ones_own_give_in_stream_order_what_keras_gives(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, calls: list[str], shuffle: bool
) -> None:
    theirs, own = pair(keras, ours, "stream", batch_size=6, shuffle=shuffle, seed=5)
    before = np.random.get_state()
    try:
        wanted = played(theirs, calls, 7)
        np.random.seed(7)
        untouched = np.random.get_state()
        got = played(own, calls, None)
        assert same(list(np.random.get_state()), list(untouched)), "np.random is the program's"
    finally:
        np.random.set_state(before)
    for i in range(len(calls)):
        assert same(got[3 * i : 3 * i + 2], wanted[3 * i : 3 * i + 2]), (i, calls[i])


def test_batches_in_their_order_are_asked_for_in_order(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    _, own = pair(keras, ours, "stream", n=20, batch_size=6, shuffle=True, seed=5)
    for _ in range(6):
        next(own)
    own.reset()
    next(own)
    assert feeds.asked == [("in order", 5, step, origin) for step, origin in (
        (0, 0), (1, 0), (2, 0), (3, 0), (0, 4), (1, 4), (0, 6),
    )]  # fmt: skip
    _, own = pair(keras, ours, "stream", n=20, batch_size=6, shuffle=True, seed=5)
    for epoch in range(2):
        for step in range(len(own)):
            own[step]
        own.on_epoch_end()
        assert feeds.asked[-4:] == [("in order", 5, step, 4 * epoch) for step in range(4)]


def test_without_a_seed_one_is_drawn_from_np_random_once(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    streams = []
    before = np.random.get_state()
    try:
        for start in (1, 1, 2):
            np.random.seed(start)
            _, own = pair(keras, ours, "stream", batch_size=6, shuffle=True, seed=None)
            streams.append([next(own) for _ in range(6)])
            assert own.seed is None
    finally:
        np.random.set_state(before)
    assert same(streams[0], streams[1])
    assert not same(streams[0][0], streams[2][0])
    assert len({asked[1] for asked in feeds.asked}) == 2


def test_what_next_gives_is_the_caller_s_own(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    for order in ("stream", "keras"):
        _, own = pair(keras, ours, order, batch_size=6, shuffle=True, seed=1)
        for x, y in (next(own), own[1], own.next()):
            assert x.flags.writeable
            assert x.flags.owndata
            assert y.flags.writeable
            x /= 255


def test_an_order_of_the_user_s_own_is_followed(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    theirs, own = pair(keras, ours, "stream", n=20, batch_size=6, shuffle=True, seed=5)
    for iterator in (theirs, own):
        iterator.index_array = np.arange(20)[::-1].copy()
    before = np.random.get_state()
    wanted = [theirs[i] for i in range(3)]
    np.random.set_state(before)
    assert same([own[i] for i in range(3)], wanted)
    for iterator in (theirs, own):
        next(iterator)
        iterator.index_array[:12] = iterator.index_array[11::-1].copy()
    wanted = [next(theirs) for i in range(3)]
    np.random.set_state(before)
    assert same([next(own) for i in range(3)], wanted)


def test_a_dataset_may_be_empty_and_a_batch_too_large(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    before = np.random.get_state()
    for arguments in ({"n": 0, "batch_size": 5}, {"n": 3, "batch_size": 0},
                      {"n": 3, "batch_size": 50}):  # fmt: skip
        theirs, own = pair(keras, ours, "stream", shuffle=True, seed=3, **arguments)
        wanted = [next(theirs) for _ in range(3)]
        np.random.set_state(before)
        assert same([next(own) for _ in range(3)], wanted)
        assert counters(own)[:2] == counters(theirs)[:2]


def test_an_index_beyond_the_end_is_refused_as_by_keras(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    for iterator in pair(keras, ours, "stream", n=20, batch_size=6):
        with pytest.raises(ValueError, match="Asked to retrieve element 4, but the Sequence has "):
            iterator[4]


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_a_seed_that_np_random_does_not_take_is_refused_as_by_keras(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds, seed: Any
) -> None:
    for shuffle in (True, False):
        for iterator in pair(keras, ours, "stream", shuffle=shuffle, seed=seed):
            with pytest.raises((ValueError, TypeError), match=r"Seed must be|cast|safe"):
                next(iterator)


def test_threads_that_ask_at_once_get_every_batch_once(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    theirs, own = pair(keras, ours, "stream", n=60, batch_size=5, shuffle=True, seed=5)
    before = np.random.get_state()
    wanted = {x.tobytes() for x, _ in (next(theirs) for _ in range(24))}
    np.random.set_state(before)
    got: list[Array] = []
    together = threading.Barrier(4)

    def ask() -> None:
        together.wait(10)
        for _ in range(6):
            got.append(next(own)[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(got) == 24
    assert {x.tobytes() for x in got} == wanted


def test_a_class_that_only_makes_batches_works_as_with_keras(
    keras: ModuleType, ours: SimpleNamespace
) -> None:
    def of(base: Any) -> Any:
        class Noise(base):  # type: ignore[misc]
            def __init__(self, workers: int) -> None:
                super().__init__(17, 5, True, 3, workers=workers)

            def _get_batches_of_transformed_samples(self, index_array: Array) -> Any:
                return index_array, np.random.random(len(index_array))

        return Noise(4)

    theirs, own = of(keras.Iterator), of(ours.Iterator)
    rng = random.Random(0)
    calls = rng.choices([name for name in CALLS if name != "batch"], k=60)
    before = np.random.get_state()
    try:
        wanted, got = played(theirs, calls, 7), played(own, calls, 7)
    finally:
        np.random.set_state(before)
    assert all(map(same, got, wanted))
    assert (own.workers, own.use_multiprocessing) == (4, False)
    own.use_multiprocessing = True
    assert own.use_multiprocessing, "a class of the user's own may profit"


def test_a_forgotten_iterator_closes_its_stream_at_once(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    theirs, own = pair(keras, ours, "stream")
    del theirs
    next(own)
    own[0]
    indexes = own.index_generator
    feed = weakref.ref(feeds.opened.pop())
    gc.disable()
    try:
        del own
        assert feed() is None
    finally:
        gc.enable()
    with pytest.raises(ReferenceError, match="is gone; keep it"):
        next(indexes)


def test_a_class_without_batches_says_so(ours: SimpleNamespace) -> None:
    with pytest.raises(NotImplementedError):
        next(ours.Iterator(4, 2, False, None))


def test_a_subclass_that_changes_batches_gets_keras_order(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    def of(base: Any) -> Any:
        class Noisy(base):  # type: ignore[misc]
            def _get_batches_of_transformed_samples(self, index_array: Array) -> Any:
                x, y = super()._get_batches_of_transformed_samples(index_array)
                x += np.random.normal(size=x.shape)
                return x, y

        return Noisy(pictures(13), np.arange(13), keras.ImageDataGenerator(**OPTIONS), 5, True,
                     seed=1)  # fmt: skip

    calls = ["next", "next", "item", "epoch end", "first", "next", "num_batches", "last", "next"]
    before = np.random.get_state()
    try:
        wanted = played(of(keras.NumpyArrayIterator), calls, 7)
        got = played(of(ours.NumpyArrayIterator), calls, 7)
    finally:
        np.random.set_state(before)
    assert all(map(same, got, wanted))


def test_keras_s_own_workers_are_refused_for_what_a_server_makes(
    keras: ModuleType, ours: SimpleNamespace, feeds: Feeds
) -> None:
    _, own = pair(keras, ours, "stream")
    with pytest.warns(UserWarning, match="workers=4 is ignored"):
        own.workers = 4
    with pytest.warns(UserWarning, match="use_multiprocessing=True is ignored"):
        own.use_multiprocessing = True
    own.max_queue_size = 20
    assert (own.workers, own.use_multiprocessing, own.max_queue_size) == (1, False, 20)
