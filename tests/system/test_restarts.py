"""A server that others use is killed, ended or stopped, and comes back: its consumers go on.

    python tests/system/test_restarts.py SEED [KILLS]

kills one KILLS times (20) for each way of getting at the batches.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from one_truth import TRANSFORMS, bytes_of
from PIL import Image
from processes import wait_until
from restarted import Restarted, killed_at_random, restarted

from augclient import Consumer
from augclient.request import SpecOptions
from augclient.scripted import Scripted, of_samples
from augproto.errors import ServerLost

PICTURES = np.random.default_rng(3).integers(0, 256, (320, 8, 8, 3), np.uint8)
LABELS = np.arange(320.0)
OPTIONS: SpecOptions = {"batch_size": 8, "seed": 11, "transforms": TRANSFORMS}
PATIENCE = 120.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Restarted]:
    with restarted(tmp_path) as server:
        yield server


def opened(server: Restarted, memory: str) -> Consumer:
    return Consumer(
        PICTURES,
        LABELS,
        address=server.address,
        memory=memory,
        timeout=PATIENCE,
        slots=4,
        key=server.keys.get("key"),
        server_key=server.keys.get("server_key"),
        **OPTIONS,
    )


def epoch_of(consumer: Consumer, epoch: int) -> str:
    return hashlib.sha256(b"".join(map(bytes_of, consumer.epoch(epoch)))).hexdigest()


def undisturbed(epochs: int) -> list[str]:
    """The digests of epochs that no server makes."""
    with Consumer(PICTURES, LABELS, workers=0, **OPTIONS) as consumer:
        return [epoch_of(consumer, epoch) for epoch in range(epochs)]


def disturbed(server: Restarted, memory: str, kills: int, seed: int) -> int:
    """Take epochs, two at least, while the server is killed so often; returns how many, each with
    the digest that it should have."""
    over = threading.Event()
    with opened(server, memory) as consumer:
        assert consumer.memory == memory
        digests = []

        def take() -> None:
            for epoch in itertools.count():
                digests.append(epoch_of(consumer, epoch))
                if epoch and over.is_set():
                    return

        with killed_at_random(server, kills, seed):
            thread = threading.Thread(target=take)
            thread.start()
        over.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert consumer.memory == memory
    assert server.kills >= kills
    assert digests == undisturbed(len(digests))
    return len(digests)


@pytest.mark.parametrize(
    ("memory", "keyed"), [("shared", False), ("frames", False), ("frames", True)]
)
def test_a_server_killed_at_random_moments_of_an_epoch_changes_no_byte(
    tmp_path: Path, memory: str, keyed: bool
) -> None:
    with restarted(tmp_path, keyed=keyed) as server:
        assert disturbed(server, memory, kills=3, seed=5) >= 2


def test_a_server_that_is_ended_and_started_again_is_only_a_pause(
    server: Restarted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "augclient.link")
    right = undisturbed(1)
    with opened(server, "auto") as consumer:
        assert consumer.memory == "shared"
        assert consumer.connected
        got = [bytes_of(consumer.get(0, step)) for step in range(10)]
        server.end(signal.SIGTERM)
        wait_until(lambda: not consumer.connected, "the goodbye to be noticed")
        server.start()
        got += [bytes_of(consumer.get(0, step)) for step in range(10, consumer.steps)]
        assert hashlib.sha256(b"".join(got)).hexdigest() == right[0]
        assert consumer.connected
    said = [record.getMessage() for record in caplog.records if record.name == "augclient.link"]
    assert (
        len([text for text in said if "has ended (SIGTERM was received); waits for" in text]) == 1
    )
    assert len([text for text in said if "answers again" in text]) == 1


def test_a_server_that_is_stopped_for_longer_than_a_conversation_lasts_makes_no_batch_twice(
    server: Restarted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augclient.talk.SILENCE", 3.0)
    right = undisturbed(1)
    with opened(server, "shared") as consumer:
        link = consumer._source
        kept = [consumer.get(0, 0)]
        conversation = link._session  # type: ignore[attr-defined]
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        wait_until(
            lambda: link._session is not conversation,  # type: ignore[attr-defined]
            "the conversation to be given up",
        )
        assert not consumer.connected
        os.kill(server.process.pid, signal.SIGCONT)
        kept += [consumer.get(0, step).copy() for step in range(1, consumer.steps)]
        digest = hashlib.sha256(b"".join(map(bytes_of, kept)))
        assert digest.hexdigest() == right[0], "a batch of the ring before is as it was"
        assert consumer.connected


def test_a_stop_that_is_shorter_than_that_keeps_the_conversation(server: Restarted) -> None:
    with opened(server, "shared") as consumer:
        link = consumer._source
        consumer.get(0, 0)
        conversation = link._session  # type: ignore[attr-defined]
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        wait_until(lambda: not consumer.connected, "the silence to be noticed")
        os.kill(server.process.pid, signal.SIGCONT)
        wait_until(lambda: consumer.connected, "the answer")
        assert link._session is conversation  # type: ignore[attr-defined]
        assert [batch.step for batch in consumer.epoch(0, first=1)] == list(range(1, 40))


def test_leases_of_a_dead_server_s_ring_are_not_said_to_the_next_one(server: Restarted) -> None:
    right = undisturbed(2)
    with opened(server, "shared") as consumer:
        old = [consumer.get(0, step) for step in range(3)]
        before = [bytes_of(batch) for batch in old]
        server.end()
        server.start()
        consumer.get(0, 3, timeout=PATIENCE)
        new = [consumer.get(1, step) for step in range(2)]
        after = [bytes_of(batch) for batch in new]
        assert [bytes_of(batch) for batch in old] == before
        old.clear()  # the new ring has leased the same slots, perhaps at the same sequences
        taken = [epoch_of(consumer, epoch) for epoch in range(2)]
        assert [bytes_of(batch) for batch in new] == after
        assert taken == right


def test_a_server_that_does_not_come_back_in_time_is_lost_and_comes_back_for_the_next_batch(
    server: Restarted,
) -> None:
    with opened(server, "auto") as consumer:
        consumer.get(0, 0)
        server.end()
        with pytest.raises(
            ServerLost, match=r"has not answered for .*epoch 1, step 7 did not come within"
        ):
            consumer.get(1, 7, timeout=4)
        server.start()
        assert consumer.get(1, 7).step == 7


def test_scripts_are_said_again_to_the_next_server(server: Restarted) -> None:
    state = np.random.RandomState(4).get_state()
    options: SpecOptions = {"batch_size": 8, "seed": 0, "transforms": {"rotation_range": 30}}
    options["scheme"] = "keras"
    scripts = [of_samples(range(i, i + 8), state) for i in range(0, 240, 8)]  # type: ignore[arg-type]
    with Scripted(PICTURES, workers=0, **options) as here:
        right = [bytes_of(batch) for batch, _ in here.make_all(scripts)]
    got = []
    with Scripted(PICTURES, address=server.address, timeout=PATIENCE, **options) as scripted:
        for batch, _ in scripted.make_all(scripts):
            got.append(bytes_of(batch))
            if len(got) == 10:
                server.end()
                server.start()
    assert got == right


def test_arrays_that_were_uploaded_are_uploaded_again(
    server: Restarted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from augclient.handing import HandOver

    offer = HandOver.offer
    monkeypatch.setattr(HandOver, "offer", lambda self, door: offer(self, ""))
    right = undisturbed(1)
    with opened(server, "frames") as consumer:
        got = [bytes_of(consumer.get(0, step)) for step in range(10)]
        server.end()
        server.start()
        got += [bytes_of(consumer.get(0, step)) for step in range(10, consumer.steps)]
    assert hashlib.sha256(b"".join(got)).hexdigest() == right[0]


def test_a_list_of_files_is_handed_over_again(tmp_path: Path, server: Restarted) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(24)]
    for path, picture in zip(paths, PICTURES, strict=False):
        Image.fromarray(picture).save(path)
    options: SpecOptions = {"target_size": (6, 6), "batch_size": 2, "seed": 4}
    with Consumer(files=paths, workers=0, **options) as own:
        right = [bytes_of(batch) for batch in own.epoch(0)]
    with Consumer(
        files=paths, address=server.address, timeout=PATIENCE, slots=2, **options
    ) as consumer:
        got = [bytes_of(consumer.get(0, step)) for step in range(3)]
        server.end()
        server.start()
        got += [bytes_of(consumer.get(0, step)) for step in range(3, 12)]
    assert got == right


def main() -> None:
    seed, kills = int(sys.argv[1]), int((sys.argv[2:] or ["20"])[0])
    for keyed in (False, True):
        for memory in ("shared", "frames"):
            with (
                tempfile.TemporaryDirectory() as folder,
                restarted(Path(folder), keyed=keyed) as server,
            ):
                epochs = disturbed(server, memory, kills, seed)
            how = f"{memory}, {'CURVE' if keyed else 'clear'}"
            print(f"{how}: {kills} kills, seed {seed}: {epochs} epochs, every digest right")


if __name__ == "__main__":
    main()
