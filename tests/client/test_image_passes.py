"""Iterators under Keras: passes are epochs of Keras's own order, and a look consumes nothing.

Traces are spelled as in test_passes.py: N is a read of `num_batches`, B and E are on_epoch_begin
and on_epoch_end, a number is the index of a batch; before the first bar Keras only looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import image_data_generators
from recipe_feed import Feeds, instead_of_a_server

Array = np.ndarray[Any, Any]

N, BATCH_SIZE, SEED = 23, 5, 11
STEPS = 5

#: Two calls of fit each, over five batches.
FITS = {
    "tensorflow": ["N N N 0 1 N E | B N N 0 2 1 4 3 E | B N N 1 4 3 0 2 E",
                   "N N N 0 1 N E | B N N 2 1 0 3 4 E"],
    "jax": ["N N B N N 3 N E | B N N 2 4 0 3 1 N E | B N N 2 0 1 3 4 N E",
            "N N N E | B N N 0 1 2 3 4 N E"],
    "torch": ["N N B N N 3 N E | B N N 0 3 4 1 2 N E | B N N 2 0 4 3 1 N E",
              "N N N E | B N N 3 1 2 0 4 N E"],
}  # fmt: skip


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """The module with Keras's iterators."""
    yield from image_data_generators()


@pytest.fixture
def feeds(keras: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Feeds:
    """What iterators open in the place of a server's streams."""
    from augclient.image import supply

    return instead_of_a_server(monkeypatch, supply)


def iterator(keras: ModuleType, n: int = N, **arguments: Any) -> Any:
    from augclient.image.array_iterator import NumpyArrayIterator

    x = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1)).astype(np.uint8)
    generator = keras.ImageDataGenerator(horizontal_flip=True, channel_shift_range=9.0)
    arguments = {"batch_size": BATCH_SIZE, "shuffle": True, "seed": SEED, **arguments}
    return NumpyArrayIterator(x, np.arange(n), generator, **arguments)


def keras_s(keras: ModuleType, count: int, n: int = N, **arguments: Any) -> list[Any]:
    """The first batches of Keras's own."""
    own = iterator(keras, n, **arguments)
    theirs = keras.NumpyArrayIterator(
        own.x, own.y, own.image_data_generator, own.batch_size, own.shuffle, seed=own.seed
    )
    before = np.random.get_state()
    batches = [next(theirs) for _ in range(count)]
    np.random.set_state(before)
    return batches


def replay(it: Any, part: str) -> list[Any]:
    """Do what Keras did; returns the batches."""
    batches = []
    for done in part.split():
        match done:
            case "N":
                assert it.num_batches == len(it)
            case "B":
                it.on_epoch_begin()
            case "E":
                it.on_epoch_end()
            case _:
                batches.append(it[int(done)])
    return batches


def alike(got: list[Any], wanted: list[Any]) -> bool:
    return len(got) == len(wanted) and all(
        np.array_equal(a, b) for x, y in zip(got, wanted, strict=True)
        for a, b in zip(x, y, strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("backend", FITS)
def test_shuffled_passes_are_keras_s_batches_one_after_the_other(
    keras: ModuleType, feeds: Feeds, backend: str
) -> None:
    it, taken, wanted = iterator(keras), 0, keras_s(keras, 3 * STEPS)
    for fit in FITS[backend]:
        look, *passes = fit.split("|")
        for x, y in replay(it, look):
            assert any(alike([(x, y)], [batch]) for batch in wanted[taken : taken + STEPS])
        assert it.total_batches_seen == taken
        for one in passes:
            assert alike(replay(it, one), wanted[taken : taken + STEPS])
            taken += STEPS
            assert it.total_batches_seen == taken
    assert {asked[0] for asked in feeds.asked} == {"in order"}


def test_passes_in_order_have_the_step_of_their_index(keras: ModuleType, feeds: Feeds) -> None:
    it, wanted = iterator(keras, shuffle=False), keras_s(keras, 2 * STEPS, shuffle=False)
    got = replay(it, "N N N 0 1 N E B N N 4 2 3 1 0")
    assert alike(got[2:], [wanted[i] for i in (4, 2, 3, 1, 0)])
    assert alike(replay(it, "E N N N 0 1 N E B N N 0 1 2 3 4")[2:], wanted[STEPS:])


def test_batches_between_passes_follow_on(keras: ModuleType, feeds: Feeds) -> None:
    it, wanted = iterator(keras), keras_s(keras, STEPS)
    replay(it, "N N N 0 1 N E B N N 0 2 1 4 3 E")
    x, y = it[0]  # a look of one's own takes a number, as with Keras
    assert x.flags.owndata
    assert x.flags.writeable
    assert not alike([(x, y)], wanted[:1])
    assert it.total_batches_seen == STEPS + 1
    next(it)
    next(it)
    assert feeds.asked[-3:] == [
        ("in order", SEED, 0, STEPS), ("in order", SEED, 0, STEPS + 1),
        ("in order", SEED, 1, STEPS + 1),
    ]  # fmt: skip
    assert it.batch_index == 2
    replay(it, "N N N 0 1 N E B N N 0 2")
    assert it.batch_index == 2  # a pass does not move where `next` is
    assert it.total_batches_seen == STEPS + 3
    assert feeds.asked[-1] == ("in order", SEED, 1, STEPS + 3)


def test_a_pass_that_is_broken_off_is_not_begun_again(keras: ModuleType, feeds: Feeds) -> None:
    """fit(steps_per_epoch=2) in a loop must not see the same two batches for ever."""
    it = iterator(keras)
    seen = [
        replay(it, look + " B N N 0 2 E")[-2:]
        for look in ("N N B N N 3 N E", "N N N E", "N N N E")  # JAX: the first builds the model
    ]
    assert [asked for asked in feeds.asked if asked[2] == 0][-3:] == [
        ("in order", SEED, 0, STEPS * call) for call in range(3)
    ]
    assert not alike(seen[0], seen[1])
    assert it.total_batches_seen == 2 * STEPS
    next(it)
    assert it.total_batches_seen == 3 * STEPS + 1


def test_a_loop_of_ones_own_over_num_batches_goes_from_epoch_to_epoch(
    keras: ModuleType, feeds: Feeds
) -> None:
    it, wanted = iterator(keras), keras_s(keras, 3 * STEPS)
    got = [it[index] for _ in range(3) for index in range(it.num_batches)]
    assert alike(got, wanted)
    assert it.total_batches_seen == 3 * STEPS


def test_within_a_pass_batches_are_leased_and_again_the_same(
    keras: ModuleType, feeds: Feeds
) -> None:
    it = iterator(keras)
    replay(it, "N N N 0 1 N E B N")
    (x, y), (again, _) = it[3], it[3]
    if isinstance(x, np.ndarray):  # else a tensor of PyTorch's
        assert not x.flags.writeable
        assert not x.flags.owndata
    assert np.array_equal(x, again)
    assert y.flags.writeable, "labels are no part of the ring"


def test_a_single_batch_advances_from_epoch_to_epoch(keras: ModuleType, feeds: Feeds) -> None:
    it, wanted = iterator(keras, n=4), keras_s(keras, 3, n=4)
    got = replay(it, "N N B N N 0 N E B N N 0 N E B N N 0 N E B N N 0 N E")
    assert alike(got, [wanted[0], *wanted])


def test_a_batch_size_that_is_changed_between_passes_counts(
    keras: ModuleType, feeds: Feeds
) -> None:
    it = iterator(keras)
    replay(it, "N N N E B N N 0 1 2 3 4 N E")
    it.batch_size = 8
    sizes = [len(y) for _, y in replay(it, "N N N E B N N 0 1 2 N E")]
    assert sizes == [8, 8, 7]
    assert it.total_batches_seen == STEPS + 3


def test_settings_that_change_between_batches_count(keras: ModuleType, feeds: Feeds) -> None:
    it = iterator(keras)
    next(it)
    next(it)
    assert len(feeds.opened) == 1
    it.image_data_generator.rescale = 0.5
    low, _ = next(it)
    assert len(feeds.opened) == 2
    assert feeds.opened[0].closed
    assert not np.array_equal(low, keras_s(keras, 3)[2][0])
    it.image_data_generator.rescale = None
    assert alike([next(it)], keras_s(keras, 4)[3:])
    it.close()
    assert all(feed.closed for feed in feeds.opened)
    assert alike([next(it)], keras_s(keras, 5)[4:]), "and it opens again"


@pytest.mark.parametrize("order", ["stream", "keras"])
def test_fit_trains_on_every_sample_in_every_epoch(
    keras: ModuleType, feeds: Feeds, order: str
) -> None:
    import keras as library

    class Seen(library.metrics.Metric):  # type: ignore[misc]
        """The sum of all labels: powers of two, so that it tells which they were."""

        def __init__(self) -> None:
            super().__init__(name="seen")
            self.sum = self.add_weight(name="sum", initializer="zeros")

        def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
            self.sum.assign_add(library.ops.sum(library.ops.cast(y_true, "float32")))

        def result(self) -> Any:
            return library.ops.convert_to_tensor(self.sum)

        def reset_state(self) -> None:
            self.sum.assign(0.0)

    it = iterator(keras)
    it.y = 2.0 ** np.arange(N)
    it.image_data_generator.order = order
    model = library.Sequential([library.layers.Flatten(), library.layers.Dense(1)])
    model.compile("sgd", "mae", metrics=[Seen()])
    before = np.random.get_state()
    history = model.fit(it, epochs=3, verbose=0).history
    np.random.set_state(before)
    if order == "stream":
        assert history["seen"] == [2.0**N - 1] * 3
        assert it.total_batches_seen == 3 * STEPS
        assert len({asked[3] for asked in feeds.asked}) == 3
    else:  # Keras's looks count, and an order may be drawn anew at any time
        assert len(history["seen"]) == 3
        assert it.total_batches_seen > 3 * STEPS
