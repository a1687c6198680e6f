"""The iterator over arrays checks, splits and hands out what Keras's does."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bitwise import same
from keras_own import image_data_generators
from recipe_feed import Feeds, instead_of_a_server

Array = np.ndarray[Any, Any]

ATTRIBUTES = (
    "n", "batch_size", "seed", "shuffle", "batch_index", "total_batches_seen", "index_array",
    "white_list_formats", "image_data_generator", "data_format", "dtype", "save_to_dir",
    "save_prefix", "save_format", "x", "y", "x_misc", "sample_weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """The module with Keras's iterators."""
    yield from image_data_generators()


@pytest.fixture
def ours(keras: ModuleType) -> Any:
    """Our class."""
    from augclient.image.array_iterator import NumpyArrayIterator

    return NumpyArrayIterator


@pytest.fixture
def feeds(ours: Any, monkeypatch: pytest.MonkeyPatch) -> Feeds:
    """What iterators open in the place of a server's streams."""
    from augclient.image import supply

    return instead_of_a_server(monkeypatch, supply)


def outcome(make: Callable[[], Any]) -> tuple[Any, list[str], str]:
    """What was made, the warnings, and the error."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            made, error = make(), ""
        except Exception as raised:
            made, error = None, f"{type(raised).__name__}: {raised}"
    return made, [f"{one.category.__name__}: {one.message}" for one in heard], error


def compare(keras: ModuleType, ours: Any, *positional: Any, **named: Any) -> tuple[Any, Any, str]:
    """Make both, and hold all that can be seen of them against each other."""
    wanted, heard, error = outcome(lambda: keras.NumpyArrayIterator(*positional, **named))
    got, *got_else = outcome(lambda: ours(*positional, **named))
    assert got_else == [heard, error]
    for name in ATTRIBUTES if wanted is not None else ():
        assert same(getattr(got, name), getattr(wanted, name)), name
    return wanted, got, error


def some_x(rng: random.Random, n: int) -> Any:
    """Pictures as programs pass them, with further inputs or without."""
    numpy = np.random.default_rng(rng.randint(0, 1 << 30))
    shape = rng.choice([(6, 5, 3), (6, 5, 1), (3, 6, 5), (4, 4, 4), (6, 5, 2)])
    dtype = rng.choice(["uint8", "float32", "float64", "int64", "uint16", "bool", ">f4"])
    x = numpy.integers(0, 256, (n, *shape)).astype(dtype)
    misc: list[Any] = [np.arange(n) * 2, [f"name {i}" for i in range(n)], np.ones((n, 2))]
    return rng.choice([x, x, x, (x, misc[0]), [x, misc], (x, [np.zeros(n - 1)]), x[0]])


def some_y(rng: random.Random, n: int) -> Any:
    """Labels of many kinds."""
    return rng.choice([
        None, np.arange(n), list(range(n)), np.array([f"class {i % 3}" for i in range(n)]),
        np.eye(n, dtype=np.float16), np.arange(n) % 2, [i % 2 for i in range(n)], np.arange(n + 1),
        np.array([{"i": i} for i in range(n)], dtype=object),
    ])  # fmt: skip


@pytest.mark.parametrize("case", range(80))
def test_arrays_are_checked_split_and_handed_out_as_by_keras(
    keras: ModuleType, ours: Any, feeds: Feeds, case: int
) -> None:
    rng = random.Random(case)
    n = 17
    data_format = rng.choice(["channels_last", "channels_last", "channels_first"])
    generator = keras.ImageDataGenerator(
        horizontal_flip=True, rescale=0.5, data_format=data_format, validation_split=0.3
    )
    named: dict[str, Any] = {
        "batch_size": rng.choice([4, 50]),
        "shuffle": rng.random() < 0.6,
        "sample_weight": rng.choice([None, None, np.linspace(0, 1, n), [1] * n, [1] * (n + 1)]),
        "seed": rng.choice([0, 3]),
        "data_format": data_format,
        "subset": rng.choice([None, None, "training", "validation", "test"]),
        "ignore_class_split": rng.random() < 0.5,
        "dtype": rng.choice([None, "float32", "float64", np.float32]),
    }
    theirs, own, error = compare(keras, ours, some_x(rng, n), some_y(rng, n), generator, **named)
    if error:
        return
    before = np.random.get_state()
    wanted = [next(theirs) for _ in range(6)]
    np.random.set_state(before)
    for i, batch in enumerate(wanted):
        assert same(next(own), batch), i


def test_the_cases_above_are_of_every_kind(keras: ModuleType, ours: Any, feeds: Feeds) -> None:
    kinds = {type(some_x(random.Random(case), 17)).__name__ for case in range(80)}
    assert kinds == {"ndarray", "tuple", "list"}


def test_pictures_go_to_the_server_in_their_own_dtype(
    keras: ModuleType, ours: Any, feeds: Feeds
) -> None:
    x = np.zeros((6, 4, 4, 3), np.uint8)
    it = ours(x, None, keras.ImageDataGenerator())
    x[...] = 7  # Keras has made another array of it by now
    assert not next(it).any()
    plan = feeds.opened[0]._plan
    assert plan.x is not None
    assert plan.x.dtype == np.uint8
    x[...] = 0
    assert it.x.dtype == np.float32
    assert not it.x.flags.writeable, "what is written there would not be served"
    it.x = x[:, :, :, :1] + 3
    assert next(it).shape == (6, 4, 4, 1)
    assert feeds.opened[0].closed
    assert it.x.max() == 3


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_a_dtype_that_no_server_computes_in_is_made_by_the_caller(
    keras: ModuleType, ours: Any, feeds: Feeds, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    from augclient.image import supply

    def refuse(*_: Any) -> Any:
        raise supply.NotServed("no such dtype")

    monkeypatch.setattr(supply, "open_feed", refuse)
    x = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3)).astype(np.uint8)
    generator = keras.ImageDataGenerator(horizontal_flip=True, dtype=dtype)
    arguments: dict[str, Any] = {"batch_size": 4, "seed": 3, "shuffle": True, "dtype": dtype}
    theirs, own = (made(x, None, generator, **arguments) for made in
                   (keras.NumpyArrayIterator, ours))  # fmt: skip
    before = np.random.get_state()
    wanted = [next(theirs) for _ in range(5)]
    np.random.set_state(before)
    with pytest.warns(UserWarning, match=r"sample by sample, which is slow: no such dtype"):
        got = [next(own) for _ in range(5)]
    assert same(got, wanted)
    assert same(list(np.random.get_state()), list(before)), "np.random is the program's"


def test_twins_with_one_seed_repeat_each_other(keras: ModuleType, ours: Any, feeds: Feeds) -> None:
    """Pictures and masks."""
    x = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3)).astype(np.uint8)
    generator = keras.ImageDataGenerator(horizontal_flip=True, vertical_flip=True)
    pictures, masks = (ours(a, None, generator, 4, True, seed=1) for a in (x, x[..., :1]))
    for _, picture, mask in zip(range(7), pictures, masks, strict=False):
        assert np.array_equal(picture[..., :1], mask)


def test_every_positional_argument_is_keras_s(keras: ModuleType, ours: Any, feeds: Feeds) -> None:
    import inspect

    from augclient.image.dataframe_iterator import DataFrameIterator
    from augclient.image.file_iterators import BatchFromFilesMixin, DirectoryIterator
    from augclient.image.iterator import Iterator

    for mine in (ours, DataFrameIterator, DirectoryIterator, Iterator):
        got, wanted = (
            [(p.name, p.default, p.kind) for p in inspect.signature(c.__init__).parameters.values()]
            for c in (mine, getattr(keras, mine.__name__))
        )
        assert got == wanted
    names = {name for name in vars(keras.BatchFromFilesMixin) if not name.startswith("__")}
    assert names <= set(dir(BatchFromFilesMixin))
    for one in (ours, DataFrameIterator, DirectoryIterator):
        theirs = getattr(keras, one.__name__)
        assert not set(itertools.chain(*map(vars, theirs.__mro__[:-1]))) - set(dir(one))
