"""A config is one frozen value, and what is wrong with it is said with the key's name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from augproto.errors import ConfigError
from augproto.ring import MAX_SLOTS, MIN_SLOTS
from augproto.spec import Spec
from augserver.config import (
    RING_BYTES,
    RING_SLOTS,
    SMALL_RING,
    Config,
    cores,
    parse,
    read,
)

STREAM = {"data": "a.npz", "x": "x"}
KEYS = {field.name for field in dataclasses.fields(Config)} - {"datasets", "streams", "private"}

FULL = """
[server]
listen = ["ipc:///tmp/a.sock", "tcp://127.0.0.1:7000"]
workers = 4
roots = "data"
allow_transforms = ["package.module:name"]
lease = 5
worker_deadline = 2.5
max_consumers = 7
max_ring_bytes = 1_000_000_000
max_total_bytes = 8_000_000_000
max_upload_bytes = 0

[streams.cifar]
data = ["cifar.npz", "/elsewhere/weights.npy"]
x = "x_train"
y = "y_train"
batch_size = 64
shard = [1, 4]

[streams.cifar.transforms]
rotation_range = 15
zoom_range = [0.8, 1.2]
horizontal_flip = true
width_shift_range = 2
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "augserver.toml"
    path.write_text(text)
    return path


def test_a_file_becomes_a_config(tmp_path: Path) -> None:
    config = read(written(tmp_path, FULL), {})
    assert config == Config(
        listen=("ipc:///tmp/a.sock", "tcp://127.0.0.1:7000"),
        workers=4,
        roots=(str(tmp_path / "data"),),
        allow_transforms=("package.module:name",),
        lease=5,
        worker_deadline=2.5,
        max_consumers=7,
        max_ring_bytes=10**9,
        max_total_bytes=8 * 10**9,
        max_upload_bytes=0,
        streams={
            "cifar": Spec.from_wire(
                {
                    "data": [str(tmp_path / "cifar.npz"), "/elsewhere/weights.npy"],
                    "x": "x_train",
                    "y": "y_train",
                    "batch_size": 64,
                    "shard": [1, 4],
                    "transforms": {
                        "rotation_range": 15,
                        "zoom_range": [0.8, 1.2],
                        "horizontal_flip": True,
                        "width_shift_range": 2,
                    },
                }
            )
        },
    )
    assert not config.private


def test_an_empty_file_is_a_config() -> None:
    config = parse({}, Path("/"), {})
    assert config == Config()
    assert config.workers == cores()
    assert (config.streams, config.roots, config.allow_transforms) == ({}, (), ())


def test_every_key_but_those_of_the_program_is_known_in_a_file() -> None:
    for key in KEYS:
        texts = {"listen": "ipc:///x", "listen_workers": "ipc:///w", "roots": "/"}
        texts |= {
            "metrics": "127.0.0.1:9464",
            "key": "a.key",
            "allow_consumers": "a.pub",
            "allow_workers": "b.pub",
        }
        switches = {"insecure": True, "encrypt_loopback": True}
        value: Any = (texts | switches | {"allow_transforms": "a:b", "max_slots": 2}).get(key, 1)
        value = "scipy" if key == "kernels" else value
        parse({"server": {key: 1 << 20 if key.endswith("_bytes") else value}}, Path("/"), {})
    with pytest.raises(ConfigError, match=r"unknown key server\.private; wanted one of listen"):
        parse({"server": {"private": True}}, Path("/"), {})


def test_flags_win_over_the_file_and_none_is_no_flag() -> None:
    overrides = {"workers": 2, "listen": ("ipc:///flag",), "lease": None, "roots": ["/a", "b"]}
    config = parse({"server": {"workers": 9, "lease": 3}}, Path("/etc"), overrides)
    assert (config.workers, config.lease) == (2, 3)
    assert config.listen == ("ipc:///flag",)
    assert config.roots == ("/a", "/etc/b")


def test_paths_are_relative_to_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    raw = {
        "server": {"roots": ["data", "/abs", "~/own", "../up", "a/./b/../c"]},
        "streams": {"s": {"data": ["a.npz", "../b.npy"], "x": "x"}},
    }
    config = parse(raw, Path("/etc/augserver"), {})
    assert config.roots == (
        "/etc/augserver/data", "/abs", "/home/me/own", "/etc/up", "/etc/augserver/a/c",
    )  # fmt: skip
    assert config.streams["s"].data == ("/etc/augserver/a.npz", "/etc/b.npy")


def test_the_file_itself_may_be_named_relatively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "[streams.s]\ndata = 'a.npz'\nx = 'x'\n")
    monkeypatch.chdir(tmp_path)
    assert read(Path("augserver.toml"), {}).streams["s"].data == (str(tmp_path / "a.npz"),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[server", "is not TOML"),
        ("[sever]\nworkers = 1", r"unknown table \[sever\]; wanted \[server\]"),
        ("[server]\nworker = 1", r"unknown key server\.worker; wanted one of .*workers"),
        ("server = 1", "server: got 1; wanted a table"),
        ("streams = []", r"streams: got \[\]; wanted a table"),
        ("[streams]\ncifar = 1", r"streams\.cifar: got 1; wanted a table"),
        ("[streams.cifar]\nx = 'x'", r"streams\.cifar: spec: data is missing"),
        ("[streams.cifar]\ndata = 'a'", r"streams\.cifar: spec: x is missing"),
        ("[streams.cifar]\ndata = 1\nx = 'x'", r"streams\.cifar\.data: got 1; wanted text"),
        ("[streams.a]\ndata='a'\nx='x'\nbatch=1", r"streams\.a: spec: unknown field 'batch'"),
        ("[streams.a]\ndata='a'\nx='x'\nbatch_size=0", r"streams\.a: batch_size: got 0"),
        ("[streams.a]\ndata='a'\nx='x'\n[streams.a.transforms]\nzoom=1",
         r"streams\.a: transforms: unknown field 'zoom'"),
        ("[server]\nroots = 1", r"server\.roots: got 1; wanted text"),
        ("[server]\nroots = ['a', 1]", r"server\.roots: got .*; wanted text"),
        ("[server]\nallow_transforms = {}", r"server\.allow_transforms: got {}"),
        ("[server]\nlisten = 7000", r"server\.listen: got 7000"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read(written(tmp_path, text), {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        read(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path, {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        read(binary, {})


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("workers", 0, 1024),
        ("lease", 0.1, 86400),
        ("worker_deadline", 0.1, 86400),
        ("max_consumers", 1, 65536),
        ("max_slots", MIN_SLOTS, MAX_SLOTS),
        ("max_ring_bytes", 1 << 20, 1 << 50),
        ("max_total_bytes", 1 << 20, 1 << 50),
        ("max_upload_bytes", 0, 1 << 50),
    ],
)
def test_numbers_have_bounds(key: str, low: float, high: float) -> None:
    for good in (low, high):
        assert getattr(Config(**{key: good}), key) == good  # type: ignore[arg-type]
    bad: list[Any] = [low - 1, high + 1, "1", None, True, float("nan"), float("inf"), [1]]
    for value in bad:
        with pytest.raises(
            ConfigError, match=rf"server\.{key}: got .*; wanted a (whole )?number from"
        ):
            Config(**{key: value})


@pytest.mark.parametrize("key", ["workers", "max_consumers", "max_ring_bytes", "max_total_bytes"])
def test_what_is_counted_is_a_whole_number(key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"server\.{key}: got 2097152\.5|server\.{key}: got 2\.5"
    ):
        Config(**{key: 2097152.5 if key.endswith("_bytes") else 2.5})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "address",
    ["ipc:///tmp/a.sock", "ipc://relative.sock", "tcp://127.0.0.1:7000", "tcp://127.0.0.1:*",
     "tcp://localhost:1", "tcp://[::1]:7000", f"ipc:///{'x' * 106}"],
)  # fmt: skip
def test_this_machine_alone_may_be_listened_to(address: str) -> None:
    assert Config(listen=(address,)).listen == (address,)


@pytest.mark.parametrize(
    "address",
    ["", "ipc://", "tcp://:7000", "udp://127.0.0.1:7", "inproc://a", "127.0.0.1:7000",
     "tcp://127.0.0.1", "tcp://127.0.0.1:http", f"ipc:///{'x' * 107}"],
)  # fmt: skip
@pytest.mark.parametrize("insecure", [False, True])
def test_what_is_no_address_is_refused(address: str, insecure: bool) -> None:
    with pytest.raises(ConfigError, match=r"^listen: "):
        Config(listen=(address,), insecure=insecure)


BEYOND = [
    "tcp://*:7000", "tcp://0.0.0.0:7000", "tcp://10.0.0.1:7000", "tcp://[::]:7000",
    "tcp://example.org:7000", "tcp://localhost.example.org:7000", "tcp://eth0:7000",
    "tcp://127.0.0.1.example.org:1", "tcp://[fe80::1]:1", "tcp://0:1",
]  # fmt: skip


@pytest.mark.parametrize("address", BEYOND)
def test_beyond_this_machine_there_are_keys_or_a_word(address: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no key and no allow_consumers\. To do:"):
        Config(listen=(address,))
    with pytest.raises(ConfigError, match=r"there is no allow_workers\. To do:"):
        Config(listen_workers=(address,), key="/k", allow_consumers=("/c",))
    with_keys = Config(listen=(address,), key="/k", allow_consumers=("/c",))
    assert with_keys.asks_for_keys(address)
    assert not Config(listen=(address,), insecure=True).asks_for_keys(address)


def test_keys_can_be_asked_for_on_this_machine_too() -> None:
    address = "tcp://127.0.0.1:7000"
    with pytest.raises(ConfigError, match="no key and no allow_consumers"):
        Config(listen=(address,), encrypt_loopback=True)
    config = Config(
        listen=(address, "ipc:///a"), key="/k", allow_consumers=("/c",), encrypt_loopback=True
    )
    assert config.asks_for_keys(address)
    assert not config.asks_for_keys("ipc:///a"), "a file's mode says who may connect"


def test_a_ring_gets_slots_enough_to_run_ahead_within_its_bytes() -> None:
    fewest, most = RING_SLOTS
    small_bytes, small = SMALL_RING
    config = Config(workers=2)
    fewest += 2
    assert Config(workers=0).slots(None, RING_BYTES) == fewest - 2
    assert Config(workers=500).slots(None, RING_BYTES // 8) == most
    assert config.slots(None, 4096) == config.slots(None, small_bytes // small) == small
    assert config.slots(None, small_bytes // (most + 10)) == most + 10
    assert config.slots(None, small_bytes // most + 1) == most
    assert config.slots(None, RING_BYTES // 10) == 10
    assert config.slots(None, RING_BYTES) == fewest
    for slot_bytes in (1 << n for n in range(12, 30)):
        slots = config.slots(None, slot_bytes)
        assert fewest <= slots <= small
        assert slots in (fewest, most) or slots * slot_bytes <= RING_BYTES
        assert slots <= most or slots * slot_bytes <= small_bytes


def test_a_ring_gets_the_slots_that_were_asked_for() -> None:
    for slots in (MIN_SLOTS, 5, MAX_SLOTS):
        assert Config().slots(slots, 4096) == slots
    for slots in (MIN_SLOTS - 1, 0, -1, MAX_SLOTS + 1):
        with pytest.raises(ConfigError, match=f"slots: got {slots}; wanted"):
            Config().slots(slots, 4096)


def test_no_ring_is_larger_than_the_config_allows() -> None:
    config = Config(max_ring_bytes=10 << 20)
    assert config.slots(None, 1 << 20) == 10
    assert config.slots(10, 1 << 20) == 10
    with pytest.raises(ConfigError, match=r"ring of 11 slots .* which holds 10; wanted at least 2"):
        config.slots(11, 1 << 20)
    assert config.slots(None, 5 << 20) == MIN_SLOTS
    with pytest.raises(ConfigError, match=r"which holds 1; .* make batch_size"):
        config.slots(None, 6 << 20)


def test_a_process_uses_the_cores_that_it_may() -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))


def test_a_config_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().workers = 3  # type: ignore[misc]
