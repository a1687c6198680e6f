"""Every setting of Keras's `ImageDataGenerator`, drawn at random: its k-th batch is ours.

The generator is Keras's own, with its own loop over a batch (`next`); a recipe of scheme "keras"
must give the same bytes. What is drawn here is every argument of the constructor but the three that
are not about pictures (validation_split, see test_keras_draws; zca_whitening, see test_whitening),
statistics as they are fitted or set by hand, sources, dtypes, channels, and Keras's floatx.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE, image_data_generators, keras_module
from PIL import Image
from recipes import batches

from augproto.errors import ConfigError
from augproto.pictures import Pictures
from augproto.spec import INTERPOLATIONS, Spec
from augproto.transforms import FILL_MODES, ORDERS, Statistic, Transforms
from augserver.datasets.listing import list_files
from augserver.recipe import Recipe

Array = np.ndarray[Any, Any]

pytestmark = [
    SCIPY_NOISE,
    pytest.mark.filterwarnings(
        "ignore:NumpyArrayIterator is set to use the data format convention:UserWarning",
    ),
]


@pytest.fixture
def keras() -> Iterator[ModuleType]:
    """The module with Keras's `ImageDataGenerator`; its settings, and np.random, are as before."""
    config = keras_module("keras").config
    floatx, state = config.floatx(), np.random.get_state()
    yield from image_data_generators()
    config.set_floatx(floatx)
    np.random.set_state(state)


# -- functions of a user's, as Keras takes them ----------------------------------------------------


def drawing(picture: Array) -> Array:
    """Draws between Keras's own draws."""
    noise: Array = np.asarray(np.random.normal(size=picture.shape), picture.dtype)
    return picture + noise


def choosing(picture: Array) -> Array:
    """Draws now and then, and changes its argument."""
    if np.random.random() < 0.5:
        picture *= np.random.randint(2, 4)
    return picture


def doubling(picture: Array) -> Array:
    """Gives doubles."""
    return picture * np.float64(1.1)


def mirroring(picture: Array) -> Array:
    """Gives a view that runs backwards."""
    return picture[::-1, :, ::-1]


def averaging(picture: Array) -> Array:
    """Gives one line, which Keras spreads over the picture."""
    mean: Array = picture.mean(axis=1, keepdims=True)
    return mean


FUNCTIONS: tuple[Callable[[Array], Array], ...] = (
    drawing, choosing, doubling, mirroring, averaging,
)  # fmt: skip


# -- settings --------------------------------------------------------------------------------------


def some_ranges(rng: random.Random, *, brightness: bool) -> dict[str, Any]:
    shifts: list[Any] = [
        0.2, -0.3, 2.5, -2.5, 1.0, 3, 1, -2, (0.1, 0.3), (1.0, 2.0, 3.0), [-1, 2], [-0.5],
        np.float32(0.1), np.array([2]), np.array(0.2),
    ]  # fmt: skip
    every: dict[str, Any] = {
        "rotation_range": rng.choice([30, 7.5, -20, np.float32(0.1)]),
        "width_shift_range": rng.choice(shifts),
        "height_shift_range": rng.choice(shifts),
        "shear_range": rng.choice([15.0, -9.0]),
        "zoom_range": rng.choice([0.3, [0.7, 1.2], [1.3, 0.8], [1, 1], 1.0, (-0.5, 0.5)]),
        "channel_shift_range": rng.choice([20.0, 0.1, -5.0]),
        "horizontal_flip": True,
        "vertical_flip": True,
    }
    if brightness:
        every["brightness_range"] = rng.choice(
            [(0.5, 1.5), [1.5, 0.2], (-1, 1), (0, 0), [1.0, 1.0]]
        )
    return {name: value for name, value in every.items() if rng.random() < 0.5}


def some_settings(rng: random.Random) -> dict[str, Any]:
    """What is the same in Keras's constructor and in `Transforms`."""
    kept: dict[str, Any] = {
        "fill_mode": rng.choice(FILL_MODES),
        "interpolation_order": rng.choice(ORDERS),
        "cval": rng.choice([0.0, 3, -7.5]),
    }
    if rng.random() < 0.5:
        kept["samplewise_center"] = True
        kept["samplewise_std_normalization"] = rng.random() < 0.5
    return kept


def some_statistic(rng: random.Random, shape: tuple[int, ...], channel_axis: int) -> Any:
    """As `fit` leaves it, or as a program sets it by hand."""
    broad = [1, 1, 1]
    broad[channel_axis] = shape[channel_axis]
    sizes = [tuple(broad), shape, ()] + ([shape[2:]] if channel_axis == 2 else [])
    size: Any = rng.choice(sizes)
    numbers = np.random.default_rng(rng.randrange(99)).uniform(0.5, 2, size)
    kinds: list[Any] = [np.float32, np.float64, np.float16]
    return rng.choice([*(kind(numbers) for kind in kinds), 1.3, 2])


def some_function(rng: random.Random) -> Callable[[Array], Array] | None:
    return rng.choice(FUNCTIONS) if rng.random() < 0.4 else None


def generator_of(
    keras: ModuleType, settings: dict[str, Any], mean: Any, std: Any, **arguments: Any
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one statistic brings another along
        generator = keras.ImageDataGenerator(**settings, **arguments)
    generator.featurewise_center, generator.mean = mean is not None, mean
    generator.featurewise_std_normalization, generator.std = std is not None, std
    return generator


def transforms_of(
    settings: dict[str, Any], mean: Any, std: Any, function: Any, **more: Any
) -> Transforms:
    rescale = settings.get("rescale")
    if isinstance(rescale, np.float64):  # to numpy it is no plain number
        settings = settings | {"rescale": Statistic.of("rescale", rescale)}
    return Transforms(
        **settings, **more,
        featurewise_mean=None if mean is None else Statistic.of("mean", mean),
        featurewise_std=None if std is None else Statistic.of("std", std),
        function=None if function is None else "m:f",
    )  # fmt: skip


# -- arrays ----------------------------------------------------------------------------------------


def some_source(rng: random.Random, shape: tuple[int, ...]) -> Array:
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    n = rng.choice([7, 11])
    low, high = rng.choice([(0, 255), (0, 1), (-90, 400)])
    kinds: list[Any] = ["uint8", "bool", "int16", "float16", "float32", "float64", "int64"]
    return numbers.uniform(low, high, (n, *shape)).astype(rng.choice(kinds))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("case", range(120))
def test_arrays_come_as_from_keras_whatever_its_settings(keras: ModuleType, case: int) -> None:
    rng = random.Random(case)
    data_format = rng.choice(["channels_last", "channels_first"])
    floatx = rng.choice(["float32", "float32", "float64"])
    keras_module("keras").config.set_floatx(floatx)
    keras.backend.set_image_data_format(data_format)
    channels, height, width = rng.choice([1, 2, 3, 3, 4, 5]), rng.choice([8, 11]), 9
    last = data_format == "channels_last"
    shape = (height, width, channels) if last else (channels, height, width)
    x = some_source(rng, shape)
    dtype = rng.choice([None, "float32", "float64"])
    settings = some_settings(rng) | some_ranges(rng, brightness=channels in (1, 3, 4))
    settings["rescale"] = rng.choice([None, 1 / 255, 2, 0, np.float64(0.1), np.float32(0.1)])
    mean, std = (
        some_statistic(rng, shape, 2 if last else 0) if rng.random() < 0.3 else None
        for _ in range(2)
    )
    function = some_function(rng)
    if function is averaging:  # what is set by hand may be as large as a picture, which it is not
        mean = std = None
    generator = generator_of(
        keras, settings, mean, std, data_format=data_format, dtype=dtype,
        preprocessing_function=function,
    )  # fmt: skip
    seed, size = rng.choice([0, 9]), rng.choice([3, 32])
    spec = Spec(
        data=("a.npz",), x="x", batch_size=size, shuffle=rng.random() < 0.5, seed=seed,
        scheme="keras", data_format=data_format, dtype=dtype or floatx,
        transforms=transforms_of(settings, mean, std, function, floatx=floatx),
    )  # fmt: skip
    flow = generator.flow(x, batch_size=size, shuffle=spec.shuffle, seed=seed)
    for got in list(batches(Recipe(spec, seed, {"x": x}, function), epochs=2)):
        wanted = next(flow)
        assert got["x"].dtype == wanted.dtype
        assert got["x"].tobytes() == wanted.tobytes(), spec


@pytest.mark.parametrize("case", range(20))
def test_8_bit_batches_come_as_from_keras(keras: ModuleType, case: int) -> None:
    rng = random.Random(1000 + case)
    keras.backend.set_image_data_format("channels_last")
    x: Array = np.random.default_rng(case).integers(0, 256, (9, 8, 10, 3)).astype("uint8")
    settings = some_settings(rng) | some_ranges(rng, brightness=True)
    for name in ("samplewise_center", "samplewise_std_normalization"):
        settings.pop(name, None)
    if "brightness_range" in settings:
        settings["rescale"] = 0.5
    flow = keras.ImageDataGenerator(**settings, dtype="uint8").flow(x, batch_size=4, seed=2)
    spec = Spec(
        data=("a.npz",), x="x", batch_size=4, seed=2, scheme="keras", dtype="uint8",
        transforms=Transforms(**settings),
    )  # fmt: skip
    for got in batches(Recipe(spec, 2, {"x": x}), epochs=2):
        assert got["x"].tobytes() == next(flow).tobytes(), settings


@pytest.mark.parametrize(
    "transforms",
    [{"rescale": 0.5}, {"samplewise_center": True}, {"prescale": 2, "function": "a:b"}],
)
def test_8_bit_batches_that_keras_fails_at_are_refused(transforms: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="dtype: got 'uint8' together with arithmetic"):
        Spec(data=("a",), x="x", scheme="keras", dtype="uint8", transforms=Transforms(**transforms))


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes and modes, gray of 16 and 32 bits among them."""
    root = tmp_path_factory.mktemp("pictures") / "all"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (20 + 5 * i, 34 - 6 * i, 4), np.uint8)
        Image.fromarray(pixels[..., :3]).save(root / f"rgb{i}.jpg")
        Image.fromarray(pixels).save(root / f"rgba{i}.png")
        Image.fromarray(pixels[..., 0]).save(root / f"gray{i}.png")
        Image.fromarray(pixels[..., 0].astype("uint16") * 9).save(root / f"gray16{i}.png")
    Image.fromarray(pixels[..., 0].astype("int32") * 2**21 + 3).save(root / "gray32.tif")
    Image.fromarray(pixels[..., 0].astype("float32")).save(root / "float.tif")
    return root.parent


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("case", range(50))
def test_files_come_as_from_keras_whatever_its_settings(
    keras: ModuleType, folder: Path, case: int
) -> None:
    rng = random.Random(2000 + case)
    data_format = rng.choice(["channels_last", "channels_first"])
    floatx = rng.choice(["float32", "float32", "float64"])
    keras_module("keras").config.set_floatx(floatx)
    keras.backend.set_image_data_format(data_format)
    dtype = rng.choice([None, "float32", "float64", "uint8"])
    color, how = rng.choice(["rgb", "rgba", "grayscale"]), rng.choice(INTERPOLATIONS)
    keep, size = rng.random() < 0.5, rng.choice([(16, 18), (20, 34)])
    shape = (*size, {"rgb": 3, "rgba": 4, "grayscale": 1}[color])
    settings = some_settings(rng) | some_ranges(rng, brightness=True)
    settings["rescale"] = rng.choice([None, 1 / 255, np.float64(0.1)])
    mean = some_statistic(rng, (1, 1, shape[2]), 2) if rng.random() < 0.2 else None
    if mean is not None and data_format == "channels_first":
        mean = 0.7
    function = some_function(rng)
    generator = generator_of(
        keras, settings, mean, None, data_format=data_format, dtype=dtype,
        preprocessing_function=function,
    )  # fmt: skip
    flow = generator.flow_from_directory(
        folder, target_size=size, batch_size=5, seed=3, class_mode="input", color_mode=color,
        interpolation=how, keep_aspect_ratio=keep,
    )  # fmt: skip
    pictures = Pictures(label_mode="input", color_mode=color, wide="keras", keep_aspect_ratio=keep)
    listing = list_files(str(folder), pictures)
    spec = Spec(
        data=(str(folder),), target_size=size, batch_size=5, seed=3, scheme="keras",
        interpolation=how, data_format=data_format, pictures=pictures, dtype=dtype or floatx,
        transforms=transforms_of(settings, mean, None, function, floatx=floatx),
    )  # fmt: skip
    for got in list(batches(Recipe(spec, 3, listing.arrays, function))):
        wanted, target = next(flow)
        assert got["x"].dtype == wanted.dtype
        assert got["x"].tobytes() == wanted.tobytes(), spec
        assert got["y"].tobytes() == target.tobytes()
