"""The command `augserver` as a user meets it: real processes, exit codes, words, and no residue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from processes import alive, python, serving, wait_until, workers

from augclient import Consumer
from augproto.errors import UnknownStream
from augproto.messages import Status
from augserver import health

SAMPLES = 50
PROGRAM = [sys.executable, "-m", "augserver"]


def augserver(
    *arguments: str, timeout: float = 60.0, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def segments_of(pid: int) -> list[Path]:
    """The shared memory that a server has named after itself."""
    return list(Path("/dev/shm").glob(f"augserver*-{os.getuid()}-{pid:x}??????-*"))


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder for sockets with a short path: the kernel allows 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="aug-") as folder:
        yield Path(folder)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/ctl.sock"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A server's config with a shuffled stream `numbers` and an unshuffled one, `rows`."""
    pictures = np.arange(SAMPLES, dtype=np.uint8)[:, None, None, None]
    np.savez(
        tmp_path / "numbers.npz",
        x=np.broadcast_to(pictures, (SAMPLES, 8, 8, 1)),
        y=np.arange(SAMPLES),
    )
    path = tmp_path / "augserver.toml"
    path.write_text(
        """
        [server]
        workers = 2

        [streams.numbers]
        data = "numbers.npz"
        x = "x"
        y = "y"
        batch_size = 8
        transforms = { rotation_range = 20, horizontal_flip = true }

        [streams.rows]
        data = "numbers.npz"
        x = "x"
        y = "y"
        batch_size = 8
        shuffle = false
        """
    )
    return path


def test_serve_prints_a_line_for_each_address_and_health_finds_each(
    config: Path, address: str
) -> None:
    arguments = [*PROGRAM, "serve", "--config", str(config), "--listen", address]
    with subprocess.Popen(
        [*arguments, "--listen", "tcp://127.0.0.1:*"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        lines = [server.stdout.readline().rstrip() for _ in range(2)]
        said = r"augserver [\d.]+ listens at (\S+); streams: numbers, rows; 2 workers"
        addresses = [match[1] for line in lines if (match := re.fullmatch(said, line))]
        wait_until(lambda: health.ask(addresses[0], 10)[1].workers_alive == 2, "both are ready")
        answers = [augserver("health", "--connect", each) for each in addresses]
        server.terminate()
    assert len(addresses) == 2
    assert addresses[0] == address
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", addresses[1])
    for answer in answers:
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.startswith(
            f"healthy: pid {server.pid}; streams: numbers, rows; 2 of 2"
        )


def test_without_workers_the_server_is_healthy_too(config: Path, address: str) -> None:
    with serving(address, "--config", str(config), "--workers", "0"):
        answer = augserver("health", "--connect", address)
        with Consumer(stream="rows", address=address) as consumer:
            assert np.array_equal(np.asarray(consumer.get(0, 1).y), range(8, 16))
    assert answer.returncode == 0, answer.stderr
    assert "no worker processes" in answer.stdout


def test_health_against_nothing_fails_within_its_timeout(address: str) -> None:
    began = time.monotonic()
    answer = augserver("health", "--connect", address, "--timeout", "1")
    assert answer.returncode == 1
    assert "unhealthy: no augserver answers" in answer.stderr
    assert address in answer.stderr
    assert time.monotonic() - began < 10  # the start of a Python included


def test_health_against_a_server_that_stands_still_fails_within_its_timeout(
    config: Path, address: str
) -> None:
    with serving(address, "--config", str(config)) as server:
        server.send_signal(signal.SIGSTOP)
        answer = augserver("health", "--connect", address, "--timeout", "0.5")
        server.send_signal(signal.SIGCONT)
        again = augserver("health", "--connect", address)
    assert answer.returncode == 1
    assert "no augserver answers" in answer.stderr
    assert again.returncode == 0, again.stderr


def test_health_against_something_that_is_no_address_says_so() -> None:
    answer = augserver("health", "--connect", "nonsense")
    assert answer.returncode == 1
    assert "'nonsense'" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("alive", "wanted", "healthy"), [(2, 2, True), (1, 2, True), (0, 2, False), (0, 0, True)]
)
def test_a_server_without_any_of_its_workers_is_unhealthy(
    alive: int, wanted: int, healthy: bool
) -> None:
    status = Status(("a",), 0, alive, wanted, 7, 3)
    assert (health.complaint(status) is None) is healthy


def test_a_server_whose_workers_are_still_to_come_is_asked_again_and_then_unhealthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = [Status(("a",), 0, ready, 2, 0, 0) for ready in (0, 0, 1)]
    monkeypatch.setattr(health, "ask", lambda *asked: (7, said.pop(0)))
    assert health.complaint(said[0]) is not None
    assert health.ask_settled("ipc:///s", 60.0)[1].workers_alive == 1
    said = [Status(("a",), 0, 0, 2, 0, 0)]
    _, status = health.ask_settled("ipc:///s", 0.1)
    assert "none of 2 workers is ready yet" in (health.complaint(status) or "")


def test_kernels_that_are_not_there_are_refused_in_one_line(config: Path, address: str) -> None:
    answer = augserver(
        "serve", "--config", str(config), "--listen", address, AUGSERVER_KERNELS="foo"
    )
    assert answer.returncode == 2
    assert answer.stderr == "augserver: AUGSERVER_KERNELS: got 'foo'; wanted one of numba, scipy\n"
    assert not answer.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nworkers = -1", ["server.workers", "-1", "wanted", "0 to 1024"]),
        ("[server]\nspeed = 3", ["server.speed", "wanted", "workers"]),
        ("[stream.a]\nx = 'x'", ["[stream]", "wanted", "[streams.NAME]"]),
        (
            "[streams.a]\ndata = 'a.npz'\nx = 'x'\nbatch_size = 'big'",
            ["streams.a", "batch_size", "'big'", "wanted", "whole number"],
        ),
        (
            "[streams.a]\ndata = 'a.npz'\nx = 'x'\ntransforms = { rotation_rage = 3 }",
            ["streams.a", "rotation_rage", "rotation_range"],
        ),
        ("[server\n", ["augserver.toml", "not TOML"]),
    ],
)
def test_a_bad_config_is_refused_in_one_line_with_key_got_and_wanted(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    (tmp_path / "augserver.toml").write_text(text)
    answer = augserver("serve", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.count("\n") == 1
    for word in words:
        assert word in answer.stderr


def test_a_config_that_is_not_there_is_refused(tmp_path: Path) -> None:
    answer = augserver("serve", "--config", str(tmp_path / "none.toml"))
    assert answer.returncode == 2
    assert "none.toml" in answer.stderr
    assert "No such file" in answer.stderr


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://10.0.0.1:5555"])
def test_an_address_beyond_this_machine_is_refused(address: str) -> None:
    answer = augserver("serve", "--listen", address)
    assert answer.returncode == 2
    assert address in answer.stderr
    assert "there is no key and no allow_consumers. To do: `augserver keygen" in answer.stderr


def test_flags_and_environment_win_over_the_file(config: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/flag.sock"
    with serving(address, "--config", str(config), "--workers", "1") as server:
        by_environment = augserver("health", AUGSERVER_LISTEN=address)
        wait_until(lambda: len(workers(server.pid)) == 1, "one worker")
    assert by_environment.returncode == 0, by_environment.stderr
    assert "1 of 1 workers" in by_environment.stdout
    other = f"ipc://{tmp_path}/environment.sock"
    variables = {
        "AUGSERVER_CONFIG": str(config), "AUGSERVER_LISTEN": other, "AUGSERVER_WORKERS": "0",
    }  # fmt: skip
    with subprocess.Popen(
        [*PROGRAM, "serve"], stdout=subprocess.PIPE, env=os.environ | variables, text=True
    ) as started:
        assert started.stdout is not None
        line = started.stdout.readline()
        started.terminate()
    assert f"listens at {other}; streams: numbers, rows; 0 workers" in line


def test_by_default_it_serves_the_folder_s_config_where_consumers_look(
    config: Path, runtime: Path
) -> None:
    with subprocess.Popen(
        [*PROGRAM, "serve"],
        stdout=subprocess.PIPE,
        cwd=config.parent,
        env=os.environ | {"XDG_RUNTIME_DIR": str(runtime)},
        text=True,
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        answer = augserver("health", XDG_RUNTIME_DIR=str(runtime))
        server.terminate()
    assert f"listens at ipc://{runtime}/augserver/ctl.sock; streams: numbers, rows" in line
    assert answer.returncode == 0, answer.stderr
    assert os.listdir(runtime / "augserver") == []


def test_a_stream_whose_file_is_missing_is_named_at_the_start(config: Path, address: str) -> None:
    (config.parent / "numbers.npz").unlink()
    with subprocess.Popen(
        [*PROGRAM, "serve", "--config", str(config), "--listen", address, "--workers", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stderr is not None
        lines = [server.stderr.readline() for _ in range(2)]
        server.terminate()
    assert lines[0] == (
        f"augserver: streams.numbers: {config.parent}/numbers.npz cannot be read (yet)\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_ends_it_with_exit_code_0_and_nothing_left(
    config: Path, address: str, tmp_path: Path, number: signal.Signals
) -> None:
    with serving(address, "--config", str(config)) as server:
        wait_until(lambda: len(workers(server.pid)) == 2, "two workers")
        crew = workers(server.pid)
        with Consumer(stream="numbers", address=address) as consumer:
            batch = consumer.get(0, 0)
            assert segments_of(server.pid)
            server.send_signal(number)
            server.wait(20)
        assert server.returncode == 0
        assert batch.y is not None
        assert len(batch.y) == 8
        assert segments_of(server.pid) == []
        wait_until(lambda: not any(map(alive, crew)), "the workers have ended")
    assert {path.name for path in tmp_path.iterdir()} == {"augserver.toml", "numbers.npz"}


def test_a_signal_in_the_middle_of_the_start_leaves_nothing_either(
    config: Path, address: str, runtime: Path
) -> None:
    with subprocess.Popen(
        [*PROGRAM, "serve", "--config", str(config), "--listen", address],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"XDG_RUNTIME_DIR": str(runtime)},
    ) as server:
        # The server's folder is the first thing that it makes, its workers are the last.
        wait_until(lambda: any(runtime.glob("augserver/server-*")), "the server has its folder")
        server.terminate()
        assert server.wait(20) == 0
    assert os.listdir(runtime / "augserver") == []
    assert not Path(address.removeprefix("ipc://")).exists()


def test_what_a_killed_server_leaves_is_swept_by_the_next(
    config: Path, address: str, tmp_path: Path
) -> None:
    with serving(address, "--config", str(config)) as server:
        wait_until(lambda: len(workers(server.pid)) == 2, "two workers")
        crew = workers(server.pid)
        with Consumer(stream="numbers", address=address) as consumer:
            consumer.get(0, 0)
            server.kill()
            server.wait(20)
        wait_until(lambda: not any(map(alive, crew)), "the workers have died with it")
        assert segments_of(server.pid)
        with serving(address, "--config", str(config)):
            assert segments_of(server.pid) == []
            with Consumer(stream="numbers", address=address) as consumer:
                consumer.get(0, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"augserver.toml", "numbers.npz"}


def test_a_second_server_at_the_same_path_is_refused_and_the_first_serves_on(
    config: Path, address: str
) -> None:
    with serving(address, "--config", str(config)):
        second = augserver("serve", "--config", str(config), "--listen", address)
        answer = augserver("health", "--connect", address)
    assert second.returncode == 2
    assert "another server listens there" in second.stderr
    assert second.stderr.count("\n") == 1
    assert answer.returncode == 0, answer.stderr


EPOCH = """
import hashlib, sys
from augclient import Consumer

digest = hashlib.sha256()
with Consumer(stream="numbers", address=sys.argv[1]) as consumer:
    for batch in consumer.epoch(1):
        digest.update(batch.x.tobytes() + batch.y.tobytes())
print(consumer.steps, digest.hexdigest())
"""


def test_two_programs_get_the_same_epoch_from_one_server(config: Path, address: str) -> None:
    with serving(address, "--config", str(config)), ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: python(EPOCH, address), range(2)))
    for run in runs:
        assert run.returncode == 0, run.stderr
    assert runs[0].stdout.startswith("7 ")
    assert runs[0].stdout == runs[1].stdout


def test_shards_of_a_named_stream_share_out_its_epoch(config: Path, address: str) -> None:
    labels: list[list[int]] = []
    with serving(address, "--config", str(config)):
        for index in range(2):
            with Consumer(stream="numbers", address=address, shard=(index, 2)) as consumer:
                ys = [batch.y for batch in consumer.epoch(3)]
                labels.append([int(n) for y in ys for n in np.asarray(y)])
    assert [len(part) for part in labels] == [SAMPLES // 2, SAMPLES // 2]
    assert sorted(labels[0] + labels[1]) == list(range(SAMPLES))


def test_an_unknown_stream_is_refused_with_the_names_there_are(config: Path, address: str) -> None:
    with (
        serving(address, "--config", str(config)),
        pytest.raises(UnknownStream, match=r"no stream 'number'; it has: numbers, rows"),
    ):
        Consumer(stream="number", address=address)


def test_a_stream_is_opened_at_once_however_often_its_data_has_to_be_loaded(
    config: Path, address: str
) -> None:
    # Between two consumers nobody needs the data, and the server lets it go.
    with serving(address, "--config", str(config), "--workers", "0"):
        for _ in range(30):
            began = time.monotonic()
            with Consumer(stream="rows", address=address) as consumer:
                consumer.get(0, 0)
            assert time.monotonic() - began < 10


def test_the_command_itself_imports_nothing_heavy() -> None:
    run = python(
        "import sys, augserver.cli, augserver.health\n"
        "print([m for m in ('scipy', 'PIL', 'keras', 'tensorflow') if m in sys.modules])"
    )
    assert run.stdout.strip() == "[]", run.stderr


def test_version_is_the_package_s_own() -> None:
    answer = augserver("version")
    assert answer.returncode == 0
    assert re.fullmatch(r"augserver \d+\.\d+\.\d+\n", answer.stdout)


def test_a_file_in_the_socket_s_place_is_not_removed(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("important")
    done = subprocess.run(
        [sys.executable, "-m", "augserver", "serve", "--listen", f"ipc://{notes}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "exists and is no socket" in done.stderr
    assert notes.read_text() == "important"
