"""The functions that every server has give Keras's bytes, also in what is computed after them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import SCIPY_NOISE, image_data_generators, keras_module
from recipes import batches, made

from augproto.errors import ConfigError, NotAllowed
from augproto.messages import Open
from augproto.named import named
from augproto.spec import Spec
from augproto.transforms import NAMED_FUNCTIONS, Transforms
from augserver.config import Config
from augserver.conversation import spec_of
from augserver.functions import resolve
from augserver.recipe import Recipe

Array = np.ndarray[Any, Any]

pytestmark = SCIPY_NOISE


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """The module with Keras's `ImageDataGenerator`."""
    yield from image_data_generators()


@pytest.fixture(scope="module")
def preprocess_input() -> Any:
    return keras_module("keras.src.applications.imagenet_utils").preprocess_input


def some_picture(seed: int, shape: tuple[int, ...], dtype: str) -> Array:
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("shape", [(5, 6, 3), (3, 6, 5), (4, 4, 4), (3, 3, 3)])
@pytest.mark.parametrize("name", NAMED_FUNCTIONS)
def test_a_named_function_is_keras_own_to_the_last_bit_and_stride(
    preprocess_input: Any, name: str, shape: tuple[int, ...], dtype: str
) -> None:
    _, mode, data_format = name.split(":")
    given, ours = (some_picture(1, shape, dtype) for _ in range(2))
    wanted = preprocess_input(given, data_format=data_format, mode=mode)
    got = named(name)(ours)
    assert (got.dtype, got.strides) == (wanted.dtype, wanted.strides)
    assert got.tobytes() == wanted.tobytes()
    assert ours.tobytes() == given.tobytes(), "what is changed in place there is so here"


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", NAMED_FUNCTIONS)
def test_sums_after_a_named_function_and_all_draws_are_keras_own(
    keras: ModuleType, preprocess_input: Any, name: str, data_format: str
) -> None:
    _, mode, called_with = name.split(":")
    keras.backend.set_image_data_format(data_format)
    shape = (3, 9, 3)  # three lines as well: a name of the other data format finds its channels
    x = some_picture(2, (7, *shape), "float32")
    options: dict[str, Any] = {
        "rotation_range": 30, "channel_shift_range": 9.0, "horizontal_flip": True,
        "samplewise_center": True, "samplewise_std_normalization": True, "rescale": 0.5,
    }  # fmt: skip
    flow = keras.ImageDataGenerator(
        **options,
        data_format=data_format,
        preprocessing_function=lambda x: preprocess_input(x, data_format=called_with, mode=mode),
    ).flow(x, batch_size=3, seed=5)
    spec = Spec(
        data=("a.npz",), x="x", batch_size=3, seed=5, scheme="keras", data_format=data_format,
        transforms=Transforms(**options, function=name),
    )  # fmt: skip
    recipe = Recipe(spec, 5, {"x": x})
    for batch in batches(recipe, epochs=2):
        assert batch["x"].tobytes() == next(flow).tobytes()


def test_a_named_function_leaves_the_process_s_generators_alone() -> None:
    x = some_picture(2, (4, 5, 5, 3), "float32")
    for scheme in ("keras", "counter"):
        t = Transforms(rotation_range=9, function="keras:tf:channels_last")
        spec = Spec(data=("a.npz",), x="x", batch_size=4, seed=5, scheme=scheme, transforms=t)
        recipe = Recipe(spec, 5, {"x": x})
        before = np.random.get_state()
        made(recipe)
        after = np.random.get_state()
        assert all(map(np.array_equal, before, after))
    assert not Transforms(function="keras:tf:channels_last").random


def test_named_functions_are_allowed_on_any_server_and_no_others() -> None:
    def asked(function: str) -> Spec:
        spec = Spec(data=("/a.npz",), x="x", transforms=Transforms(function=function))
        return spec_of(Open(None, spec.to_wire(), None), Config(listen=("ipc:///x",), roots=("/",)))

    for name in NAMED_FUNCTIONS:
        assert asked(name).transforms.function == name
    with pytest.raises(NotAllowed, match="allow_transforms"):
        asked("kerass:tf")


@pytest.mark.parametrize("name", ["keras:", "keras:tf", "keras:caffe:rgb", "keras:os:system"])
def test_a_name_that_no_function_has_is_refused_with_those_that_have_one(name: str) -> None:
    for refuse in (lambda: Transforms(function=name), lambda: resolve(name, {})):
        with pytest.raises(ConfigError, match=r"transforms\.function: got .*keras:caffe:channels"):
            refuse()


@pytest.mark.parametrize("mode", ["caffe", "torch"])
def test_pictures_without_three_channels_are_refused_at_the_door(mode: str) -> None:
    for last, data_format in ((1, "channels_last"), (8, "channels_first")):
        t = Transforms(function=f"keras:{mode}:{data_format}")
        spec = Spec(data=("a.npz",), x="x", transforms=t)
        with pytest.raises(ConfigError, match=r"transforms\.function: .*at least three channels"):
            Recipe(spec, 0, {"x": np.zeros((4, 1, 8, last), np.uint8)})


def test_a_named_function_imports_no_keras() -> None:
    check = (
        "import sys; from augserver.functions import resolve; "
        "resolve('keras:caffe:channels_last', {}); "
        "print(*{'keras', 'tensorflow', 'torch', 'jax'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], check=True, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.split() == []
