"""The `keras` scheme: the k-th batch is the k-th of Keras's own class with the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE, image_data_generators
from PIL import Image
from recipes import batches

from augproto.errors import AugError, ConfigError
from augproto.pictures import Pictures
from augproto.spec import Spec
from augproto.transforms import FILL_MODES, Transforms
from augserver import keras_draws
from augserver.datasets.listing import list_files
from augserver.recipe import Recipe

Array = np.ndarray[Any, Any]

pytestmark = SCIPY_NOISE


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """The module with Keras's `ImageDataGenerator`."""
    yield from image_data_generators()


def some_options(rng: random.Random) -> dict[str, Any]:
    """Arguments of `ImageDataGenerator`, each on more often than off."""
    shifts: list[Any] = [0.2, 2.5, 3, [0.1, 0.3], [1.0, 2.0, 3.0]]
    every: dict[str, Any] = {
        "rotation_range": rng.choice([30, 7.5]),
        "width_shift_range": rng.choice(shifts),
        "height_shift_range": rng.choice(shifts),
        "shear_range": 15.0,
        "zoom_range": rng.choice([0.3, [0.7, 1.2]]),
        "channel_shift_range": 20.0,
        "horizontal_flip": True,
        "vertical_flip": True,
        "brightness_range": (0.5, 1.5),
        "rescale": 1 / 255,
    }
    return {name: value for name, value in every.items() if rng.random() < 0.6}


@pytest.mark.parametrize("case", range(40))
def test_arrays_come_batch_for_batch_as_from_keras(keras: ModuleType, case: int) -> None:
    rng = random.Random(case)
    data_format = rng.choice(["channels_last", "channels_first"])
    keras.backend.set_image_data_format(data_format)
    channels, height, width = rng.choice([1, 3, 4]), rng.choice([9, 12]), rng.choice([9, 14])
    shape = (height, width, channels) if data_format == "channels_last" else (
        channels, height, width,
    )  # fmt: skip
    n, batch_size = rng.choice([13, 20]), rng.choice([4, 5, 32])
    numpy = np.random.default_rng(case)
    x: Array = numpy.integers(0, 256, (n, *shape)).astype(rng.choice(["uint8", "float32"]))
    y = np.arange(n)
    options = some_options(rng)
    fixed: dict[str, Any] = {
        "fill_mode": rng.choice(FILL_MODES), "interpolation_order": rng.choice([0, 1]), "cval": 3.0,
    }  # fmt: skip
    seed, shuffle = rng.choice([0, 1, 12345]), rng.random() < 0.7
    split = rng.choice([0.0, 0.3])
    subset = rng.choice(["training", "validation"]) if split else None
    flow = keras.ImageDataGenerator(
        **options, **fixed, data_format=data_format, validation_split=split
    ).flow(
        x, y, batch_size=batch_size, shuffle=shuffle, seed=seed, subset=subset,
        **({"ignore_class_split": True} if split else {}),
    )  # fmt: skip
    spec = Spec.from_wire(
        {
            "data": "a.npz", "x": "x", "y": "y", "batch_size": batch_size, "shuffle": shuffle,
            "seed": seed, "scheme": "keras", "data_format": data_format,
            "validation_split": split, "subset": subset, "transforms": {**options, **fixed},
        }
    )  # fmt: skip
    for got in batches(Recipe(spec, seed, {"x": x, "y": y}), epochs=3):
        wanted_x, wanted_y = next(flow)
        assert got["y"].tolist() == wanted_y.tolist()
        assert got["x"].tobytes() == np.ascontiguousarray(wanted_x).tobytes(), (options, fixed)


def drawing(picture: Array) -> Array:
    """A user's function that draws from np.random, between Keras's own draws."""
    noise: Array = np.asarray(np.random.normal(size=picture.shape), picture.dtype)
    return picture + noise


@pytest.mark.parametrize("case", range(8))
def test_a_function_that_draws_shares_keras_own_generator(keras: ModuleType, case: int) -> None:
    rng = random.Random(100 + case)
    keras.backend.set_image_data_format("channels_last")
    x: Array = np.random.default_rng(case).integers(0, 256, (11, 8, 8, 3)).astype("uint8")
    options = some_options(rng)
    flow = keras.ImageDataGenerator(**options, preprocessing_function=drawing).flow(
        x, batch_size=4, seed=case
    )
    spec = Spec.from_wire(
        {
            "data": "a.npz", "x": "x", "batch_size": 4, "seed": case, "scheme": "keras",
            "transforms": {**options, "function": "tests:drawing"},
        }
    )  # fmt: skip
    before = np.random.get_state()
    try:
        for got in list(batches(Recipe(spec, case, {"x": x}, drawing), epochs=2)):
            assert got["x"].tobytes() == np.ascontiguousarray(next(flow)).tobytes(), options
    finally:
        np.random.set_state(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for i in range(23):
        below = ("", "a", "a/x", "a-b")[i % 4]  # "a-b" comes before "a/x" and after "a"
        path = root / ("cat", "dog", "newt")[i % 3] / below / f"{i:02}.{('png', 'jpg')[i % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 30 - i // 2, 3), np.uint8)).save(path)
    return root


@pytest.mark.parametrize("case", range(12))
def test_folders_come_batch_for_batch_as_from_keras(
    keras: ModuleType, folder: Path, case: int
) -> None:
    rng = random.Random(200 + case)
    data_format = rng.choice(["channels_last", "channels_first"])
    keras.backend.set_image_data_format(data_format)
    options, seed = some_options(rng), rng.choice([0, 7])
    color, how = rng.choice(["rgb", "rgba", "grayscale"]), rng.choice(["nearest", "bilinear"])
    mode, split = rng.choice(["sparse", "categorical"]), rng.choice([0.0, 0.4])
    subset = rng.choice(["training", "validation"]) if split else None
    shuffle = rng.random() < 0.7
    flow = keras.ImageDataGenerator(
        **options, validation_split=split, data_format=data_format
    ).flow_from_directory(
        folder, target_size=(16, 18), batch_size=5, seed=seed, class_mode=mode, color_mode=color,
        interpolation=how, subset=subset, shuffle=shuffle,
    )  # fmt: skip
    pictures = Pictures(label_mode=mode, color_mode=color)
    listing = list_files(str(folder), pictures)
    spec = Spec(
        data=(str(folder),), target_size=(16, 18), batch_size=5, seed=seed, scheme="keras",
        interpolation=how, validation_split=split, subset=subset, shuffle=shuffle,
        data_format=data_format, pictures=pictures, transforms=Transforms(**options),
    ).with_classes(listing.class_names)  # fmt: skip
    assert dict(zip(listing.class_names, range(3), strict=True)) == flow.class_indices
    for got in batches(Recipe(spec, seed, listing.arrays), epochs=2):
        wanted_x, wanted_y = next(flow)
        assert got["y"].tolist() == wanted_y.tolist()
        assert got["x"].tobytes() == np.ascontiguousarray(wanted_x).tobytes(), options


@pytest.mark.parametrize("case", range(30))
def test_parameters_are_those_of_keras_get_random_transform(keras: ModuleType, case: int) -> None:
    options = some_options(random.Random(300 + case))
    options.pop("rescale", None)
    generator = keras.ImageDataGenerator(**options, data_format="channels_last")
    state = keras_draws.state_before(case, 5)
    draws = keras_draws.draw(Transforms(**options), state, 6, 20, 30)
    before = np.random.get_state()
    try:
        np.random.seed(case + 5)
        for i in range(6):
            wanted = generator.get_random_transform((20, 30, 3))
            for name, keras_name in (
                *((n, n) for n in ("theta", "tx", "ty", "shear", "zx", "zy", "flip_horizontal",
                                   "flip_vertical", "brightness")),
                ("channel_shift", "channel_shift_intensity"),
            ):  # fmt: skip
                column = getattr(draws, name)
                assert (None if column is None else column[i]) == wanted[keras_name], name
    finally:
        np.random.set_state(before)


def test_skipping_a_bad_sample_leaves_the_draws_of_the_others(tmp_path: Path) -> None:
    def recipe(policy: str, function: Callable[[Array], Array] | None) -> Recipe:
        transforms = Transforms(rotation_range=30, function=function and "m:f")
        spec = Spec(
            data=("a.npz",), x="x", batch_size=6, seed=1, scheme="keras", bad_samples=policy,
            transforms=transforms,
        )  # fmt: skip
        return Recipe(spec, 1, {"x": x}, function)

    def no_threes(picture: Array) -> Array:
        if picture.max() == 3:
            raise ValueError("three")
        return picture

    x = np.repeat(np.arange(6, dtype=np.uint8), 48).reshape(6, 4, 4, 3)
    (whole,) = batches(recipe("raise", None), 1)
    (skipped,) = batches(recipe("skip", no_threes), 1)
    kept = whole["x"].max((1, 2, 3)) != 3
    assert np.array_equal(skipped["x"], whole["x"][kept])


def test_a_seed_that_keras_could_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"seed: got 4294967296; wanted at most 4294967295"):
        Spec(data=("a.npz",), x="x", seed=2**32, scheme="keras")
    with pytest.raises(AugError, match=r"batch 7 of seed 4294967295 would need"):
        keras_draws.state_before(2**32 - 1, 7)


@pytest.mark.parametrize("beside", [{"shard": (0, 2)}, {"drop_remainder": True}])
def test_what_keras_has_not_is_refused_beside_its_scheme(beside: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"scheme: got 'keras'; wanted 'counter' beside"):
        Spec(data=("a.npz",), x="x", scheme="keras", **beside)


def named_files(folder: Path) -> dict[int, int]:
    """The numbers in the names of saved files, by the sample that each is of."""
    return {int(i): int(hash) for i, hash in (p.stem.split("_")[1:] for p in folder.iterdir())}


@pytest.mark.parametrize("function", [None, drawing, "keras:tf:channels_last"])
def test_hashes_are_those_in_the_names_of_the_files_that_keras_saves(
    keras: ModuleType, tmp_path: Path, function: Any
) -> None:
    keras.backend.set_image_data_format("channels_last")
    x: Array = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3)).astype("uint8")
    options: dict[str, Any] = {"rotation_range": 9.0, "width_shift_range": [1, 2, 3]}
    flow = keras.ImageDataGenerator(
        **options, preprocessing_function=function if callable(function) else None
    ).flow(x, batch_size=4, seed=3, save_to_dir=str(tmp_path), save_prefix="a")
    name = "tests:drawing" if callable(function) else function
    spec = Spec(
        data=("a.npz",), x="x", y="y", batch_size=4, seed=3, scheme="keras", hashes=10_000,
        transforms=Transforms(**options, function=name),
    )  # fmt: skip
    recipe = Recipe(spec, 3, {"x": x, "y": np.arange(11)}, function if callable(function) else None)
    assert recipe.structure["hashes"] == "hashes"
    before = np.random.get_state()
    try:
        for batch in list(batches(recipe, epochs=2)):
            next(flow)
            wanted = named_files(tmp_path)
            assert dict(zip(batch["y"].tolist(), batch["hashes"].tolist(), strict=True)) == wanted
            for path in tmp_path.iterdir():
                path.unlink()
    finally:
        np.random.set_state(before)


def test_hashes_of_files_are_keras_own(keras: ModuleType, folder: Path, tmp_path: Path) -> None:
    keras.backend.set_image_data_format("channels_last")
    flow = keras.ImageDataGenerator(rotation_range=9.0).flow_from_directory(
        folder, target_size=(8, 8), batch_size=5, seed=3, save_to_dir=str(tmp_path), save_prefix="a"
    )
    listing = list_files(str(folder), Pictures())
    spec = Spec(
        data=(str(folder),), target_size=(8, 8), batch_size=5, seed=3, scheme="keras",
        hashes=10_000_000, pictures=Pictures(), transforms=Transforms(rotation_range=9.0),
    ).with_classes(listing.class_names)  # fmt: skip
    first = next(batches(Recipe(spec, 3, listing.arrays)))
    next(flow)
    assert first["hashes"].dtype == np.int64
    assert sorted(first["hashes"].tolist()) == sorted(named_files(tmp_path).values())


@pytest.mark.parametrize("beside", [{"scheme": "counter"}, {"bad_samples": "skip"}])
def test_hashes_are_keras_own_and_of_whole_batches(beside: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"scheme": "keras", "seed": 1, "hashes": 10} | beside
    with pytest.raises(ConfigError, match="hashes: got 10; wanted scheme 'keras' and bad_samples"):
        Spec(data=("a.npz",), x="x", **fields)


@pytest.mark.parametrize("x", ["y", ("a", "b")])
def test_hashes_follow_the_draws_of_one_array_of_pictures(x: Any) -> None:
    arrays: dict[str, Array] = {"y": np.zeros(3), "a": np.zeros((3, 4, 4, 1))}
    arrays["b"] = arrays["a"]
    images = ("a", "b") if x != "y" else None
    spec = Spec(data=("a.npz",), x=x, images=images, scheme="keras", seed=1, hashes=10)
    with pytest.raises(ConfigError, match=r"hashes: .*(0|2) arrays of pictures; wanted exactly"):
        Recipe(spec, 1, arrays)
