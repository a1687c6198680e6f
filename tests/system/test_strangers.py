"""Who has no business here is turned away, named once in the log, and disturbs nobody."""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memory
import numpy as np
import pytest
import zmq
from processes import wait_until

from augclient import Consumer
from augproto.codec import decode, encode
from augproto.errors import ConnectTimeout, NotAllowed
from augproto.keys import Keys, generate
from augproto.messages import VERSION, Close, Hello, Message, Welcome
from augserver import health
from augserver.dial import papers
from augserver.line import Line

pytestmark = pytest.mark.slow

CONFIG = """
[server]
listen = ["ipc://{folder}/a.sock", "tcp://127.0.0.1:{keyed}"]
listen_workers = ["tcp://127.0.0.1:{workers}"]
workers = 1
key = "server.key"
allow_consumers = ["consumer.pub"]
allow_workers = ["worker.pub"]
encrypt_loopback = true

[streams.numbers]
data = "numbers.npz"
x = "x"
batch_size = 4
seed = 5
transforms = {{ rotation_range = 30 }}
"""


class Fortress:
    """A server behind keys, and one who behaves meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("server", "consumer", "worker", "stranger", "other"):
            generate(folder, name)
        np.savez(folder / "numbers.npz", x=np.arange(64 * 64 * 3).reshape(64, 8, 8, 3) % 251)
        self.port, self.workers = _free_port(), _free_port()
        (folder / "augserver.toml").write_text(
            CONFIG.format(folder=folder, keyed=self.port, workers=self.workers)
        )
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "augserver", "serve", "--config", folder / "augserver.toml"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        with self.consumer() as consumer:
            self.right = _digest(consumer)

    def consumer(self) -> Consumer:
        """Somebody of this machine, who needs no key."""
        return Consumer(stream="numbers", address=f"ipc://{self.folder}/a.sock")

    def keys(self, name: str, server: str = "server") -> Keys:
        keys = Keys.of(self.folder / f"{name}.key", self.folder / f"{server}.pub")
        assert keys is not None
        return keys

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def said(self, words: str) -> int:
        """How often the log has these words about somebody who was refused."""
        return sum(words in line and "refused" in line for line in self.log().splitlines())

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """An epoch after the other is whole while strangers come, and after they have gone."""
        over = threading.Event()
        wrong: list[str] = []

        def go_on() -> None:
            try:
                with self.consumer() as consumer:
                    while not over.is_set():
                        if _digest(consumer) != self.right:
                            wrong.append("a digest")
            except Exception as error:
                wrong.append(repr(error))

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(60)
        assert wrong == []
        assert self.process.poll() is None, self.log()[-3000:]
        assert "Traceback" not in self.log()
        with self.consumer() as consumer:
            assert _digest(consumer) == self.right


def _digest(consumer: Consumer) -> str:
    sha = hashlib.sha256()
    for batch in consumer.epoch(0):
        sha.update(np.asarray(batch.x).tobytes())
    return sha.hexdigest()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def fortress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortress]:
    fortress = Fortress(tmp_path_factory.mktemp("fortress"))
    try:
        yield fortress
    finally:
        fortress.process.terminate()
        try:
            fortress.process.wait(20)
        except subprocess.TimeoutExpired:
            fortress.process.kill()
            fortress.process.wait(20)


@contextlib.contextmanager
def dealer(address: str, keys: Keys | None = None) -> Iterator[Any]:
    """A socket on its way to an address."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        guest: Any = context.socket(zmq.DEALER)
        guest.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            keys.apply(guest)
        guest.connect(address)
        yield guest
    finally:
        context.destroy(linger=0)


def heard(guest: Any, *said: Message, within: float) -> Message | None:
    """The answer, or None where there is none in so many seconds."""
    for message in said:
        guest.send(encode(message), zmq.NOBLOCK)
    return decode(guest.recv(zmq.NOBLOCK)) if guest.poll(int(within * 1000)) else None


HELLO = Hello(VERSION, "test", 1)


def test_who_has_the_right_key_is_let_in(fortress: Fortress) -> None:
    address = f"tcp://127.0.0.1:{fortress.port}"
    with dealer(address, fortress.keys("consumer")) as guest:
        assert isinstance(heard(guest, HELLO, within=30), Welcome)
        guest.send(encode(Close()), zmq.NOBLOCK)
    pid, _ = health.ask(address, 30.0, fortress.keys("consumer"))
    assert pid == fortress.process.pid


@pytest.mark.parametrize(
    ("who", "server", "at", "words"),
    [
        (None, "server", "port", "shows no key"),
        ("stranger", "server", "port", "is not among those that are let in as consumers"),
        ("worker", "server", "port", "is not among those that are let in as consumers"),
        ("consumer", "server", "workers", "is not among those that are let in as workers"),
        ("consumer", "other", "port", "127.0.0.1"),
    ],
    ids=["no key", "unknown key", "worker's key", "consumer's key", "wrong server key"],
)
def test_who_has_not_is_refused_and_named_once(
    fortress: Fortress, who: str | None, server: str, at: str, words: str
) -> None:
    keys = fortress.keys(who, server) if who is not None else None
    before = fortress.said(words)
    with fortress.undisturbed():
        for _ in range(3):
            with dealer(f"tcp://127.0.0.1:{getattr(fortress, at)}", keys) as guest:
                assert heard(guest, HELLO, within=0.5) is None
        wait_until(lambda: fortress.said(words) > before, "the refusal is in the log", 30)
    lines = [line for line in fortress.log().splitlines() if words in line and "refused" in line]
    # Two strangers' keys differ in the log; and nothing is said twice within half a minute.
    assert len(lines) == len(set(lines))


def _at_the_door(fortress: Fortress, who: str | None) -> Consumer:
    paths = (fortress.folder / f"{who}.key", fortress.folder / "server.pub") if who else (None,) * 2
    address = f"tcp://127.0.0.1:{fortress.port}"
    return Consumer(stream="numbers", address=address, key=paths[0], server_key=paths[1])


@pytest.mark.parametrize(
    ("who", "words"),
    [
        (None, "it asks for a key: say key= and server_key="),
        ("stranger", "its allow_consumers has not this key"),
        ("worker", "its allow_consumers has not this key"),
    ],
)
def test_a_consumer_that_is_refused_is_told_why_and_at_once(
    fortress: Fortress, who: str | None, words: str
) -> None:
    with pytest.raises(NotAllowed, match=words):
        _at_the_door(fortress, who)


@pytest.mark.parametrize(
    ("who", "words"), [(None, "it asks for a key"), ("stranger", "its allow_consumers has not")]
)
def test_a_health_check_that_is_refused_says_why(
    fortress: Fortress, who: str | None, words: str
) -> None:
    keys = fortress.keys(who) if who else None
    with pytest.raises(NotAllowed, match=words):
        health.ask(f"tcp://127.0.0.1:{fortress.port}", 30.0, keys)


@pytest.mark.parametrize(
    ("who", "words"),
    [
        (None, "it asks for a key: say --key and --server-key"),
        ("consumer", "its allow_workers has not this key"),
    ],
)
def test_a_worker_that_is_refused_says_why_and_dials_on(
    fortress: Fortress, tmp_path: Path, who: str | None, words: str
) -> None:
    command = [sys.executable, "-m", "augserver", "worker", "--workers", "1"]
    command += ["--connect", f"tcp://127.0.0.1:{fortress.workers}"]
    if who is not None:
        folder = fortress.folder
        command += ["--key", f"{folder}/{who}.key", "--server-key", f"{folder}/server.pub"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        worker = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        wait_until(lambda: words in log.read_text(), "the reason in the worker's log")
        assert worker.poll() is None
    finally:
        worker.terminate()
        assert worker.wait(20) == 0


@pytest.mark.parametrize(
    ("key", "port", "words"),
    [
        ("worker.pub", None, "is reached and does not greet: is the server_key"),
        ("server.pub", 1, "cannot be reached: nobody listens there"),
    ],
)
def test_a_worker_that_hears_nothing_says_what_that_can_mean(
    fortress: Fortress, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    key: str, port: int | None, words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("augserver.keeping.SILENCE", 2.0)
    address = f"tcp://127.0.0.1:{port or fortress.workers}"
    keys = Keys.of(fortress.folder / "worker.key", fortress.folder / key)
    with Line(address, papers(), keys=keys):
        wait_until(lambda: words in caplog.text, "the reason")


def test_a_health_check_that_hears_nothing_says_what_that_can_mean(fortress: Fortress) -> None:
    keys = fortress.keys("consumer", server="worker")
    with pytest.raises(ConnectTimeout, match="is reached and does not greet: is the server_key"):
        health.ask(f"tcp://127.0.0.1:{fortress.port}", 2.0, keys)
    with pytest.raises(ConnectTimeout, match="cannot be reached: nobody listens there"):
        health.ask("tcp://127.0.0.1:1", 1.0)


def test_a_consumer_with_its_key_gets_the_same_batches_as_without(
    fortress: Fortress, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _at_the_door(fortress, "consumer") as consumer:
        assert _digest(consumer) == fortress.right
        assert consumer.memory == "shared", "a key changes nothing on one machine"
    monkeypatch.setenv("AUGSERVER_CLIENT_KEY", str(fortress.folder / "consumer.key"))
    monkeypatch.setenv("AUGSERVER_SERVER_KEY", str(fortress.folder / "server.pub"))
    with _at_the_door(fortress, None) as consumer:
        assert _digest(consumer) == fortress.right


class Recorder:
    """A cable that remembers what went through it towards the server."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.sent = b""
        self._target = port
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        near, _ = self._server.accept()
        far = socket.create_connection(("127.0.0.1", self._target), timeout=10)
        with near, far:
            while True:
                for ready in select.select([near, far], [], [], 20)[0]:
                    try:
                        data = ready.recv(65536)
                    except OSError:
                        return
                    if not data:
                        return
                    if ready is near:
                        self.sent += data
                    (far if ready is near else near).sendall(data)

    def close(self) -> None:
        self._server.close()
        self._thread.join(30)


def test_what_was_recorded_of_a_good_greeting_opens_no_door(fortress: Fortress) -> None:
    recorder = Recorder(fortress.port)
    with dealer(f"tcp://127.0.0.1:{recorder.port}", fortress.keys("consumer")) as guest:
        assert isinstance(heard(guest, HELLO, within=30), Welcome)
    recorder.close()
    assert len(recorder.sent) > 300, "a greeting and a Hello are there"
    status = health.ask(f"ipc://{fortress.folder}/a.sock", 30)[1]
    before = fortress.log().count("refused")
    with fortress.undisturbed():
        with socket.create_connection(("127.0.0.1", fortress.port), timeout=10) as replay:
            replay.sendall(recorder.sent)
            answered = b""
            with contextlib.suppress(OSError):
                while data := replay.recv(65536):
                    answered += data
        # The server's greeting and its own new key; no Welcome of ours, and then the end.
        assert len(answered) < 300
        wait_until(lambda: fortress.log().count("refused") > before, "it is in the log", 30)
    assert status.consumers == 0


#: ZMTP 3.1's greeting, with the NULL mechanism.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL" + bytes(16) + bytes(32)
#: The header of a frame of four gigabytes (flags: long).
FOUR_GIGABYTES = b"\x02" + struct.pack(">Q", 4 << 30)


def test_a_frame_of_four_gigabytes_is_not_waited_for(fortress: Fortress) -> None:
    before = memory.private(fortress.process.pid)
    seen = fortress.log().count("refused")
    with fortress.undisturbed():
        for data in (FOUR_GIGABYTES, GREETING + FOUR_GIGABYTES, b"GET / HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", fortress.port), timeout=10) as stranger:
                stranger.sendall(data)
                with contextlib.suppress(OSError):
                    while stranger.recv(65536):
                        pass
        wait_until(lambda: fortress.log().count("refused") > seen, "it is in the log", 30)
    assert memory.private(fortress.process.pid) - before < 64 << 20


def test_a_thousand_connections_starve_nobody_and_are_gone_afterwards(fortress: Fortress) -> None:
    before = memory.descriptors(fortress.process.pid)
    said = fortress.said("took too long")
    strangers: list[socket.socket] = []
    try:
        with fortress.undisturbed():
            for number in range(1000):
                stranger = socket.create_connection(("127.0.0.1", fortress.port), timeout=30)
                strangers.append(stranger)
                if number % 2:
                    stranger.sendall(GREETING[:20])
            address = f"tcp://127.0.0.1:{fortress.port}"
            health.ask(address, 30.0, fortress.keys("consumer"))
            wait_until(
                lambda: memory.descriptors(fortress.process.pid) < before + 50,
                "those who have not greeted are let go of",
            )
            assert fortress.said("took too long") <= said + 2
    finally:
        for stranger in strangers:
            stranger.close()
