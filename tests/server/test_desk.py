"""Batches by script: samples and a state for a recipe, pictures and matrices for a desk."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from augproto.errors import AugError, ConfigError
from augproto.messages import Script
from augproto.spec import Spec
from augproto.transforms import Transforms
from augproto.twister import pack, random_state
from augserver.desk import Desk, recipe_of
from augserver.policy import Made
from augserver.recipe import Recipe

Array = np.ndarray[Any, Any]

X: Array = np.random.default_rng(1).integers(0, 256, (20, 9, 7, 3)).astype(np.uint8)


def fill(recipe: Recipe | Desk, script: Script) -> tuple[Array, Made]:
    samples = recipe.count(0, 0, script)
    slot = np.zeros(recipe.layout.slot_bytes, np.uint8)
    out = recipe.layout.arrays(slot, samples)
    made = recipe.fill(0, 0, out, None, script)
    return out["x"][: made.samples], made


def numbers(*samples: int) -> bytes:
    return np.array(samples, "<i8").tobytes()


def recipe(function: Any = None, **transforms: Any) -> Recipe:
    if function is not None:
        transforms["function"] = "m:f"
    spec = Spec(
        data=("d",),
        x="x",
        scheme="keras",
        batch_size=8,
        seed=4,
        transforms=Transforms(**transforms),
    )
    made = recipe_of(spec, 4, {"x": X}, function)
    assert isinstance(made, Recipe)
    return made


def test_a_scripted_batch_is_the_streams_own_where_it_says_the_same() -> None:
    r = recipe(rotation_range=20, horizontal_flip=True, brightness_range=(0.5, 1.5))
    for epoch, step in ((0, 0), (0, 2), (3, 1)):
        order = r.sampler.batch(epoch, step)
        state = pack(r.sampler.keras_state(epoch, step).get_state())
        slot = np.zeros(r.layout.slot_bytes, np.uint8)
        own = r.layout.arrays(slot, len(order))
        assert r.fill(epoch, step, own).state == b""
        got, _ = fill(r, Script(0, 0, indexes=order.astype("<i8").tobytes(), state=state))
        assert (got == own["x"]).all()


def test_the_state_that_is_left_goes_on_with_the_next_batch() -> None:
    r = recipe(rotation_range=20, zoom_range=0.2)
    start = np.random.RandomState(9)
    whole, made = fill(r, Script(0, 0, numbers(1, 2, 3, 4), state=pack(start.get_state())))
    first, half = fill(r, Script(0, 0, numbers(1, 2), state=pack(start.get_state())))
    second, end = fill(r, Script(0, 0, numbers(3, 4), state=half.state))
    assert (np.concatenate([first, second]) == whole).all()
    assert end.state == made.state


def test_a_functions_own_draws_are_part_of_the_state_that_is_left() -> None:
    def noise(picture: Array) -> Array:
        return picture + np.random.uniform(0, 1, picture.shape)

    r = recipe(noise, horizontal_flip=True)
    before = np.random.get_state()
    start = np.random.RandomState(9)
    _, made = fill(r, Script(0, 0, numbers(5, 6), state=pack(start.get_state())))
    np.random.set_state(before)
    for _ in range(2):
        start.random_sample(2)  # both flips
        start.uniform(0, 1, X.shape[1:])
    assert made.state == pack(start.get_state())
    assert (random_state(made.state).random_sample(5) == start.random_sample(5)).all()


@pytest.mark.parametrize(
    "script",
    [
        Script(0, 0),
        Script(0, 0, numbers(1)),
        Script(0, 0, numbers(20), state=bytes(2512)),
        Script(0, 0, numbers(-1), state=bytes(2512)),
        Script(0, 0, numbers(*range(9)), state=bytes(2512)),
        Script(0, 0, b"", state=bytes(2512)),
        Script(0, 0, b"123", state=bytes(2512)),
        Script(0, 0, numbers(1), state=bytes(2512), matrices=bytes(48)),
        Script(0, 0, numbers(1), b"pixels", bytes(2512)),
        Script(0, 0, numbers(1), state=b"no state"),
    ],
)
def test_a_script_that_is_none_for_a_recipe_is_refused(script: Script) -> None:
    with pytest.raises((AugError, ValueError)):
        fill(recipe(rotation_range=1), script)


def desk(dtype: str = "float32", size: int = 4, **options: Any) -> Desk:
    made = recipe_of(
        Spec(data=("d",), x="x", scheme="given", batch_size=size, **options),
        0,
        {"x": X[:2].astype(dtype)},
    )
    assert isinstance(made, Desk)
    return made


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16"])
def test_a_desk_warps_pictures_that_are_sent_along_as_scipy_does(dtype: str) -> None:
    d = desk(dtype, transforms=Transforms(fill_mode="reflect"))
    pictures = X[5:8].astype(dtype)
    rng = random.Random(3)
    matrices = np.array(
        [[[1, 0.1, rng.random()], [0.2, 0.9, rng.random()]] for _ in pictures], np.float64
    )
    matrices[1, 0, 0] = np.nan
    got, _ = fill(d, Script(0, 0, pictures=pictures.tobytes(), matrices=matrices.tobytes()))
    assert got.dtype == dtype
    assert (got[1] == pictures[1]).all()
    for i in (0, 2):
        for channel in range(3):
            expected = ndimage.affine_transform(
                pictures[i, ..., channel], matrices[i, :, :2], matrices[i, :, 2], order=1,
                mode="reflect",
            )  # fmt: skip
            assert (got[i, ..., channel] == expected).all()


def test_a_desk_takes_pictures_from_its_dataset_too_and_brightens_them() -> None:
    got, _ = fill(desk(), Script(0, 0, numbers(1, 0), brightness=1.0))
    assert (got == X[[1, 0]]).all()
    black, _ = fill(desk(), Script(0, 0, numbers(0), brightness=0.0))
    assert not black.any()


@pytest.mark.parametrize(
    "script",
    [
        None,
        Script(0, 0),
        Script(0, 0, numbers(2)),
        Script(0, 0, numbers(0, 0, 0, 0, 0)),
        Script(0, 0, numbers(0), state=bytes(2512)),
        Script(0, 0, numbers(0), matrices=bytes(40)),
        Script(0, 0, pictures=b"123"),
    ],
)
def test_a_script_that_is_none_for_a_desk_is_refused_with_what_was_wanted(
    script: Script | None,
) -> None:
    with pytest.raises((ConfigError, ValueError), match=r"wanted|buffer"):
        desk().count(0, 0, script)


def test_a_desk_needs_one_array_of_pictures() -> None:
    for x, arrays in (("x", {"x": X[0]}), ("y", {"x": X})):
        with pytest.raises(ConfigError, match="given"):
            recipe_of(Spec(data=("d",), x=x, scheme="given"), 0, arrays)
