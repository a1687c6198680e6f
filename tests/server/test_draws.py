"""Draws are pure: of (seed, epoch, sample), with a lane for each parameter, distributed as Keras's.

The golden numbers fix what a seed means. If one of them has to change, every user's seed gives
other pictures from then on: that is a breaking release, not a refactoring.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from augproto.transforms import Transforms
from augserver.draws import Draws, Lane, draw, philox

EVERYTHING = Transforms(
    rotation_range=30,
    height_shift_range=0.2,
    width_shift_range=(3.0, 5.0, 9.0),
    shear_range=10,
    zoom_range=(0.8, 1.3),
    channel_shift_range=20,
    brightness_range=(0.5, 1.5),
    horizontal_flip=True,
    vertical_flip=True,
    function="module:name",
)
MANY = 20_000
GOLDEN: dict[str, list[Any]] = {
    "theta": [12.01348206598906, 26.40334888778503, 15.524225187264236],
    "tx": [0.8256695759112542, 5.278399208265134, 5.516660970703922],
    "ty": [-9.0, 9.0, 9.0],
    "shear": [5.586379900668231, 2.9532144716597273, -9.852362840242412],
    "zx": [1.283988747763263, 0.8697478121919993, 1.1172583911539056],
    "zy": [0.9462189117076192, 1.1708805440534664, 1.0644736704649773],
    "flip_horizontal": [False, True, True],
    "flip_vertical": [False, False, True],
    "channel_shift": [-7.4602729080683226, 0.04290502783159411, 12.962952921494761],
    "brightness": [0.5003361061646016, 1.0547295679083142, 0.8413725737148043],
    "seeds": [
        [3369982644, 466932853, 919602247, 3469944113],
        [3380568109, 418673818, 991642867, 2506003377],
        [2472636511, 570788763, 690841145, 2744570298],
    ],
}


def drawn(
    transforms: Transforms, *, n: int = MANY, seed: int = 7, epoch: int = 3, start: int = 0
) -> Draws:
    indexes = np.arange(start, start + n, dtype=np.int64)
    return draw(transforms, seed=seed, epoch=epoch, indexes=indexes, height=40, width=60)


def as_dict(draws: Draws) -> dict[str, NDArray[Any] | None]:
    return {field.name: getattr(draws, field.name) for field in fields(draws)}


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123 1.14, tests/kat_vectors, "philox4x32 10"; the last one is of digits of pi
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ),
        (
            (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    got = philox([np.array([word], np.uint64) for word in counter], key[0] | key[1] << 32)
    assert tuple(int(word[0]) for word in got) == words


def test_philox_treats_each_element_of_its_arrays_alone() -> None:
    counter = [np.arange(6, dtype=np.uint64) * np.uint64(0x1234567) for _ in range(4)]
    together = philox(counter, 99)
    for i in range(6):
        alone = philox([word[i : i + 1] for word in counter], 99)
        assert [int(word[i]) for word in together] == [int(word[0]) for word in alone]


def test_a_seed_gives_these_draws_for_ever() -> None:
    got = draw(
        EVERYTHING,
        seed=0x0123456789ABCDEF,
        epoch=5,
        indexes=np.array([0, 41, 2**33 + 1], np.int64),
        height=40,
        width=60,
    )
    for name, values in as_dict(got).items():
        assert values is not None
        assert values.tolist() == GOLDEN[name], name


def test_a_lane_is_half_a_block_of_sample_epoch_and_block_number() -> None:
    sample, epoch, seed = 2**33 + 1, 2**32 + 5, 2**63 + 9  # an epoch's low 32 bits count
    counter = [np.array([word], np.uint64) for word in (1, 2, 5, 1)]
    a, b = (int(word[0]) for word in philox(counter, seed)[2:])
    u = ((a >> 5) * 2**26 + (b >> 6)) / 2**53
    got = drawn(Transforms(shear_range=1), n=1, seed=seed, epoch=epoch, start=sample)
    assert got.shear.tolist() == [-1 + 2 * u]  # lane 3: the second half of block 1


def test_every_lane_keeps_its_number() -> None:
    assert [(lane.name, lane.value) for lane in Lane] == [
        ("THETA", 0), ("HEIGHT_SHIFT", 1), ("WIDTH_SHIFT", 2), ("SHEAR", 3), ("ZOOM_X", 4),
        ("ZOOM_Y", 5), ("FLIP_HORIZONTAL", 6), ("FLIP_VERTICAL", 7), ("CHANNEL_SHIFT", 8),
        ("BRIGHTNESS", 9), ("HEIGHT_SIGN", 10), ("WIDTH_SIGN", 11),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ("rotation_range", {"theta"}),
        ("height_shift_range", {"tx"}),
        ("width_shift_range", {"ty"}),
        ("shear_range", {"shear"}),
        ("zoom_range", {"zx", "zy"}),
        ("channel_shift_range", {"channel_shift"}),
        ("brightness_range", {"brightness"}),
        ("horizontal_flip", {"flip_horizontal"}),
        ("vertical_flip", {"flip_vertical"}),
        ("function", {"seeds"}),
    ],
)
def test_an_option_alone_draws_what_it_draws_among_all_others(
    option: str, changed: set[str]
) -> None:
    alone = as_dict(drawn(Transforms(**{option: getattr(EVERYTHING, option)}), n=50))
    among = as_dict(drawn(EVERYTHING, n=50))
    neutral = as_dict(drawn(Transforms(), n=50))
    for name in alone:
        wanted = among if name in changed else neutral
        np.testing.assert_array_equal(alone[name], wanted[name], err_msg=name)


def test_a_batch_draws_what_its_halves_draw() -> None:
    whole = as_dict(drawn(EVERYTHING, n=64))
    halves = [as_dict(drawn(EVERYTHING, n=32, start=start)) for start in (0, 32)]
    for name, values in whole.items():
        assert values is not None
        parts = [half[name] for half in halves]
        np.testing.assert_array_equal(values, np.concatenate(parts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"seed": 7 + 2**32},
        {"seed": 7 + 2**63},
        {"epoch": 4},
        {"start": 2**32},
        {"start": MANY},
    ],
)
def test_another_seed_epoch_or_sample_draws_something_else(other: dict[str, int]) -> None:
    one, two = drawn(EVERYTHING, n=100), drawn(EVERYTHING, n=100, **other)
    assert np.intersect1d(one.theta, two.theta).size == 0
    assert one.seeds is not None
    assert two.seeds is not None
    assert np.intersect1d(one.seeds, two.seeds).size == 0


def test_no_transforms_draw_neutral_parameters() -> None:
    got = drawn(Transforms(), n=3)
    for name in ("theta", "tx", "ty", "shear"):
        assert getattr(got, name).tolist() == [0, 0, 0]
    assert got.zx.tolist() == got.zy.tolist() == [1, 1, 1]
    assert not got.flip_horizontal.any()
    assert not got.flip_vertical.any()
    assert got.channel_shift is None
    assert got.brightness is None
    assert got.seeds is None


def test_a_batch_of_no_samples_draws_nothing() -> None:
    assert all(
        len(values) == 0
        for values in as_dict(drawn(EVERYTHING, n=0)).values()
        if values is not None
    )


@pytest.mark.parametrize(
    ("transforms", "name", "low", "high"),
    [
        (Transforms(rotation_range=30), "theta", -30, 30),
        (Transforms(height_shift_range=0.25), "tx", -10, 10),  # a share of the height, 40
        (Transforms(width_shift_range=0.25), "ty", -15, 15),  # a share of the width, 60
        (Transforms(height_shift_range=8.0), "tx", -8, 8),  # from 1 on: pixels
        (Transforms(width_shift_range=1.0), "ty", -1, 1),
        (Transforms(shear_range=12), "shear", -12, 12),
        (Transforms(zoom_range=0.3), "zx", 0.7, 1.3),
        (Transforms(zoom_range=(0.5, 2)), "zy", 0.5, 2),
        (Transforms(channel_shift_range=40), "channel_shift", -40, 40),
        (Transforms(brightness_range=(0.2, 1.7)), "brightness", 0.2, 1.7),
    ],
)
def test_a_range_is_drawn_evenly_between_its_ends(
    transforms: Transforms, name: str, low: float, high: float
) -> None:
    values = getattr(drawn(transforms), name)
    assert values.dtype == np.float64
    assert low <= values.min() < values.max() <= high
    assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("shift", "rows", "columns"),
    [
        # An int n is one of 0..n-1 pixels; zero has no sign and so comes twice as often.
        (4, [-3, -2, -1, 0, 0, 1, 2, 3], [-3, -2, -1, 0, 0, 1, 2, 3]),
        (1, [0, 0], [0, 0]),
        ((2.0, 7.5), [-7.5, -2, 2, 7.5], [-7.5, -2, 2, 7.5]),
        # Values that are all below 1 are shares of the axis, even beside negative ones.
        ((0.1, 0.5), [-20, -4, 4, 20], [-30, -6, 6, 30]),
        ((-3.0, 0.5), [-120, -20, 20, 120], [-180, -30, 30, 180]),
    ],
)
def test_a_listed_shift_is_chosen_evenly_with_either_sign(
    shift: int | tuple[float, ...], rows: list[float], columns: list[float]
) -> None:
    got = drawn(Transforms(height_shift_range=shift, width_shift_range=shift))
    for values, wanted in ((got.tx, rows), (got.ty, columns)):
        choices, weights = np.unique(np.array(wanted, float), return_counts=True)
        seen, counts = np.unique(values, return_counts=True)
        np.testing.assert_array_equal(seen, choices)
        if len(choices) > 1:
            assert stats.chisquare(counts, MANY * weights / weights.sum()).pvalue > 1e-3
    if len(set(rows)) > 1:  # the two axes are chosen apart from each other
        assert not np.array_equal(got.tx / rows[-1], got.ty / columns[-1])


def test_flips_come_half_of_the_time_and_do_not_depend_on_each_other() -> None:
    got = drawn(Transforms(horizontal_flip=True, vertical_flip=True))
    pairs = got.flip_horizontal * 2 + got.flip_vertical
    assert stats.chisquare(np.bincount(pairs, minlength=4)).pvalue > 1e-3


def test_parameters_of_one_sample_do_not_depend_on_each_other() -> None:
    got = drawn(EVERYTHING)
    columns = [got.theta, got.tx, got.ty, got.shear, got.zx, got.zy, got.channel_shift,
               got.brightness, got.flip_horizontal, got.flip_vertical]  # fmt: skip
    correlations = np.corrcoef(np.array(columns, np.float64)) - np.eye(len(columns))
    assert np.abs(correlations).max() < 4 / np.sqrt(MANY)


def test_the_largest_seed_is_a_seed() -> None:
    assert drawn(EVERYTHING, n=2, seed=2**64 - 1).theta.tolist() != [0, 0]


def test_seeds_are_four_words_for_each_sample() -> None:
    seeds = drawn(EVERYTHING).seeds
    assert seeds is not None
    assert seeds.shape == (MANY, 4)
    assert seeds.dtype == np.uint32
    assert len(np.unique(seeds[:, 0].astype(np.uint64) << np.uint64(32) | seeds[:, 1])) == MANY
