"""A server that others use, and a program that brings functions, arrays and lists of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from one_truth import TRANSFORMS, bytes_of
from PIL import Image
from processes import serving, wait_until

from augclient import Consumer, handing
from augclient.files import ServerFiles
from augclient.handing import HandOver
from augclient.request import SpecOptions
from augproto.errors import ConfigError, ConnectTimeout, NoRoom, NotAllowed, WorkerError
from augproto.fingerprint import fingerprint
from augproto.messages import Message, Upload
from augserver import health

PICTURES = np.random.default_rng(3).integers(0, 256, (50, 8, 8, 3), np.uint8)


@contextlib.contextmanager
def server(folder: Path, settings: str = "") -> Iterator[str]:
    """The address of a server with one worker that may read below a folder."""
    config = folder / "augserver.toml"
    config.write_text(f'[server]\nworkers = 1\nroots = ["{folder}"]\n{settings}\n')
    address = f"ipc://{folder}/s"
    with serving(address, "--config", str(config)) as process:
        _servers[address] = process.pid
        yield address


_servers: dict[str, int] = {}


def epoch(consumer: Consumer) -> str:
    """SHA-256 of an epoch."""
    with consumer:
        return hashlib.sha256(b"".join(map(bytes_of, consumer.epoch(0)))).hexdigest()


def segments(pid: int) -> int:
    """How many segments of a server there are."""
    made = re.compile(rf"augserver-\d+-{pid:x}[0-9a-f]{{6}}-")
    return sum(made.match(path.name) is not None for path in Path("/dev/shm").iterdir())


# -- arrays -------------------------------------------------------------------------------------

LABELS = np.arange(50.0)
OPTIONS: SpecOptions = {"batch_size": 8, "seed": 11, "transforms": TRANSFORMS}


@pytest.fixture(scope="module")
def truth() -> str:
    return epoch(Consumer(PICTURES, LABELS, workers=0, **OPTIONS))


def test_arrays_give_the_same_bytes_however_they_come_to_a_server(
    truth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert epoch(Consumer(PICTURES, LABELS, workers=1, **OPTIONS)) == truth
    with server(tmp_path) as address:
        assert epoch(Consumer(PICTURES, LABELS, address=address, **OPTIONS)) == truth
        sent = _uploads(monkeypatch)
        monkeypatch.setattr(handing, "UPLOAD_BYTES", 1000)
        assert epoch(Consumer(PICTURES, LABELS, address=address, **OPTIONS)) == truth
        assert sum(sent) == PICTURES.nbytes + LABELS.nbytes + 48


def _uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have no key at the door; the sizes of what is sent from then on."""
    sent: list[int] = []
    offer, work = HandOver.offer, HandOver.work

    def noting(self: HandOver) -> Message | None:
        message = work(self)
        if isinstance(message, Upload):
            sent.append(len(message.data))
        return message

    monkeypatch.setattr(HandOver, "offer", lambda self, door: offer(self, ""))
    monkeypatch.setattr(HandOver, "work", noting)
    return sent


READ_ONLY = """
import hashlib, sys
import numpy as np
from augclient import Consumer
x = np.load(sys.argv[2])
with Consumer(x, np.arange(50.0), address=sys.argv[1], batch_size=8, seed=11) as consumer:
    digest = hashlib.sha256()
    for batch in consumer.epoch(0):
        digest.update(batch.x.tobytes() + batch.y.tobytes())
print(digest.hexdigest())
"""


def test_a_program_that_can_only_read_the_server_s_memory_uploads(tmp_path: Path) -> None:
    folder = tmp_path / "shm"
    folder.mkdir()
    mount = f"mount --bind /dev/shm {folder} && mount -o remount,ro,bind {folder}"
    tried = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("this system lets nobody mount in a namespace of his own")
    small = PICTURES[:, :4]
    np.save(tmp_path / "small.npy", small)
    np.save(tmp_path / "large.npy", PICTURES)
    right = epoch(Consumer(small, LABELS, workers=0, batch_size=8, seed=11))
    program = f'{mount} && exec "$0" "$@"'
    run = ["unshare", "-m", "sh", "-c", program, sys.executable, "-c", READ_ONLY]
    with server(tmp_path, "max_upload_bytes = 9000") as address:

        def done(name: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*run, address, str(tmp_path / name)],
                env=os.environ | {"AUGSERVER_SHM_DIR": str(folder)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        assert "max_upload_bytes" in done("large.npy").stderr
        small_one = done("small.npy")
        assert small_one.stdout.strip() == right, small_one.stderr


def test_consumers_of_one_program_share_what_was_handed_over_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = _uploads(monkeypatch)
    with server(tmp_path) as address:
        pid = _servers[address]
        health.ask(address, 30)
        before = segments(pid)  # the one at the door

        def part(subset: str) -> Consumer:
            split: SpecOptions = {"validation_split": 0.2, "subset": subset, "batch_size": 8}
            return Consumer(PICTURES, LABELS, address=address, **split)

        with part("training") as training:
            once = len(sent)
            assert once
            with part("validation") as validation:
                assert len(sent) == once
                assert training.fingerprint == validation.fingerprint
                assert segments(pid) == before + 3, "a dataset and two rings"
                assert training.samples + validation.samples == len(PICTURES)
                assert [b.step for b in training.epoch(0)] == list(range(training.steps))
            wait_until(lambda: segments(pid) == before + 2, "the validation's ring to go")
            assert training.get(1, 0).step == 0
        wait_until(lambda: segments(pid) == before, "the dataset to go with its last user")


def test_what_does_not_fit_is_refused_with_the_bound_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.zeros((64, 128, 128, 3), np.uint8)
    settings = f"max_total_bytes = {2 << 20}\nmax_upload_bytes = {1 << 20}"
    with server(tmp_path, settings) as address:
        pid = _servers[address]
        with pytest.raises(NoRoom, match=r"arrays of 3\.0 MiB.*raise max_total_bytes"):
            Consumer(large, address=address)
        _uploads(monkeypatch)
        with pytest.raises(NotAllowed, match=r"arrays of 3\.0 MiB by message: .*max_upload_bytes"):
            Consumer(large, address=address)
        wait_until(lambda: segments(pid) == 1, "nothing to be left but the door")
        assert epoch(Consumer(PICTURES, address=address, batch_size=8))


# -- lists of files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{number}.png" for number in range(12)]
    for path, picture in zip(paths, PICTURES, strict=False):
        Image.fromarray(picture).save(path)
    return paths


def test_a_list_of_the_server_s_files_gives_the_same_bytes_as_one_s_own(
    photographs: list[Path],
) -> None:
    options: SpecOptions = {"target_size": (6, 6), "batch_size": 5, "seed": 4}
    labels = np.arange(12)
    own = Consumer(files=photographs, y=labels, workers=0, **options)
    with server(photographs[0].parent) as address:
        shared = Consumer(files=photographs, y=labels, address=address, **options)
        assert shared.fingerprint == own.fingerprint
        assert epoch(shared) == epoch(own)


def test_a_list_is_refused_by_the_name_of_what_the_server_may_not_or_cannot_read(
    photographs: list[Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    shutil.copy(photographs[0], secret)
    folder = photographs[0].parent
    with server(folder) as address:

        def opened(*files: str | Path) -> Consumer:
            return Consumer(files=files, target_size=(6, 6), address=address)

        with pytest.raises(NotAllowed, match=r"secret\.png.* is not below a folder"):
            opened(*photographs, secret)
        with pytest.raises(ConfigError, match=r"missing\.png.*on the server's machine"):
            opened(folder / "missing.png")
        with pytest.raises(ConfigError, match=r"got '0\.png'; wanted paths from the root"):
            opened("0.png")
        with opened(photographs[0]) as consumer:
            assert consumer.samples == 1


def test_a_listed_file_that_becomes_a_link_out_of_the_roots_is_not_read(
    photographs: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    inside, secret = folder / "a.png", tmp_path / "secret.png"
    shutil.copy2(photographs[0], inside)
    shutil.copy2(photographs[0], secret)
    with (
        server(folder) as address,
        Consumer(files=[inside], target_size=(6, 6), address=address) as consumer,
    ):
        inside.unlink()
        inside.symlink_to(secret)
        with pytest.raises(WorkerError, match="is not below a folder this server allows"):
            consumer.get(0, 0)


# -- looking ------------------------------------------------------------------------------------


def test_a_program_looks_at_the_server_s_files_as_at_its_own(
    photographs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photographs[0].parent
    for name in ("cat", "dog"):
        (folder / "classes" / name / "deep").mkdir(parents=True)
        shutil.copy(photographs[0], folder / "classes" / name / "deep" / f"{name}.png")
    top = str(folder / "classes")
    with server(folder) as address:
        files = ServerFiles(address)
        assert files.folders(top) == ["cat", "dog"]
        expected = {(path, tuple(names)) for path, _, names in os.walk(top)}
        found = files.walk(top, False)
        assert {(path, tuple(names)) for path, names in found} == expected
        assert files.walk(f"{top}/missing", True) == []
        paths = [str(photographs[0]), top, f"{top}/missing.png"] * 3
        monkeypatch.setattr("augclient.files.MAX_LIST", 2)
        assert files.are_files(paths) == [True, False, False] * 3
        assert files.are_files([]) == []
        with pytest.raises(FileNotFoundError, match="on the server's machine"):
            files.folders(f"{top}/missing")
        with pytest.raises(NotAllowed, match="is not below a folder this server allows"):
            files.folders("/")
        with pytest.raises(ConfigError, match="wanted a path from the root"):
            files.walk("relative", False)


def test_nobody_to_look_for_one_is_an_error_within_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augclient.files.CONNECT_TIMEOUT", 0.3)
    with pytest.raises(ConnectTimeout, match="no augserver answers at"):
        ServerFiles(f"ipc://{tmp_path}/nobody").folders("/")
    with pytest.raises(ConfigError, match="address"):
        ServerFiles("nonsense").folders("/")


# -- functions ----------------------------------------------------------------------------------


def test_a_function_that_the_server_allows_is_named_and_one_that_it_does_not_is_refused(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "x.npy", PICTURES)
    data = tmp_path / "x.npy"
    with server(tmp_path, 'allow_transforms = ["numpy:negative"]') as address:
        with Consumer(
            "x", data=data, address=address, function=np.negative, shuffle=False
        ) as consumer:
            assert np.array_equal(np.asarray(consumer.get(0, 0).x), -PICTURES[:32].astype("f4"))
        with pytest.raises(
            NotAllowed, match=r"augproto\.fingerprint:fingerprint.*allow_transforms"
        ):
            Consumer("x", data=data, address=address, function=fingerprint)
        with pytest.raises(ConfigError, match=r"<lambda> cannot be imported by a server"):
            Consumer("x", data=data, address=address, function=lambda picture: picture)


def test_a_function_of_the_server_s_own_needs_no_leave(tmp_path: Path) -> None:
    name = "keras:torch:channels_last"
    right = epoch(Consumer(PICTURES, function=name, workers=0, seed=1, batch_size=8))
    with server(tmp_path) as address:
        assert (
            epoch(Consumer(PICTURES, seed=1, function=name, address=address, batch_size=8)) == right
        )
        with pytest.raises(ConfigError, match=r"keras:no_such:function"):
            Consumer(PICTURES, function="keras:no_such:function", address=address)
