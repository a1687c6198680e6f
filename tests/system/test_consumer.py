"""Consumers and their servers as real processes: randomness, company, and being stopped."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import alive, descendants, python, serving, wait_until, workers

from augclient import Batch, Consumer, local
from augclient.link import Link
from augclient.request import SpecOptions
from augproto.errors import (
    BatchTimeout,
    ConfigError,
    ConnectTimeout,
    ConsumerClosed,
    ForkedProcess,
    RemoteProtocolError,
    UnknownStream,
    WorkerError,
)
from augproto.messages import Open, Serving

EQUAL = np.full((2048, 8, 8, 3), 128, np.uint8)
EQUAL[:, 2:5, 1:4] = 30


def _distinct(consumer: Consumer) -> int:
    seen = set()
    for batch in consumer.epoch(0):
        assert isinstance(batch.x, np.ndarray)
        seen |= {picture.tobytes() for picture in batch.x}
    return len(seen)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_2048_equal_pictures_give_2048_distinct_ones(count: int) -> None:
    local.shut_down()
    transforms = {"rotation_range": 45, "width_shift_range": 0.1, "zoom_range": 0.2}
    with Consumer(EQUAL, batch_size=32, workers=count, transforms=transforms) as consumer:
        assert _distinct(consumer) == 2048


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_function_that_draws_from_np_random_draws_anew_for_every_picture(count: int) -> None:
    local.shut_down()
    before = np.random.get_state()[1].tolist()  # type: ignore[index]

    def noise(picture: Any) -> Any:
        return picture + np.random.normal(size=picture.shape) + random.random()

    with Consumer(EQUAL, batch_size=32, workers=count, seed=0, function=noise) as consumer:
        assert _distinct(consumer) == 2048
        first = consumer.get(0, 0).copy()
    with Consumer(EQUAL, batch_size=32, workers=2, seed=0, function=noise) as consumer:
        assert np.array_equal(first.x, consumer.get(0, 0).x)  # type: ignore[arg-type]
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


@pytest.mark.parametrize("count", [0, 1])
def test_a_consumer_goes_through_so_many_epochs_in_order(count: int) -> None:
    with Consumer(EQUAL[:40], batch_size=16, workers=count) as consumer:
        keys = [(batch.epoch, batch.step) for batch in consumer.epochs(2, first=3)]
        assert keys == [(3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2)]
        assert list(consumer.epochs(0)) == []
        for wrong in (-1, "3", 1.5):
            with pytest.raises(ConfigError, match=f"epochs: got {wrong!r}; wanted a whole number"):
                consumer.epochs(wrong)  # type: ignore[arg-type]
        assert [array.name for array in consumer.arrays] == [consumer.structure["x"]]
        assert consumer.writable is (count == 0)


def test_seed_0_is_a_seed_and_none_is_drawn_once_and_reported() -> None:
    def first(seed: int | None) -> tuple[int, bytes]:
        with Consumer(
            EQUAL, batch_size=32, seed=seed, transforms={"rotation_range": 45}
        ) as consumer:
            x = consumer.get(0, 0).x
            assert isinstance(x, np.ndarray)
            return consumer.seed, x.tobytes()

    assert first(0) == first(0)
    drawn = first(None)
    assert first(drawn[0]) == drawn
    assert drawn[1] != first(0)[1]


def test_every_array_of_a_batch_is_aligned_read_only_and_a_view() -> None:
    x = {"a": np.zeros((50, 3, 3, 1), np.uint8), "b": np.zeros((50, 7), np.int16)}
    y = (np.zeros(50, bool), np.zeros((50, 3, 5), np.float64))
    with Consumer(x, y, np.ones(50, np.float32), batch_size=7) as consumer:
        for batch in consumer.epoch(0):
            assert isinstance(batch.x, dict)
            assert isinstance(batch.y, tuple)
            for array in (*batch.x.values(), *batch.y, batch.sample_weight):
                assert isinstance(array, np.ndarray)
                assert array.ctypes.data % 64 == 0
                assert not array.flags.writeable
                assert not array.flags.owndata


def test_a_slot_is_released_with_the_last_view_of_it() -> None:
    with Consumer(np.arange(640.0).reshape(64, 10), batch_size=8, slots=8) as consumer:
        batch = consumer.get(0, 0)
        assert consumer.leased == 1
        assert isinstance(batch.x, np.ndarray)
        view = batch.x[2:4].reshape(-1)[3:]
        del batch
        assert consumer.leased == 1
        del view
        gc.collect()
        assert consumer.leased == 0


def test_a_batch_outlives_its_consumer_and_its_server() -> None:
    with Consumer(np.arange(640.0).reshape(64, 10), batch_size=8, shuffle=False) as consumer:
        batch = consumer.get(0, 1)
    local.shut_down()
    assert isinstance(batch.x, np.ndarray)
    assert batch.x[0, 0] == 80.0


def test_an_exception_in_a_function_names_sample_and_traceback_and_the_stream_goes_on() -> None:
    def fails(picture: Any) -> Any:
        if picture[0, 0, 0] == 77:
            raise ZeroDivisionError("on purpose")
        return picture

    x = np.zeros((64, 4, 4, 3), np.uint8)
    x[13] = 77
    with Consumer(x, batch_size=8, shuffle=False, function=fails) as consumer:
        for _ in range(2):
            with pytest.raises(WorkerError, match=r"step 1, sample 13.*on purpose") as caught:
                consumer.get(0, 1)
            assert caught.value.sample == 13
            assert "ZeroDivisionError" in caught.value.traceback
            assert consumer.get(0, 2).x is not None


def test_a_function_that_kills_its_workers_is_given_up_with_the_batch_named() -> None:
    def deadly(picture: Any) -> Any:
        if picture[0, 0, 0] == 77:
            os._exit(3)
        return picture

    x = np.zeros((64, 4, 4, 3), np.uint8)
    x[13] = 77
    with Consumer(x, batch_size=8, shuffle=False, function=deadly) as consumer:
        with pytest.raises(WorkerError, match=r"step 1: 3 workers died"):
            consumer.get(0, 1)
        assert [b.step for b in consumer.epoch(0, first=2)] == list(range(2, 8))


def test_a_function_may_close_over_more_than_a_frame_holds() -> None:
    table = np.arange(12 << 20, dtype=np.uint8)

    def look_up(picture: Any) -> Any:
        return picture + table[5]

    with Consumer(EQUAL[:8], batch_size=8, shuffle=False, function=look_up) as consumer:
        assert np.array_equal(np.asarray(consumer.get(0, 0).x), EQUAL[:8].astype("f4") + 5)


def test_garbage_on_the_lifeline_is_refused_and_the_private_server_lives() -> None:
    with Consumer(EQUAL, batch_size=32) as consumer:
        server = local._server
        assert server is not None
        with pytest.raises(RemoteProtocolError, match=r"no message|not msgpack"):
            server._checked(server._tie.ask(b"garbage", 30), Serving, 30)
        assert consumer.get(0, 7).step == 7
        with Consumer(EQUAL, batch_size=8) as other:
            assert other.get(0, 0).step == 0


def test_threads_that_share_a_consumer_each_get_their_batches() -> None:
    with Consumer(EQUAL, batch_size=8, seed=1, slots=4, transforms={"shear_range": 5}) as consumer:
        wanted = {step: np.array(consumer.get(0, step).x) for step in range(0, 256, 16)}
        wrong: list[int] = []

        def ask(steps: list[int]) -> None:
            wrong.extend(
                s for s in steps if not np.array_equal(np.asarray(consumer.get(0, s).x), wanted[s])
            )

        chance = random.Random(0)
        threads = [
            threading.Thread(target=ask, args=(chance.sample(sorted(wanted), len(wanted)),))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong


def test_a_slow_function_runs_into_the_deadline_of_the_batch() -> None:
    def slow(picture: Any) -> Any:
        import time

        time.sleep(5)
        return picture

    with (
        Consumer(EQUAL[:4], batch_size=2, function=slow, timeout=1) as consumer,
        pytest.raises(BatchTimeout, match=r"step 0 did not come within 1 s"),
    ):
        consumer.get(0, 0)
    local.shut_down()


def test_a_stopped_worker_stops_neither_its_server_nor_its_stream(config: Path) -> None:
    config.write_text(config.read_text().replace("lease = 0.5", "worker_deadline = 1"))
    address = f"ipc://{config.parent}/s"
    with serving(address, "--config", str(config)) as server:
        with Consumer(stream="equal", address=address) as consumer:
            wanted = [np.asarray(batch.x).tobytes() for batch in consumer.epoch(0)]
        victim = workers(server.pid)[0]
        os.kill(victim, signal.SIGSTOP)
        with Consumer(stream="equal", address=address) as consumer:
            got = [np.asarray(batch.x).tobytes() for batch in consumer.epoch(0)]
        assert got == wanted
        wait_until(lambda: not alive(victim), "the stopped worker to be killed")


def test_training_and_validation_share_one_private_server() -> None:
    with (
        Consumer(EQUAL, batch_size=32, seed=1, transforms={"rotation_range": 9}) as train,
        Consumer(EQUAL, batch_size=32, shuffle=False) as validation,
    ):
        server = local._server
        assert server is not None
        for a, b in zip(train.epoch(0), validation.epoch(0), strict=True):
            assert (a.step, a.epoch) == (b.step, b.epoch)
        assert local._server is server


def test_a_wrong_argument_is_refused_at_the_door_and_loses_nothing() -> None:
    with Consumer(EQUAL, batch_size=32) as consumer:
        with pytest.raises(ConfigError, match=r"batch_size: got 0; wanted"):
            Consumer(EQUAL, batch_size=0)
        with pytest.raises(ConfigError, match=r"differ in length"):
            Consumer(EQUAL, np.zeros(7))
        with pytest.raises(ConfigError, match=r"transforms: unknown field 'rotation'"):
            Consumer(EQUAL, transforms={"rotation": 5})
        with pytest.raises(ConfigError, match=r"say which server"):
            Consumer(stream="cifar")
        with pytest.raises(ConfigError, match=r"got 70 arrays.*np\.stack"):
            Consumer([np.zeros(4)] * 70)
        with pytest.raises(ConfigError, match=r"slots: got 1; wanted a whole number 2 to 4096"):
            Consumer(EQUAL, slots=1)
        with pytest.raises(ConfigError, match=r"timeout: got 0; wanted seconds"):
            Consumer(EQUAL, timeout=0)
        with pytest.raises(ConfigError, match=r"object"):
            Consumer(np.array([None, "a"]))
        with pytest.raises(IndexError, match=r"step 64"):
            consumer.get(0, 64)
        assert consumer.get(0, 3).step == 3


def test_nobody_at_the_address_is_an_error_within_the_deadline(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConnectTimeout, match=r"no augserver opened the stream"):
        Link(
            f"ipc://{tmp_path}/nobody",
            Open("s", None, None),
            writable=False,
            connect_timeout=0.5,
        )


def test_a_closed_consumer_and_a_forked_one_say_so() -> None:
    consumer = Consumer(EQUAL, batch_size=32)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child
        said = b"nothing"
        try:
            consumer.get(0, 0)
        except ForkedProcess:
            said = b"ForkedProcess"
        finally:
            os.write(writer, said)
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"ForkedProcess"
    os.close(reader)
    os.close(writer)
    assert consumer.get(0, 0).step == 0
    consumer.close()
    with pytest.raises(ConsumerClosed):
        consumer.get(0, 0)


PROGRAM = """
import hashlib, sys
from augclient import Consumer
with Consumer(stream="equal", address=sys.argv[1]) as consumer:
    sha = hashlib.sha256()
    for epoch in range(3):
        for batch in consumer.epoch(epoch):
            sha.update(batch.x.tobytes())
    print(sha.hexdigest())
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    np.savez(tmp_path / "equal.npz", x=EQUAL)
    path = tmp_path / "augserver.toml"
    path.write_text(
        "[server]\nworkers = 2\nlease = 0.5\n"
        '[streams.equal]\ndata = "equal.npz"\nx = "x"\nbatch_size = 32\nseed = 4\n'
        "[streams.equal.transforms]\nrotation_range = 20\n"
    )
    return path


def test_two_programs_on_one_server_do_not_disturb_each_other(config: Path) -> None:
    address = f"ipc://{config.parent}/s"
    with serving(address, "--config", str(config)):
        alone = python(PROGRAM, address)
        assert alone.returncode == 0, alone.stderr
        programs = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, address], stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        programs[2].kill()  # one of them dies, whenever that is
        outputs = [program.communicate(timeout=60)[0] for program in programs[:2]]
        programs[2].communicate(timeout=60)
        assert outputs == [alone.stdout] * 2
        with pytest.raises(UnknownStream, match=r"no stream 'other'; it has: equal"):
            Consumer(stream="other", address=address)


KEEPER = """
import sys
from augclient import Consumer
consumer = Consumer(stream="equal", address=sys.argv[1], slots=12)
kept = [consumer.get(0, step) for step in range(8)]
before = [batch.x.tobytes() for batch in kept]
first = consumer._source.opened.segment
print("kept", first, flush=True)
sys.stdin.readline()
assert [batch.x.tobytes() for batch in kept] == before, "a kept tensor has changed"
for step in range(8, 64):
    batch = consumer.get(0, step)
    assert [batch.x.tobytes() for batch in kept] == before, "a kept tensor has changed"
print("new ring" if consumer._source.opened.segment != first else "old ring", flush=True)
print([batch.x.tobytes() for batch in kept] == before)
import hashlib
print(hashlib.sha256(b"".join(before)).hexdigest())
"""


def test_a_consumer_stopped_for_three_leases_finds_its_kept_tensors_unchanged(
    config: Path,
) -> None:
    address = f"ipc://{config.parent}/s"
    with serving(address, "--config", str(config)):
        program = subprocess.Popen(
            [sys.executable, "-c", KEEPER, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert program.stdout is not None
            ring = Path("/dev/shm") / program.stdout.readline().split()[1]
            assert ring.exists()
            program.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            # The lease is half a second: the ring is retired while the consumer is stopped.
            wait_until(lambda: not ring.exists(), "the silent consumer's ring to be retired")
            wait_until(lambda: time.monotonic() - stopped > 3 * 0.5, "three leases to pass")
            with Consumer(stream="equal", address=address) as other:  # others go on meanwhile
                sha = hashlib.sha256()
                for batch in other.epoch(0):
                    if batch.step < 8:
                        sha.update(np.asarray(batch.x).tobytes())
            program.send_signal(signal.SIGCONT)
            out, _ = program.communicate("go on\n", timeout=60)
            assert out.splitlines() == ["new ring", "True", sha.hexdigest()]
        finally:
            program.kill()
            program.communicate(timeout=60)


def test_a_killed_consumer_frees_its_ring_at_once(config: Path) -> None:
    address = f"ipc://{config.parent}/s"
    config.write_text(config.read_text().replace("lease = 0.5", "lease = 3600"))
    with serving(address, "--config", str(config)):
        program = subprocess.Popen(
            [sys.executable, "-c", KEEPER, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        ring = Path("/dev/shm") / program.stdout.readline().split()[1]
        assert ring.exists()
        program.kill()
        program.communicate(timeout=60)
        wait_until(lambda: not ring.exists(), "the ring to go")


def test_a_killed_program_takes_its_private_server_along() -> None:
    program = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import numpy as np, sys\nfrom augclient import Consumer\n"
            "c = Consumer(np.zeros((64, 4)), batch_size=4, workers=2)\nc.get(0, 0)\n"
            "print('up', flush=True)\nsys.stdin.readline()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    below = descendants(program.pid)
    assert len(below) >= 4  # server, forkserver, two workers, and Python's resource tracker
    program.kill()
    program.communicate(timeout=60)
    wait_until(lambda: not any(alive(pid) for pid in below), "its server to end")


def _bytes(batches: list[Batch]) -> list[bytes]:
    return [np.asarray(batch.x).tobytes() for batch in batches]


def test_shards_of_two_processes_are_disjoint_and_complete(tmp_path: Path) -> None:
    program = (
        "import sys, json\nfrom augclient import Consumer\n"
        "i = int(sys.argv[2])\n"
        "c = Consumer('x', data=sys.argv[1], shard=(i, 2), seed=9, batch_size=10)\n"
        "print(json.dumps([[int(v) for b in c.epoch(e) for v in b.x] for e in range(2)]))"
    )
    np.savez(tmp_path / "numbers.npz", x=np.arange(101))
    import json

    shards = []
    for index in range(2):
        done = python(program, str(tmp_path / "numbers.npz"), str(index))
        assert done.returncode == 0, done.stderr
        shards.append(json.loads(done.stdout))
    for epoch in range(2):
        a, b = shards[0][epoch], shards[1][epoch]
        assert not set(a) & set(b)
        assert sorted(a + b) == list(range(101))
    assert shards[0][0] != shards[0][1]


def test_the_last_epochs_of_one_consumer_are_the_first_of_another() -> None:
    options: dict[str, Any] = {"batch_size": 64, "seed": 2, "transforms": {"shear_range": 20}}
    with Consumer(EQUAL, **options) as one, Consumer(EQUAL, **options) as two:
        ahead = _bytes([b.copy() for b in one.epoch(5)])
        for epoch in range(3):
            list(two.epoch(epoch))
        assert _bytes([b.copy() for b in two.epoch(5)]) == ahead


DAEMON = """
import os, sys
os.closerange(0, 3)
import numpy as np
from augclient import Consumer
def f(picture):
    print("hello")
    return picture
with Consumer(np.zeros((40, 8, 8, 3)), workers=1, function=f, batch_size=20) as consumer:
    steps = [batch.step for batch in consumer.epoch(0)]
with open(sys.argv[1], "w") as file:
    file.write(str(steps))
"""


def test_a_daemon_without_standard_streams_is_served_like_anybody(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    python(DAEMON, str(answer))
    assert answer.read_text() == "[0, 1]"


def test_a_function_that_cannot_be_handed_over_is_refused_with_its_name() -> None:
    lock = threading.Lock()

    def holds_a_lock(picture: Any) -> Any:
        with lock:
            return picture

    with pytest.raises(ConfigError, match=r"function: .*holds_a_lock.* cannot be handed over"):
        Consumer(np.zeros((4, 2, 2, 3)), workers=1, function=holds_a_lock)


def test_a_folder_for_sockets_that_cannot_be_is_a_config_error_with_its_remedy() -> None:
    program = (
        "import numpy as np; from augclient import Consumer; Consumer(np.zeros((4, 2)), workers=1)"
    )
    ran = python(program, XDG_RUNTIME_DIR="/proc/nope")
    assert "augproto.errors.ConfigError: /proc/nope/augserver: cannot make the folder" in ran.stderr
    assert ran.stderr.count("Traceback") == 1, "the program's own"


@pytest.mark.parametrize("count", [0, 1])
def test_whatever_a_function_raises_is_a_bad_sample_with_its_number(count: int) -> None:
    class Strange(BaseException):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def raises(picture: Any) -> Any:
        if picture[0, 0, 0] == 3:
            raise Strange
        return picture

    x = np.repeat(np.arange(6, dtype=np.float32), 12).reshape(6, 2, 2, 3)
    options: SpecOptions = {
        "batch_size": 6, "shuffle": False, "function": raises, "bad_samples": "skip",
    }  # fmt: skip
    if count == 0:  # in the caller's own process such an exception is the caller's
        with (
            Consumer(x, workers=0, **options) as consumer,
            pytest.raises(Strange),
        ):
            consumer.get(0, 0)
        return
    with Consumer(x, workers=count, **options) as consumer:
        assert np.asarray(consumer.get(0, 0).x)[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5]
        (bad,) = consumer.bad_samples(0)
        assert bad.sample == 3
        assert "raised Strange: (its text cannot be had: RuntimeError)" in bad.reason
