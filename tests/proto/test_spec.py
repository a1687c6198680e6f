"""Whatever passes a spec's checks can be served; whatever does not is refused by name."""

from __future__ import annotations

import dataclasses
import random
import re
from typing import Any

import msgpack
import numpy as np
import pytest

from augproto.codec import decode, encode
from augproto.errors import ConfigError
from augproto.messages import Open
from augproto.pictures import COLOR_MODES, LABEL_MODES, TRUNCATED, WIDE, Pictures
from augproto.spec import (
    DATA_FORMATS,
    DTYPES,
    HANDED,
    INTERPOLATIONS,
    MAX_BATCH,
    MAX_HASHES,
    MAX_SEED,
    SUBSETS,
    Spec,
)
from augproto.transforms import (
    FILL_MODES,
    FLOATX,
    MAX_STATISTIC_BYTES,
    ORDERS,
    Statistic,
    Transforms,
)

NAN, INFINITE = float("nan"), float("inf")
NOT_A_NUMBER: list[Any] = ["1", None, True, [1], NAN, -INFINITE]
NOT_A_FLAG: list[Any] = [0, 1, "yes", None, 1.0]
NOT_NAMES: list[Any] = ["", None, 1, [], {}, ["a", 1], {"a": 1}, {1: "a"}]
NOT_A_RANGE: list[Any] = ["1", None, True, [], (), (1, "2"), NAN, (1, NAN), {}]

BAD: dict[str, list[Any]] = {
    "data": [
        "\udcff.npz",
        "",
        None,
        1,
        [],
        [""],
        ["a", 1],
        "a\0b",
        "a" * 4096,
        ["a"] * 1025,
        {"a": "b"},
    ],
    "x": NOT_NAMES,
    "y": [value for value in NOT_NAMES if value is not None],
    "sample_weight": [value for value in NOT_NAMES if value is not None],
    "images": ["", 1, [], ["other"], "other", ["x", "other"]],
    "batch_size": [0, -1, 1.0, "32", None, True, MAX_BATCH + 1],
    "shuffle": NOT_A_FLAG,
    "seed": [-1, MAX_SEED + 1, 1.0, "7", True],
    "shard": [(1, 1), (-1, 2), (0, 0), (0, 1, 2), 0, None, (0.0, 1), ("0", "1"), (0, 1 << 21)],
    "drop_remainder": NOT_A_FLAG,
    "validation_split": [*NOT_A_NUMBER, -0.1, 1, 1.0, 2],
    "subset": ["test", 1, True, ["training"]],
    "target_size": [3, (3,), (0, 3), (3, -1), (3.0, 3), "3x3", (3, 3, 3), (1, 1 << 16)],
    "interpolation": ["cubic", None, 1, True],
    "data_format": ["channels", None, 1],
    "dtype": ["int8", None, 1, "bfloat16", "<f4"],
    "pictures": [1, "rgb", [], [("label_mode", "sparse")], True],
    "bad_samples": ["ignore", None, 1, True],
    "scheme": ["philox", None, 1, True],
    "transforms": [None, 1, "rotate", [], [("rotation_range", 1)]],
    "hashes": [0, -1, 1e4, "1", True, MAX_HASHES + 1],
    "whitening": ["", 1, True, ["zca"], "z" * 4097],
    "cache": ["", "encoded", 1, True, "decoded"],
}

BAD_TRANSFORMS: dict[str, list[Any]] = {
    "rotation_range": NOT_A_NUMBER,
    "width_shift_range": [*NOT_A_RANGE, -1 << 21, 1 << 21, (0.1,) * 65537],
    "height_shift_range": [*NOT_A_RANGE, -1 << 21, 1 << 21],
    "shear_range": NOT_A_NUMBER,
    "zoom_range": ["1", None, True, (), (1,), (1, 2, 3), (1, "2"), NAN],
    "floatx": ["float16", None, 1, True],
    "prescale": [value for value in NOT_A_NUMBER if value is not None],
    "channel_shift_range": NOT_A_NUMBER,
    "brightness_range": [
        1, "ab", (1,), (0, NAN), (0, 1, 2), ("0", "1"), (-1e308, 1e308), (-INFINITE, 1),
    ],
    "horizontal_flip": NOT_A_FLAG,
    "vertical_flip": NOT_A_FLAG,
    "fill_mode": ["grid", None, 1, True],
    "cval": NOT_A_NUMBER,
    "interpolation_order": [6, -1, "1", 1.5, None, True],
    "function": ["", 1, True, "x" * 513, ["a"]],
    "rescale": [value for value in NOT_A_NUMBER if value is not None],
    "offset": NOT_A_NUMBER,
    "samplewise_center": NOT_A_FLAG,
    "samplewise_std_normalization": NOT_A_FLAG,
    "featurewise_mean": [
        "mean", {}, {"dtype": "f4"}, {"dtype": "f4", "shape": [3], "data": b"1234"}, [[1], [1, 2]],
        [NAN], np.zeros((1, 1, 1, 1, 1)), np.zeros(MAX_STATISTIC_BYTES // 8 + 1),
        {"dtype": "O", "shape": [1], "data": bytes(8)}, {"dtype": "f4", "shape": [1], "data": 1},
        {"dtype": "f4", "shape": [1], "data": bytes(4), "more": 1},
        {"dtype": "(1,2", "shape": [1], "data": bytes(4)},
        {"dtype": "f4", "shape": [INFINITE], "data": bytes(4)},
        {"dtype": "f4", "shape": [2**63], "data": bytes(4)},
    ],
    "featurewise_std": ["std", object(), [INFINITE]],
}  # fmt: skip


BAD_PICTURES: dict[str, list[Any]] = {
    "label_mode": ["int", 1, True, ["sparse"]],
    "class_names": ["cat", None, 1, ["cat", 1], ["cat", "cat"], [""], ["c" * 4096], ["\udcff"]],
    "color_mode": ["RGB", "gray", None, 3],
    "recursive": NOT_A_FLAG,
    "exif_orientation": NOT_A_FLAG,
    "wide": ["cut", None, True],
    "keep_aspect_ratio": NOT_A_FLAG,
    "truncated": ["ignore", None, True],
    "max_pixels": [0, -1, 1.0, None, True, 1 << 35],
    "max_bytes": [0, 1.5, "1", None, 1 << 35],
}


def made(**fields: Any) -> Spec:
    """A spec of arguments as users pass them: looser than its fields' types."""
    return Spec(**({"data": "a.npz", "x": "x"} | fields))


def cases(bad: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{i}")
        for name, values in bad.items()
        for i, value in enumerate(values)
    ]


def some_structure(rng: random.Random, names: list[str]) -> Any:
    return rng.choice([names[0], tuple(names), {f"in{i}": name for i, name in enumerate(names)}])


def some_transforms(rng: random.Random, *, plain: bool) -> Transforms:
    """Any that pass; `plain` ones may be had in 8 bits in every scheme."""
    flags: dict[str, Any] = {
        "horizontal_flip": rng.random() < 0.5,
        "vertical_flip": rng.random() < 0.5,
    }
    if plain:
        return Transforms(**flags)
    shifts: list[Any] = [
        0.2, 1.0, 1, 3, -0.5, -2, (-0.5, 0.5), (1, 2.5), np.float32(0.1), np.int64(2),
    ]  # fmt: skip
    statistics: list[Any] = [
        None, 0.5, np.array([1, 2, 3], np.float32), [[1, 2]], np.array([[[1 / 3]]]), np.int32(7),
    ]  # fmt: skip
    every: dict[str, Any] = flags | {
        "rotation_range": rng.choice([0, 15, -3.0, 0.1, np.float32(1.5)]),
        "width_shift_range": rng.choice(shifts),
        "height_shift_range": rng.choice(shifts),
        "shear_range": rng.uniform(-90, 90),
        "zoom_range": rng.choice([0.2, 0, (0.5, 2), [1, 1]]),
        "channel_shift_range": rng.choice([0.0, 30, 1e-3]),
        "brightness_range": rng.choice([None, (0, 1), [0.5, 1.5], (1, 1), (2, -1)]),
        "fill_mode": rng.choice(FILL_MODES),
        "cval": rng.choice([0, -1.5]),
        "interpolation_order": rng.choice(ORDERS),
        "function": rng.choice([None, "package.module:name"]),
        "prescale": rng.choice([None, 0.5, 0]),
        "floatx": rng.choice(FLOATX),
        "rescale": rng.choice([None, 1 / 255, 0, 1, Statistic.of("rescale", np.float64(0.1))]),
        "offset": rng.choice([0, -1]),
        "samplewise_center": rng.random() < 0.5,
        "samplewise_std_normalization": rng.random() < 0.5,
        "featurewise_mean": rng.choice(statistics),
        "featurewise_std": rng.choice(statistics),
    }
    assert set(every) == {field.name for field in dataclasses.fields(Transforms)}
    return Transforms(**{name: every[name] for name in every if rng.random() < 0.7})


def some_pictures(rng: random.Random) -> Pictures:
    mode = rng.choice([*LABEL_MODES, None])
    names = rng.choice([(), ["cat", "dog"], ("été 猫", "b c")])
    every: dict[str, Any] = {
        "label_mode": mode,
        "class_names": names,
        "color_mode": rng.choice(list(COLOR_MODES)),
        "recursive": rng.random() < 0.5,
        "exif_orientation": rng.random() < 0.5,
        "wide": rng.choice(WIDE),
        "keep_aspect_ratio": rng.random() < 0.5,
        "truncated": rng.choice(TRUNCATED),
        "max_pixels": rng.choice([1, 10**8]),
        "max_bytes": rng.choice([1, 10**8]),
    }
    assert set(every) == {field.name for field in dataclasses.fields(Pictures)}
    return Pictures(**every)


def some_spec(rng: random.Random) -> Spec:
    names = [f"array{i}" for i in range(rng.randrange(1, 4))]
    x = some_structure(rng, names)
    chosen = rng.choice([None, (names[0],), names[0]])
    split = rng.choice([0.0, 0.25])
    count = rng.randrange(1, 5)
    dtype = rng.choice(DTYPES)
    every: dict[str, Any] = {
        "y": rng.choice([None, some_structure(rng, ["y1", "y2"])]),
        "sample_weight": rng.choice([None, "weights"]),
        "images": chosen,
        "batch_size": rng.choice([1, 7, MAX_BATCH, np.int64(3)]),
        "shuffle": rng.random() < 0.5,
        "seed": rng.choice([None, 0, 1, MAX_SEED]),
        "shard": (rng.randrange(count), count),
        "drop_remainder": rng.random() < 0.5,
        "validation_split": split,
        "subset": rng.choice([None, *SUBSETS]) if split else None,
        "target_size": rng.choice([None, (1, 1), [224, 32]]),
        "interpolation": rng.choice(INTERPOLATIONS),
        "data_format": rng.choice(DATA_FORMATS),
        "dtype": dtype,
        "bad_samples": rng.choice(["raise", "substitute"]),
        "scheme": "counter",
        "pictures": None,
        "transforms": some_transforms(rng, plain=dtype == "uint8"),
        "whitening": rng.choice([None, "zca"]) if dtype in ("float32", "float64") else None,
        "hashes": None,
        "cache": None,
    }
    if rng.random() < 0.2 and dtype != "float16":
        every |= {"scheme": "keras", "seed": 7, "shard": (0, 1), "drop_remainder": False}
        every |= {"bad_samples": "raise", "hashes": rng.choice([None, 10_000])}
    assert {"data", "x", *every} == {field.name for field in dataclasses.fields(Spec)}
    if rng.random() < 0.3:
        every |= {"y": None, "images": None, "target_size": (9, 8), "pictures": some_pictures(rng)}
        every["cache"] = rng.choice([None, "decoded"])
        return made(**every, data="cats", x="")
    return made(data=rng.choice(["a.npz", ("a.npy", "b.npy")]), x=x, **every)


def test_two_hundred_specs_cross_the_wire_unchanged() -> None:
    rng = random.Random(11)
    seen = set()
    for _ in range(200):
        spec = some_spec(rng)
        wish = decode(encode(Open(None, spec.to_wire(), None)))
        assert isinstance(wish, Open)
        again = Spec.from_wire(wish.spec)
        assert again == spec
        # 1 and 1.0 are equal, and shift by pixels drawn in different ways.
        assert repr(again) == repr(spec)
        seen.add(repr(spec))
    assert len(seen) == 200


def test_only_what_differs_from_the_defaults_travels() -> None:
    assert made().to_wire() == {"data": ["a.npz"], "x": "x"}
    assert Transforms().to_wire() == {}
    shifted = Transforms(width_shift_range=2).to_wire()
    assert repr(shifted) == "{'width_shift_range': 2}"


def test_a_spec_is_one_value_whichever_door_it_comes_through() -> None:
    direct = Spec(data=("a.npz",), x=("l", "r"), transforms=Transforms(zoom_range=0.2))
    written = Spec.from_wire(
        {"data": "a.npz", "x": ["l", "r"], "transforms": {"zoom_range": [0.8, 1.2]}}
    )
    assert written == direct
    numpy = made(
        x=("l", "r"),
        batch_size=np.int32(32),
        shuffle=np.bool_(True),
        transforms=Transforms(zoom_range=np.float64(0.2)),
    )
    assert repr(numpy) == repr(direct)


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_a_bad_field_is_refused_with_what_was_got_and_wanted(name: str, value: Any) -> None:
    beside = {"validation_split": 0.5} if name == "subset" else {}
    with pytest.raises(ConfigError) as refused:
        made(**beside, **{name: value})
    assert re.match(rf"{name}\b.*got .*wanted .", str(refused.value), re.DOTALL)


@pytest.mark.parametrize(("name", "value"), cases(BAD_TRANSFORMS))
def test_a_bad_transform_is_refused_with_what_was_got_and_wanted(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        Spec.from_wire({"data": "a.npz", "x": "x", "transforms": {name: value}})
    message = str(refused.value)
    assert re.match(rf"transforms\.{name}: (got .*wanted .|unknown field)", message, re.DOTALL)


def test_every_field_has_bad_values_here() -> None:
    assert set(BAD) == {field.name for field in dataclasses.fields(Spec)}
    assert set(BAD_TRANSFORMS) == {field.name for field in dataclasses.fields(Transforms)}
    assert set(BAD_PICTURES) == {field.name for field in dataclasses.fields(Pictures)}


@pytest.mark.parametrize(("name", "value"), cases(BAD_PICTURES))
def test_a_bad_word_about_pictures_is_refused_with_what_was_got_and_wanted(
    name: str, value: Any
) -> None:
    with pytest.raises(ConfigError) as refused:
        Spec.from_wire({"data": "cats", "target_size": [8, 8], "pictures": {name: value}})
    assert re.match(rf"pictures\.{name}: got .*wanted .", str(refused.value), re.DOTALL)


@pytest.mark.parametrize("wire", [None, 1, "spec", [], [("data", "a")]])
def test_what_is_no_map_is_no_spec(wire: object) -> None:
    with pytest.raises(ConfigError, match=r"^spec: got .*; wanted a map of fields"):
        Spec.from_wire(wire)


def test_a_misspelt_field_is_refused_and_the_right_ones_are_named() -> None:
    with pytest.raises(ConfigError, match=r"spec: unknown field 'batchsize'; .*batch_size"):
        Spec.from_wire({"data": "a", "x": "x", "batchsize": 3})
    with pytest.raises(
        ConfigError, match=r"transforms: unknown field 'rotation'; .*rotation_range"
    ):
        Spec.from_wire({"data": "a", "x": "x", "transforms": {"rotation": 3}})


@pytest.mark.parametrize("missing", ["data", "x"])
def test_what_no_spec_can_do_without_is_named(missing: str) -> None:
    fields = {"data": "a", "x": "x"}
    del fields[missing]
    with pytest.raises(ConfigError, match=f"spec: {missing} is missing"):
        Spec.from_wire(fields)


def test_a_subset_needs_a_split() -> None:
    with pytest.raises(ConfigError, match=r"subset: got 'training'; wanted a validation_split"):
        made(subset="training")


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_whitened_pictures_are_not_rounded(dtype: str) -> None:
    made(dtype=dtype, transforms=Transforms(rotation_range=10, zoom_range=0.1))
    with pytest.raises(ConfigError, match=f"dtype: got '{dtype}'; wanted 'float32' or 'float64' b"):
        made(dtype=dtype, whitening="zca")


def test_keras_s_scheme_has_no_float16() -> None:
    with pytest.raises(ConfigError, match=r"dtype: got 'float16'; wanted .* in scheme 'keras'"):
        made(dtype="float16", scheme="keras")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rotation_range", 1), ("width_shift_range", 0.1), ("height_shift_range", (1,)),
        ("shear_range", 1), ("zoom_range", 0.1), ("channel_shift_range", 1),
        ("brightness_range", (1, 1)), ("horizontal_flip", True), ("vertical_flip", True),
        ("function", "a:b"),
    ],
)  # fmt: skip
def test_it_is_known_whether_anything_is_drawn(name: str, value: Any) -> None:
    assert not Transforms(rescale=0.5, fill_mode="wrap", samplewise_center=True).random
    assert Transforms(**{name: value}).random


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(0.5, "f8"), (np.float32(0.5), "f4"), ([1, 2, 3], "f8"), (np.array([1], np.float16), "f2")],
)
def test_a_statistic_keeps_its_own_precision(value: Any, dtype: str) -> None:
    statistic = Statistic.of("mean", value)
    assert statistic.weak == isinstance(value, float)
    assert statistic.array().dtype == np.dtype(dtype)
    assert np.array_equal(statistic.array(), np.asarray(value))
    assert not statistic.array().flags.writeable
    assert hash(statistic) == hash(Statistic.of("mean", value))


def test_a_statistic_of_any_strides_crosses_the_wire() -> None:
    mean = np.arange(24, dtype=np.float32).reshape(2, 3, 4).T
    again = Transforms.from_wire(Transforms(featurewise_mean=Statistic.of("mean", mean)).to_wire())
    assert again.featurewise_mean is not None
    assert np.array_equal(again.featurewise_mean.array(), mean)


@pytest.mark.parametrize("z", [0.0, 0.2, 1])
def test_one_zoom_factor_stands_for_the_range_around_one(z: float) -> None:
    assert Transforms(zoom_range=z).zoom_range == (1 - z, 1 + z)


def test_a_number_beyond_all_floats_is_refused_like_any_other() -> None:
    with pytest.raises(ConfigError, match=r"transforms\.rotation_range: got .*wanted a finite"):
        Transforms(rotation_range=10**400)


@pytest.mark.parametrize("field", ["x", "seed", "transforms"])
def test_what_a_peer_nested_deeply_is_refused_and_no_more(field: str) -> None:
    packed = {"data": msgpack.packb("a"), "x": msgpack.packb("x")}
    packed[field] = b"\x91" * 1000 + b"\x90"
    spec = b"".join(msgpack.packb(name) + value for name, value in packed.items())
    head = bytes([0x80 + len(packed)])
    message = decode(b"\x94\x03\xc0" + head + spec + b"\xc0")
    assert isinstance(message, Open)
    with pytest.raises(ConfigError, match=f"{field}: got"):
        Spec.from_wire(message.spec)


@pytest.mark.parametrize(
    "field", ["fill_mode", "function", "featurewise_mean", "unknown" * 20000]
)  # fmt: skip
def test_a_refusal_is_short_enough_to_be_told(field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Spec.from_wire({"data": "a", "x": "x", "transforms": {field: "y" * 100_000}})
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    ("mode", "y"),
    [("sparse", "label"), ("categorical", "label"), ("binary", "label"), ("number", "label"),
     ("input", "picture"), ("none", None), (None, None)],
)  # fmt: skip
def test_pictures_name_the_columns_themselves(mode: Any, y: str | None) -> None:
    spec = Spec(data=("cats",), target_size=(8, 8), pictures=Pictures(label_mode=mode))
    assert (spec.x, spec.y) == ("picture", y)
    assert Spec.from_wire(spec.to_wire()) == spec


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"x": "pixels"}, "x: got 'pixels'; wanted nothing, or 'picture'"),
        ({"y": "classes"}, "y: got 'classes'; wanted nothing, or 'label'"),
        ({"target_size": None}, "target_size: got None; wanted .*any size"),
        ({"data": ("cats", "dogs")}, "data: got .*; wanted one folder or one .csv"),
        ({"bad_samples": "skip", "drop_remainder": True}, "bad_samples: got 'skip'; wanted"),
    ],
)
def test_what_contradicts_pictures_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        made(**{"data": "cats", "x": "", "target_size": (8, 8), "pictures": Pictures()} | fields)


def test_a_list_of_files_that_is_handed_over_brings_labels_of_its_own() -> None:
    pictures = Pictures(label_mode="none")
    spec = Spec(data=(f"{HANDED}1",), y=("a", "b"), target_size=(8, 8), pictures=pictures)
    assert spec.y == ("a", "b")


def test_arrays_must_be_named_and_pictures_need_not() -> None:
    with pytest.raises(ConfigError, match="x is missing; wanted at least data, and x"):
        Spec.from_wire({"data": "a.npz"})
    with pytest.raises(ConfigError, match="x: got ''"):
        Spec(data=("a.npz",))
    assert Spec.from_wire({"data": "cats", "target_size": [8, 8], "pictures": {}}).x == "picture"
