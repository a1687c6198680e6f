"""`docker compose up augserver`: what the files say and, where an engine answers, what it does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until

ROOT = Path(__file__).parents[2]
PROJECT = f"augtest{os.getpid()}"
#: Building for the first time downloads the packages.
BUILD_TIMEOUT = 900.0


def docker(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run `docker` in the project's folder."""
    try:
        return subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(arguments, 127, "", str(error))


def compose(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run `docker compose` on a project of the tests' own."""
    return docker("compose", "-p", PROJECT, *arguments, timeout=timeout)


@cache
def without_plugin() -> str | None:
    """Why the compose file cannot be read; that needs no engine."""
    plugin = docker("compose", "version", timeout=20)
    return "no `docker compose` here" if plugin.returncode else None


@cache
def without_engine() -> str | None:
    """Why there is nothing to try it on."""
    engine = docker("version", "--format", "{{.Server.Version}}", timeout=20)
    return without_plugin() or ("no Docker engine answers" if engine.returncode else None)


# -- what the files say ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services, trainer included, as compose understands them; this needs no engine."""
    reason = without_plugin()
    if reason is not None:
        pytest.skip(reason)
    answer = docker("compose", "--profile", "train", "config", "--format", "json", timeout=20)
    assert answer.returncode == 0, answer.stderr
    parsed: dict[str, Any] = json.loads(answer.stdout)["services"]
    return parsed


def test_the_server_alone_is_what_up_brings_up(services: dict[str, Any]) -> None:
    assert set(services) == {"augserver", "trainer"}
    assert "profiles" not in services["augserver"]
    assert services["trainer"]["profiles"] == ["train"]
    assert services["augserver"]["build"]["target"] == "server"
    assert services["trainer"]["build"]["target"] == "trainer"


def test_both_services_share_memory_and_socket_and_no_network(services: dict[str, Any]) -> None:
    server, trainer = services["augserver"], services["trainer"]
    assert int(server["shm_size"]) >= 512 << 20
    assert server["ipc"] == "shareable"
    assert trainer["ipc"] == "service:augserver"
    assert trainer["depends_on"]["augserver"]["condition"] == "service_healthy"
    for service in (server, trainer):
        assert "/run/augserver" in [volume["target"] for volume in service["volumes"]]
        assert service["network_mode"] == "none"
        assert "ports" not in service


def test_what_is_mounted_from_the_project_is_there_and_read_only(services: dict[str, Any]) -> None:
    mounted = [v for v in services["augserver"]["volumes"] if v["type"] == "bind"]
    assert len(mounted) == 2
    for volume in mounted:
        assert Path(volume["source"]).exists()
        assert volume["read_only"] is True


def test_the_image_runs_as_a_user_and_says_how_it_is() -> None:
    text = (ROOT / "Dockerfile").read_text()
    last = text[text.rindex("FROM ") :]
    assert not text.startswith("# syntax"), "a syntax line is a download of its own"
    assert "EXPOSE" not in text
    assert "USER 1000" in text
    assert 'CMD ["augserver", "health"]' in last
    assert 'ENTRYPOINT ["augserver"]' in last  # not a shell, which would keep SIGTERM to itself
    assert 'CMD ["serve"]' in last


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        match = re.match(r"COPY (?!--from)(.+) \S+$", line)
        for source in match[1].split() if match else ():
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


# -- that it is so --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> Iterator[None]:
    """Both images; whatever was brought up goes down at the end."""
    reason = without_engine()
    if reason is not None:
        pytest.skip(reason)
    built = compose("--profile", "train", "build", timeout=BUILD_TIMEOUT)
    assert built.returncode == 0, built.stderr[-4000:]
    yield
    down = compose("--profile", "train", "down", "--volumes", "--timeout", "20")
    assert down.returncode == 0, down.stderr


@pytest.fixture
def server(built: None) -> Iterator[None]:
    """A server that is healthy."""
    _up()
    yield
    compose("--profile", "train", "down", "--volumes")


def _up() -> None:
    up = compose("up", "--detach", "--wait", "augserver")
    assert up.returncode == 0, up.stderr


def _inside(*command: str) -> str:
    answer = compose("exec", "--no-TTY", "augserver", *command)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def _segments() -> list[str]:
    return _inside("ls", "/dev/shm").split()


@pytest.mark.slow
def test_the_server_comes_up_healthy_with_its_streams_and_its_memory(server: None) -> None:
    assert "healthy: pid 1; streams: shapes, shapes-test" in _inside("augserver", "health")
    assert _inside("id", "--user").strip() == "1000"
    size = "import os; shm = os.statvfs('/dev/shm'); print(shm.f_frsize * shm.f_blocks)"
    assert int(_inside("python", "-c", size)) == 1 << 30
    assert _segments() == []


@pytest.mark.slow
def test_a_trainer_in_a_container_of_its_own_trains_to_the_end(server: None) -> None:
    trainer = compose("run", "--rm", "--no-TTY", "trainer", timeout=300)
    assert trainer.returncode == 0, trainer.stderr
    assert "Epoch 2/2" in trainer.stdout
    assert "Done: 2 epochs of 384 pictures" in trainer.stdout
    assert "served at ipc:///run/augserver/ctl.sock" in trainer.stdout
    wait_until(lambda: _segments() == [], "the trainer's rings are freed")


@pytest.mark.slow
def test_down_takes_no_longer_than_a_polite_end(server: None) -> None:
    began = time.monotonic()
    stopped = compose("stop", "augserver")
    seconds = time.monotonic() - began
    assert stopped.returncode == 0, stopped.stderr
    assert seconds < 5, "Docker waits 10 s for a program that does not end by itself"
    state = docker("inspect", "--format", "{{.State.ExitCode}}", f"{PROJECT}-augserver-1")
    assert state.stdout.strip() == "0"
    assert "stops: SIGTERM was received" in compose("logs", "augserver").stdout


HOLD = """
import signal
from augclient import Consumer

consumer = Consumer(stream="shapes")
batch = consumer.get(0, 0)
signal.pause()
"""


@pytest.mark.slow
def test_after_a_kill_it_comes_up_again_and_nothing_of_before_is_left(server: None) -> None:
    name = f"{PROJECT}-hold"
    hold = compose("run", "--detach", "--rm", "--name", name, "trainer", "python", "-c", HOLD)
    assert hold.returncode == 0, hold.stderr
    wait_until(lambda: _segments() != [], "a consumer has its ring")
    killed = compose("kill", "--signal", "KILL", "augserver")
    docker("kill", name)
    assert killed.returncode == 0, killed.stderr
    _up()
    assert _segments() == []
    assert "healthy" in _inside("augserver", "health")
    again = compose("run", "--rm", "--no-TTY", "trainer", timeout=300)
    assert again.returncode == 0, again.stderr
