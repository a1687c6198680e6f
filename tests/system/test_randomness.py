"""Randomness is real: no picture twice, and every parameter follows the law that Keras gives it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faces
import numpy as np
import pytest
from goodness import COUNT, LEVEL, Choice, Law, Uniform, independent_p
from keras_own import SCIPY_NOISE
from PIL import Image

from augproto.transforms import Transforms
from augserver import draws, keras_draws

Array = np.ndarray[Any, Any]

pytestmark = SCIPY_NOISE

RANDOM: dict[str, Any] = {
    "rotation_range": 40, "width_shift_range": 0.2, "zoom_range": 0.2, "horizontal_flip": True,
}  # fmt: skip


@pytest.fixture
def before() -> Iterator[None]:
    """np.random is as before afterwards."""
    state = np.random.get_state()
    yield
    np.random.set_state(state)


def equal_pictures(count: int) -> Array:
    return np.repeat(np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8), count, 0)


def flow(count: int = 48, *, seed: int | None = None, workers: int = 2, **options: Any) -> Any:
    faces.theirs()  # skips where there is none: the iterators are Keras's sequences
    generator = faces.ours().ImageDataGenerator(**RANDOM, **faces.own(workers=workers))
    return generator.flow(equal_pictures(count), batch_size=8, seed=seed, **options)


def taken(iterator: Any, batches: int) -> list[bytes]:
    """The pictures of so many batches, as bytes."""
    return [picture.tobytes() for _ in range(batches) for picture in next(iterator)]


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("seed", [None, 0, 7])
def test_equal_pictures_come_out_all_different(seed: int | None) -> None:
    assert len(set(taken(flow(seed=seed), 6))) == 48


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_nothing_repeats_over_epochs_whoever_makes_it(workers: int) -> None:
    assert len(set(taken(flow(24, workers=workers), 3 * 5))) == 3 * 5 * 8
    assert len(set(taken(flow(24, workers=workers, seed=0), 3 * 5))) == 3 * 5 * 8


@pytest.mark.usefixtures("before")
def test_zero_is_a_seed_and_none_is_not() -> None:
    zero, none, another = (taken(flow(seed=seed), 2) for seed in (0, None, None))
    assert taken(flow(seed=0), 2) == zero
    assert not set(zero) & set(none)
    assert not set(none) & set(another)


@pytest.mark.usefixtures("before")
def test_without_a_seed_np_random_decides() -> None:
    np.random.seed(11)
    first, second = taken(flow(), 4), taken(flow(), 4)
    np.random.seed(11)
    assert taken(flow(), 4) == first
    assert taken(flow(), 4) == second
    assert not set(first) & set(second)
    np.random.seed(12)
    assert not set(taken(flow(), 4)) & set(first)


@pytest.mark.usefixtures("before")
def test_twins_with_one_seed_do_the_same_to_pictures_and_masks() -> None:
    # The mask is the picture itself, turned inside out: it shows what was done to the picture.
    pictures = np.random.default_rng(1).integers(0, 256, (20, 12, 12, 1)).astype(np.uint8)
    generator = faces.ours().ImageDataGenerator(**RANDOM, interpolation_order=0)
    x = generator.flow(pictures, batch_size=6, seed=3)
    masks = generator.flow(255 - pictures, batch_size=6, seed=3)
    for _ in range(9):
        assert np.array_equal(next(x), 255 - next(masks))
    assert not np.array_equal(next(x), 255 - next(generator.flow(255 - pictures, seed=4))[:6])


@pytest.mark.usefixtures("before")
def test_twins_over_folders_do_the_same_to_pictures_and_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for i in range(9):
        pixels = rng.integers(0, 256, (10, 10), np.uint8)
        for name, values in (("images", pixels), ("masks", 255 - pixels)):
            path = tmp_path / name / "all" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    generator = faces.ours().ImageDataGenerator(**RANDOM, interpolation_order=0)
    x, masks = (
        generator.flow_from_directory(
            tmp_path / name, target_size=(10, 10), color_mode="grayscale", class_mode=None,
            batch_size=4, seed=9,
        )
        for name in ("images", "masks")
    )  # fmt: skip
    for one, other in itertools.islice(zip(x, masks, strict=True), 7):
        assert np.array_equal(one, 255 - other)


# -- the laws ------------------------------------------------------------------------------------

HEIGHT, WIDTH = 40, 60
#: Arguments, and the law that each parameter then follows.
LAWS: dict[str, tuple[dict[str, Any], dict[str, Law]]] = {
    "floats": (
        {
            "rotation_range": 30,
            "height_shift_range": 0.2,  # a share of the height
            "width_shift_range": 2.5,  # pixels
            "shear_range": 15.0,
            "zoom_range": (0.7, 1.2),
            "horizontal_flip": True,
            "vertical_flip": True,
            "channel_shift_range": 20.0,
            "brightness_range": (0.5, 1.5),
        },
        {
            "theta": Uniform(-30, 30),
            "tx": Uniform(-0.2 * HEIGHT, 0.2 * HEIGHT),
            "ty": Uniform(-2.5, 2.5),
            "shear": Uniform(-15, 15),
            "zx": Uniform(0.7, 1.2),
            "zy": Uniform(0.7, 1.2),
            "flip_horizontal": Choice((0, 1)),
            "flip_vertical": Choice((0, 1)),
            "channel_shift_intensity": Uniform(-20, 20),
            "brightness": Uniform(0.5, 1.5),
        },
    ),
    "choices": (
        {
            "height_shift_range": 4,  # one of 0 to 3 pixels, to either side
            "width_shift_range": [0.125, 0.25, 0.5],  # shares of the width
        },
        {
            "tx": Choice((0, 0, 1, -1, 2, -2, 3, -3)),
            "ty": Choice((7.5, -7.5, 15, -15, 30, -30)),
        },
    ),
    "a list of pixels": (
        {"width_shift_range": [-3, 0, 3], "zoom_range": 0.25},
        {
            "ty": Choice((3, -3, 3, -3, 0, 0)),
            "zx": Uniform(0.75, 1.25),
            "zy": Uniform(0.75, 1.25),
        },
    ),
}


def of_get_random_transform(options: dict[str, Any]) -> dict[str, Array]:
    """What our class draws from np.random in the program."""
    faces.theirs()
    generator = faces.ours().ImageDataGenerator(**options, data_format="channels_last")
    state = np.random.get_state()
    np.random.seed(20)
    try:
        rows = [generator.get_random_transform((HEIGHT, WIDTH, 3)) for _ in range(COUNT)]
    finally:
        np.random.set_state(state)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def of_the_keras_scheme(options: dict[str, Any]) -> dict[str, Array]:
    """What the server draws for the first 3,125 batches of 32 with one seed."""
    return _joined(
        keras_draws.draw(
            Transforms(**options), keras_draws.state_before(20, batch), 32, HEIGHT, WIDTH
        )
        for batch in range(COUNT // 32)
    )


def of_the_counter_scheme(options: dict[str, Any]) -> dict[str, Array]:
    """What the server draws for ten epochs of 10,000 samples with one seed."""
    samples = np.arange(COUNT // 10, dtype=np.int64)
    return _joined(
        draws.draw(
            Transforms(**options), seed=20, epoch=epoch, indexes=samples, height=HEIGHT,
            width=WIDTH,
        )
        for epoch in range(10)
    )  # fmt: skip


def _joined(parts: Iterator[draws.Draws]) -> dict[str, Array]:
    every = list(parts)
    names = {"channel_shift_intensity": "channel_shift"}
    parameters = [name for name in draws.Draws.__slots__ if name not in ("seeds", "channel_shift")]
    return {
        name: np.concatenate([getattr(part, names.get(name, name)) for part in every])
        for name in [*parameters, "channel_shift_intensity"]
        if getattr(every[0], names.get(name, name)) is not None
    }


SOURCES: dict[str, Callable[[dict[str, Any]], dict[str, Array]]] = {
    "get_random_transform": of_get_random_transform,
    "the keras scheme": of_the_keras_scheme,
    "the counter scheme": of_the_counter_scheme,
}


@functools.cache
def drawn(source: str, laws: str) -> dict[str, Array]:
    return SOURCES[source](LAWS[laws][0])


@pytest.mark.slow
@pytest.mark.parametrize("laws", LAWS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_parameter_follows_its_law(source: str, laws: str) -> None:
    numbers = drawn(source, laws)
    for name, law in LAWS[laws][1].items():
        assert len(numbers[name]) == COUNT
        assert law.p(numbers[name]) > LEVEL, name


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_no_parameter_depends_on_another_or_on_the_sample_before(source: str) -> None:
    numbers, laws = drawn(source, "floats"), LAWS["floats"][1]
    parts = {name: law.part(numbers[name], 8) for name, law in laws.items()}
    for one, other in itertools.combinations(parts, 2):
        assert independent_p(parts[one], parts[other]) > LEVEL, (one, other)
    for name, part in parts.items():
        assert independent_p(part[1:], part[:-1]) > LEVEL, name


@pytest.mark.slow
@pytest.mark.parametrize("laws", LAWS)
def test_a_law_that_is_off_by_two_hundredths_would_be_noticed(laws: str) -> None:
    numbers = drawn("the keras scheme", laws)
    for name, law in LAWS[laws][1].items():
        mine = numbers[name].astype(np.float64)
        if isinstance(law, Uniform):
            middle, width = (law.low + law.high) / 2, law.high - law.low
            wrong = {
                "too wide": middle + (mine - middle) * 1.02,
                "too narrow": middle + (mine - middle) * 0.98,
                "to one side": mine + 0.02 * width,
                "one value too often": np.where(np.arange(COUNT) % 50, mine, law.high),
                "curved": law.low + width * ((mine - law.low) / width) ** 1.04,
            }
        else:
            values = np.unique(law.values)
            wrong = {
                f"{value} too often": np.where(np.arange(COUNT) % 50, mine, value)
                for value in values
            } | {"another value": np.where(np.arange(COUNT) % 50_000, mine, 99.0)}
            if len(values) > 2:
                wrong["the sign leans"] = np.where(np.arange(COUNT) % 25, mine, np.abs(mine))
        for what, others in wrong.items():
            assert law.p(others) < LEVEL, (name, what)


def test_a_repeated_or_a_dependent_draw_would_be_noticed() -> None:
    numbers, laws = drawn("the keras scheme", "floats"), LAWS["floats"][1]
    zx, zy = (laws[name].part(numbers[name], 8) for name in ("zx", "zy"))
    some = np.arange(COUNT) % 25 == 0
    assert independent_p(zx, np.where(some, zx, zy)) < LEVEL
    again = np.where(some[1:], zx[:-1], zx[1:])
    assert independent_p(again, zx[:-1]) < LEVEL
