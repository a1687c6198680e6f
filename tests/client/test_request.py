"""What a user passes becomes a spec, and what must be handed over; nothing is guessed silently."""

from __future__ import annotations

import functools
import sys
from typing import Any

import cloudpickle
import numpy as np
import pytest

from augclient.request import Request, SpecOptions, pickled, request
from augproto.errors import ConfigError
from augproto.fingerprint import fingerprint
from augproto.spec import HANDED, Spec
from augproto.transforms import Transforms

X = np.zeros((6, 4, 4, 3), np.uint8)
Y = np.arange(6)


def asked(
    x: object = None, y: object = None, sample_weight: object = None, *,
    data: Any = None, stream: str | None = None, shared: bool = False, **options: Any,
) -> Request:  # fmt: skip
    wanted: SpecOptions = options  # type: ignore[assignment] # users may pass anything
    return request(x, y, sample_weight, data=data, stream=stream, options=wanted, shared=shared)


def spec_of(wanted: Request) -> Spec:
    assert wanted.spec is not None
    return wanted.spec


def test_arrays_are_named_by_their_place_and_known_by_their_fingerprint() -> None:
    wanted = asked(X, Y, batch_size=3)
    spec = spec_of(wanted)
    assert (spec.x, spec.y, spec.sample_weight, spec.batch_size) == ("x", "y", None, 3)
    assert list(wanted.arrays) == ["x", "y"]
    assert np.shares_memory(wanted.arrays["x"], X), "no copy"
    assert spec.data == (f"{HANDED}{fingerprint({'x': X, 'y': Y})}",)


def test_the_same_arrays_are_the_same_data_and_others_are_not() -> None:
    first = spec_of(asked(X, Y)).data
    assert spec_of(asked(X.copy(), Y.copy())).data == first
    others = [(X + 1, Y), (X, Y[::-1]), (X.astype("f4"), Y), (X.reshape(6, 2, 8, 3), Y), (X, None)]
    assert len({spec_of(asked(*other)).data for other in others} | {first}) == len(others) + 1


@pytest.mark.parametrize(
    ("x", "names", "keys"),
    [
        ((X, Y), ("x/0", "x/1"), ["x/0", "x/1"]),
        ([X, Y], ("x/0", "x/1"), ["x/0", "x/1"]),
        ({"left": X, "right": Y}, {"left": "x/left", "right": "x/right"}, ["x/left", "x/right"]),
    ],
    ids=["tuple", "list", "dict"],
)
def test_several_inputs_keep_their_structure(x: Any, names: Any, keys: list[str]) -> None:
    wanted = asked(x, Y.copy())
    assert spec_of(wanted).x == names
    assert list(wanted.arrays) == [*keys, "y"]


def test_all_roles_may_have_several_arrays() -> None:
    wanted = asked(X, {"a": Y, "b": Y + 1}, (Y * 1.0, Y * 2.0))
    spec = spec_of(wanted)
    assert spec.y == {"a": "y/a", "b": "y/b"}
    assert spec.sample_weight == ("sample_weight/0", "sample_weight/1")
    assert wanted.arrays["sample_weight/1"].tolist() == (Y * 2.0).tolist()


def test_a_list_of_numbers_is_an_array() -> None:
    wanted = asked(X, [0, 1, 2, 3, 4, 5])
    assert spec_of(wanted).y == "y"
    assert wanted.arrays["y"].tolist() == [0, 1, 2, 3, 4, 5]


def test_an_array_in_two_places_is_handed_over_once() -> None:
    wanted = asked(X, X)
    assert list(wanted.arrays) == ["x"]
    assert (spec_of(wanted).x, spec_of(wanted).y) == ("x", "x")
    twice = asked((X, Y, X), {"again": Y})
    assert list(twice.arrays) == ["x/0", "x/1"]
    assert spec_of(twice).x == ("x/0", "x/1", "x/0")
    assert spec_of(twice).y == {"again": "x/1"}


@pytest.mark.parametrize(
    "array", [X[::2], X.T.reshape(6, 4, 4, 3), X.astype(">f4"), np.asfortranarray(X)]
)
def test_what_is_handed_over_is_contiguous_and_native(array: Any) -> None:
    handed = asked(array).arrays["x"]
    assert handed.flags.c_contiguous
    assert handed.dtype.isnative
    assert np.array_equal(handed, array)


@pytest.mark.parametrize(
    "array",
    ["pictures", b"x", 7, object(), np.array(3.0), np.array(["a"]), np.array([{}]),
     np.array(["2020-01-01"], "M8[D]"), {"a": "b"}],
    ids=repr,
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_refused_by_its_place(array: Any) -> None:
    with pytest.raises(ConfigError, match=r"^y\S*: got .*wanted an array of numbers"):
        asked(X, array)


def test_a_list_that_is_no_array_is_refused_by_its_place() -> None:
    with pytest.raises(ValueError, match=r"^y: got"):
        asked(X, [[1], [1, 2]])


@pytest.mark.parametrize(
    ("x", "images", "names"),
    [
        (X, "x", ("x",)),
        ((X, X + 1), (0, 1), ("x/0", "x/1")),
        ((X, X + 1), ["1"], ("x/1",)),
        ((X, Y), 0, ("x/0",)),
        ({"left": X, "right": X + 1}, "right", ("x/right",)),
        ({"left": X, "right": X + 1}, ("left", "x/right"), ("x/left", "x/right")),
    ],
    ids=repr,
)  # fmt: skip
def test_pictures_are_named_by_key_or_position(x: Any, images: Any, names: Any) -> None:
    assert spec_of(asked(x, images=images)).images == names


def test_pictures_may_have_a_key_that_starts_with_x() -> None:
    wanted = asked({"xray": X, "ct": X + 1}, images=["xray"])
    assert spec_of(wanted).images == ("x/xray",)


def test_a_name_that_is_no_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"images: got 'x/up'; wanted arrays of x: x/left"):
        asked({"left": X}, images=["up"])


def test_names_with_data_are_left_as_they_are() -> None:
    wanted = asked("x_train", ["a", "b"], data="cifar.npz", images=["x_train"], seed=3)
    assert spec_of(wanted) == Spec(
        data=("cifar.npz",), x="x_train", y=("a", "b"), images=("x_train",), seed=3
    )
    assert wanted.arrays == {}


def test_without_x_there_is_nothing_to_serve() -> None:
    with pytest.raises(ConfigError):
        asked(None, Y)
    with pytest.raises(ConfigError):
        asked(data="a.npz")


def test_a_named_stream_brings_its_own_data_and_takes_changes() -> None:
    wanted = asked(stream="cifar", batch_size=16, shard=(1, 4), seed=0)
    assert wanted.spec is None
    assert (wanted.stream, wanted.arrays, wanted.code) == ("cifar", {}, None)
    assert wanted.changes == {"batch_size": 16, "shard": [1, 4], "seed": 0}


@pytest.mark.parametrize(
    "given",
    [{"x": X}, {"y": Y}, {"sample_weight": Y}, {"data": "a.npz"}, {"function": "a:b"}],
    ids=lambda given: next(iter(given)),
)
def test_a_named_stream_beside_data_of_ones_own_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"stream='cifar' names a stream .* leave x, y"):
        asked(stream="cifar", **given)


def test_transforms_come_as_a_value_or_as_a_map() -> None:
    as_map = asked(X, transforms={"rotation_range": 15, "zoom_range": 0.2})
    as_value = asked(X, transforms=Transforms(rotation_range=15, zoom_range=0.2))
    assert spec_of(as_map) == spec_of(as_value)
    assert spec_of(as_map).transforms.zoom_range == (0.8, 1.2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batchsize": 3}, "unknown field 'batchsize'"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"transforms": {"rotation": 3}}, "unknown field 'rotation'"),
        ({"transforms": None}, "transforms: got None"),
        ({"dtype": "uint8", "whitening": "zca"}, "dtype: got 'uint8'"),
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        asked(X, **options)


def test_a_function_of_the_program_travels_as_bytes_known_by_their_digest() -> None:
    factor = 3

    def times(picture: Any) -> Any:
        return picture * factor

    wanted = asked(X, function=times, transforms={"rescale": 0.5})
    assert wanted.function is times
    assert wanted.code is not None
    assert wanted.code.name.startswith(HANDED)
    assert spec_of(wanted).transforms == Transforms(rescale=0.5, function=wanted.code.name)
    assert cloudpickle.loads(wanted.code.code)(2) == 6
    assert all(wanted.code.path), "the working directory by its name, since '' is another's there"
    factor = 4
    assert pickled(times).name != wanted.code.name, "another function, another name"


def test_a_function_by_its_import_path_travels_as_a_name() -> None:
    wanted = asked(X, function="package.module:name")
    assert (wanted.function, wanted.code) == (None, None)
    assert spec_of(wanted).transforms.function == "package.module:name"


def test_a_function_for_a_server_that_others_use_travels_by_its_import_path() -> None:
    wanted = asked(X, function=fingerprint, shared=True)
    assert wanted.code is None
    assert spec_of(wanted).transforms.function == "augproto.fingerprint:fingerprint"
    wanted = asked(X, function=Spec.to_wire, shared=True)
    assert spec_of(wanted).transforms.function == "augproto.spec:Spec.to_wire"


@pytest.mark.parametrize(
    "function",
    [
        lambda picture: picture,
        functools.partial(np.add, 1),
        functools.wraps(fingerprint)(lambda picture: picture),
        Spec(data=("x",), x="x").with_classes,
    ],
    ids=["lambda", "partial", "wrapped", "method"],
)
def test_a_function_that_nobody_else_can_import_is_refused_with_what_to_do(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be imported.*allow_transforms.*private server"):
        asked(X, function=function, shared=True)


def test_a_function_of_the_main_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "fingerprint", fingerprint, raising=False)
    monkeypatch.setattr(fingerprint, "__module__", "__main__")
    with pytest.raises(ConfigError, match=r"__main__:fingerprint cannot be imported"):
        asked(X, function=fingerprint, shared=True)


@pytest.mark.parametrize("function", [3, X, ["a:b"], ""], ids=["number", "array", "list", "empty"])
def test_what_is_no_function_is_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"function"):
        asked(X, function=function)


def test_a_request_changes_nothing_of_what_was_passed() -> None:
    x = {"left": X, "right": X}
    options: dict[str, Any] = {"transforms": {"rotation_range": 15}, "images": ["left"]}
    asked(x, Y, **options)
    assert list(x) == ["left", "right"]
    assert options == {"transforms": {"rotation_range": 15}, "images": ["left"]}
