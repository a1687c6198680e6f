"""What Keras does, as recorded from Keras 3.15.1, becomes epochs and steps without a gap.

Each line of RECORDED is one call of fit, evaluate or predict on one sequence: N is a read of
`num_batches`, B and E are on_epoch_begin and on_epoch_end, a number is the index of a batch. The
part before the first bar is Keras's probing; every other part is one pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from augclient.passes import Passes

RECORDED = """
tensorflow: fit 1
    N N N 0 N E | B N N 0 E | B N N 0 E | B N N 0 E
    N N N 0 N E | B N N 0 E | B N N 0 E
tensorflow: fit 2
    N N N 0 1 N E | B N N 1 0 E | B N N 0 1 E | B N N 1 0 E
    N N N 0 1 N E | B N N 0 1 E | B N N 0 1 E
tensorflow: fit 5
    N N N 0 1 N E | B N N 0 2 1 4 3 E | B N N 1 4 3 0 2 E | B N N 1 4 3 2 0 E
    N N N 0 1 N E | B N N 0 1 2 3 4 E | B N N 0 1 2 3 4 E
tensorflow: train 5
    N N N 0 1 N E | B N N 4 3 1 2 0 E | B N N 1 0 2 3 4 E
tensorflow: validate 2
    N N N 0 1 N E | B N N 0 1 E | N E B N N 0 1 E
    N N N 0 1 N E | B N N 0 1 E
    N N N 0 1 N E | B N N 0 1 E
    N N N 0 1 | B N N 0 1 E
tensorflow: everything on one 1
    N N N 0 N E | B N N 0 E | B N N 0 E
    N N N 0 N E | B N N 0 E
    N N N 0 | B N N 0 E
    N N N 0 N E | B N N 0 E
tensorflow: evaluate a fresh model 1
    N N N 0 N E | B N N 0 E
tensorflow: predict with a fresh model 1
    N N N 0 | B N N 0 E
tensorflow: look first 1
    0 0 N N N 0 N E | B N N 0 E
tensorflow: everything on one 3
    N N N 0 1 N E | B N N 0 2 1 E | B N N 2 1 0 E
    N N N 0 1 N E | B N N 0 1 2 E
    N N N 0 1 | B N N 0 1 2 E
    N N N 0 1 N E | B N N 1 0 2 E
tensorflow: evaluate a fresh model 3
    N N N 0 1 N E | B N N 0 1 2 E
tensorflow: predict with a fresh model 3
    N N N 0 1 | B N N 0 1 2 E
tensorflow: look first 3
    0 2 N N N 0 1 N E | B N N 0 2 1 E
tensorflow: steps_per_epoch=2 5
    N N N 0 1 N E | B N N 1 0 3 E B 2 4 E B E | B N N 4 1 0 E
tensorflow: steps_per_epoch=3 5
    N N N 0 1 N E | B N N 1 3 2 4 E B 0 E | B N N 2 3 4 1 E B 0 E
tensorflow: stop and fit again 5
    N N N 0 1 N E | B N N 2 0 4
    N N N 0 1 N E | B N N 0 4 1 3 2 E
jax: fit 1
    N N B N N 0 N E | B N N 0 N E | B N N 0 N E | B N N 0 N E
    N N N E | B N N 0 N E | B N N 0 N E
jax: fit 2
    N N B N N 1 N E | B N N 1 0 N E | B N N 1 0 N E | B N N 0 1 N E
    N N N E | B N N 0 1 N E | B N N 0 1 N E
jax: fit 5
    N N B N N 3 N E | B N N 2 4 0 3 1 N E | B N N 2 0 1 3 4 N E | B N N 0 2 3 4 1 N E
    N N N E | B N N 0 1 2 3 4 N E | B N N 0 1 2 3 4 N E
jax: train 5
    N N B N N 0 N E | B N N 2 0 1 3 4 N E | B N N 0 3 2 1 4 N E
jax: validate 2
    N N N E | B N N 0 1 N E | N E B N N 0 1 N E
    N N N E | B N N 0 1 N E
    N N N E | B N N 0 1 N E
    N N | B N N 0 1 N E
jax: everything on one 1
    N N B N N 0 N E | B N N 0 N E | B N N 0 N E
    N N N E | B N N 0 N E
    N N | B N N 0 N E
    N N N E | B N N 0 N E
jax: evaluate a fresh model 1
    N N B N N 0 N E | B N N 0 N E
jax: predict with a fresh model 1
    N N | B N N 0 N E
jax: look first 1
    0 0 N N B N N 0 N E | B N N 0 N E
jax: everything on one 3
    N N B N N 2 N E | B N N 1 0 2 N E | B N N 1 2 0 N E
    N N N E | B N N 0 1 2 N E
    N N | B N N 0 1 2 N E
    N N N E | B N N 1 2 0 N E
jax: evaluate a fresh model 3
    N N B N N 0 N E | B N N 0 1 2 N E
jax: predict with a fresh model 3
    N N | B N N 0 1 2 N E
jax: look first 3
    0 2 N N B N N 2 N E | B N N 2 1 0 N E
jax: steps_per_epoch=2 5
    N N B N N 1 N E | B N N 4 0 E B 2 1 E B 3 N E | B N 0 3 E
jax: steps_per_epoch=3 5
    N N B N N 2 N E | B N N 4 0 3 E B 2 1 N E | B N 2 4 0 E B 1 3 N E
jax: stop and fit again 5
    N N B N N 2 N E | B N N 2 1
    N N N E | B N N 4 3 2 1 0 N E
torch: fit 1
    N N B N N 0 N E | B N N 0 N E | B N N 0 N E | B N N 0 N E
    N N N E | B N N 0 N E | B N N 0 N E
torch: fit 2
    N N B N N 0 N E | B N N 1 0 N E | B N N 0 1 N E | B N N 1 0 N E
    N N N E | B N N 0 1 N E | B N N 0 1 N E
torch: fit 5
    N N B N N 3 N E | B N N 0 3 4 1 2 N E | B N N 2 0 4 3 1 N E | B N N 3 4 0 2 1 N E
    N N N E | B N N 0 1 2 3 4 N E | B N N 0 1 2 3 4 N E
torch: train 5
    N N B N N 2 N E | B N N 1 3 4 0 2 N E | B N N 1 0 3 2 4 N E
torch: validate 2
    N N N E | B N N 0 1 N E | N E B N N 0 1 N E
    N N N E | B N N 0 1 N E
    N N N E | B N N 0 1 N E
    N N | B N N 0 1 N E
torch: everything on one 1
    N N B N N 0 N E | B N N 0 N E | B N N 0 N E
    N N N E | B N N 0 N E
    N N | B N N 0 N E
    N N N E | B N N 0 N E
torch: evaluate a fresh model 1
    N N B N N 0 N E | B N N 0 N E
torch: predict with a fresh model 1
    N N | B N N 0 N E
torch: look first 1
    0 0 N N B N N 0 N E | B N N 0 N E
torch: everything on one 3
    N N B N N 2 N E | B N N 0 2 1 N E | B N N 1 2 0 N E
    N N N E | B N N 0 1 2 N E
    N N | B N N 0 1 2 N E
    N N N E | B N N 2 1 0 N E
torch: evaluate a fresh model 3
    N N B N N 0 N E | B N N 0 1 2 N E
torch: predict with a fresh model 3
    N N | B N N 0 1 2 N E
torch: look first 3
    0 2 N N B N N 1 N E | B N N 2 1 0 N E
torch: steps_per_epoch=2 5
    N N B N N 1 N E | B N N 1 0 E B 2 3 E B 4 N E | B N 0 1 E
torch: steps_per_epoch=3 5
    N N B N N 1 N E | B N N 0 3 4 E B 1 2 N E | B N 0 4 2 E B 1 3 N E
torch: stop and fit again 5
    N N B N N 1 N E | B N N 3 4
    N N N E | B N N 0 4 2 3 1 N E
"""

Key = tuple[int, int]


def recordings() -> Iterator[tuple[str, list[list[str]]]]:
    """(backend and name, for each call its parts)."""
    name, calls = "", list[list[str]]()
    for line in RECORDED.strip().splitlines():
        if line.startswith("    "):
            calls.append([part.strip() for part in line.split("|")])
        else:
            if calls:
                yield name, calls
            name, calls = line, []
    yield name, calls


CALLS = dict(recordings())


def replay(passes: Passes, part: str) -> list[tuple[int, Key]]:
    """Do what Keras did; returns (index, what was handed out) of every batch."""
    handed = []
    for done in part.split():
        match done:
            case "N":
                passes.num_batches_read()
            case "B":
                passes.epoch_begins()
            case "E":
                passes.epoch_ends()
            case _:
                handed.append((int(done), passes.get(int(done))))
    return handed


def test_every_backend_is_recorded_alike() -> None:
    names = {name.partition(": ") for name in CALLS}
    assert {backend for backend, _, _ in names} == {"tensorflow", "jax", "torch"}
    assert len(CALLS) == 3 * len({what for _, _, what in names})


@pytest.mark.parametrize("shuffled", [True, False], ids=["shuffled", "in order"])
@pytest.mark.parametrize("name", CALLS)
def test_passes_advance_epoch_by_epoch_and_probes_consume_nothing(
    name: str, shuffled: bool
) -> None:
    steps = int(name.rpartition(" ")[2])
    passes = Passes(steps, shuffled=shuffled)
    epoch = 0
    for probe, *parts in CALLS[name]:
        for _, (at, step) in replay(passes, probe):
            assert at == epoch, "a probe sees the epoch that comes"
            assert 0 <= step < steps
        for part in parts:
            handed = replay(passes, part)
            assert {at for _, (at, _) in handed} == {epoch}
            given = [step for _, (_, step) in handed]
            if shuffled:
                assert given == list(range(len(given))), "batches go in the order of their making"
            else:
                assert given == [index for index, _ in handed]
            assert len(set(given)) == len(given), "no batch twice"
            # predict begins like the building of a model; a single batch is taken for that.
            peek = steps == 1 and "E" not in probe
            if len(given) == steps and not peek:
                epoch += 1
    assert epoch > 0 or "predict" in name


def test_the_recordings_hold_what_they_are_for() -> None:
    whole = [
        len(replay(Passes(9, shuffled=True), part)) == int(name.rpartition(" ")[2])
        for name, calls in CALLS.items()
        for _, *parts in calls
        for part in parts
    ]
    assert whole.count(True) > 80
    assert whole.count(False) >= 6, "passes that were broken off, too"


def test_a_batch_asked_for_again_within_its_pass_is_the_same_one() -> None:
    passes = Passes(4, shuffled=True)
    replay(passes, "E B N")
    first = {index: passes.get(index) for index in (2, 0, 3)}
    assert first == {2: (0, 0), 0: (0, 1), 3: (0, 2)}
    assert {index: passes.get(index) for index in first} == first
    assert passes.get(1) == (0, 3)
    assert passes.get(2) == (0, 0), "also when the pass is over"


def test_a_loop_of_ones_own_is_a_pass() -> None:
    """What AugSequence.__iter__ does."""
    passes = Passes(3, shuffled=True)
    for epoch in range(3):
        handed = replay(passes, "E B N 0 1 2")
        assert [key for _, key in handed] == [(epoch, 0), (epoch, 1), (epoch, 2)]


def test_a_loop_of_ones_own_over_a_single_batch_is_a_pass_too() -> None:
    passes = Passes(1, shuffled=True)
    for epoch in range(3):
        assert replay(passes, "E B N 0") == [(0, (epoch, 0))]


def test_a_loop_that_was_broken_off_begins_its_epoch_again() -> None:
    passes = Passes(3, shuffled=True)
    replay(passes, "E B N 0 1 2")
    assert [key for _, key in replay(passes, "E B N 1 2")] == [(1, 0), (1, 1)]
    assert [key for _, key in replay(passes, "E B N 0 2 1")] == [(1, 0), (1, 1), (1, 2)]


def test_an_index_of_ones_own_before_training_consumes_nothing() -> None:
    passes = Passes(2, shuffled=True)
    assert replay(passes, "1 0") == [(1, (0, 0)), (0, (0, 1))]
    assert [key for _, key in replay(passes, "N B 0 1")] == [(0, 0), (0, 1)]
    assert [key for _, key in replay(passes, "E B N 0 1")] == [(1, 0), (1, 1)]


def test_the_length_may_be_read_at_any_time() -> None:
    passes = Passes(2, shuffled=True)
    replay(passes, "E B N 0 1 N N N E N")
    assert [key for _, key in replay(passes, "E B N N N 1 0")] == [(1, 0), (1, 1)]


@pytest.mark.parametrize("shuffled", [True, False])
def test_threads_that_ask_at_once_share_one_pass(shuffled: bool) -> None:
    """TensorFlow asks on several threads."""
    steps, threads = 64, 8
    passes = Passes(steps, shuffled=shuffled)
    for epoch in range(5):
        replay(passes, "E B N")
        handed: list[Key] = []
        together = threading.Barrier(threads)

        def ask(
            number: int, handed: list[Key] = handed, together: threading.Barrier = together
        ) -> None:
            together.wait(10)
            for index in range(number, steps, threads):
                handed.append(passes.get(index))

        asking = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(10)
        assert sorted(handed) == [(epoch, step) for step in range(steps)]


@pytest.mark.parametrize("shuffled", [True, False])
def test_a_loop_of_the_user_s_own_with_on_epoch_end_goes_through_epochs(shuffled: bool) -> None:
    passes = Passes(3, shuffled=shuffled)
    for epoch in range(4):
        assert [passes.get(i) for i in range(3)] == [(epoch, i) for i in range(3)]
        passes.epoch_ends()
    assert passes.get(0) == (4, 0)
