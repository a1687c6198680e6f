"""The reference transforms are Keras's to the last bit, and safe around a user's own function.

Every cell of the table (fill mode, order, source, channels, data format, dtype) is compared by
np.array_equal with the installed `ImageDataGenerator`, three times, with options drawn at random:
affine, channel shift, flips, brightness, function, rescale, samplewise and featurewise statistics.
(Of the splines, orders 2 to 5, a part of the cells; what else varies is the same code for all.)
No cell is exempt: also sums in float32 agree, because memory layout is Keras's as well.

Keras knows no offset and cannot take channels_first with brightness unless its global data format
says so; the former is tested by itself, for the latter the test sets the global.
"""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE, image_data_generators
from numpy.typing import NDArray

from augproto.errors import ConfigError
from augproto.transforms import FILL_MODES, Statistic, Transforms
from augserver.draws import Draws, draw
from augserver.transforms import SampleError, TransformBatch, build

Picture = NDArray[Any]
_SOURCES, _CHANNELS = ("uint8", "float32"), (1, 3, 4)
_FORMATS, _DTYPES = ("channels_first", "channels_last"), ("float32", "float64")
CELLS = [
    *itertools.product(FILL_MODES, (0, 1), _SOURCES, _CHANNELS, _FORMATS, _DTYPES),
    *itertools.product(FILL_MODES, (2, 3, 4, 5), ("float32",), (3,), ("channels_last",), _DTYPES),
]
SIZES = ((12, 12), (9, 14), (13, 8))
#: Names of draws -> names of Keras's transform parameters, where they differ.
KERAS_NAMES = {"channel_shift": "channel_shift_intensity"}


def pipeline(
    transforms: Transforms,
    shape: tuple[int, ...],
    *,
    data_format: str = "channels_last",
    dtype: str = "float32",
    function: Callable[[Picture], Any] | None = None,
) -> TransformBatch:
    assert len(shape) == 3
    return build(
        transforms, data_format=data_format, dtype=dtype, function=function, image_shape=shape
    )  # fmt: skip


def run(
    transforms: Transforms,
    source: Picture,
    *,
    dtype: str = "float32",
    data_format: str = "channels_last",
    function: Callable[[Picture], Any] | None = None,
    indexes: NDArray[np.int64] | None = None,
    seed: int = 11,
) -> Picture:
    """Draw and transform; every byte of the batch starts as 0xFF, which is NaN in floats."""
    if indexes is None:
        indexes = np.arange(len(source))
    height, width = source.shape[2:] if data_format == "channels_first" else source.shape[1:3]
    draws = draw(transforms, seed=seed, epoch=0, indexes=indexes, height=height, width=width)
    out = np.full((len(indexes), *source.shape[1:]), 255, np.uint8).astype(dtype)
    if dtype != "uint8":
        out[...] = np.nan
    pipeline(
        transforms, source.shape[1:], data_format=data_format, dtype=dtype, function=function
    ).transform_batch(source, indexes, draws, out)
    return out


def pictures(n: int, height: int = 8, width: int = 10, channels: int = 3) -> Picture:
    return np.random.default_rng(5).integers(0, 256, (n, height, width, channels), np.uint8)


def mirror_new(picture: Picture) -> Picture:
    return (picture * 0.5)[::-1]


def mirror_given(picture: Picture) -> Picture:
    return picture[:, ::-1]


def turn_to_double(picture: Picture) -> Picture:
    return np.sqrt(np.abs(picture, dtype=np.float64))


def spoil(picture: Picture) -> Picture:
    picture *= 0.25
    return picture


def noisy(picture: Picture) -> Picture:
    return picture + np.float32(np.random.random())


#: Functions whose results lie in memory in different ways, which float32 sums depend on.
FUNCTIONS = (mirror_new, mirror_given, turn_to_double, spoil)


# ---------------------------------------------------------------------------------- beside Keras


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """The module with Keras's `ImageDataGenerator`."""
    yield from image_data_generators()


def some_transforms(rng: np.random.Generator, shape: tuple[int, ...], channel_axis: int) -> Any:
    """Options for `Transforms`, each on more often than off, and a function or None."""
    options: dict[str, Any] = {
        "rotation_range": 60.0,
        "height_shift_range": rng.choice([0.3, 2.5]) if rng.random() < 0.5 else (0.1, 0.4),
        "width_shift_range": int(rng.integers(1, 4)) if rng.random() < 0.5 else (1.0, 2.5),
        "shear_range": 25.0,
        "zoom_range": (0.6, 1.5),
        "channel_shift_range": float(rng.choice([0.3, 60.0])),
        "brightness_range": [(0.3, 1.8), (1.8, 0.3), (-1.0, 1.5)][rng.integers(3)],
        "horizontal_flip": True,
        "vertical_flip": True,
        "rescale": float(rng.choice([1 / 255, 1 / 127.5, 0.0])),
        "samplewise_center": True,
        "samplewise_std_normalization": True,
    }
    kept = {name: value for name, value in options.items() if rng.random() < 0.55}
    broad = [1, 1, 1]
    broad[channel_axis] = shape[channel_axis]
    for name in ("featurewise_mean", "featurewise_std"):
        if rng.random() < 0.4:
            size = [(), tuple(broad), shape, (1, *broad)][rng.integers(4)]
            statistic = rng.random(size).astype(rng.choice(["float32", "float64"])) + 0.5
            kept[name] = Statistic.of(name, statistic)
    function = FUNCTIONS[rng.integers(len(FUNCTIONS))] if rng.random() < 0.4 else None
    return Transforms(
        **kept, cval=float(rng.choice([0.0, 7.5])), function=function and "m:f"
    ), function


def by_keras(
    keras: ModuleType,
    t: Transforms,
    source: Picture,
    draws: Draws,
    *,
    data_format: str,
    dtype: str,
    function: Callable[[Picture], Any] | None,
) -> Picture:
    """What Keras makes of the same parameters (NumpyArrayIterator's loop over a batch)."""
    generator = keras.ImageDataGenerator(
        fill_mode=t.fill_mode, cval=t.cval, interpolation_order=t.interpolation_order,
        rescale=t.rescale, preprocessing_function=function, data_format=data_format, dtype=dtype,
    )  # fmt: skip
    # Set one by one: the constructor would switch on centring beside every deviation.
    generator.samplewise_center = t.samplewise_center
    generator.samplewise_std_normalization = t.samplewise_std_normalization
    for flag, attribute, statistic in (
        ("featurewise_center", "mean", t.featurewise_mean),
        ("featurewise_std_normalization", "std", t.featurewise_std),
    ):
        setattr(generator, flag, statistic is not None)
        if statistic is not None:
            array = statistic.array()
            setattr(generator, attribute, array[0] if array.ndim == 4 else array)
    batch = np.zeros(source.shape, dtype)
    for i, picture in enumerate(source):
        parameters = {
            KERAS_NAMES.get(name, name): None if values is None else values[i].item()
            for name in Draws.__slots__
            if name != "seeds"
            for values in [getattr(draws, name)]
        }
        changed = generator.apply_transform(picture.astype(dtype), parameters)
        batch[i] = generator.standardize(changed)
    return batch


@SCIPY_NOISE
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_a_batch_is_bit_for_bit_what_keras_computes(keras: ModuleType, cell: Any) -> None:
    fill_mode, order, source_dtype, channels, data_format, dtype = cell
    keras.backend.set_image_data_format(data_format)
    channel_axis = 0 if data_format == "channels_first" else 2
    for round_, (height, width) in enumerate(SIZES):
        rng = np.random.default_rng([CELLS.index(cell), round_])
        shape = (channels, height, width) if channel_axis == 0 else (height, width, channels)
        low, high = [(0, 256), (0, 1), (-100, 400)][0 if source_dtype == "uint8" else round_]
        source = rng.uniform(low, high, (4, *shape)).astype(source_dtype)
        t, function = some_transforms(rng, shape, channel_axis)
        t = dataclasses.replace(t, fill_mode=fill_mode, interpolation_order=order)
        draws = draw(t, seed=round_, epoch=1, indexes=np.arange(4), height=height, width=width)
        same: dict[str, Any] = {"data_format": data_format, "dtype": dtype, "function": function}
        wanted = by_keras(keras, t, source, dataclasses.replace(draws, seeds=None), **same)
        out = np.full_like(wanted, np.nan)
        pipeline(t, shape, **same).transform_batch(source, np.arange(4), draws, out)
        assert np.isfinite(wanted).all()
        assert np.array_equal(out, wanted), t
        assert out.tobytes() == wanted.tobytes(), t


@SCIPY_NOISE
@pytest.mark.parametrize("name", ["theta", "tx", "ty", "shear", "zx", "zy"])
def test_each_factor_of_the_matrix_alone_is_keras_own(keras: ModuleType, name: str) -> None:
    source = pictures(3)
    draws = drawn_by_hand(3, **{name: [0.0 if name[0] != "z" else 1.0, 1.5, -0.75]})
    same: dict[str, Any] = {"data_format": "channels_last", "dtype": "float32", "function": None}
    out = np.full(source.shape, np.nan, np.float32)
    pipeline(Transforms(), source.shape[1:], **same).transform_batch(
        source, np.arange(3), draws, out
    )
    np.testing.assert_array_equal(out, by_keras(keras, Transforms(), source, draws, **same))
    np.testing.assert_array_equal(out[0], source[0])


@SCIPY_NOISE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_prescaled_pictures_are_those_that_keras_fits_on(keras: ModuleType, dtype: str) -> None:
    source = pictures(6)
    options: dict[str, Any] = {
        "rotation_range": 40.0, "channel_shift_range": 0.2, "brightness_range": (0.5, 1.5),
        "fill_mode": "constant", "cval": 0.5, "interpolation_order": 3,
    }  # fmt: skip
    t = Transforms(**options, prescale=1 / 255)
    draws = draw(t, seed=3, epoch=0, indexes=np.arange(6), height=8, width=10)
    out = np.full(source.shape, np.nan, dtype)
    same: dict[str, Any] = {"data_format": "channels_last", "dtype": dtype, "function": None}
    pipeline(t, source.shape[1:], **same).transform_batch(source, np.arange(6), draws, out)
    scaled = source.astype(dtype)
    scaled *= 1 / 255  # the first thing that `fit` does
    wanted = by_keras(keras, t, scaled, draws, **same)
    assert out.tobytes() == wanted.tobytes()


# ------------------------------------------------------------------------------------- by itself


def drawn_by_hand(n: int, **values: list[float]) -> Draws:
    """Neutral draws of n samples but for these."""
    neutral = draw(
        Transforms(), seed=0, epoch=0, indexes=np.arange(n, dtype=np.int64), height=1, width=1
    )
    arrays = {name: np.array(value) for name, value in values.items()}
    return dataclasses.replace(neutral, **arrays)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_flips_mirror_columns_and_rows_and_leave_values_alone(dtype: str, data_format: str) -> None:
    source = pictures(4)
    draws = drawn_by_hand(
        4, flip_horizontal=[False, True, False, True], flip_vertical=[False, False, True, True]
    )
    wanted = np.stack(
        [source[0], source[1][:, ::-1], source[2][::-1], source[3][::-1, ::-1]]
    )  # fmt: skip
    if data_format == "channels_first":
        source, wanted = source.transpose(0, 3, 1, 2), wanted.transpose(0, 3, 1, 2)
    out = np.full(source.shape, 255, dtype)
    pipeline(Transforms(), source.shape[1:], data_format=data_format, dtype=dtype).transform_batch(
        source, np.arange(4), draws, out
    )
    np.testing.assert_array_equal(out, wanted)


def test_pictures_are_taken_in_the_order_of_the_indexes() -> None:
    source = pictures(10)
    indexes = np.array([7, 7, 0, 9], np.int64)
    for transforms in (Transforms(), Transforms(rescale=0.5)):
        out = run(transforms, source, indexes=indexes)
        np.testing.assert_array_equal(out, source[indexes] * (transforms.rescale or 1))


def test_the_copy_of_untouched_pictures_equals_the_long_way() -> None:
    source = pictures(20)
    flips: dict[str, Any] = {"horizontal_flip": True, "vertical_flip": True}
    short = run(Transforms(**flips), source)
    long = run(Transforms(**flips, function="m:f"), source, function=lambda picture: picture)
    np.testing.assert_array_equal(short, long)


def test_a_batch_equals_its_halves() -> None:
    source = pictures(64)
    t = Transforms(rotation_range=30, zoom_range=0.2, horizontal_flip=True, function="m:f")
    whole = run(t, source, function=noisy)
    halves = [
        run(t, source, function=noisy, indexes=np.arange(start, start + 32)) for start in (0, 32)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(halves))


def test_offset_follows_rescale() -> None:
    source = pictures(2)
    out = run(Transforms(rescale=1 / 127.5, offset=-1), source)
    wanted = source.astype(np.float32)
    wanted *= 1 / 127.5
    wanted += -1
    np.testing.assert_array_equal(out, wanted)


def test_brightness_gives_the_same_picture_in_both_data_formats() -> None:
    source = pictures(5)
    t = Transforms(brightness_range=(0.3, 2.0))
    last = run(t, source)
    first = run(t, np.ascontiguousarray(source.transpose(0, 3, 1, 2)), data_format="channels_first")
    np.testing.assert_array_equal(last, first.transpose(0, 2, 3, 1))
    assert not np.array_equal(last, source)


def test_brightness_of_a_flat_picture_below_zero_stays_flat() -> None:
    source = np.full((1, 4, 4, 3), -3.0, np.float32)
    assert np.unique(run(Transforms(brightness_range=(1.5, 1.5)), source)).tolist() == [-3.0]


@pytest.mark.parametrize("with_function", [False, True])
def test_2048_equal_pictures_become_2048_distinct_ones(with_function: bool) -> None:
    source = np.broadcast_to(pictures(1), (2048, 8, 10, 3))
    if with_function:
        out = run(Transforms(function="m:f"), source, function=noisy)
    else:
        out = run(Transforms(rotation_range=90, width_shift_range=0.2), source)
    assert len({picture.tobytes() for picture in out}) == 2048


def test_a_source_is_never_changed() -> None:
    source = pictures(3).astype(np.float32)
    before = source.copy()
    run(Transforms(rescale=2, function="m:f"), source, function=spoil)
    np.testing.assert_array_equal(source, before)


@pytest.mark.parametrize("shape", [(8, 10, 4), (8, 11, 3)])
def test_a_source_or_a_batch_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    backend = pipeline(Transforms(), (8, 10, 3))
    good, bad = np.zeros((2, 8, 10, 3), np.float32), np.zeros((2, *shape), np.float32)
    for source, out in ((bad, good), (good, bad), (good, good[:1])):
        with pytest.raises(ValueError, match=r"got shape .* wanted \("):
            backend.transform_batch(source, np.arange(2), drawn_by_hand(2), out)


# ------------------------------------------------------------------------------- at the door


@pytest.mark.parametrize("channels", [2, 5])
def test_brightness_refuses_pictures_that_pillow_cannot_take(channels: int) -> None:
    with pytest.raises(ConfigError, match=f"got pictures of {channels} channels.*wanted 1, 3 or 4"):
        pipeline(Transforms(brightness_range=(0.5, 1)), (8, 8, channels))
    with pytest.raises(ConfigError, match="got pictures of 8 channels"):
        pipeline(Transforms(brightness_range=(0.5, 1)), (8, 8, 3), data_format="channels_first")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1, 3), (8, 10, 3), (1, 1, 1, 3)])
def test_featurewise_statistics_broadcast_over_a_picture(shape: tuple[int, ...]) -> None:
    source = pictures(2)
    mean = Statistic.of("mean", np.full(shape, 2.0))
    std = Statistic.of("std", np.full(shape, 4.0, np.float32))
    out = run(Transforms(featurewise_mean=mean, featurewise_std=std), source)
    np.testing.assert_allclose(out, (source - 2.0) / 4, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2,), (8, 1), (2, 8, 10, 3), (8, 10, 4), (2, 1, 1, 3)])
@pytest.mark.parametrize("name", ["featurewise_mean", "featurewise_std"])
def test_statistics_that_do_not_fit_a_picture_are_refused(
    name: str, shape: tuple[int, ...]
) -> None:
    options: dict[str, Any] = {name: Statistic.of(name, np.ones(shape))}
    with pytest.raises(ConfigError, match=rf"{name}: got shape .*wanted .*\(8, 10, 3\)"):
        pipeline(Transforms(**options), (8, 10, 3))


def test_a_statistic_that_would_make_a_picture_larger_is_refused() -> None:
    with pytest.raises(ConfigError, match="featurewise_mean"):
        pipeline(Transforms(featurewise_mean=Statistic.of("mean", np.ones((1, 1, 3)))), (8, 10, 1))


def test_a_name_without_its_function_is_refused_and_the_other_way_round() -> None:
    with pytest.raises(ConfigError, match="wanted both or neither"):
        pipeline(Transforms(function="m:f"), (8, 10, 3))
    with pytest.raises(ConfigError, match="wanted both or neither"):
        pipeline(Transforms(), (8, 10, 3), function=noisy)


# ------------------------------------------------------------------------- a function of the user


def test_np_random_and_random_are_seeded_for_each_sample() -> None:
    seen: list[tuple[float, float]] = []

    def note(picture: Picture) -> Picture:
        seen.append((np.random.random(), random.random()))
        return picture

    t = Transforms(function="m:f")
    run(t, pictures(4), function=note)
    run(t, pictures(4), function=note, indexes=np.array([3, 1], np.int64))
    assert len(set(seen[:4])) == 4
    assert seen[4:] == [seen[3], seen[1]]
    assert len({number for pair in seen[:4] for number in pair}) == 8


def test_draws_without_seeds_leave_the_generators_to_the_caller() -> None:
    draws = drawn_by_hand(2)
    out = np.empty((2, 8, 10, 3), np.float32)
    np.random.seed(1)
    pipeline(Transforms(function="m:f"), (8, 10, 3), function=noisy).transform_batch(
        pictures(2), np.arange(2), draws, out
    )
    wanted = np.random.RandomState(1).random_sample(2)
    noise = wanted.astype(np.float32).reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(out, pictures(2).astype(np.float32) + noise)


def test_a_function_gets_a_picture_of_its_own_in_the_streams_dtype() -> None:
    given: list[Picture] = []

    def keep(picture: Picture) -> Picture:
        given.append(picture)
        return picture

    for dtype in ("float32", "float64"):
        run(Transforms(function="m:f"), pictures(3), function=keep, dtype=dtype)
        assert {picture.dtype.name for picture in given[-3:]} == {dtype}
    assert not any(
        np.shares_memory(one, two) for one, two in itertools.combinations(given, 2)
    )  # fmt: skip


def test_an_array_of_the_functions_own_is_not_changed_after_it() -> None:
    constant = np.ones((8, 10, 3), np.float32)
    out = run(
        Transforms(function="m:f", rescale=0.5), pictures(3), function=lambda picture: constant
    )
    assert np.unique(out).tolist() == [0.5]
    assert np.unique(constant).tolist() == [1.0]


def test_whole_numbers_from_a_function_can_be_rescaled() -> None:
    t = Transforms(function="m:f", rescale=1 / 255)
    whole = run(t, pictures(2), function=lambda picture: picture.astype(np.uint8))
    np.testing.assert_array_equal(whole, run(Transforms(rescale=1 / 255), pictures(2)))


def test_an_exception_of_a_function_names_the_sample_and_is_chained() -> None:
    def fail(picture: Picture) -> Picture:
        raise KeyError("tail")

    with pytest.raises(SampleError, match=r"sample 42: function 'm:f' raised KeyError") as caught:
        run(Transforms(function="m:f"), pictures(50), function=fail, indexes=np.array([42]))
    assert caught.value.sample == 42
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.zeros((8, 10)), r"float64 of shape \(8, 10\); wanted numbers of shape \(8, 10, 3\)"),
        (np.zeros((8, 10, 1)), "wanted numbers"),
        (1.0, "wanted numbers"),
        (None, "gave object"),
        (np.full((8, 10, 3), "a"), "gave <U1"),
        (np.zeros((8, 10, 3), complex), "gave complex128"),
        ([[1], [2, 3]], "raised ValueError"),
    ],
)
def test_anything_but_a_picture_from_a_function_is_refused(result: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        run(Transforms(function="m:f"), pictures(1), function=lambda picture: result)


def test_an_error_of_a_sample_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(SampleError(7, "no such luck")))
    assert (error.sample, str(error)) == (7, "sample 7: no such luck")


def test_importing_the_transforms_imports_no_framework() -> None:
    check = (
        "import sys, augserver.transforms; "
        "print(*{'keras', 'tensorflow', 'torch', 'jax'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], check=True, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.split() == []
