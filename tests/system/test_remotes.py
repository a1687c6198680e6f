"""Workers that dial in over TCP: the same bytes by whoever, and whatever becomes of them."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dialled import Dialled
from PIL import Image
from processes import serving, wait_until

from augclient import Consumer
from augclient.scripted import Scripted, of_samples
from augproto.codec import encode
from augproto.messages import (
    VERSION,
    Assign,
    Bye,
    Define,
    Dismiss,
    Done,
    Enlisted,
    Entry,
    Fault,
    Forget,
    Hello,
    Lack,
    Message,
    Piece,
    Place,
    Probed,
    Status,
    Working,
)
from augserver import health

SAMPLES, BATCH = 480, 8
STEPS = SAMPLES // BATCH
OPTIONS: dict[str, Any] = {
    "batch_size": BATCH,
    "seed": 5,
    "transforms": {"rotation_range": 30, "zoom_range": 0.2, "horizontal_flip": True},
}


@dataclass
class Server:
    """A server under test."""

    process: subprocess.Popen[str]
    address: str
    door: str
    data: Path
    output: str = ""

    def status(self) -> Status:
        return health.ask(self.address, 20)[1]

    def rows(self) -> dict[int, Working]:
        return {row.number: row for row in self.status().remote}

    def wait_for(self, state: str, count: int = 1) -> None:
        """Until so many workers are in that state."""
        wait_until(
            lambda: sum(row.state == state for row in self.status().remote) == count,
            f"{count} workers {state}",
        )

    def consumer(self, **options: Any) -> Consumer:
        return Consumer(
            "x", "y", data=self.data, address=self.address, slots=16, **(OPTIONS | options)
        )

    def end(self) -> str:
        """Terminate it; returns what it has said."""
        self.process.terminate()
        self.output, _ = self.process.communicate(timeout=30)
        return self.output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(folder: Path, **keys: object) -> Iterator[Server]:
    door = f"tcp://127.0.0.1:{free_port()}"
    settings: dict[str, object] = {"workers": 1, "roots": f'["{folder}"]'} | keys
    lines = ["[server]", f'listen_workers = ["{door}"]']
    lines += [f"{key} = {value}" for key, value in settings.items()]
    config = folder / f"{uuid.uuid4().hex}.toml"
    config.write_text("\n".join(lines) + "\n")
    address = f"ipc://{folder}/{uuid.uuid4().hex[:8]}"
    with serving(address, "--config", str(config)) as process:
        yield Server(process, address, door, folder / "data.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remotes")
    rng = np.random.default_rng(8)
    x = rng.integers(0, 256, (SAMPLES, 24, 20, 3)).astype(np.uint8)
    np.savez(folder / "data.npz", x=x, y=rng.random((SAMPLES, 2)), unused=np.arange(SAMPLES))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """One for the tests that do no harm to it."""
    with served(folder) as server:
        yield server


def epochs(
    consumer: Consumer, count: int = 2, after: Callable[[int], None] = lambda batches: None
) -> str:
    """The digest of so many epochs, with something done after each batch."""
    digest = hashlib.sha256()
    for epoch in range(count):
        for step in range(STEPS):
            batch = consumer.get(epoch, step)
            digest.update(np.asarray(batch.x).tobytes())
            digest.update(np.asarray(batch.y).tobytes())
            del batch
            after(epoch * STEPS + step + 1)
    return digest.hexdigest()


@pytest.fixture(scope="module")
def truth(folder: Path) -> str:
    """Two epochs without any server."""
    with Consumer("x", "y", data=folder / "data.npz", workers=0, **OPTIONS) as consumer:
        return epochs(consumer)


def unhurried(_: Place) -> bool:
    """Leaves the others some of the work, too."""
    threading.Event().wait(0.005)
    return True


# -- the same bytes -----------------------------------------------------------------------------


def test_two_epochs_by_local_and_remote_workers_are_those_without_a_server(
    server: Server, truth: str
) -> None:
    with Dialled(server.door) as one, Dialled(server.door) as two, server.consumer() as consumer:
        server.wait_for("ready", 2)
        assert epochs(consumer) == truth
        assert one.made
        assert two.made
        rows = server.rows()
        assert sum(row.batches for row in rows.values()) > 0
        assert {(row.host, row.pid) for row in rows.values()} == {("host", 7)}


def test_a_server_without_worker_processes_takes_them_as_well(folder: Path, truth: str) -> None:
    with (
        served(folder, workers=0) as server,
        Dialled(server.door) as worker,
        server.consumer() as consumer,
    ):
        server.wait_for("ready")
        assert epochs(consumer) == truth
        assert worker.made


def test_arrays_that_a_batch_has_no_use_for_are_not_sent(server: Server) -> None:
    with Dialled(server.door) as worker, server.consumer() as consumer:
        server.wait_for("ready")
        for step in range(20):
            consumer.get(0, step)
        wait_until(lambda: bool(worker.made), "a batch by the worker")
        (define,) = worker.said(Define)
        assert {source.name for source in define.sources} == {"x", "y", "unused"}
        assert {source.path for source in define.sources} == {""}
        assert (define.segment, define.roots, define.cache) == ("", (), ())
        assert {piece.name for piece in worker.said(Piece)} == {"x", "y"}


def test_several_batches_in_a_slot_are_the_same_too(server: Server, truth: str) -> None:
    with (
        Dialled(server.door) as worker,
        Consumer("x", "y", data=server.data, address=server.address, **OPTIONS) as consumer,
    ):
        server.wait_for("ready")
        assert epochs(consumer) == truth
        assert worker.made


def test_keras_s_draws_and_scripts_are_the_same(server: Server) -> None:
    options: dict[str, Any] = {
        "data": server.data, "batch_size": 8, "scheme": "keras", "seed": 0,
        "transforms": {"rotation_range": 30, "horizontal_flip": True},
    }  # fmt: skip

    def state(seed: int) -> Any:
        return np.random.RandomState(seed).get_state()

    scripts = [of_samples([(7 * i + k) % 40 for k in range(8)], state(i)) for i in range(60)]

    def whole(batches: Any) -> list[tuple[bytes, bytes]]:
        return [(batch.x.tobytes(), np.asarray(after[1]).tobytes()) for batch, after in batches]

    with Scripted("x", workers=0, **options) as here:
        wanted = whole(here.make(script) for script in scripts)
    with Dialled(server.door) as worker, Scripted("x", address=server.address, **options) as there:
        server.wait_for("ready")
        assert whole(there.make_all(scripts)) == wanted
        assert worker.made


# -- what may become of them --------------------------------------------------------------------


def test_workers_killed_in_the_middle_of_an_epoch_change_no_byte(
    server: Server, truth: str
) -> None:
    with contextlib.ExitStack() as crew:
        workers = [crew.enter_context(Dialled(server.door, before=unhurried)) for _ in range(3)]
        consumer = crew.enter_context(server.consumer())
        server.wait_for("ready", 3)

        def kill(batches: int) -> None:
            if batches in (20, 50, 80):
                workers.pop().stop(dies=True)
                crew.enter_context(Dialled(server.door, before=unhurried))

        assert epochs(consumer, after=kill) == truth
    wait_until(lambda: not server.rows(), "the killed ones to be noticed")


def test_a_silent_worker_s_work_goes_to_others_and_it_works_again_when_it_is_back(
    folder: Path, truth: str
) -> None:
    with (
        served(folder, worker_lease=0.6) as server,
        Dialled(server.door, before=unhurried) as worker,
        server.consumer() as consumer,
    ):
        server.wait_for("ready")
        before = 0

        def partition(batches: int) -> None:
            nonlocal before
            if batches == 20:
                worker.cut.set()
                server.wait_for("silent")
                before = len(worker.made)
            elif batches == 70:
                worker.cut.clear()
                server.wait_for("ready")

        assert epochs(consumer, after=partition) == truth
        assert len(worker.made) > before
        assert sum(said.fresh for said in worker.said(Enlisted)) == 2
        output = server.end()
    assert "was silent for 0.6 s" in output
    assert "is there again" in output


def test_a_worker_that_gets_on_with_nothing_does_not_hold_an_epoch_s_end(
    server: Server, truth: str
) -> None:
    gate, held = threading.Event(), threading.Event()

    def stuck(_: Place) -> bool:
        held.set()
        return gate.wait(60)

    with Dialled(server.door, before=stuck) as worker, server.consumer() as consumer:
        server.wait_for("ready")
        try:
            got = epochs(consumer)
            assert held.is_set(), "or nothing was given to it"
        finally:
            gate.set()
        assert got == truth
        wait_until(lambda: bool(worker.made), "its late results")
        # They came, were heard, and have changed nothing: the next epoch is right.
        server.wait_for("ready")
        assert epochs(consumer) == truth


def test_a_worker_that_is_stuck_is_dismissed_and_not_taken_back(folder: Path, truth: str) -> None:
    gate = threading.Event()
    with (
        served(folder, worker_deadline=1.0) as server,
        Dialled(server.door, before=lambda _: gate.wait(60)) as worker,
        server.consumer() as consumer,
    ):
        server.wait_for("ready")
        try:
            assert epochs(consumer) == truth
            wait_until(lambda: not server.rows(), "its dismissal")
        finally:
            gate.set()
        wait_until(lambda: len(worker.said(Dismiss)) >= 2, "its dismissal to be heard, and again")
        assert "got on with nothing for more than 1 s" in worker.said(Dismiss)[0].reason
        assert server.rows() == {}


def test_batches_that_come_twice_are_taken_once(server: Server, truth: str) -> None:
    with Dialled(server.door, repeats=3) as worker, server.consumer() as consumer:
        server.wait_for("ready")
        assert epochs(consumer) == truth
        assert worker.made
        assert worker.said(Fault) == []


def test_a_worker_that_resigns_has_left_at_once(server: Server, truth: str) -> None:
    with server.consumer() as consumer:
        worker = Dialled(server.door, before=unhurried)
        worker.__enter__()
        server.wait_for("ready")

        def resign(batches: int) -> None:
            if batches == 30:
                worker.stop()
                wait_until(lambda: not server.rows(), "it to have left")

        assert epochs(consumer, after=resign) == truth


def test_a_worker_that_comes_by_another_connection_begins_anew(server: Server) -> None:
    with Dialled(server.door) as first, server.consumer() as consumer:
        server.wait_for("ready")
        number = min(server.rows())
        first.cut.set()
        with Dialled(server.door, name=first.name) as second:
            wait_until(lambda: bool(second.said(Enlisted)), "an answer")
            assert second.said(Enlisted)[0].fresh
            server.wait_for("ready")
            assert list(server.rows()) == [number], "it is known by its name"
            consumer.get(0, 0)


def test_a_worker_that_dies_over_a_batch_and_its_heir_change_no_byte(
    folder: Path, truth: str
) -> None:
    taken, gate = threading.Event(), threading.Event()

    def dies(_: Place) -> bool:
        taken.set()
        gate.wait(60)
        return False

    with served(folder) as server, server.consumer() as consumer:
        dead = Dialled(server.door, before=dies)
        dead.__enter__()
        server.wait_for("ready")

        def kill(batches: int) -> None:
            if batches == 20:
                wait_until(taken.is_set, "it to be at a batch")
                gate.set()
                dead.stop(dies=True)
                heir = Dialled(server.door, heir=dead.name, cause="was killed by SIGSEGV")
                stack.enter_context(heir)

        with contextlib.ExitStack() as stack:
            assert epochs(consumer, after=kill) == truth
            server.wait_for("ready")


def test_the_end_of_the_server_is_told(folder: Path) -> None:
    with served(folder) as server, Dialled(server.door) as worker:
        server.wait_for("ready")
        server.end()
        wait_until(lambda: bool(worker.said(Bye)), "a goodbye")
        assert "SIGTERM" in worker.said(Bye)[0].reason


def test_a_stream_that_ends_is_forgotten_there_as_well(server: Server) -> None:
    with Dialled(server.door) as worker:
        with server.consumer():
            server.wait_for("ready")
        wait_until(lambda: bool(worker.said(Forget)), "the end of the stream")
        server.wait_for("ready")


# -- who is refused -----------------------------------------------------------------------------


def test_a_host_that_gives_other_bytes_is_refused_with_both_named(folder: Path, truth: str) -> None:
    with (
        served(folder) as server,
        Dialled(server.door, machine="an odd one", probes=lambda _: "0" * 64) as odd,
        Dialled(server.door) as good,
        server.consumer() as consumer,
    ):
        server.wait_for("refused")
        server.wait_for("ready")
        assert epochs(consumer) == truth
        assert odd.made == []
        assert good.made
        (row,) = [row for row in server.rows().values() if row.state == "refused"]
        assert "000000000000 on an odd one" in row.remark
        assert "numpy" in row.remark, "this machine, too"
        shown = subprocess.run(
            [sys.executable, "-m", "augserver", "status", "--connect", server.address],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        assert "1 of 2 remote ones" in shown
        assert f"remote worker {row.number} on host (pid 7): refused" in shown
        output = server.end()
    assert output.count("is refused: its first batch is 000000000000 on an odd one") == 1


def test_another_version_and_one_too_many_are_refused(folder: Path) -> None:
    with served(folder, max_workers=1) as server, Dialled(server.door):
        server.wait_for("ready")
        other = (VERSION[0] + 1, 0)
        with Dialled(server.door, version=other) as old, Dialled(server.door) as second:
            wait_until(lambda: bool(old.said(Fault) and second.said(Fault)), "refusals")
            assert old.said(Fault)[0].kind == "VersionMismatch"
            assert f"the worker {other[0]}.0" in old.said(Fault)[0].message
            assert second.said(Fault)[0].kind == "ConfigError"
            assert "max_workers" in second.said(Fault)[0].message
            wait_until(lambda: len(second.said(Fault)) > 2, "more refusals")
        assert len(server.rows()) == 1
        output = server.end()
    assert output.count("max_workers") == 1, "each is complained of once"


def test_hostile_words_change_no_byte_and_disturb_nobody(server: Server, truth: str) -> None:
    place = Place(0, 0, 0, 1)
    junk = b"\xff" * 1000
    said: list[Message] = [
        Hello(VERSION, "a consumer at the wrong door", 1),
        Enlisted(VERSION, 1.0, True),
        Lack(1, place, b"123"),
        Probed(1, "0" * 64, "nobody's"),
        Done(1, (Entry(*place, 8),), 0.0),
        Forget(1),
    ]
    frames: list[list[bytes]] = [[encode(m)] for m in said]
    frames += [[b""], [junk], [junk, junk, junk], [encode(said[0]), junk]]
    for stream in range(8):
        for slot in range(16):
            for sequence in range(1, 40):
                p = Place(0, sequence, slot, sequence)
                frames.append([encode(Piece(stream, p, "", 0, len(junk))), junk])
        frames.append([encode(Piece(stream, place, "", 2**63, 2**64 - 1)), junk])
        frames.append([encode(Piece(stream, place, "x", 0, len(junk))), b""])
        frames.append([encode(Piece(stream, place, "", 0, len(junk)))])
    with (
        Dialled(server.door, before=unhurried) as good,
        Dialled(server.door, before=lambda _: False) as bad,
        server.consumer() as consumer,
    ):
        server.wait_for("ready", 2)

        def attack(batches: int) -> None:
            if batches % 10 == 0:
                bad.extra.extend(frames[:: 1 + batches % 7])

        assert epochs(consumer, after=attack) == truth
        wait_until(lambda: bool(bad.said(Fault)), "refusals")
        assert good.made
        assert good.said(Fault) == []


def test_a_batch_that_is_not_whole_is_refused_and_made_by_others(folder: Path, truth: str) -> None:
    with served(folder) as server, server.consumer() as consumer:
        worker: Dialled

        def lies(place: Place) -> bool:
            assigned = worker.said(Assign)[-1]
            some = b"\1" * 5000
            worker.extra.append([encode(Piece(assigned.stream, place, "", 0, 8192)), some])
            worker.extra.append([encode(Done(assigned.stream, (Entry(*place, 8),), 0.001))])
            return False

        worker = Dialled(server.door, before=lies)
        with worker:
            server.wait_for("ready")
            assert epochs(consumer) == truth
            server.wait_for("refused")
            assert "have not come" in worker.said(Fault)[0].message
            (row,) = server.rows().values()
            assert (row.batches, row.state) == (0, "refused")
            assert "have not come" in row.remark


# -- picture files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pets(folder: Path) -> Path:
    rng = np.random.default_rng(3)
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / name / f"{i:02}.png")
    (folder / "pets" / "cat" / "07.png").write_bytes(b"no picture at all")
    (folder / "pets" / "dog" / "11.png").write_bytes(b"")
    return folder / "pets"


@pytest.mark.parametrize("policy", ["skip", "substitute"])
@pytest.mark.parametrize("labels", ["categorical", "binary"])
def test_picture_files_with_bad_ones_are_the_same_and_listed_alike(
    server: Server, pets: Path, policy: str, labels: str
) -> None:
    options: dict[str, Any] = {
        "data": pets, "batch_size": 4, "target_size": (16, 16), "seed": 2, "bad_samples": policy,
        "pictures": {"label_mode": labels}, "validation_split": 0.25, "subset": "training",
        "transforms": {"rotation_range": 20},
    }  # fmt: skip

    def all_of(consumer: Consumer) -> tuple[str, set[tuple[int, str, str]]]:
        digest = hashlib.sha256()
        for epoch in range(3):
            for step in range(9):
                batch = consumer.get(epoch, step)
                digest.update(np.asarray(batch.x).tobytes() + np.asarray(batch.y).tobytes())
                del batch
        bad = {
            (b.sample, b.path, b.reason) for epoch in range(3) for b in consumer.bad_samples(epoch)
        }
        return digest.hexdigest(), bad

    with Consumer(workers=0, **options) as here:
        wanted = all_of(here)
    with (
        Dialled(server.door) as worker,
        Consumer(address=server.address, slots=8, **options) as there,
    ):
        server.wait_for("ready")
        assert all_of(there) == wanted
        assert worker.made
        assert worker.said(Fault) == []
