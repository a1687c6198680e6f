"""Work on single pictures: what scipy and Pillow give, from a worker, without either here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import needs_keras  # noqa: F401 - the desk is one of the modules for Keras
import numpy as np
import pytest
from keras_own import image_data_generators
from processes import python
from scipy import ndimage

from augclient import local
from augclient.demand import SCRIPT_BYTES
from augclient.image import desk
from augclient.image.desk import Where
from augclient.image.functions import brightness_shifted
from augproto.errors import ConfigError, WorkerError

Array = np.ndarray[Any, Any]

MATRIX = np.array([[0.9, 0.2], [-0.1, 1.1]])
OFFSET = np.array([0.7, -1.3])


@pytest.fixture(scope="module", params=[0, 1], ids=["here", "a worker"])
def where(request: pytest.FixtureRequest) -> Iterator[Where]:
    local.shut_down()
    yield Where(workers=request.param)
    local.shut_down()


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    """The module with Keras's own functions."""
    yield from image_data_generators()


def picture(shape: tuple[int, ...], dtype: str = "float32", low: int = 0, high: int = 256) -> Array:
    return np.random.default_rng(len(shape)).integers(low, high, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64", ">f4"])
@pytest.mark.parametrize("channel_axis", [0, 2])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_warp_is_scipys(where: Where, dtype: str, channel_axis: int, order: int) -> None:
    x = picture((9, 7, 3) if channel_axis == 2 else (3, 9, 7), dtype)
    before = x.copy()
    got = desk.warp(
        x, MATRIX, OFFSET, channel_axis=channel_axis, fill_mode="reflect", cval=0.0, order=order,
        where=where,
    )  # fmt: skip
    planes = [
        ndimage.affine_transform(plane, MATRIX, OFFSET, order=order, mode="reflect")
        for plane in np.moveaxis(x, channel_axis, 0).astype(x.dtype.newbyteorder("="))
    ]
    assert (got == np.stack(planes, axis=channel_axis)).all()
    assert got.dtype == x.dtype.newbyteorder("=")
    assert np.moveaxis(got, channel_axis, 0).flags.c_contiguous
    assert (x == before).all()
    got[...] = 0  # private and writable


@pytest.mark.parametrize("span", [(0, 256), (-100, 100), (0, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_brightness_is_kerass(where: Where, keras: Any, dtype: str, span: tuple[int, int]) -> None:
    x = picture((6, 5, 3), dtype, *(span if dtype != "uint8" else (0, 256)))
    for factor in (0.3, 1.7):
        got = brightness_shifted(x, factor, False, channel_axis=2, where=where)
        own = keras.apply_brightness_shift(x, factor, False)
        assert (got == own).all()
        assert got.dtype == own.dtype
        got[...] = 0


def test_brightness_of_channels_first_is_that_of_channels_last(where: Where) -> None:
    x = picture((6, 5, 3))
    planes = np.moveaxis(x, 2, 0)
    first = brightness_shifted(planes, 0.5, False, channel_axis=0, where=where)
    last = brightness_shifted(x, 0.5, False, channel_axis=2, where=where)
    assert (first == np.moveaxis(last, 2, 0)).all()


def test_a_picture_that_no_message_holds_goes_through_shared_memory(where: Where) -> None:
    x = picture((700, 800, 3))
    assert x.nbytes > SCRIPT_BYTES
    got = desk.warp(
        x, np.eye(2), np.array([1.0, 0.0]), channel_axis=2, fill_mode="nearest", cval=0.0, order=0,
        where=where,
    )  # fmt: skip
    assert (got[:-1] == x[1:]).all()


def test_pictures_of_many_shapes_keep_few_desks_open(where: Where) -> None:
    for size in (*range(5, 13), 5):
        x = picture((size, 4, 1))
        got = desk.warp(
            x, np.eye(2), np.zeros(2), channel_axis=2, fill_mode="nearest", cval=0.0, order=1,
            where=where,
        )  # fmt: skip
        assert (got == x).all()
    assert len(desk._desks._open) <= desk.KEPT


def test_a_desk_outlives_the_private_server_it_was_opened_with() -> None:
    local.shut_down()
    where = Where(workers=1)
    x = picture((6, 4, 3), "uint8")
    before = desk.brighten(x, 0.5, where=where)
    server = local.private_server(None)
    os.kill(server.pid, signal.SIGKILL)
    assert (desk.brighten(x, 0.5, where=where) == before).all()
    local.shut_down()
    assert (desk.brighten(x, 0.5, where=where) == before).all()
    local.shut_down()


def test_what_is_no_picture_is_refused_at_the_door() -> None:
    none: list[Any] = [np.zeros((4, 4)), np.zeros((4, 4, 0)), np.zeros((4, 4, 1), complex)]
    for x in [*none, *(x.astype(np.uint8) for x in none[:2])]:
        with pytest.raises(ConfigError, match="a picture: got"):
            desk.brighten(x, 1.0, where=Where())
    for x in none:
        with pytest.raises(ConfigError, match="a picture: got"):
            desk.warp(
                x, MATRIX, OFFSET, channel_axis=2, fill_mode="nearest", cval=0.0, order=1,
                where=Where(),
            )  # fmt: skip


def test_a_picture_that_scipy_does_not_take_is_an_error_that_says_so() -> None:
    local.shut_down()
    with pytest.raises(WorkerError, match="float16"):
        desk.warp(
            picture((5, 5, 1), "float16"), MATRIX, OFFSET, channel_axis=2, fill_mode="nearest",
            cval=0.0, order=1, where=Where(workers=1),
        )  # fmt: skip
    local.shut_down()


def test_a_forked_child_has_a_desk_of_its_own() -> None:
    ran = python(
        """
import os
import numpy as np
from augclient.image import desk
x = np.full((4, 4, 3), 100, np.uint8)
def bright():
    return desk.brighten(x, 0.5, where=desk.Where(workers=1))[0, 0, 0]
assert bright() == 50
pid = os.fork()
if not pid:
    os._exit(0 if bright() == 50 else 1)
assert os.waitpid(pid, 0)[1] == 0
assert bright() == 50
""",
        PYTHONWARNINGS="ignore",
        TF_CPP_MIN_LOG_LEVEL="3",
    )
    assert ran.returncode == 0, ran.stderr
