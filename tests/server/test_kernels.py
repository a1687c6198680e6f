"""The kernels give the reference's bytes, whatever they are asked for, or leave that to it.

Cells of a table are compared bit for bit, each with options drawn at random; then layouts, numbers
and sizes that kernels are prone to get wrong. That the reference is Keras to the last bit is
another file's business.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bitwise import same
from numpy.typing import NDArray

from augproto.errors import ConfigError
from augproto.named import fits, named
from augproto.transforms import NAMED_FUNCTIONS, Statistic, Transforms
from augserver.draws import Draws, draw
from augserver.transforms import TransformBatch, affine, build, pipeline
from augserver.transforms.reference import Reference

numba = pytest.importorskip("numba")

from augserver.transforms import compiled, kernels, matrices  # noqa: E402
from augserver.transforms.compiled import Compiled  # noqa: E402
from augserver.transforms.room import Room  # noqa: E402

Array = NDArray[Any]
MODES = ("nearest", "reflect", "wrap", "constant")
FORMATS = ("channels_last", "channels_first")
#: Height and width: a row or column alone, odd, even, a multiple of 8 and not, not square.
SIZES = ((1, 1), (2, 3), (1, 6), (5, 1), (8, 8), (9, 7), (16, 31), (33, 12))
CELLS = list(itertools.product(MODES, (0, 1), ("uint8", "float32"), (1, 3, 4), FORMATS))
ROTATED = Transforms(rotation_range=45, height_shift_range=0.2, horizontal_flip=True)


def backends(
    t: Transforms,
    shape: tuple[int, ...],
    data_format: str = "channels_last",
    function: Callable[[Array], Any] | None = None,
) -> tuple[TransformBatch, Reference]:
    """What `build` chooses, and the reference."""
    assert len(shape) == 3
    if t.named and t.function:
        function = named(t.function)
    options: dict[str, Any] = {
        "data_format": data_format, "dtype": "float32", "function": function, "image_shape": shape,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "backend", lambda: "scipy")
        reference = build(t, **options)
        patch.setattr(pipeline, "backend", lambda: "numba")
        chosen = build(t, **options)
    assert isinstance(reference, Reference)
    return chosen, reference


def drawn(t: Transforms, source: Array, seed: int = 3, data_format: str = "channels_last") -> Draws:
    first = data_format == "channels_first"
    height, width = source.shape[2:] if first else source.shape[1:3]
    indexes = np.arange(len(source))
    return draw(t, seed=seed, epoch=0, indexes=indexes, height=height, width=width)


def agree(
    t: Transforms,
    source: Array,
    *,
    data_format: str = "channels_last",
    dtype: str = "float32",
    draws: Draws | None = None,
    function: Callable[[Array], Any] | None = None,
    seed: int = 3,
) -> Array:
    """Compare both backends' bytes, with those before and behind the batch; returns the batch."""
    if draws is None:
        draws = drawn(t, source, seed, data_format)
    order = np.random.default_rng(seed).permutation(len(source))
    chosen, reference = backends(t, source.shape[1:], data_format, function)
    assert isinstance(chosen, Compiled)
    batches: list[Array] = []
    for backend in (chosen, reference):
        memory: Array = np.full((len(source) + 2, *source.shape[1:]), 77, dtype)
        with np.errstate(all="ignore"):
            backend.transform_batch(source, order, draws, memory[1:-1])
        batches.append(memory)
    assert same(*batches), t
    return batches[0][1:-1]


def some_transforms(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Transforms:
    """Options drawn at random, each of them off in about half of the cases."""
    options: dict[str, Any] = {
        "rotation_range": float(rng.choice([10, 45, 180])),
        "width_shift_range": float(rng.choice([0.1, 0.5, 3.0])),
        "height_shift_range": float(rng.choice([0.1, 0.9, 30.0])),
        "shear_range": float(rng.choice([5, 60])),
        "zoom_range": (0.3, float(rng.choice([1.0, 3.0]))),
        "channel_shift_range": float(rng.choice([5, 200])),
        "brightness_range": (0.2, float(rng.choice([1.0, 3.0]))),
        "horizontal_flip": True,
        "vertical_flip": True,
        "rescale": (1 / 255, Statistic.of("rescale", np.float64(1 / 255)), 2.0)[rng.integers(3)],
        "offset": -0.5,
        "prescale": 0.3,
        "samplewise_center": True,
        "samplewise_std_normalization": True,
        "function": "keras:tf:channels_last",
    }
    odds = {"prescale": 0.15, "function": 0.15, "samplewise_center": 0.15}
    odds["samplewise_std_normalization"] = 0.15
    kept = {name: v for name, v in options.items() if rng.random() < odds.get(name, 0.45)}
    for name in ("featurewise_mean", "featurewise_std"):
        if rng.random() < 0.3:
            kept[name] = some_statistic(rng, shape, axis)
    return Transforms(cval=float(rng.choice([0, -7.5, 200, 1 / 3])), **kept)


def some_statistic(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> Any:
    flat, broad = list(shape), [1, 1, 1]
    flat[axis], broad[axis] = 1, shape[axis]
    size = [(), tuple(shape), tuple(flat), tuple(broad), (1, *broad)][rng.integers(5)]
    if rng.random() < 0.2:
        return float(rng.random()) + 0.1  # weak
    dtype = rng.choice(["float16", "float32", "float64"])
    return (rng.random(size) + 0.1).astype(dtype)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_a_batch_is_bit_for_bit_the_reference_s(cell: Any) -> None:
    mode, order, dtype, channels, data_format = cell
    axis = 0 if data_format == "channels_first" else 2
    for place, (height, width) in enumerate(SIZES):
        rng = np.random.default_rng([CELLS.index(cell), place])
        shape = (channels, height, width) if axis == 0 else (height, width, channels)
        low, high = (0, 256) if dtype == "uint8" else [(0, 1), (-100, 400), (0, 255)][place % 3]
        source = rng.uniform(low, high, (4, *shape)).astype(dtype)
        t = some_transforms(rng, shape, axis)
        t = dataclasses.replace(t, fill_mode=mode, interpolation_order=order)
        draws = drawn(t, source, place, data_format)
        # Some samples are not resampled at all.
        for name, neutral in {**dict.fromkeys(("theta", "tx", "ty", "shear"), 0), "zx": 1}.items():
            getattr(draws, name)[3] = neutral
        draws.zy[3] = 1
        agree(t, source, data_format=data_format, draws=draws)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_coordinates_far_outside_and_on_the_border_are_the_reference_s(
    mode: str, dtype: str
) -> None:
    rng = np.random.default_rng(1)
    source = rng.uniform(0, 256, (16, 12, 12, 3)).astype(dtype)
    t = dataclasses.replace(ROTATED, fill_mode=mode, cval=9.0)
    draws = drawn(t, source)
    draws.theta[:8] = [0, 90, -90, 180, 45, 0, 0, 0]
    draws.tx[:] = [0, 0, 0, 0, 0, 12, -12, 24, 1e3, -1e3, 1e8, -1e8, 11, -11, 0.5, 1e12]
    draws.ty[:] = [0, 0, 0, 0, 0, -12, 12, 11, 1e3, 1e3, -1e8, 1e8, -0.0, 1e-17, -1e-15, 0]
    for order in (0, 1):
        agree(dataclasses.replace(t, interpolation_order=order), source, draws=draws)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_products_and_sums_are_rounded_in_the_reference_s_order(dtype: str, channels: int) -> None:
    """Another order shows in one of a hundred million numbers, unless one looks for it.

    Columns alternate between a and a + 1, and are moved by an odd number of 2**-17: half of what
    float32 can tell apart there. So each number lies in the middle between two of float32, and the
    last bit of the double decides.
    """
    rng = np.random.default_rng(11)
    columns = np.arange(24) % 2 + rng.integers(128, 255, (32, 1, 1))
    source = np.broadcast_to(columns[..., np.newaxis], (32, 24, 24, channels)).astype(dtype)
    draws = drawn(Transforms(), source)
    draws.tx[:] = (2 * rng.integers(0, 1 << 15, 32) + 1) / 2**17
    draws.ty[:] = rng.uniform(-0.5, 0.5, 32)
    batch = agree(Transforms(), source, draws=draws)
    low, high = batch[:, 2:-2, 2:-2].min((1, 2)), batch[:, 2:-2, 2:-2].max((1, 2))
    assert (high > low).all()


def _layouts(pictures: Array) -> dict[str, Array]:
    """The same pictures (n, H, W, C), as they may lie in memory."""
    raw = np.zeros(pictures.nbytes + 1, np.uint8)
    odd = raw[1:].view(pictures.dtype).reshape(pictures.shape)
    odd[...] = pictures
    frozen = pictures.copy()
    frozen.flags.writeable = False
    return {
        "channels first": np.moveaxis(np.ascontiguousarray(np.moveaxis(pictures, -1, 1)), 1, -1),
        "backwards": np.ascontiguousarray(pictures[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1],
        "samples backwards": np.ascontiguousarray(pictures[::-1])[::-1],
        "every other column": np.repeat(pictures, 2, axis=2)[:, :, ::2],
        "columns first": np.swapaxes(np.ascontiguousarray(np.swapaxes(pictures, 1, 2)), 1, 2),
        "part of wider pixels": np.concatenate([pictures, pictures], axis=3)[
            ..., : pictures.shape[3]
        ],
        "misaligned": odd,
        "read-only": frozen,
        "another byte order": pictures.astype(pictures.dtype.newbyteorder()),
    }


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_how_a_source_lies_in_memory_does_not_show(dtype: str, channels: int) -> None:
    rng = np.random.default_rng(2)
    pictures = rng.uniform(0, 256, (5, 11, 13, channels)).astype(dtype)
    turned = dataclasses.replace(ROTATED, rescale=1 / 255, vertical_flip=True)
    for t in (turned, Transforms(rescale=1 / 255, horizontal_flip=True, vertical_flip=True)):
        wanted = agree(t, pictures)
        for name, laid in _layouts(pictures).items():
            assert same(agree(t, laid), wanted), name


@pytest.mark.parametrize("dtype", ["bool", "int16", "uint16", "int64", "float16", "float64"])
def test_sources_of_other_dtypes_are_cast_as_the_reference_casts_them(dtype: str) -> None:
    source = np.random.default_rng(3).uniform(0, 300, (5, 10, 10, 3)).astype(dtype)
    agree(dataclasses.replace(ROTATED, channel_shift_range=5, rescale=0.5), source)


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8"])
def test_batches_of_other_dtypes_are_rounded_as_the_reference_rounds_them(dtype: str) -> None:
    source = np.random.default_rng(4).integers(0, 256, (5, 10, 10, 3), np.uint8)
    agree(ROTATED, source, dtype=dtype)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_odd_numbers_are_the_reference_s(channels: int) -> None:
    rng = np.random.default_rng(5)
    source = (rng.standard_normal((8, 9, 9, channels)) * 50).astype(np.float32)
    source[0].flat[3] = np.nan
    source[1].flat[-1] = np.inf
    source[2, 0, 0], source[2, 1, 1] = -np.inf, np.nan
    source[3] *= -1e30
    source[4] *= np.float32(1e-42)
    source[5] = -0.0
    source[6][rng.random((9, 9, channels)) < 0.5] = -0.0
    source[7] = np.abs(source[7]) * np.where(rng.random((9, 9, channels)) < 0.3, 0, 1)
    still = Transforms(horizontal_flip=True)
    for t in (ROTATED, still):
        for extra in ({}, {"channel_shift_range": 9.0}, {"brightness_range": (0.5, 2.0)}):
            for rescale in (None, -3.0):
                for mode, order in itertools.product(MODES, (0, 1)):
                    agree(
                        dataclasses.replace(
                            t, fill_mode=mode, interpolation_order=order, rescale=rescale, **extra
                        ),
                        source,
                    )


def test_a_batch_that_lies_otherwise_in_memory_is_written_as_well() -> None:
    source = np.random.default_rng(6).integers(0, 256, (4, 9, 10, 3), np.uint8)
    chosen, reference = backends(ROTATED, (9, 10, 3))
    draws, order = drawn(ROTATED, source), np.arange(4)
    wanted = np.zeros((4, 9, 10, 3), np.float32)
    reference.transform_batch(source, order, draws, wanted)
    for laid in _layouts(wanted).values():
        if laid.flags.writeable:
            laid[...] = 5
            chosen.transform_batch(source, order, draws, laid)
            assert np.array_equal(laid, wanted)


def test_a_function_gets_pictures_that_lie_as_the_reference_s_and_are_its_to_keep() -> None:
    source = np.random.default_rng(7).integers(0, 256, (40, 70, 70, 3), np.uint8)

    def function(picture: Array) -> Array:
        kept.append((picture, picture.copy()))
        centred: Array = picture - picture.mean()
        return centred

    for extra in ({}, {"brightness_range": (0.5, 1.5)}, {"channel_shift_range": 20.0}):
        t = dataclasses.replace(ROTATED, function="m:f", vertical_flip=True, **extra)
        seen = []
        for backend in backends(t, (70, 70, 3), function=function):
            kept: list[tuple[Array, Array]] = []
            batch = np.zeros(source.shape, np.float32)
            backend.transform_batch(source, np.arange(40), drawn(t, source), batch)
            assert all(same(now, then) for now, then in kept), "a picture changed afterwards"
            seen.append((batch, [(p.strides, p.flags.writeable) for p, _ in kept]))
        assert same(seen[0][0], seen[1][0])
        assert seen[0][1] == seen[1][1]


@pytest.mark.parametrize("name", NAMED_FUNCTIONS)
def test_functions_that_every_server_has_are_the_reference_s(name: str) -> None:
    rng = np.random.default_rng(12)
    for channels, data_format in itertools.product((1, 3, 4), FORMATS):
        shape = (channels, 9, 10) if data_format == "channels_first" else (9, 10, channels)
        if not fits(name, shape):
            continue
        source = rng.integers(0, 256, (5, *shape), np.uint8)
        t = dataclasses.replace(
            ROTATED, function=name, featurewise_mean=Statistic.of("mean", np.float32(0.1))
        )
        bright = dataclasses.replace(t, brightness_range=(0.5, 2), rescale=0.5)
        for each in (t, bright, dataclasses.replace(t, samplewise_center=True)):
            agree(each, source, data_format=data_format)


def test_two_threads_may_use_one_backend() -> None:
    source = np.random.default_rng(8).integers(0, 256, (64, 32, 32, 3), np.uint8)
    chosen, _ = backends(ROTATED, (32, 32, 3))
    draws, order = drawn(ROTATED, source), np.arange(64)
    wanted = np.zeros(source.shape, np.float32)
    chosen.transform_batch(source, order, draws, wanted)
    differ: list[int] = []

    def work() -> None:
        out = np.zeros_like(wanted)
        for round_ in range(30):
            out[...] = 0
            chosen.transform_batch(source, order, draws, out)
            if not same(out, wanted):
                differ.append(round_)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not differ


def test_an_index_beyond_the_source_reads_nothing_there() -> None:
    source = np.zeros((3, 8, 8, 3), np.uint8)
    chosen, _ = backends(ROTATED, (8, 8, 3))
    out = np.zeros((1, 8, 8, 3), np.float32)
    draws = drawn(ROTATED, source[:1])
    for beyond in (3, -4, 1 << 40):
        with pytest.raises(IndexError):
            chosen.transform_batch(source, np.array([beyond]), draws, out)
    source[2] = 9
    chosen.transform_batch(source, np.array([-1]), draws, out)
    assert (out == 9).all()


@pytest.mark.parametrize(
    ("t", "shape", "dtype"),
    [
        (Transforms(rotation_range=9, interpolation_order=3), (8, 8, 3), "float32"),
        (Transforms(rotation_range=9, fill_mode="mirror"), (8, 8, 3), "float32"),
        (Transforms(rotation_range=9, cval=-0.0), (8, 8, 3), "float32"),
        (Transforms(rotation_range=9, cval=1e300), (8, 8, 3), "float32"),
        (Transforms(rotation_range=9), (8, 8, 5), "float32"),
        (Transforms(rotation_range=9), (8, 8, 3), "float64"),
        (Transforms(brightness_range=(0.5, 1), floatx="float64"), (8, 8, 3), "float32"),
        (Transforms(prescale=Statistic.of("p", np.float64(0.3))), (8, 8, 3), "float32"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_kernels_do_not_take_is_the_reference_s(
    t: Transforms, shape: tuple[int, int, int], dtype: str
) -> None:
    made = build(t, data_format="channels_last", dtype=dtype, function=None, image_shape=shape)
    assert type(made) is Reference


def test_matrices_are_bit_for_bit_those_of_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    n = 320
    used = [np.arange(n) >> k & 1 for k in range(5)]
    draws = Draws(
        theta=used[0] * rng.uniform(-180, 180, n),
        tx=used[1] * rng.uniform(-9, 9, n),
        ty=used[2] * rng.uniform(-9, 9, n),
        shear=used[3] * rng.uniform(-60, 60, n),
        zx=1 + used[4] * rng.uniform(-0.9, 3, n),
        zy=1 + used[4] * rng.uniform(-0.9, 3, n),
        flip_horizontal=used[0] > 0,
        flip_vertical=used[0] > 0,
    )
    needed = affine.needed(draws)
    wanted = np.array([affine.matrix(draws, i, 33, 48)[:2].ravel() for i in range(n)])[needed]
    for fuses in (matrices._blas_fuses(), None):
        monkeypatch.setattr(matrices, "_blas_fuses", lambda fuses=fuses: fuses)
        room = Room(n)
        matrices.find(draws, 33, 48, room)
        assert np.array_equal(room.warped[:n], needed)
        assert np.array_equal(room.matrices[:n][needed], wanted)


def test_brightness_is_pillow_s_for_every_number_and_any_factor() -> None:
    every = np.arange(1024, dtype=np.float32).reshape(1, 32, 32, 1) / 4
    factors = np.concatenate([[0, 1, -1, 0.5, 255, 1e-9, 1e30], np.linspace(-2, 4, 300)])
    for channels in (1, 3, 4):
        source = np.repeat(np.repeat(np.minimum(every, 255), channels, 3), len(factors), 0)
        t = Transforms(brightness_range=(1, 2))
        agree(t, source, draws=dataclasses.replace(drawn(t, source), brightness=factors))


def test_no_product_and_sum_are_fused_into_one_operation() -> None:
    fresh = numba.njit(nogil=True, error_model="numpy")(kernels.transform.py_func)
    agree(ROTATED, np.zeros((1, 8, 8, 3), np.uint8))
    (kinds,) = kernels.transform.signatures
    fresh.compile(kinds)
    (machine_code,) = fresh.inspect_asm().values()
    products = re.findall(r"\bv?mul[ps]d\b|\bfmul\b", machine_code)
    assert len(products) > 20, "the machine code is not what this test takes it for"
    assert not re.findall(r"\bv?fn?m(?:add|sub|la|ls)\w*", machine_code)


def test_there_is_one_compilation_for_all_kinds_of_batches() -> None:
    for dtype, channels in itertools.product(("uint8", "float32", "int32"), (1, 3, 4)):
        source = np.zeros((2, 8, 9, channels), dtype)
        agree(ROTATED, source)
        agree(Transforms(channel_shift_range=3, brightness_range=(0.5, 1)), source)
    assert len(kernels.transform.signatures) == len(matrices._chains.signatures) == 1


_PROGRAM = """
import logging, sys
logging.basicConfig(format="%(message)s")
if {blocked}:
    sys.modules["numba"] = None
import numpy as np
from augproto.transforms import Transforms
from augserver.draws import draw
from augserver.transforms import build
t = Transforms(rotation_range=30, rescale=1 / 255)
try:
    made = [
        build(t, data_format="channels_last", dtype="float32", function=None, image_shape=(9, 9, 3))
        for _ in range(2)
    ][0]
except Exception as error:
    raise SystemExit(f"{{type(error).__name__}}: {{error}}")
source = np.arange(243, dtype=np.uint8).reshape(1, 9, 9, 3)
out = np.zeros((1, 9, 9, 3), np.float32)
draws = draw(t, seed=1, epoch=0, indexes=np.arange(1), height=9, width=9)
made.transform_batch(source, np.arange(1), draws, out)
print(type(made).__name__, "numba" in sys.modules and not {blocked}, out.tobytes().hex())
"""


def test_scipy_does_it_where_numba_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(10).integers(0, 256, (3, 9, 9, 3), np.uint8)
    monkeypatch.setattr(compiled, "_kernels", lambda: None)
    agree(ROTATED, source)
    agree(dataclasses.replace(ROTATED, samplewise_center=True), source)


def program(blocked: bool, kernels: str | None) -> subprocess.CompletedProcess[str]:
    """A program of its own, in which numba may be missing."""
    environment = {k: v for k, v in os.environ.items() if k != "AUGSERVER_KERNELS"}
    if kernels is not None:
        environment["AUGSERVER_KERNELS"] = kernels
    command = [sys.executable, "-c", _PROGRAM.format(blocked=blocked)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_scipy_does_it_where_numba_is_missing_or_not_wanted() -> None:
    wanted, missing, unwanted = program(False, None), program(True, None), program(False, "scipy")
    kind, imported, digits = wanted.stdout.split()
    assert (kind, imported) == ("Compiled", "True"), wanted.stderr
    assert missing.stdout.split() == ["Reference", "False", digits]
    assert unwanted.stdout.split() == ["Reference", "False", digits]
    (line,) = missing.stderr.splitlines()
    assert "numba cannot be imported" in line
    assert not unwanted.stderr


def test_kernels_that_there_are_not_are_refused() -> None:
    for blocked, name, words in ((True, "numba", "cannot be imported"), (False, "cuda", "'cuda'")):
        refused = program(blocked, name)
        assert refused.returncode == 1
        assert refused.stderr.startswith("ConfigError: AUGSERVER_KERNELS")
        assert words in refused.stderr


def test_a_function_that_fails_says_for_which_sample() -> None:
    def function(picture: Array) -> Array:
        raise ValueError("no")

    t = dataclasses.replace(ROTATED, function="m:f")
    chosen, _ = backends(t, (8, 8, 3), function=function)
    source = np.zeros((9, 8, 8, 3), np.uint8)
    noted: list[int] = []
    with pytest.raises(Exception, match="sample 7"):
        chosen.transform_batch(
            source,
            np.array([7, 8]),
            drawn(t, source[:2]),
            np.zeros((2, 8, 8, 3), np.float32),
            noted.append,
        )
    assert noted == [7]


def test_pictures_of_another_shape_are_refused() -> None:
    chosen, _ = backends(ROTATED, (8, 8, 3))
    with pytest.raises(ValueError, match="source: got shape"):
        chosen.transform_batch(
            np.zeros((2, 8, 9, 3), np.uint8),
            np.arange(2),
            drawn(ROTATED, np.zeros((2, 8, 8, 3))),
            np.zeros((2, 8, 8, 3), np.float32),
        )


def test_a_setting_that_says_something_else_is_refused() -> None:
    from augserver.config import Config

    assert Config(kernels="scipy").kernels == "scipy"
    with pytest.raises(ConfigError, match=r"server\.kernels: got 'cuda'; wanted one of"):
        Config(kernels="cuda")
