"""Real photographs, and files of every kind of damage, through real servers and workers."""

from __future__ import annotations

import csv
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plain_reference
import pytest
from one_truth import TRANSFORMS, bytes_of, two_epochs
from PIL import Image
from processes import alive, python, serving, wait_until, workers
from real_data import BAD_IMAGES, DOGS_CATS, bad_images, needs_bad_images, needs_dogs_cats

from augclient import Consumer, local
from augclient.request import SpecOptions
from augproto.errors import ConfigError, NotAllowed, WorkerError
from augserver import health

SIDE = 224
SEED = 9
BATCH = 16
OPTIONS: SpecOptions = {
    "pictures": {"label_mode": "categorical"},
    "target_size": (SIDE, SIDE),
    "batch_size": BATCH,
    "seed": SEED,
    "transforms": TRANSFORMS,
}

FILES = bad_images()
BROKEN = {i: file for i, file in enumerate(FILES) if file.error}


@pytest.fixture(autouse=True)
def _fresh_private_server() -> Iterator[None]:
    local.shut_down()  # a shared one would keep the workers of the test before
    yield
    local.shut_down()


# -- one truth -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth() -> str:
    x, y = plain_reference.folder(str(DOGS_CATS), SIDE)
    return plain_reference.digest(x, y, np.zeros((len(x), 0)), SEED, BATCH)


@needs_dogs_cats
@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_photographs_from_a_folder_are_the_reference_bytes_for_any_number_of_workers(
    count: int, truth: str
) -> None:
    with Consumer(data=DOGS_CATS, workers=count, **OPTIONS) as consumer:
        assert consumer.class_names == ("cat", "dog")
        assert two_epochs(consumer) == truth


@needs_dogs_cats
def test_photographs_are_the_same_bytes_while_workers_are_killed(truth: str) -> None:
    chance = random.Random(11)
    killed = []
    sha = hashlib.sha256()
    with Consumer(data=DOGS_CATS, workers=2, slots=4, **OPTIONS) as consumer:
        assert local._server is not None
        server = local._server.pid
        for epoch in range(2):
            for batch in consumer.epoch(epoch):
                sha.update(bytes_of(batch))
                if batch.step % 3 == 1:
                    wait_until(lambda: bool(workers(server)), "a worker to kill")
                    victim = chance.choice(workers(server))
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
    assert len(killed) >= 6
    wait_until(lambda: not any(alive(pid) for pid in killed), "the last one to be gone", 10)
    assert sha.hexdigest() == truth


# -- damage --------------------------------------------------------------------------------------


def damaged(policy: str, count: int, batch_size: int = 1) -> Consumer:
    return Consumer(
        files=[file.path for file in FILES],
        y=np.arange(len(FILES)),
        target_size=(16, 16),
        batch_size=batch_size,
        shuffle=False,
        seed=1,
        bad_samples=policy,
        workers=count,
    )


def no_worker_has_died() -> bool:
    if local._server is None:
        return True
    _, status = health.ask(local._server.address, 10)
    return status.restarts == 0


@needs_bad_images
@pytest.mark.parametrize("count", [0, 2])
def test_raise_gives_every_good_file_and_names_every_bad_one(count: int) -> None:
    with damaged("raise", count) as consumer:
        for i, file in enumerate(FILES):
            if not file.error:
                assert np.asarray(consumer.get(0, i).y).tolist() == [i]
                continue
            with pytest.raises(WorkerError) as raised:
                consumer.get(0, i)
            error = raised.value
            assert (error.step, error.sample) == (i, i)
            assert error.path == str(file.path)
            assert f"sample {i} ({file.path}): {file.error}: " in str(error)
        assert no_worker_has_died()


@needs_bad_images
def test_skip_gives_the_good_ones_and_lists_the_bad_ones_for_any_number_of_workers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    digests = set()
    for count in (0, 2):
        caplog.clear()
        with damaged("skip", count, batch_size=10) as consumer:
            got = [(bytes_of(b), np.asarray(b.y).tolist()) for b in consumer.epoch(0)]
            bad = consumer.bad_samples(0)
            assert no_worker_has_died()
        assert [i for _, labels in got for i in labels] == [
            i for i in range(len(FILES)) if i not in BROKEN
        ]
        assert {b.sample: b.path for b in bad} == {i: str(file.path) for i, file in BROKEN.items()}
        assert all(b.reason.startswith(f"{BROKEN[b.sample].error}: ") for b in bad)
        (report,) = [r.getMessage() for r in caplog.records if "went on without" in r.getMessage()]
        assert report.startswith("epoch 0 went on without 22 bad samples:")
        assert str(FILES[min(BROKEN)].path) in report
        digests.add(hashlib.sha256(b"".join(data for data, _ in got)).hexdigest())
    assert len(digests) == 1


@needs_bad_images
def test_substitute_gives_full_batches_with_the_next_good_file_for_any_number_of_workers() -> None:
    wanted = [
        next(j % len(FILES) for j in range(i, i + 60) if j % len(FILES) not in BROKEN)
        for i in range(len(FILES))
    ]
    digests = set()
    for count in (0, 2):
        with damaged("substitute", count, batch_size=10) as consumer:
            got = [(bytes_of(b), np.asarray(b.y).tolist()) for b in consumer.epoch(0)]
            assert {b.sample for b in consumer.bad_samples(0)} == set(BROKEN)
            assert no_worker_has_died()
        assert [i for _, labels in got for i in labels] == wanted
        digests.add(hashlib.sha256(b"".join(data for data, _ in got)).hexdigest())
    assert len(digests) == 1


@needs_bad_images
def test_a_picture_of_95_million_pixels_costs_a_fraction_of_what_pillow_takes_for_it() -> None:
    program = (
        "import os, resource, sys\n"
        "from augproto.files import File\n"
        "from augproto.pictures import Pictures\n"
        "from augserver.datasets.decoding import Decoder\n"
        "path, how = sys.argv[1:]\n"
        "status = os.stat(path)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "picture = Decoder(Pictures(), (224, 224), how).read(\n"
        "    File(path, status.st_size, status.st_mtime_ns))\n"
        "assert picture.shape == (224, 224, 3)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    path = str(BAD_IMAGES / "files" / "png_bomb_warning_10000x9500.png")
    for how, most in (("nearest", 130 << 10), ("bilinear", 230 << 10)):
        ran = python(program, path, how)
        assert ran.returncode == 0, ran.stderr
        assert int(ran.stdout) < most, f"{how}: KiB beyond the start"


# -- a standalone server -------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of two classes, filled with numbers, one file of which is no picture."""
    root = tmp_path / "pets"
    for i in range(12):
        path = root / ("cat", "dog")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(path)
    (root / "dog" / "broken.jpg").write_text("no picture")
    with open(tmp_path / "pets" / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([[f"cat/{i:02}.png", i / 2] for i in range(0, 12, 2)])
    return root


CONFIG = """
[server]
roots = ["pets"]
workers = 1
max_pixels = 1000

[streams.pets]
data = "pets"
target_size = [8, 8]
batch_size = 4
seed = 3
bad_samples = "skip"

[streams.pets.pictures]
label_mode = "binary"
"""


@pytest.fixture
def server(pets: Path, tmp_path: Path) -> Iterator[str]:
    config = tmp_path / "augserver.toml"
    config.write_text(CONFIG)
    address = f"ipc://{tmp_path}/s"
    with serving(address, "--config", str(config)):
        yield address


def test_a_configured_folder_is_served_and_its_bad_files_are_in_the_status(
    server: str, pets: Path
) -> None:
    with Consumer(stream="pets", address=server) as consumer:
        assert consumer.class_names == ("cat", "dog")
        seen = [
            (int(x[0, 0, 0]), float(y))
            for batch in consumer.epoch(0)
            for x, y in zip(np.asarray(batch.x), np.asarray(batch.y), strict=True)
        ]
    assert sorted(seen) == [(i, float(i % 2)) for i in range(12)]
    ran = subprocess.run(
        [sys.executable, "-m", "augserver", "status", "--connect", server],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "1 bad samples" in ran.stdout
    assert f"({pets}/dog/broken.jpg): UnidentifiedImageError: no picture in" in ran.stdout


def test_a_consumers_own_folder_and_list_are_served_below_the_roots(
    server: str, pets: Path
) -> None:
    size: SpecOptions = {"target_size": (8, 8), "batch_size": 3, "shuffle": False, "seed": 0}
    numbers: SpecOptions = {"pictures": {"label_mode": "number", "max_pixels": 1000}, **size}
    with Consumer(data=pets / "list.csv", address=server, **numbers) as consumer:
        batch = consumer.get(0, 1)
        assert np.asarray(batch.y).tolist() == [3.0, 4.0, 5.0]
        assert np.asarray(batch.x)[:, 0, 0, 0].tolist() == [6, 8, 10]
    flat: SpecOptions = {"pictures": {"label_mode": "none", "max_pixels": 1000}, **size}
    with Consumer(data=pets / "cat", address=server, **flat) as consumer:
        assert consumer.samples == 6


@pytest.mark.parametrize("way", ["..", "a link to a file", "a link to a folder", "elsewhere"])
def test_no_way_leads_out_of_the_roots(server: str, pets: Path, tmp_path: Path, way: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    shutil.copy(pets / "cat" / "00.png", secret / "x.png")
    data = pets
    if way == "..":
        data = pets / ".." / "secret"
    elif way == "a link to a file":
        (pets / "cat" / "z.png").symlink_to(secret / "x.png")
    elif way == "a link to a folder":
        (pets / "secret").symlink_to(secret)
    elif way == "elsewhere":
        data = secret
    options: SpecOptions = {"target_size": (8, 8), "pictures": {"max_pixels": 1000}}
    with pytest.raises(NotAllowed, match="is not below a folder this server allows"):
        Consumer(data=data, address=server, **options)
    assert health.ask(server, 10)[1].consumers == 0
    options["pictures"] = {"max_pixels": 1000, "class_names": ["dog"]}
    with Consumer(data=pets, address=server, **options) as consumer:
        assert consumer.samples == 7


def test_a_consumer_may_not_raise_the_servers_bound_of_pixels(server: str, pets: Path) -> None:
    with pytest.raises(NotAllowed, match=r"max_pixels: got 1001; this server allows at most 1000"):
        Consumer(data=pets, address=server, target_size=(8, 8), pictures={"max_pixels": 1001})


# -- while files change --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1])
def test_a_file_that_changes_under_a_stream_is_an_error_and_a_new_stream_has_the_new_file(
    pets: Path, count: int
) -> None:
    def consumer() -> Consumer:
        return Consumer(
            data=pets, target_size=(8, 8), batch_size=1, shuffle=False, seed=0, slots=2,
            pictures={"class_names": ["cat"]}, bad_samples="skip", workers=count,
        )  # fmt: skip

    with consumer() as before:
        before.get(0, 0)
        Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(pets / "cat" / "10.png")
        with pytest.raises(WorkerError, match=r"cat/10\.png\): the file has changed"):
            before.get(0, 5)
        (pets / "cat" / "08.png").unlink()
        with pytest.raises(WorkerError, match=r"cat/08\.png\): the file is gone"):
            before.get(0, 4)
        before.get(0, 1)
    with consumer() as after:
        assert after.fingerprint != before.fingerprint
        assert np.asarray(after.get(0, 4).x)[0, 0, 0, 0] == 99


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, r"x: got None; wanted arrays, names of arrays"),
        ({"data": "pets"}, r"x: got None; .*pictures= together with data="),
        ({"data": "pets", "pictures": {}}, r"target_size: got None"),
        ({"files": []}, r"files: got \[\]; wanted a list of at least one path"),
        ({"files": "a.png"}, r"files: got 'a\.png'; wanted a list"),
        ({"files": ["/none.png"], "target_size": (8, 8)}, r"files: '/none\.png': .*No such file"),
        ({"files": ["/none.png"], "data": "x"}, r"files: got x or data beside it"),
        ({"data": 3, "pictures": {}, "target_size": (8, 8)}, r"data: got 3; wanted a path"),
        ({"data": "/none", "pictures": {}, "target_size": (8, 8)}, r"data: /none: No such file"),
    ],
)
def test_a_wrong_word_about_files_is_refused_at_the_door(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Consumer(workers=0, **options)


def test_a_relative_folder_is_the_programs_own_also_after_it_has_gone_elsewhere(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Consumer(np.zeros((4, 1)), workers=1):  # starts the private server here
        monkeypatch.chdir(pets.parent)
        options: SpecOptions = {"target_size": (8, 8), "pictures": {"class_names": ["cat"]}}
        with Consumer(data="pets", workers=1, **options) as consumer:
            assert consumer.samples == 6


# -- death ---------------------------------------------------------------------------------------


def test_what_kills_a_worker_over_a_picture_is_told_with_its_file(pets: Path) -> None:
    def deadly(picture: Any) -> Any:
        if picture[0, 0, 0] == 6:
            os._exit(3)
        return picture

    options: SpecOptions = {
        "pictures": {"class_names": ["cat"]},
        "target_size": (8, 8),
        "batch_size": 2,
        "shuffle": False,
        "seed": 0,
        "function": deadly,
    }
    with Consumer(data=pets, workers=1, **options) as consumer:
        with pytest.raises(WorkerError, match=r"3 workers died while making this") as raised:
            consumer.get(0, 1)
        assert raised.value.sample == 3
        assert raised.value.path == str(pets / "cat" / "06.png")
        assert f"exited with code 3, at sample 3 ({pets}/cat/06.png)" in str(raised.value)
        assert np.asarray(consumer.get(0, 2).x)[:, 0, 0, 0].tolist() == [8, 10]


def test_a_batch_that_takes_longer_than_the_deadline_but_gets_on_is_not_killed(
    pets: Path, tmp_path: Path
) -> None:
    config = tmp_path / "augserver.toml"
    config.write_text(
        '[server]\nworkers = 1\nworker_deadline = 0.5\nallow_transforms = ["time:sleep"]\n'
        '[streams.slow]\ndata = "pets"\ntarget_size = [8, 8]\nbatch_size = 6\n'
        'pictures = { class_names = ["cat"] }\ntransforms = { function = "slowly:slowly" }\n'
    )
    (tmp_path / "slowly.py").write_text(
        "import time\ndef slowly(picture):\n    time.sleep(0.3)\n    return picture\n"
    )
    address = f"ipc://{tmp_path}/slow"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
        with (
            serving(address, "--config", str(config)),
            Consumer(stream="slow", address=address) as consumer,
        ):
            assert len(np.asarray(consumer.get(0, 0).x)) == 6
            assert health.ask(address, 10)[1].restarts == 0


def test_a_list_that_is_a_pipe_stops_nobody_s_load(server: str, pets: Path) -> None:
    os.mkfifo(pets / "pipe.csv")
    options: SpecOptions = {"target_size": (8, 8), "pictures": {"max_pixels": 1000}}
    with pytest.raises(ConfigError, match="is no regular file"):
        Consumer(data=pets / "pipe.csv", address=server, **options)
    with Consumer(stream="pets", address=server) as consumer:
        consumer.get(0, 0)


def test_paths_may_come_from_a_generator_and_labels_only_with_files(pets: Path) -> None:
    paths = (path for path in sorted((pets / "cat").iterdir()))
    with Consumer(files=paths, y=np.arange(6), workers=0, target_size=(8, 8)) as consumer:
        assert consumer.samples == 6
    with pytest.raises(ConfigError, match=r"y: got a value beside data= and pictures="):
        Consumer(data=pets, y=np.arange(6), workers=0, target_size=(8, 8), pictures={})
