"""Consumers that get their batches by message: the same bytes, kept, dropped, and in namespaces."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from one_truth import TRANSFORMS, bytes_of
from PIL import Image
from processes import serving, wait_until
from restarted import restarted

from augclient import Consumer, local
from augclient.request import SpecOptions
from augclient.scripted import Scripted, of_samples
from augproto.codec import decode, encode
from augproto.errors import ConfigError
from augproto.messages import (
    VERSION,
    Hello,
    Message,
    Open,
    Opened,
    Run,
    Want,
    Welcome,
)
from augproto.segment import HOME
from augproto.spec import Spec
from augserver import health

PICTURES = np.random.default_rng(3).integers(0, 256, (360, 16, 16, 3), np.uint8)
LABELS = np.arange(360.0)


@contextlib.contextmanager
def server(folder: Path, settings: str = "") -> Iterator[str]:
    """The address of a server with one worker that may read below a folder."""
    config = folder / "augserver.toml"
    config.write_text(f'[server]\nworkers = 1\nroots = ["{folder}"]\n{settings}\n')
    address = f"ipc://{folder}/s"
    with serving(address, "--config", str(config)):
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number, picture in enumerate(PICTURES[:24]):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with server(folder) as address:
        yield address


def digest(consumer: Consumer, epochs: int = 2) -> str:
    with consumer:
        whole = b"".join(map(bytes_of, consumer.epochs(epochs)))
    return hashlib.sha256(whole).hexdigest()


STREAMS: dict[str, SpecOptions] = {
    "spans": {"batch_size": 8, "seed": 11, "transforms": TRANSFORMS},
    "bytes": {"batch_size": 50, "seed": 11, "dtype": "uint8"},
    "keras": {"batch_size": 8, "seed": 11, "transforms": TRANSFORMS, "scheme": "keras"},
    "in order": {"batch_size": 100, "shuffle": False},
}  # fmt: skip


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("name", STREAMS)
def test_an_epoch_by_frames_is_the_one_that_is_made_here(
    name: str, writable: bool, address: str
) -> None:
    options = STREAMS[name]
    right = digest(Consumer(PICTURES, LABELS, workers=0, **options))
    consumer = Consumer(
        PICTURES, LABELS, address=address, memory="frames", writable=writable, **options
    )
    assert consumer.memory == "frames"
    assert consumer.writable is writable
    x = consumer.get(1, 1).x
    assert isinstance(x, np.ndarray)
    assert x.flags.writeable is writable
    assert x.flags.aligned
    del x
    assert digest(consumer) == right


def test_batches_of_several_pieces_are_whole(address: str) -> None:
    large = np.random.default_rng(1).integers(0, 256, (24, 300, 400, 3), np.uint8)
    options: SpecOptions = {"batch_size": 10, "seed": 2, "transforms": {"horizontal_flip": True}}
    right = digest(Consumer(large, workers=0, **options), 1)
    consumer = Consumer(large, address=address, memory="frames", slots=2, **options)
    batch = consumer.get(0, 0)
    assert isinstance(batch.x, np.ndarray)
    assert batch.x.nbytes > 3 * (4 << 20)
    assert batch.x.ctypes.data % 64 == 0
    del batch
    assert digest(consumer, 1) == right


def test_pictures_of_a_list_of_files_come_by_frames(folder: Path, address: str) -> None:
    options: SpecOptions = {"target_size": (12, 12), "batch_size": 5, "seed": 4}
    files = [folder / f"{number}.png" for number in range(24)]
    right = digest(Consumer(files=files, workers=0, **options))
    consumer = Consumer(files=files, address=address, memory="frames", **options)
    assert digest(consumer) == right


def test_batches_of_scripts_come_by_frames(address: str) -> None:
    state = np.random.RandomState(4).get_state()
    scripts = [of_samples(np.arange(i, i + 8), state) for i in range(0, 240, 8)]  # type: ignore[arg-type]
    options: SpecOptions = {"batch_size": 8, "seed": 0, "transforms": {"rotation_range": 30}}
    options["scheme"] = "keras"
    with Scripted(PICTURES, workers=0, **options) as here:
        right = [bytes_of(batch) for batch, _ in here.make_all(scripts)]
    with Scripted(PICTURES, address=address, memory="frames", **options) as scripted:
        assert scripted.memory == "frames"
        assert [bytes_of(batch) for batch, _ in scripted.make_all(scripts)] == right


def test_a_program_s_own_server_and_this_process_say_what_their_batches_come_by() -> None:
    with Consumer(PICTURES, workers=1, batch_size=8) as consumer:
        assert consumer.memory == "shared"
        assert consumer.connected
    with Consumer(PICTURES, workers=1, batch_size=8, memory="frames", seed=1) as consumer:
        assert consumer.memory == "frames"
        first = bytes_of(consumer.get(0, 0))
    with Consumer(PICTURES, workers=0, batch_size=8, seed=1) as consumer:
        assert consumer.memory == "own"
        assert consumer.connected
        assert bytes_of(consumer.get(0, 0)) == first
    local.shut_down()


def test_the_environment_says_what_batches_come_by_where_the_program_does_not(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUGSERVER_MEMORY", "frames")
    with Consumer(PICTURES, address=address) as consumer:
        assert consumer.memory == "frames"
    with Consumer(PICTURES, address=address, memory="shared") as consumer:
        assert consumer.memory == "shared"
    monkeypatch.setenv("AUGSERVER_MEMORY", "mine")
    with pytest.raises(ConfigError, match="memory: got 'mine'; wanted 'auto', 'shared' or"):
        Consumer(PICTURES, address=address)


def test_the_status_counts_who_gets_frames(address: str) -> None:
    def said() -> str:
        return health.describe(*health.ask(address, 30))

    wait_until(lambda: "; 0 consumers;" in said(), "those before to be gone")
    with Consumer(PICTURES, address=address), Consumer(PICTURES, address=address, memory="frames"):
        assert "; 2 consumers (1 by frames);" in said()
    wait_until(lambda: "; 0 consumers;" in said(), "both to be gone")


def test_a_consumer_that_keeps_every_batch_gets_every_batch_without_a_copy(address: str) -> None:
    with Consumer(
        PICTURES, LABELS, address=address, memory="frames", batch_size=8, seed=5, slots=3
    ) as consumer:
        kept = list(consumer.epochs(2))
        assert consumer.leased == 2, "one slot circulates"
        assert consumer.copies == 0
    with Consumer(PICTURES, LABELS, workers=0, batch_size=8, seed=5) as here:
        assert [bytes_of(b) for b in kept] == [bytes_of(b) for b in here.epochs(2)]


PROGRAM = """
import hashlib, sys
import numpy as np
from augclient import Consumer
x = np.load(sys.argv[2])
memory = sys.argv[3]
with Consumer(x, address=sys.argv[1], memory=memory, batch_size=8, seed=11, slots=4) as consumer:
    digest = hashlib.sha256()
    for batch in consumer.epoch(0):
        digest.update(batch.x.tobytes())
    print(consumer.memory, digest.hexdigest(), flush=True)
    if sys.argv[4:]:
        sys.stdin.readline()
"""


def test_a_killed_consumer_s_ring_is_freed_when_its_lease_is_over(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PICTURES)
    with server(tmp_path, "lease = 2.0") as address:
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(tmp_path / "x.npy"), "frames", "stay"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert program.stdout is not None
            assert program.stdout.readline().startswith("frames ")
            assert health.ask(address, 30)[1].by_frames == 1
        finally:
            program.send_signal(signal.SIGKILL)
            program.communicate(timeout=20)
        wait_until(lambda: health.ask(address, 30)[1].consumers == 0, "its ring to be freed")


def test_a_consumer_to_whom_a_batch_cannot_be_sent_is_dropped_at_once(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((256, 256, 256), np.uint8))
    spec = Spec(data=(str(tmp_path / "x.npy"),), x="x", batch_size=64, dtype="float64")
    with server(tmp_path, "lease = 600.0") as address, zmq.Context() as context:
        with context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 5000)
            dealer.connect(address)

            def ask(message: Message) -> Message:
                dealer.send(encode(message))
                assert dealer.poll(60_000)
                return decode(dealer.recv_multipart(zmq.NOBLOCK)[0])

            assert isinstance(ask(Hello(VERSION, "test", os.getpid())), Welcome)
            opened = ask(Open(None, spec.to_wire(), 4, frames=True))
            assert isinstance(opened, Opened)
            assert opened.frames
            assert opened.segment == ""
            assert health.ask(address, 30)[1].by_frames == 1
            dealer.send(encode(Want((Run(0, 0, 4),), 0, ())))
        # Its goodbye is a closed connection, and four batches of 33 MB are yet to be made.
        wait_until(lambda: health.ask(address, 30)[1].consumers == 0, "it to be dropped")


def test_a_consumer_that_was_stopped_for_longer_than_its_lease_goes_on(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PICTURES)
    right = hashlib.sha256()
    with Consumer(PICTURES, workers=0, batch_size=8, seed=11) as here:
        for batch in here.epoch(0):
            right.update(np.asarray(batch.x).tobytes())
    slow = PROGRAM.replace("digest.update", "print(batch.step, flush=True); digest.update")
    slow = slow.replace("    print(consumer", "    sys.stdin.readline(); print(consumer")
    slow = slow.replace("        digest.up", "        sys.stdin.readline(); digest.up")
    with server(tmp_path, "lease = 1.0") as address:
        program = subprocess.Popen(
            [sys.executable, "-c", slow, address, str(tmp_path / "x.npy"), "frames"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "0\n"
            program.send_signal(signal.SIGSTOP)
            wait_until(lambda: health.ask(address, 30)[1].consumers == 0, "it to be dropped")
            program.send_signal(signal.SIGCONT)
            out, _ = program.communicate("\n" * 100, timeout=60)
            assert out.split()[-1] == right.hexdigest()
        finally:
            program.kill()
            program.wait(20)


def _unshared(address: str, file: Path, memory: str) -> subprocess.CompletedProcess[str]:
    """The program with a /dev/shm of its own, as in another container."""
    mount = "mount -t tmpfs -o size=1m none /dev/shm"
    probe = ["unshare", "-m", "-i", "sh", "-c", mount]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount in a namespace of his own")
    program = f'{mount} && exec "$0" "$@"'
    return subprocess.run(
        [*probe[:-1], program, sys.executable, "-c", PROGRAM, address, str(file), memory],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_program_that_does_not_see_the_server_s_memory_gets_frames_and_is_told_once(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "x.npy", PICTURES)
    right = hashlib.sha256()
    with Consumer(PICTURES, workers=0, batch_size=8, seed=11) as here:
        for batch in here.epoch(0):
            right.update(np.asarray(batch.x).tobytes())
    with server(tmp_path) as address:
        done = _unshared(address, tmp_path / "x.npy", "auto")
        assert done.stdout.split() == ["frames", right.hexdigest()], done.stderr
        assert done.stderr.count("is not shared with this program") == 1
        refused = _unshared(address, tmp_path / "x.npy", "shared")
        assert refused.returncode == 1
        assert "memory='shared': the memory of the server at" in refused.stderr
        assert "AUGSERVER_SHM_DIR" in refused.stderr


def test_the_way_is_chosen_at_every_opening_and_a_fall_back_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "augclient.link")
    monkeypatch.setenv("AUGSERVER_SHM_DIR", str(tmp_path))
    with (
        restarted(tmp_path) as server,
        Consumer(PICTURES, address=server.address, batch_size=8, slots=4) as consumer,
    ):
        for step in range(3):
            assert consumer.get(0, step).step == step
            assert consumer.memory == "frames"
            server.end()
            server.start()
        consumer._source._access._folder = HOME  # type: ignore[attr-defined]
        server.end()
        server.start()
        assert consumer.get(2, 3).step == 3
        assert consumer.memory == "shared", "the next container shares its memory again"
    told = [r for r in caplog.records if "is not shared with this program" in r.getMessage()]
    assert len(told) == 1
