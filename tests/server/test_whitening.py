"""Finished pictures times a matrix of the dataset: Keras's ZCA, a batch at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE, image_data_generators
from PIL import Image
from recipes import batches, made

from augproto.errors import ConfigError
from augproto.files import File, pack
from augproto.pictures import Pictures
from augproto.spec import HANDED, Spec
from augproto.transforms import Transforms
from augserver.forkserver import _ENVIRONMENT
from augserver.recipe import Recipe

Array = np.ndarray[Any, Any]

pytestmark = SCIPY_NOISE
OPTIONS: dict[str, Any] = {
    "rotation_range": 20, "horizontal_flip": True, "rescale": 1 / 255, "samplewise_center": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """The module with Keras's `ImageDataGenerator`."""
    yield from image_data_generators()


def fitted(keras: ModuleType, x: Array, **arguments: Any) -> Any:
    """Keras's generator with a matrix of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that whitening brings centring along
        generator = keras.ImageDataGenerator(
            **OPTIONS, zca_whitening=True, zca_epsilon=1e-3, **arguments
        )
        generator.fit(x)
    return generator


def noisy(picture: Array) -> Array:
    noise: Array = np.asarray(np.random.normal(size=picture.shape), picture.dtype)
    return picture + noise


def photographs(n: int, shape: tuple[int, ...]) -> Array:
    """Pictures whose pixels go together, as those of photographs do."""
    rng = np.random.default_rng(3)
    base = rng.uniform(0, 255, (9, *shape))
    return np.tensordot(rng.dirichlet(np.ones(9), n), base, 1) + rng.normal(0, 4, (n, *shape))


@pytest.mark.parametrize("function", [None, noisy])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_batches_are_whitened_as_by_keras(
    keras: ModuleType, data_format: str, dtype: str, function: Any
) -> None:
    keras.backend.set_image_data_format(data_format)
    shape = (6, 8, 3) if data_format == "channels_last" else (3, 6, 8)
    x = photographs(200, shape).astype(dtype)
    generator = fitted(
        keras, x, data_format=data_format, dtype=dtype, preprocessing_function=function
    )
    flow = generator.flow(x, batch_size=32, seed=4)
    spec = Spec(
        data=(f"{HANDED}a",), x="x", batch_size=32, seed=4, scheme="keras", dtype=dtype,
        data_format=data_format, whitening="zca",
        transforms=Transforms(
            **OPTIONS, featurewise_mean=generator.mean, function="m:f" if function else None
        ),
    )  # fmt: skip
    recipe = Recipe(spec, 4, {"x": x, "zca": generator.zca_whitening_matrix}, function)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = list(batches(recipe))
    for batch in got:
        wanted = next(flow)
        assert batch["x"].dtype == wanted.dtype == dtype
        near = 1e-5 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(batch["x"], wanted, rtol=0, atol=near * np.abs(wanted).max())


def test_pictures_of_files_are_whitened_and_so_is_the_target_that_equals_them(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 4, 6, 3), np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    files = [File.of(str(path), path.stat()) for path in sorted(tmp_path.iterdir())]
    matrix = rng.normal(size=(72, 72)).astype("float32")
    spec = Spec(
        data=(f"{HANDED}a",), pictures=Pictures(label_mode="input"), target_size=(4, 6),
        batch_size=5, shuffle=False, whitening="zca",
    )  # fmt: skip
    batch = made(Recipe(spec, 0, {**pack(files), "zca": matrix}))
    np.testing.assert_allclose(batch["x"].reshape(5, -1), pixels.reshape(5, -1) @ matrix, rtol=1e-4)
    assert batch["x"].tobytes() == batch["y"].tobytes()


def test_a_matrix_of_doubles_is_used_as_one() -> None:
    x = np.full((3, 2, 2, 1), 1.0, np.float32)
    matrix = np.zeros((4, 4))
    matrix[:2, 0] = 1e8 + 1, -1e8  # in float32 the one is lost
    spec = Spec(data=("a.npz",), x="x", whitening="zca")
    assert made(Recipe(spec, 0, {"x": x, "zca": matrix}))["x"][:, 0, 0, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("matrix", "complaint"),
    [
        (np.zeros((12, 12)), r"float64 of shape \(12, 12\); wanted .* of shape \(24, 24\)"),
        (np.zeros((24, 24), np.int64), "int64 of shape"),
        (np.zeros(24), r"shape \(24,\)"),
        (None, r"whitening: no array 'zca' in the dataset; it has 'x'"),
    ],
)
def test_a_matrix_that_fits_no_picture_is_refused_at_the_door(
    matrix: Array | None, complaint: str
) -> None:
    arrays: dict[str, Array] = {"x": np.zeros((3, 2, 4, 3), np.uint8)}
    if matrix is not None:
        arrays["zca"] = matrix
    with pytest.raises(ConfigError, match=complaint):
        Recipe(Spec(data=("a.npz",), x="x", whitening="zca"), 0, arrays)


def test_8_bit_pictures_are_not_whitened() -> None:
    with pytest.raises(ConfigError, match="dtype: got 'uint8'; wanted 'float32'"):
        Spec(data=("a.npz",), x="x", whitening="zca", dtype="uint8")


def test_a_worker_s_products_have_one_thread_whatever_the_environment_says() -> None:
    assert set(_ENVIRONMENT.values()) == {"1"}
    assert "OPENBLAS_NUM_THREADS" in _ENVIRONMENT
