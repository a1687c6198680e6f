"""A config is explained as the server would take it, and nothing is taken for that."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from augproto import keys
from augproto.errors import ConfigError
from augserver import explaining
from augserver.datasets.arrays import attach, load
from augserver.datasets.outlines import outline
from augserver.explaining import explain
from augserver.explanation import Explanation, lines
from augserver.limits import Limit
from augserver.memory import Memory
from augserver.settings import gather

CONFIG = """
[server]
workers = 1
roots = ["link", "nowhere"]

[datasets.numbers]
data = "numbers.npz"
x = "x"
y = "y"

[datasets.pets]
data = "pets"
pictures = { label_mode = "binary" }

[streams.numbers]
dataset = "numbers"
batch_size = 8
seed = 4
transforms = { rotation_range = 20 }

[streams.pets]
dataset = "pets"
batch_size = 2
target_size = [16, 12]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    x = np.zeros((50, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "numbers.npz", x=x, y=np.arange(50), names=np.array(["a"]))
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (9, 9)).save(tmp_path / "pets" / name / f"{number}.png")
    (tmp_path / "link").symlink_to(tmp_path / "pets")
    (tmp_path / "augserver.toml").write_text(CONFIG)
    return tmp_path


def explained(folder: Path, **environ: str) -> Explanation:
    settings = gather(folder / "augserver.toml", {"listen": ["ipc:///run/a/ctl.sock"]}, environ)
    return explain(settings, environ)


def replaced(folder: Path, old: str, new: str) -> None:
    path = folder / "augserver.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_every_setting_has_its_source_and_a_meaning(folder: Path) -> None:
    explanation = explained(folder, AUGSERVER_MAX_STREAMS="3", AUGSERVER_KERNELS="scipy")
    settings = {setting.key: setting for setting in explanation.settings}
    assert all(setting.meaning.rstrip(")").endswith(".") for setting in explanation.settings)
    assert settings["workers"].source == "file"
    assert settings["listen"].source == "flag --listen"
    assert (settings["max_streams"].value, settings["max_streams"].source) == (
        3,
        "environment AUGSERVER_MAX_STREAMS",
    )
    assert (settings["kernels"].value, settings["kernels"].source) == (
        "scipy",
        "environment AUGSERVER_KERNELS",
    )
    assert settings["lease"].source == "default"
    said = lines(explanation)
    assert "max_streams = 3  (environment AUGSERVER_MAX_STREAMS)" in said
    assert "cache_bytes = unset  (default)" in said


def test_datasets_and_streams_are_said_with_what_was_found(folder: Path) -> None:
    explanation = explained(folder)
    numbers, pets = explanation.datasets
    assert numbers.facts == (
        f"data: {folder}/numbers.npz", "x: uint8 (50, 8, 8, 1)", "y: int64 (50,)",
    )  # fmt: skip
    assert pets.facts[1].startswith("6 files, ")
    assert pets.facts[2] == "2 classes: cat, dog"
    numbers, pets = explanation.streams
    assert numbers.facts[1] == "50 samples; 7 batches of 8 in an epoch, shuffled; seed 4"
    assert numbers.facts[2] == "a batch: x float32 (8, 8, 1); y int64 ()"
    assert "it fits here" in numbers.facts[3]
    assert pets.facts[1].startswith("6 samples of 2 classes; 3 batches of 2 in an epoch, shuffled")
    assert "x float32 (16, 12, 3)" in pets.facts[2]
    assert explanation.errors == []
    assert json.loads(json.dumps(dataclasses.asdict(explanation)))["file"] == explanation.file


def test_an_outline_has_the_dtypes_and_shapes_that_the_server_loads(folder: Path) -> None:
    np.save(folder / "z.npy", np.zeros((50, 2), ">f4"))
    spec = gather(folder / "augserver.toml", {}, {}).config.streams["numbers"]
    memory = Memory(most=1 << 40, workers=0, private=False)
    try:
        dataset = load(spec.data, memory)
        loaded = attach(dataset.sources)
        outlined, _ = outline(spec)
        assert {n: (a.dtype, a.shape) for n, a in outlined.items()} == {
            n: (a.dtype, a.shape) for n, a in loaded.items()
        }
    finally:
        memory.close()


def test_what_does_not_fit_its_data_is_an_error_with_the_stream_s_name(folder: Path) -> None:
    replaced(folder, "batch_size = 8\n", 'batch_size = 8\nx = "none"\n')
    with zipfile.ZipFile(folder / "numbers.npz", "a") as archive:
        archive.writestr("notes.npy", b"no array")
    (error, *more) = explained(folder).errors
    assert "datasets.numbers: data: " in error
    assert "numbers.npz' cannot be read: ValueError" in error
    assert [text.partition(":")[0] for text in more] == ["streams.numbers"]


def test_an_array_that_is_not_there_is_an_error(folder: Path) -> None:
    replaced(folder, "batch_size = 8\n", 'batch_size = 8\nx = "none"\n')
    (error,) = explained(folder).errors
    assert error.startswith("streams.numbers: ")
    assert "'none'" in error


def test_objects_are_refused_by_their_header(folder: Path) -> None:
    np.savez(folder / "numbers.npz", x=np.array([None], object), y=np.arange(1))
    errors = explained(folder).errors
    assert errors[0] == "datasets.numbers: array 'x': got dtype object; wanted numbers or booleans"


def test_what_may_still_come_is_a_warning(folder: Path) -> None:
    (folder / "numbers.npz").unlink()
    explanation = explained(folder)
    assert explanation.errors == []
    assert f"streams.numbers: {folder}/numbers.npz cannot be read (yet)" in explanation.warnings
    assert f"datasets.numbers: {folder}/numbers.npz cannot be read (yet)" in explanation.warnings


def test_roots_that_are_links_or_not_there_are_warned_of(folder: Path) -> None:
    warnings = explained(folder).warnings
    assert (
        f"roots: {folder}/link leads through a link: what is allowed is {folder}/pets" in warnings
    )
    assert f"roots: {folder}/nowhere is no folder (yet): nothing below it can be read" in warnings


def test_a_config_of_nothing_is_warned_of(folder: Path) -> None:
    (folder / "augserver.toml").write_text("[server]\nworkers = 1000\n")
    warnings = explained(folder).warnings
    assert any("consumers can open nothing" in warning for warning in warnings)
    assert any(warning.startswith("workers: 1000 processes on ") for warning in warnings)


def test_a_ring_that_does_not_fit_is_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tight(**arguments: object) -> Memory:
        limits = [Limit("a cgroup", 1 << 30, 97 << 20, "raise it")]
        return Memory(most=1 << 40, workers=0, private=False, limits=lambda: limits)

    monkeypatch.setattr(explaining, "Memory", tight)
    replaced(folder, "target_size = [16, 12]", "target_size = [512, 512]")
    (warning,) = [w for w in explained(folder).warnings if w.startswith("streams.pets: a ring")]
    assert "does not fit into /dev/shm and memory here: it gets " in warning
    replaced(folder, "target_size = [512, 512]", "target_size = [2048, 2048]")
    (warning,) = [w for w in explained(folder).warnings if w.startswith("streams.pets: a ring")]
    assert "consumers are refused" in warning


def test_addresses_are_said_with_who_can_reach_them(folder: Path) -> None:
    replaced(folder, "workers = 1", 'workers = 1\nlisten_workers = "tcp://127.0.0.1:9"')
    own, workers = explained(folder).addresses
    assert own.startswith("ipc:///run/a/ctl.sock: programs of this user (uid ")
    assert own.endswith("that see /run/a")
    assert workers.startswith("tcp://127.0.0.1:9 (workers): every program of this machine")


def test_keys_are_read_and_said_to_be_asked_for(folder: Path) -> None:
    keys.generate(folder, "server")
    keys.generate(folder, "worker")
    replaced(
        folder,
        "workers = 1",
        'workers = 1\nlisten_workers = "tcp://*:9"\n'
        'key = "server.key"\nallow_workers = "worker.pub"',
    )
    explanation = explained(folder)
    assert explanation.addresses[1] == (
        "tcp://*:9 (workers): every machine that reaches that interface; whoever comes shows a key "
        "that is allowed"
    )
    assert [table.name for table in explanation.keys] == ["key", "allow_workers"]
    assert explanation.errors == []
    (folder / "worker.pub").unlink()
    (error,) = explained(folder).errors
    assert error.startswith("server.allow_workers: ")
    assert "worker.pub" in error


def test_a_value_that_is_refused_is_no_explanation(folder: Path) -> None:
    replaced(folder, "workers = 1", "workers = 'one'")
    with pytest.raises(ConfigError, match=r"server\.workers: got 'one'; wanted a whole number"):
        explained(folder)


def test_lists_of_guests_without_a_door_are_warned_of(tmp_path: Path) -> None:
    keys.generate(tmp_path, "guest")
    file = tmp_path / "augserver.toml"
    file.write_text(
        """
        [server]
        listen = ["ipc:///tmp/x.sock"]
        allow_workers = ["guest.pub"]
        allow_consumers = ["guest.pub"]
        metrics = "0.0.0.0:9464"
        """
    )
    explained = explain(gather(file, {}, {}))
    warned = " ".join(explained.warnings)
    assert "no worker can dial in: nothing is said of listen_workers" in warned
    assert "nobody is asked for a key" in warned
    assert explained.addresses[-1] == (
        "http://0.0.0.0:9464/metrics (figures for Prometheus): every machine that reaches that "
        "interface"
    )
