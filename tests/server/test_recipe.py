"""A recipe fills a batch from nothing but (spec, seed, dataset) and (epoch, step)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from augproto.errors import ConfigError
from augproto.layout import Layout
from augproto.spec import INTERPOLATIONS, Spec
from augproto.structure import leaves
from augproto.transforms import Transforms
from augserver.recipe import Recipe
from augserver.transforms import SampleError

Array = npt.NDArray[Any]

RNG = np.random.default_rng(5)
ARRAYS: dict[str, Array] = {
    "pictures": RNG.integers(0, 256, (23, 6, 4, 3), np.uint8),
    "others": RNG.random((23, 8, 8, 1), np.float32),
    "first": RNG.integers(0, 256, (23, 3, 6, 4), np.uint8),
    "labels": np.arange(23),
    "weights": np.linspace(0, 1, 23),
    "table": RNG.random((23, 5)),
    "flags": np.arange(23) % 2 == 0,
    "short": np.arange(22),
    "one": np.array(3.0),
    "complex": np.ones((23, 2, 2, 1), np.complex64),
}
AUGMENTED: dict[str, Any] = {"rotation_range": 30, "horizontal_flip": True, "zoom_range": 0.2}


def recipe(x: Any = "pictures", *, seed: int = 7, arrays: Any = ARRAYS, **fields: Any) -> Recipe:
    spec = Spec.from_wire({"data": "a.npz", "x": x, "batch_size": 5, "shuffle": False} | fields)
    return Recipe(spec, seed, arrays)


def batch(r: Recipe, epoch: int = 0, step: int = 0) -> dict[str, Array]:
    """A batch in a slot that was full of something else."""
    slot = np.full(r.layout.slot_bytes, 0xA5, np.uint8)
    arrays = r.layout.arrays(slot, r.count(epoch, step))
    r.fill(epoch, step, arrays)
    return arrays


def epoch(r: Recipe, number: int = 0) -> dict[str, Array]:
    """The batches of an epoch, joined."""
    batches = [batch(r, number, step) for step in range(r.sampler.steps)]
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


# -- what a batch is made of ---------------------------------------------------------------------


def test_one_input_and_one_output() -> None:
    r = recipe(y="labels")
    assert r.structure == {"x": "x", "y": "y"}
    assert r.layout == Layout.of(5, [("x", "f4", (6, 4, 3)), ("y", "i8", ())])
    filled = batch(r, 0, 1)
    assert np.array_equal(filled["x"], ARRAYS["pictures"][5:10].astype(np.float32))
    assert filled["y"].tolist() == [5, 6, 7, 8, 9]


def test_several_inputs_and_outputs_keep_their_structure_and_their_rows_together() -> None:
    r = recipe(
        ["pictures", "table"],
        y={"class": "labels", "even": "flags"},
        sample_weight=["weights"],
        shuffle=True,
    )
    assert r.structure == {
        "x": ("x/0", "x/1"),
        "y": {"class": "y/class", "even": "y/even"},
        "sample_weight": ("sample_weight/0",),
    }
    assert [field.name for field in r.layout.fields] == [
        name for structure in r.structure.values() for name in leaves(structure)
    ]
    filled = epoch(r)
    order = filled["y/class"]
    assert sorted(order) == list(range(23))
    assert order.tolist() != list(range(23))
    for name, array in (("x/1", "table"), ("y/even", "flags"), ("sample_weight/0", "weights")):
        assert np.array_equal(filled[name], ARRAYS[array][order])
        assert filled[name].dtype == ARRAYS[array].dtype
    assert np.array_equal(filled["x/0"], ARRAYS["pictures"][order].astype(np.float32))


def test_a_dict_of_inputs() -> None:
    r = recipe({"left": "pictures", "right": "pictures", "table": "table"})
    assert r.structure["x"] == {"left": "x/left", "right": "x/right", "table": "x/table"}
    filled = batch(r)
    assert np.array_equal(filled["x/left"], filled["x/right"])


def test_all_pictures_of_a_sample_are_drawn_for_alike() -> None:
    r = recipe(
        {"left": "pictures", "right": "pictures", "plain": "others"},
        images=["pictures"],
        transforms=AUGMENTED,
    )
    filled = batch(r)
    assert np.array_equal(filled["x/left"], filled["x/right"])
    assert not np.array_equal(filled["x/left"], ARRAYS["pictures"][:5].astype(np.float32))
    assert np.array_equal(filled["x/plain"], ARRAYS["others"][:5]), "not named, not touched"


def test_without_images_the_first_array_is_the_pictures_if_it_can_be() -> None:
    filled = batch(recipe(["pictures", "others"], transforms={"rescale": 0.5}))
    assert np.array_equal(filled["x/0"], ARRAYS["pictures"][:5] * np.float32(0.5))
    assert np.array_equal(filled["x/1"], ARRAYS["others"][:5])
    plain = batch(recipe("table"))
    assert np.array_equal(plain["x"], ARRAYS["table"][:5])


def test_the_last_batch_is_smaller_or_left_out() -> None:
    r = recipe(y="labels")
    assert [r.count(0, step) for step in range(r.sampler.steps)] == [5, 5, 5, 5, 3]
    assert batch(r, 0, 4)["x"].shape == (3, 6, 4, 3)
    dropped = recipe(y="labels", drop_remainder=True)
    assert [dropped.count(0, step) for step in range(dropped.sampler.steps)] == [5, 5, 5, 5]


# -- a pure function -----------------------------------------------------------------------------


def test_a_batch_is_the_same_whoever_makes_it_when_and_in_what_order() -> None:
    options: dict[str, Any] = {"y": "labels", "shuffle": True, "transforms": AUGMENTED}
    one, other = recipe(**options), recipe(**options)
    keys = [(e, step) for e in range(3) for step in range(one.sampler.steps)]
    forwards = {key: batch(one, *key)["x"].tobytes() for key in keys}
    for key in [*reversed(keys), keys[3], keys[3]]:
        assert batch(other, *key)["x"].tobytes() == forwards[key]
    assert len(set(forwards.values())) == len(keys)


def test_another_seed_and_another_epoch_are_other_batches() -> None:
    first, second = recipe(seed=1, transforms=AUGMENTED), recipe(seed=2, transforms=AUGMENTED)
    assert not np.array_equal(batch(first)["x"], batch(second)["x"])
    assert not np.array_equal(batch(first, 0)["x"], batch(first, 1)["x"])


def test_the_dataset_is_left_as_it_was() -> None:
    read_only = {name: array.copy() for name, array in ARRAYS.items()}
    for array in read_only.values():
        array.flags.writeable = False
    r = recipe(["pictures", "others"], arrays=read_only, images=["pictures", "others"],
               transforms=AUGMENTED | {"rescale": 2})  # fmt: skip
    batch(r)
    assert all(np.array_equal(read_only[name], ARRAYS[name]) for name in ARRAYS)


def test_every_byte_of_a_field_is_written() -> None:
    r = recipe(["pictures", "table"], y="flags", transforms=AUGMENTED)
    dirty, clean = (np.full(r.layout.slot_bytes, fill, np.uint8) for fill in (0xFF, 0))
    for slot in (dirty, clean):
        r.fill(0, 4, r.layout.arrays(slot, 3))
    for first, second in zip(
        r.layout.arrays(dirty, 3).values(), r.layout.arrays(clean, 3).values(), strict=True
    ):
        assert first.tobytes() == second.tobytes()


# -- shards and splits ---------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_disjoint_and_together_complete(count: int, shuffle: bool) -> None:
    for number in range(3):
        shards = [
            epoch(recipe(y="labels", shuffle=shuffle, shard=[index, count]), number)
            for index in range(count)
        ]
        labels = [shard["y"].tolist() for shard in shards]
        assert sorted(label for shard in labels for label in shard) == list(range(23))
        assert max(map(len, labels)) - min(map(len, labels)) <= 1


def test_a_sample_is_augmented_alike_in_any_shard_and_any_batch_size() -> None:
    whole = epoch(recipe(y="labels", shuffle=True, transforms=AUGMENTED))
    by_label = dict(zip(whole["y"].tolist(), whole["x"], strict=True))
    for index in range(3):
        r = recipe(y="labels", shuffle=True, shard=[index, 3], batch_size=2, transforms=AUGMENTED)
        part = epoch(r)
        for label, picture in zip(part["y"].tolist(), part["x"], strict=True):
            assert np.array_equal(picture, by_label[label])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_split_gives_validation_the_first_share_and_training_the_rest(
    share: float, shuffle: bool
) -> None:
    options: dict[str, Any] = {"y": "labels", "shuffle": shuffle, "validation_split": share}
    validation = epoch(recipe(subset="validation", **options))["y"]
    training = epoch(recipe(subset="training", **options))["y"]
    cut = int(23 * share)
    assert sorted(validation) == list(range(cut))
    assert sorted(training) == list(range(cut, 23))
    assert sorted(epoch(recipe(**options))["y"]) == list(range(23))


def test_a_split_or_shard_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no batch"):
        recipe(validation_split=0.01, subset="validation")
    with pytest.raises(ConfigError, match=r"no batch.*shard 29 of 30"):
        recipe(shard=[29, 30])
    with pytest.raises(ConfigError, match="one full batch"):
        recipe(batch_size=24, drop_remainder=True)


# -- sizes and dtypes ----------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pictures_are_resized_as_pillow_does_it(interpolation: str) -> None:
    r = recipe(target_size=[5, 9], interpolation=interpolation)
    assert r.layout.fields[0].shape == (5, 9, 3)
    filled = batch(r)["x"]
    how = getattr(Image.Resampling, interpolation.upper())
    for picture, source in zip(filled, ARRAYS["pictures"], strict=False):
        expected = np.asarray(Image.fromarray(source).resize((9, 5), how))
        assert np.array_equal(picture, expected.astype(np.float32))


def test_the_size_that_pictures_have_already_leaves_them_alone() -> None:
    same = batch(recipe(target_size=[6, 4], interpolation="lanczos"))["x"]
    assert np.array_equal(same, ARRAYS["pictures"][:5].astype(np.float32))


def test_pictures_of_two_sizes_become_one_size() -> None:
    r = recipe(["pictures", "others"], images=["pictures", "others"], target_size=[7, 7])
    assert [field.shape for field in r.layout.fields] == [(7, 7, 3), (7, 7, 1)]
    assert [array.shape for array in batch(r).values()] == [(5, 7, 7, 3), (5, 7, 7, 1)]


def test_channels_first_is_the_same_picture_turned() -> None:
    last = {"pictures": np.ascontiguousarray(np.moveaxis(ARRAYS["first"], 1, -1))}
    for options in ({}, {"target_size": [9, 5]}, {"transforms": AUGMENTED}):
        one = recipe("first", data_format="channels_first", **options)
        other = recipe("pictures", arrays=last, **options)
        assert np.array_equal(np.moveaxis(batch(one)["x"], 1, -1), batch(other)["x"])


def test_pictures_may_stay_in_8_bits() -> None:
    r = recipe(dtype="uint8", transforms={"horizontal_flip": True}, target_size=[3, 3])
    assert r.layout.fields[0].dtype == "|u1"
    assert batch(r)["x"].dtype == np.uint8
    plain = batch(recipe(dtype="uint8"))["x"]
    assert np.array_equal(plain, ARRAYS["pictures"][:5])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_only_pictures_change_their_dtype(dtype: str) -> None:
    r = recipe(["pictures", "table"], y="labels", dtype=dtype)
    assert {name: array.dtype.name for name, array in batch(r).items()} == {
        "x/0": dtype, "x/1": "float64", "y": "int64",
    }  # fmt: skip


def test_arrays_of_another_byte_order_arrive_in_this_ones() -> None:
    arrays = {name: ARRAYS[name].astype(ARRAYS[name].dtype.newbyteorder(">"))
              for name in ("others", "labels")}  # fmt: skip
    filled = batch(recipe("others", y="labels", arrays=arrays))
    assert np.array_equal(filled["x"], ARRAYS["others"][:5])
    assert filled["y"].tolist() == [0, 1, 2, 3, 4]
    assert all(array.dtype.isnative for array in filled.values())


# -- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"x": "cats"}, r"^x: no array 'cats' in the dataset; it has 'pictures', 'others'"),
        ({"y": ["labels", "cats"]}, r"^y: no array 'cats'"),
        ({"sample_weight": {"a": "cats"}}, r"^sample_weight: no array 'cats'"),
        ({"y": "short"}, r"differ in length: 'pictures' has 23, 'short' has 22"),
        ({"y": "one"}, r"^y: array 'one' is a single number"),
        ({"x": "one"}, r"^x: array 'one' is a single number"),
        ({"x": "table", "images": ["table"]}, r"^images: array 'table' is float64 of shape"),
        ({"x": "complex"}, r"^images: array 'complex' is complex64"),
        ({"x": "table", "transforms": {"rescale": 2}}, r"^transforms: the first array of x"),
        ({"x": "table", "target_size": [3, 3]}, r"^transforms: the first array of x"),
        ({"x": "labels", "transforms": {"rotation_range": 2}}, r"^transforms: the first array"),
        ({"transforms": {"featurewise_mean": [1.0, 2.0]}}, r"^transforms\.featurewise_mean"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_dataset_is_refused_by_name(
    fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        recipe(**fields)


def test_a_recipe_without_the_users_function_describes_and_does_not_compute() -> None:
    r = recipe(transforms={"function": "package.module:name"})
    assert r.layout.fields[0].shape == (6, 4, 3)
    with pytest.raises(Exception, match="only describes"):
        batch(r)


# -- what is noted and told of samples -----------------------------------------------------------


@pytest.mark.parametrize("target_size", [None, (12, 8)])
def test_a_sample_is_noted_by_its_index_in_the_dataset_before_its_function_is_called(
    target_size: tuple[int, int] | None,
) -> None:
    noted: list[int] = []
    calls: list[int] = []

    def function(picture: Array) -> Array:
        calls.append(len(noted))
        return picture

    spec = Spec(
        data=("a.npz",), x="pictures", batch_size=5, seed=1, target_size=target_size,
        transforms=Transforms(function="m:f"),
    )  # fmt: skip
    r = Recipe(spec, 1, ARRAYS, function)
    slot = np.zeros(r.layout.slot_bytes, np.uint8)
    r.fill(0, 1, r.layout.arrays(slot, 5), noted.append)
    assert noted == r.sampler.batch(0, 1).tolist()
    assert calls == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("target_size", [None, (12, 8)])
@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3), KeyboardInterrupt()])
def test_the_sample_that_fails_is_named_by_its_index_in_the_dataset(
    target_size: tuple[int, int] | None, error: BaseException
) -> None:
    calls: list[int] = []

    def function(picture: Array) -> Array:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return picture

    spec = Spec(
        data=("a.npz",), x="pictures", batch_size=5, seed=1, target_size=target_size,
        transforms=Transforms(function="m:f"),
    )  # fmt: skip
    r = Recipe(spec, 1, ARRAYS, function)
    slot = np.zeros(r.layout.slot_bytes, np.uint8)
    with pytest.raises(SampleError) as caught:
        r.fill(0, 1, r.layout.arrays(slot, 5), lambda sample: None)
    assert caught.value.sample == r.sampler.batch(0, 1)[2]
    assert caught.value.__cause__ is error


def test_in_the_callers_own_process_ctrl_c_and_exit_are_the_callers() -> None:
    def function(picture: Array) -> Array:
        raise KeyboardInterrupt

    spec = Spec(data=("a.npz",), x="pictures", batch_size=5, transforms=Transforms(function="m:f"))
    r = Recipe(spec, 1, ARRAYS, function)
    slot = np.zeros(r.layout.slot_bytes, np.uint8)
    with pytest.raises(KeyboardInterrupt):
        r.fill(0, 1, r.layout.arrays(slot, 5))
