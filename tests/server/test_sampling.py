"""The sampler's promises: every sample once an epoch, the same ones whoever asks, shards apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from augproto.errors import ConfigError
from augproto.spec import Spec
from augserver.sampling import Sampler

GOLDEN = [
    [1, 0, 6, 8, 5, 4, 2, 7, 9, 3],
    [4, 8, 9, 7, 6, 0, 3, 1, 2, 5],
    [6, 7, 1, 3, 8, 9, 0, 4, 5, 2],
]


def sampler(length: int = 100, seed: int = 7, **options: Any) -> Sampler:
    return Sampler.of(Spec(data=("train.npz",), x="x", **options), length, seed)


def test_numpys_philox_counts_word_0_up_before_its_first_block() -> None:
    # All words at their maximum step over to zero, whose block is known (Random123, "philox4x64
    # 10"). The orders depend on this: epoch in word 2 keeps epochs 2**128 blocks apart.
    full = np.full(4, 2**64 - 1, np.uint64)
    generator = np.random.Philox(key=np.zeros(2, np.uint64), counter=full)
    assert generator.random_raw(2).tolist() == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC]
    assert generator.state["state"]["counter"].tolist() == [0, 0, 0, 0]


def test_a_seed_gives_these_orders_for_ever() -> None:
    ten = sampler(10, seed=0x0123456789ABCDEF)
    assert [ten.order(epoch).tolist() for epoch in (0, 1, 2)] == GOLDEN


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    orders = [sampler().order(epoch) for epoch in range(5)]
    for order in orders:
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(100))
    assert len({tuple(order.tolist()) for order in orders}) == 5


def test_every_place_of_an_order_is_equally_likely() -> None:
    four = sampler(4)
    counts = np.zeros((4, 4))
    for epoch in range(4000):
        counts[np.arange(4), four.order(epoch)] += 1
    assert np.abs(counts / 4000 - 0.25).max() < 0.03  # more than four standard deviations


def test_without_shuffle_the_order_is_the_datasets_in_every_epoch() -> None:
    plain = sampler(shuffle=False)
    assert plain.order(0).tolist() == plain.order(9).tolist() == list(range(100))


def test_two_samplers_and_any_sequence_of_questions_give_the_same_order() -> None:
    one, two = sampler(), sampler()
    forward = [one.order(epoch).tolist() for epoch in range(4)]
    backward = [two.order(epoch).tolist() for epoch in reversed(range(4))]
    assert forward == backward[::-1]
    assert one == two


@pytest.mark.parametrize("other", [8, 7 + 2**32, 2**64 - 1])
def test_another_seed_gives_another_order(other: int) -> None:
    assert sampler(seed=other).order(0).tolist() != sampler(seed=7).order(0).tolist()


def test_only_the_last_two_orders_are_kept_and_nobody_can_change_them() -> None:
    some = sampler()
    orders = [some.order(epoch) for epoch in range(5)]
    assert some.order(4) is orders[4]
    assert some.order(3) is orders[3]
    assert some.order(0) is not orders[0]
    with pytest.raises(ValueError, match="read-only"):
        orders[4][0] = 1


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_the_order_cut_in_pieces(shuffle: bool) -> None:
    some = sampler(batch_size=32, shuffle=shuffle)
    batches = [some.batch(2, step) for step in range(some.steps)]
    assert [len(batch) for batch in batches] == [32, 32, 32, 4]
    np.testing.assert_array_equal(np.concatenate(batches), some.order(2))


def test_drop_remainder_leaves_out_the_batch_that_is_not_full() -> None:
    assert sampler(batch_size=32, drop_remainder=True).steps == 3
    assert sampler(batch_size=25, drop_remainder=True).steps == 4
    assert sampler(batch_size=25).steps == 4


def test_validation_is_the_first_share_and_training_the_rest() -> None:
    split: dict[str, Any] = {"validation_split": 0.25, "shuffle": False}
    validation = sampler(10, subset="validation", **split)
    training = sampler(10, subset="training", **split)
    assert validation.order(0).tolist() == [0, 1]
    assert training.order(0).tolist() == list(range(2, 10))
    assert (training.low, training.high) == (2, 10)
    assert sampler(10, **split).samples == 10


def test_a_shuffled_subset_stays_within_itself() -> None:
    training = sampler(subset="training", validation_split=0.25)
    assert sorted(training.order(1).tolist()) == list(range(25, 100))


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_shards_share_an_epoch_out_among_them(count: int) -> None:
    whole = sampler().order(3)
    shards = [sampler(shard=(index, count)) for index in range(count)]
    for index, shard in enumerate(shards):
        np.testing.assert_array_equal(shard.order(3), whole[index::count])
        assert shard.samples == len(shard.order(3))
    assert sum(shard.samples for shard in shards) == 100


def test_batch_size_does_not_change_the_order() -> None:
    assert sampler(batch_size=3).order(1).tolist() == sampler(batch_size=64).order(1).tolist()


@pytest.mark.parametrize(
    ("length", "options", "message"),
    [
        (0, {}, "samples 0 to 0 leave 0"),
        (3, {"shard": (3, 4)}, "leave 0 to shard 3 of 4"),
        (3, {"validation_split": 0.3, "subset": "validation"}, "samples 0 to 0 leave 0"),
        (31, {"drop_remainder": True}, "leave 31 .* at least 32"),
    ],
)
def test_a_stream_without_a_batch_is_refused_with_its_numbers(
    length: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler(length, **options)


@pytest.mark.parametrize("step", [-1, 4, 100])
def test_a_step_outside_the_epoch_is_an_index_error(step: int) -> None:
    with pytest.raises(IndexError, match=f"step {step} .* 0 to 3"):
        sampler().batch(0, step)


def test_a_negative_epoch_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="epoch -1"):
        sampler().order(-1)
