"""A dataset is described once: streams and consumers say its name, and win where they say more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from augclient.request import SpecOptions, request
from augproto.errors import ConfigError, NotAllowed
from augproto.messages import Open
from augproto.pictures import Pictures
from augproto.spec import Spec
from augserver.config import Config, parse
from augserver.conversation import roots_of, spec_of
from augserver.datasets import named

PETS = {
    "data": "pets",
    "target_size": [64, 48],
    "cache": "decoded",
    "pictures": {"label_mode": "binary", "max_pixels": 5_000_000},
}
RAW: dict[str, Any] = {
    "datasets": {"pets": PETS, "cifar": {"data": ["a.npz", "/b.npy"], "x": "x", "y": "y"}},
    "streams": {
        "pets": {"dataset": "pets", "batch_size": 4},
        "upright": {"dataset": "pets", "pictures": {"exif_orientation": True}},
        "small": {"dataset": "pets", "target_size": [8, 8], "cache": "decoded"},
        "plain": {"dataset": "cifar", "y": "other", "transforms": {"horizontal_flip": True}},
    },
}


@pytest.fixture
def config() -> Config:
    return parse(RAW, Path("/srv"), {})


def asked(dataset: str = "pets", x: object = None, **options: Any) -> Open:
    """What a consumer says for `AugSequence(dataset=..., ...)`."""
    fields: SpecOptions = options  # type: ignore[assignment]
    wanted = request(
        x, None, None, data=None, stream=None, dataset=dataset, options=fields, shared=True
    )
    assert wanted.spec is not None
    return Open(None, wanted.spec.to_wire(), None)


def test_a_stream_starts_from_its_dataset_and_wins_over_it(config: Config) -> None:
    pets = config.streams["pets"]
    assert (pets.data, pets.target_size, pets.batch_size) == (("/srv/pets",), (64, 48), 4)
    assert pets.pictures == Pictures(label_mode="binary", max_pixels=5_000_000)
    upright = config.streams["upright"].pictures
    assert upright == Pictures(label_mode="binary", max_pixels=5_000_000, exif_orientation=True)
    assert config.streams["small"].target_size == (8, 8)
    plain = config.streams["plain"]
    assert (plain.data, plain.x, plain.y) == (("/srv/a.npz", "/b.npy"), "x", "other")


@pytest.mark.parametrize(
    ("datasets", "stream", "complaint"),
    [
        ({"a": {"data": "d", "batch_size": 3}}, {}, r"datasets\.a: unknown field 'batch_s"),
        ({"a": {"x": "x"}}, {}, r"datasets\.a: spec: data is missing"),
        ({"a": {"data": "d", "x": 3}}, {}, r"datasets\.a: x: got 3; wanted the name"),
        ({"a": {"data": "d", "pictures": {"wide": "b"}}}, {}, r"datasets\.a: pictures\.wide"),
        ({"a": {"data": "d", "cache": "decoded"}}, {}, r"datasets\.a: cache: got 'decoded'"),
        ({"a": 1}, {}, r"datasets\.a: got 1; wanted a table"),
        ({"a": {"data": 1}}, {}, r"datasets\.a\.data: got 1; wanted text"),
        ({"b": {"data": "d"}, "c": {"data": "d"}}, {"dataset": "a"},
         r"streams\.s: dataset: got 'a'; wanted one of this server's datasets, which are: b, c"),
        ({}, {"dataset": "a"}, r"which are: none"),
        ({"a": {"data": "d"}}, {"dataset": "a"}, r"streams\.s: spec: x is missing"),
        ({"a": {"data": "d"}}, {"dataset": "a", "data": "e", "x": "x"},
         r"streams\.s: data: got .*/e.* beside dataset"),
        ({"a": {"data": "d"}}, {"dataset": ["a"]}, r"streams\.s: dataset: got \['a'\]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_table(
    datasets: dict[str, Any], stream: dict[str, Any], complaint: str
) -> None:
    raw = {"datasets": datasets} | ({"streams": {"s": stream}} if stream else {})
    with pytest.raises(ConfigError, match=complaint):
        parse(raw, Path("/srv"), {})


def test_a_consumer_needs_the_name_alone_and_no_roots(config: Config) -> None:
    assert config.roots == ()
    wish = asked(batch_size=4)
    assert wish.spec == {"data": ["dataset:pets"], "batch_size": 4}
    assert spec_of(wish, config) == config.streams["pets"]
    assert roots_of(wish, config) is None
    assert spec_of(asked("cifar", "other"), config).x == "other"


def test_a_consumer_may_change_how_but_not_which_files(config: Config) -> None:
    spec = spec_of(asked(target_size=(8, 8), pictures={"color_mode": "grayscale"}), config)
    assert spec.target_size == (8, 8)
    assert spec.data == ("/srv/pets",)
    assert spec.pictures == Pictures(
        label_mode="binary", max_pixels=5_000_000, color_mode="grayscale"
    )
    with pytest.raises(NotAllowed, match=r"pictures\.max_pixels: got 9000000000; this server"):
        spec_of(asked(pictures={"max_pixels": 9_000_000_000}), config)
    with pytest.raises(NotAllowed, match=r"'os:remove' is not in this server's allow_transforms"):
        spec_of(asked(transforms={"function": "os:remove"}), config)


def test_a_name_that_the_server_does_not_have_is_answered_with_those_it_has(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"dataset: got 'dogs'; .* which are: cifar, pets"):
        spec_of(asked("dogs"), config)
    with pytest.raises(ConfigError, match="which are: none"):
        spec_of(asked("dogs"), Config(private=True))


def test_what_a_consumer_adds_is_checked_with_the_dataset_it_meets(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"dataset 'cifar': cache: got 'decoded'"):
        spec_of(asked("cifar", cache="decoded"), config)


def test_a_dataset_stands_alone() -> None:
    for data in (["dataset:pets", "/etc/x.npy"], ["/etc/x.npy", "dataset:pets"]):
        with pytest.raises(ConfigError, match=r"data: got .*; wanted one dataset .* alone"):
            Spec.from_wire({"data": data, "x": "x"})
    spec = Spec.from_wire({"data": "dataset:pets", "y": "label"})
    assert (spec.dataset, spec.x, spec.y) == ("pets", "", "label")
    assert Spec.from_wire(spec.to_wire()) == spec
    assert Spec(data=("/a.npz",), x="x").dataset is None


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ({"data": "a.npz"}, "leave data and files out"),
        ({"files": ["a.png"]}, "leave data and files out"),
        ({"stream": "s"}, r"leave x, y, .* dataset and function out"),
        ({"dataset": 3}, "dataset: got 3; wanted the name"),
        ({"dataset": ""}, "dataset: got ''; wanted the name"),
    ],
)
def test_a_dataset_goes_with_no_other_data(extra: dict[str, Any], complaint: str) -> None:
    arguments: dict[str, Any] = {"data": None, "stream": None, "dataset": "pets"} | extra
    with pytest.raises(ConfigError, match=complaint):
        request(None, None, None, options={}, **arguments)


def test_a_key_is_about_the_data_or_about_the_stream() -> None:
    with pytest.raises(ConfigError, match="unknown field 'transforms'"):
        named.checked({"data": "/d", "x": "x", "transforms": {}})
