"""Batches of uint8 and float16: computed as float32 is, and rounded once, at the end."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from recipes import made

from augproto.spec import Spec
from augproto.transforms import Transforms
from augserver.recipe import Recipe
from augserver.transforms import SampleError, narrow, narrow_kernels
from augserver.transforms.narrow import Narrowed

Array = npt.NDArray[Any]

RNG = np.random.default_rng(4)
ARRAYS: dict[str, Array] = {
    "pictures": RNG.integers(0, 256, (23, 6, 4, 3), np.uint8),
    "floats": RNG.uniform(-40, 300, (23, 8, 7, 1)).astype(np.float32),
    "first": RNG.integers(0, 256, (23, 3, 6, 4), np.uint8),
    "labels": np.arange(23),
}
AUGMENTED: dict[str, Any] = {
    "rotation_range": 30,
    "horizontal_flip": True,
    "zoom_range": 0.2,
    "channel_shift_range": 20,
    "brightness_range": (0.5, 1.5),
}
INF, NAN = float("inf"), float("nan")


def recipe(x: str, function: Any = None, **fields: Any) -> Recipe:
    spec = Spec.from_wire({"data": "a.npz", "x": x, "y": "labels", "batch_size": 7} | fields)
    return Recipe(spec, 7, ARRAYS, function)


@pytest.fixture(params=["numba", "numpy"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who rounds."""
    kernels = narrow_kernels if request.param == "numba" else None
    monkeypatch.setattr(narrow, "_kernels", lambda: kernels)
    return str(request.param)


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (0.0, 0), (-0.0, 0), (0.5, 0), (1.5, 2), (2.5, 2), (0.49999997, 0), (0.50000006, 1),
        (3.4999998, 3), (127.5, 128), (128.5, 128), (254.5, 254), (254.50002, 255), (255.4, 255),
        (255.5, 255), (256.0, 255), (1e30, 255), (INF, 255), (-0.5, 0), (-0.6, 0), (-1.0, 0),
        (-300.0, 0), (-INF, 0), (NAN, 0),
    ],
)  # fmt: skip
def test_a_number_becomes_the_nearest_of_8_bits(number: float, wanted: int) -> None:
    out = np.full(9, 77, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        narrow.narrow(np.full(9, number, np.float32), out)
    assert out.tolist() == [wanted] * 9


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize(
    ("number", "bits"),
    [
        (0.0, 0x0000), (-0.0, 0x8000), (1.0, 0x3C00), (1 / 3, 0x3555), (2049.0, 0x6800),
        (2051.0, 0x6802), (65504.0, 0x7BFF), (65519.996, 0x7BFF), (65520.0, 0x7C00),
        (-1e30, 0xFC00), (INF, 0x7C00), (2.0**-24, 0x0001), (2.0**-25, 0x0000), (255.0, 0x5BF8),
    ],
)  # fmt: skip
def test_a_number_becomes_the_nearest_float16(number: float, bits: int) -> None:
    out = np.zeros(9, np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        narrow.narrow(np.full(9, number, np.float32), out)
    assert out.view(np.uint16).tolist() == [bits] * 9


@pytest.mark.usefixtures("by")
def test_there_is_one_nan_in_float16() -> None:
    bits = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32)
    out = np.zeros(5, np.float16)
    narrow.narrow(bits.view(np.float32), out)
    assert out.view(np.uint16).tolist() == [0x7E00] * 5


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_the_kernel_rounds_as_numpy_does(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(narrow, "_kernels", lambda: narrow_kernels)
    bits = RNG.integers(0, 2**32, 400_000, np.uint32)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    # Every float16, every middle between two, and what lies beside it.
    finite = np.sort(halves[np.isfinite(halves)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    edges = np.concatenate([finite, middles, np.linspace(-1, 300, 603, dtype=np.float32)])
    beside = [np.nextafter(edges, np.float32(side)) for side in (-np.inf, np.inf)]
    numbers = np.concatenate([bits.view(np.float32), halves, edges, *beside])
    assert numbers.dtype == np.float32
    got, wanted = np.empty(len(numbers), dtype), np.empty(len(numbers), dtype)
    narrow.narrow(numbers.copy(), got)
    narrow._by_numpy(numbers.copy(), wanted)
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize(
    ("x", "fields"),
    [
        ("pictures", {"transforms": AUGMENTED}),
        ("floats", {"transforms": AUGMENTED}),
        ("floats", {}),
        ("first", {"transforms": AUGMENTED, "data_format": "channels_first"}),
        ("pictures", {"transforms": {"rescale": 0.5, "offset": 0.25}}),
        ("pictures", {"transforms": AUGMENTED, "target_size": [9, 5]}),
        ("floats", {"target_size": [5, 9]}),
        ("pictures", {"transforms": {"function": "keras:caffe:channels_last"}}),
    ],
)
def test_a_batch_is_the_float32_one_rounded(dtype: str, x: str, fields: dict[str, Any]) -> None:
    for step in range(4):  # the last one is short
        exact = made(recipe(x, **fields), step=step)
        got = made(recipe(x, dtype=dtype, **fields), step=step)
        assert got["x"].dtype == dtype
        if dtype == "uint8":
            wanted = np.clip(np.rint(exact["x"]), 0, 255).astype(np.uint8)
        else:
            wanted = exact["x"].astype(np.float16)
        assert got["x"].tobytes() == wanted.tobytes()
        assert got["y"].tobytes() == exact["y"].tobytes()


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 100])
def test_a_batch_is_the_same_however_many_pictures_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    wanted = made(recipe("pictures", dtype="uint8", transforms=AUGMENTED))["x"]
    monkeypatch.setattr(narrow, "_BYTES", rows * 4 * 6 * 4 * 3)
    assert made(recipe("pictures", dtype="uint8", transforms=AUGMENTED))["x"].tobytes() == (
        wanted.tobytes()
    )


def test_a_picture_larger_than_the_space_is_computed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "_BYTES", 5)
    got = made(recipe("pictures", dtype="float16", transforms={"rescale": 1 / 255}))["x"]
    exact = made(recipe("pictures", transforms={"rescale": 1 / 255}))["x"]
    assert got.tobytes() == exact.astype(np.float16).tobytes()


@pytest.mark.parametrize("scheme", ["counter", "keras"])
def test_pictures_of_8_bits_that_are_at_most_flipped_are_not_computed(scheme: str) -> None:
    r = recipe("pictures", dtype="uint8", scheme=scheme, transforms={"horizontal_flip": True})
    part = next(part for part in r._parts.listed if part.transform is not None)
    assert not isinstance(part.transform, Narrowed)
    got = made(r)["x"]
    exact = made(recipe("pictures", scheme=scheme, transforms={"horizontal_flip": True}))["x"]
    assert got.tobytes() == exact.astype(np.uint8).tobytes()


def test_a_function_gets_float32_and_its_bad_sample_is_named() -> None:
    seen = []

    def function(picture: Array) -> Array:
        seen.append(picture.dtype)
        if len(seen) == 9:
            raise ValueError("no")
        return picture

    r = recipe("pictures", function, dtype="uint8", transforms={"function": "tests:function"})
    made(r)
    with pytest.raises(SampleError, match="no") as caught:
        made(r, step=1)
    assert caught.value.sample == r.sampler.batch(0, 1)[1]
    assert set(seen) == {np.dtype(np.float32)}


def test_a_skipped_sample_leaves_the_others_as_they_are() -> None:
    def function(picture: Array) -> Array:
        if picture[0, 0, 0] == ARRAYS["pictures"][bad, 0, 0, 0]:
            raise ValueError("no")
        return picture

    options: dict[str, Any] = {"dtype": "uint8", "transforms": {"function": "tests:function"}}
    plain = recipe("pictures", lambda picture: picture, **options)
    order = plain.sampler.batch(0, 0)
    firsts = ARRAYS["pictures"][order, 0, 0, 0].tolist()
    place = next(i for i in range(len(order)) if firsts.count(firsts[i]) == 1)
    bad = int(order[place])
    got = made(recipe("pictures", function, bad_samples="skip", **options))["x"]
    assert got.tobytes() == np.delete(made(plain)["x"], place, axis=0).tobytes()


def test_transforms_that_change_no_number_are_known() -> None:
    assert Transforms(horizontal_flip=True, vertical_flip=True).flips_at_most
    assert Transforms().flips_at_most
    others: tuple[dict[str, Any], ...] = (
        {"rescale": 0.5},
        {"zoom_range": 0.1},
        {"function": "keras:tf:channels_last"},
    )
    for options in others:
        assert not Transforms(**options).flips_at_most
