"""The functions of one picture give Keras's bits, whatever the axes, dtypes and settings."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE
from same_face import Faces, faces, same

from augproto.transforms import FILL_MODES

pytestmark = SCIPY_NOISE

#: (row_axis, col_axis, channel_axis), all that Keras takes.
AXES = [axes for axes in itertools.permutations(range(3)) if axes[2] != 1]


@pytest.fixture(scope="module")
def both() -> Iterator[Faces]:
    """Ours and Keras's."""
    yield from faces()


def picture(rng: random.Random, dtype: str | None = None) -> Any:
    """Of any numbers, in any layout."""
    numpy = np.random.default_rng(rng.randrange(1000))
    dtype = dtype or rng.choice(["float32", "float64", "uint8", "int16", "int64"])
    shape = rng.choice([(7, 9, 3), (3, 8, 8), (4, 5, 4), (1, 6, 5)])
    x: Any = numpy.uniform(0 if dtype == "uint8" else rng.choice([0, -90]), 255, shape)
    x = x.astype(dtype)
    return rng.choice([x, x[::-1], x.transpose(2, 0, 1), np.asfortranarray(x)])


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("case", range(6))
def test_affine_transforms_are_keras_s(both: Faces, axes: tuple[int, int, int], case: int) -> None:
    rng = random.Random(case)
    x = picture(rng)
    every = {
        "theta": rng.choice([30, -7.5]), "tx": rng.choice([2, -1.5]), "ty": rng.choice([3, 0.25]),
        "shear": rng.choice([8, -3.5]), "zx": rng.choice([0.8, 2]), "zy": rng.choice([1.25, 1]),
    }  # fmt: skip
    chosen: dict[str, Any] = {name: value for name, value in every.items() if rng.random() < 0.6}
    chosen |= dict(zip(("row_axis", "col_axis", "channel_axis"), axes, strict=True))
    chosen |= {"fill_mode": rng.choice(FILL_MODES), "cval": 3.5, "order": rng.choice([0, 1, 3])}
    same(*(f.apply_affine_transform(x, **chosen) for f in (both.ours, both.theirs)))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("random_rotation", (30,)), ("random_shift", (0.2, 0.4)), ("random_shear", (20,)),
        ("random_zoom", ((0.7, 1.3),)), ("random_zoom", ([1, 1],)),
    ],
)  # fmt: skip
def test_random_warps_draw_from_np_random_as_keras(
    both: Faces, axes: tuple[int, int, int], name: str, arguments: Any
) -> None:
    x = picture(random.Random(name), "float32")
    for more in ((), ("constant", 7.0, 0)):
        results = []
        for face in (both.ours, both.theirs):
            np.random.seed(11)
            results.append((getattr(face, name)(x, *arguments, *axes, *more), np.random.random()))
        same(results[0][0], results[1][0])
        assert results[0][1] == results[1][1]


@pytest.mark.parametrize("case", range(12))
def test_channel_shifts_are_keras_s(both: Faces, case: int) -> None:
    rng = random.Random(case)
    x = picture(rng)
    for axis in (0, 1, 2, -1):
        intensity = rng.choice([12.5, -30.0, 7, np.float64(3.5), np.float32(2)])
        same(*(f.apply_channel_shift(x, intensity, axis) for f in (both.ours, both.theirs)))
        shifted = []
        for face in (both.ours, both.theirs):
            np.random.seed(case)
            shifted.append(face.random_channel_shift(x, 40, channel_axis=axis))
        same(*shifted)


@pytest.mark.parametrize("floatx", ["float32", "float64", "float16"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_brightness_is_keras_s_with_and_without_stretching(
    both: Faces, floatx: str, data_format: str, channels: int
) -> None:
    both.keras.config.set_image_data_format(data_format)
    both.keras.config.set_floatx(floatx)
    shape = (channels, 6, 7) if data_format == "channels_first" else (6, 7, channels)
    numpy = np.random.default_rng(channels)
    for low, high, dtype in (
        (0, 255, "uint8"), (0, 255, "float32"), (0, 1, "float64"), (-50, 300, "float32"),
        (-50, 300, "float64"), (-5, 300, "int32"), (300, 300, "float32"),
    ):  # fmt: skip
        x = numpy.uniform(low, high, shape).astype(dtype)
        for scale in (True, False):
            for factor in (0.5, 1, 1.7, 0):
                same(
                    *(f.apply_brightness_shift(x, factor, scale) for f in (both.ours, both.theirs))
                )
            random_ones = []
            for face in (both.ours, both.theirs):
                np.random.seed(1)
                random_ones.append(face.random_brightness(x, (0.5, 1.5), scale=scale))
            same(*random_ones)
    both.keras.config.set_floatx("float32")


def test_flips_and_centred_matrices_are_keras_s(both: Faces) -> None:
    x = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for axis in (0, 1, 2, -1):
        same(*(f.flip_axis(x, axis) for f in (both.ours, both.theirs)))
        same(*(f.flip_axis(x.tolist(), axis) for f in (both.ours, both.theirs)))
    matrix = np.random.default_rng(0).random((3, 3))
    for size in ((4, 5), (7, 7), ("3", 2.5)):
        same(*(f.transform_matrix_offset_center(matrix, *size) for f in (both.ours, both.theirs)))


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("apply_affine_transform", (np.ones((3, 4, 5)),), {"row_axis": 0}),
        ("apply_affine_transform", (np.ones((3, 4, 5)),), {"row_axis": -1}),
        ("apply_affine_transform", (np.ones((3, 4, 5)),), {"row_axis": 3}),
        ("apply_affine_transform", (np.ones((3, 4)),), {"theta": 1}),
        ("apply_affine_transform", (np.ones((1, 3, 4, 5)),), {}),
        ("apply_affine_transform", (np.ones((3, 4, 5)),), {"row_axis": 0, "channel_axis": 1}),
        ("random_zoom", (np.ones((3, 4, 5)), (1,)), {}),
        ("random_zoom", (np.ones((3, 4, 5)), (1, 2, 3)), {}),
        ("random_brightness", (np.ones((3, 4, 3)), (1,)), {}),
        ("apply_brightness_shift", (np.ones((3, 4)), 1), {}),
        ("apply_brightness_shift", (np.ones((3, 4, 5)), 1), {}),
        ("apply_brightness_shift", (np.ones((1, 3, 4, 3)), 1), {}),
    ],
)
def test_what_keras_refuses_is_refused_in_its_words(
    both: Faces, name: str, arguments: Any, options: dict[str, Any]
) -> None:
    both.keras.config.set_image_data_format("channels_last")
    texts = []
    for face in (both.ours, both.theirs):
        with pytest.raises(ValueError, match=r"[a-z]") as raised:
            getattr(face, name)(*arguments, **options)
        texts.append(str(raised.value).split()[:3])
    assert texts[0] == texts[1]


def test_a_function_s_where_says_which_server_is_asked(both: Faces) -> None:
    import importlib

    where = importlib.import_module("augclient.image.desk").Where(workers=2)
    x = np.ones((3, 8, 8), np.float32)
    both.keras.config.set_image_data_format("channels_first")
    calls: list[tuple[str, Any]] = [
        ("random_rotation", (9,)), ("random_shift", (0.3, 0.3)), ("random_shear", (9,)),
        ("random_zoom", ((0.5, 0.6),)), ("apply_affine_transform", (9,)),
        ("apply_brightness_shift", (0.5,)), ("random_brightness", ((0.5, 1),)),
    ]  # fmt: skip
    for name, arguments in calls:
        both.asked.clear()
        getattr(both.ours, name)(x, *arguments, where=where)
        assert [asked for _, asked in both.asked] == [where], name
