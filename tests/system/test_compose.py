"""`docker compose up augserver`: what the files say and, where an engine answers, what it does.

Without an engine what it does is skipped with that reason; `make containers` shows them alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from processes import python, serving, wait_until

ROOT = Path(__file__).parents[2]
PROJECT = f"augtest{os.getpid()}"
#: Building for the first time downloads the packages.
BUILD_TIMEOUT = 900.0


def docker(
    *arguments: str, timeout: float = 120.0, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `docker` in the project's folder."""
    try:
        return subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
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


def everything(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """... with the services of all profiles."""
    return compose("--profile", "train", "--profile", "workers", *arguments, timeout=timeout)


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


def _config(*arguments: str, **environment: str) -> dict[str, Any]:
    """What compose understands; this needs no engine."""
    reason = without_plugin()
    if reason is not None:
        pytest.skip(reason)
    answer = docker(
        "compose", *arguments, "config", "--format", "json", timeout=20, environment=environment
    )
    assert answer.returncode == 0, answer.stderr
    parsed: dict[str, Any] = json.loads(answer.stdout)
    return parsed


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return _config("--profile", "train", "--profile", "workers")


@pytest.fixture(scope="module")
def services(project: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = project["services"]
    return found


def _targets(service: dict[str, Any]) -> set[str]:
    return {volume["target"] for volume in service["volumes"]}


def test_the_server_and_its_keys_are_what_up_brings_up(services: dict[str, Any]) -> None:
    assert set(services) == {"augserver", "keys", "trainer", "worker"}
    profiles = {name: service.get("profiles") for name, service in services.items()}
    assert profiles == {
        "augserver": None, "keys": None, "trainer": ["train"], "worker": ["workers"],
    }  # fmt: skip
    assert services["augserver"]["build"]["target"] == "server"
    assert services["trainer"]["build"]["target"] == "trainer"
    for name in ("keys", "worker"):  # they are programs of the server's image
        assert services[name]["image"] == services["augserver"]["image"]
        assert (services[name].get("build"), services[name]["pull_policy"]) == (None, "never")


def test_server_and_trainer_share_memory_and_socket_and_no_network(
    project: dict[str, Any],
) -> None:
    server, trainer = project["services"]["augserver"], project["services"]["trainer"]
    assert {"/run/augserver", "/dev/shm"} <= _targets(server) & _targets(trainer)
    assert trainer["depends_on"]["augserver"]["condition"] == "service_healthy"
    assert trainer["network_mode"] == "none"
    options = project["volumes"]["shm"]["driver_opts"]
    assert options["type"] == "tmpfs"
    assert {"size=1g", "uid=1000", "mode=0700"} <= set(options["o"].split(","))
    assert "size=9g" in _config(AUGSERVER_SHM_SIZE="9g")["volumes"]["shm"]["driver_opts"]["o"]


def test_workers_come_over_a_network_that_leads_nowhere_with_keys(
    project: dict[str, Any],
) -> None:
    server, worker = project["services"]["augserver"], project["services"]["worker"]
    assert project["networks"]["workers"]["internal"] is True
    assert set(server["networks"]) == set(worker["networks"]) == {"workers"}
    assert "AUGSERVER_INSECURE" not in server["environment"] | worker["environment"]
    assert server["environment"]["AUGSERVER_ALLOW_WORKERS"] == "/etc/augserver/server/worker.pub"
    assert worker["healthcheck"]["test"] == ["CMD", "augserver", "worker-health"]
    assert "/etc/augserver/server" not in _targets(worker), "the server's secret is not for workers"
    assert server["depends_on"]["keys"]["condition"] == "service_completed_successfully"
    assert worker["depends_on"]["augserver"]["condition"] == "service_healthy"


def test_no_service_has_more_than_it_needs(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "ports" not in service


def test_what_is_mounted_from_the_project_is_there_and_read_only(services: dict[str, Any]) -> None:
    mounted = [v for v in services["augserver"]["volumes"] if v["type"] == "bind"]
    assert len(mounted) == 2
    for volume in mounted:
        assert Path(volume["source"]).exists()
        assert volume["read_only"] is True


def test_a_server_for_the_host_s_trainers_runs_as_their_user_and_has_no_network() -> None:
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.host.yml")
    variables = {"AUGSERVER_UID": "12", "AUGSERVER_GID": "34", "AUGSERVER_RUN": "/home/me/run"}
    server = _config(*files, **variables)["services"]["augserver"]
    assert server["user"] == "12:34"
    assert server["network_mode"] == "none"
    assert not server.get("networks")
    assert not server.get("depends_on")
    assert "AUGSERVER_LISTEN_WORKERS" not in server["environment"]
    sources = {volume["target"]: volume["source"] for volume in server["volumes"]}
    assert sources["/dev/shm"] == "/dev/shm/augserver.d"
    assert sources["/run/augserver"] == "/home/me/run"
    nobody = docker("compose", *files, "config", environment=variables | {"AUGSERVER_UID": ""})
    assert nobody.returncode != 0
    assert "the trainer's user" in nobody.stderr


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

#: All batches of many epochs as one digest. With "pause" it stops early in the second for a line of
#: its standard input, and has few slots: what comes after the pause cannot be made before it. With
#: "warm" it goes through other epochs until there is such a line.
PROGRAM = """
import hashlib, select, sys
from augclient import Consumer

pauses, warms = "pause" in sys.argv, "warm" in sys.argv
digest = hashlib.sha256()
with Consumer(stream="shapes", seed=7, slots=4 if pauses else None) as consumer:
    for epoch in range(1000, 1_000_000) if warms else ():
        if select.select([sys.stdin], [], [], 0.2)[0]:
            break
        for batch in consumer.epoch(epoch):
            if (batch.epoch, batch.step) == (1000, 0):
                print("warm", flush=True)
    for epoch in range(25):
        for batch in consumer.epoch(epoch):
            for array in batch.as_tuple():
                digest.update(array.tobytes())
            if (batch.epoch, batch.step) == (1, 3) and pauses:
                print("pause", flush=True)
                sys.stdin.readline()
    print(consumer.memory, digest.hexdigest())
"""


@pytest.fixture(scope="module")
def undisturbed() -> str:
    """What the program prints without containers."""
    with tempfile.TemporaryDirectory(prefix="aug-") as folder:
        address = f"ipc://{folder}/ctl.sock"
        with serving(address, "--config", str(ROOT / "examples" / "augserver.toml")):
            answer = python(PROGRAM, AUGSERVER_ADDRESS=address)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("shared ")
    return answer.stdout


@pytest.fixture(scope="module")
def built() -> Iterator[None]:
    """All images; whatever was brought up goes down at the end."""
    reason = without_engine()
    if reason is not None:
        pytest.skip(reason)
    built = everything("build", timeout=BUILD_TIMEOUT)
    assert built.returncode == 0, built.stderr[-4000:]
    yield
    down = everything("down", "--volumes", "--timeout", "20")
    assert down.returncode == 0, down.stderr


@pytest.fixture
def server(built: None) -> Iterator[None]:
    """A server that is healthy."""
    _up()
    yield
    everything("down", "--volumes")


def _up() -> None:
    up = compose("up", "--detach", "--wait", "augserver")
    assert up.returncode == 0, up.stderr


def _inside(*command: str) -> str:
    answer = compose("exec", "--no-TTY", "augserver", *command)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def _segments() -> list[str]:
    """What lies in shared memory; of a server that serves nobody, the key at its door alone."""
    return _inside("ls", "/dev/shm").split()


def _train(*command: str) -> str:
    """What the trainer prints, or a program in its place."""
    trainer = compose("run", "--rm", "--no-TTY", "trainer", *command, timeout=300)
    assert trainer.returncode == 0, trainer.stderr
    return trainer.stdout


@contextlib.contextmanager
def _midway(how: str, undisturbed: str) -> Iterator[None]:
    """The program in the trainer's image, in the midst of it; then it ends undisturbed."""
    command = ["run", "--rm", "--no-TTY", "trainer", "python", "-c", PROGRAM, how]
    with subprocess.Popen(
        ["docker", "compose", "-p", PROJECT, *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as trainer:
        try:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == f"{how}\n"
            yield
            output, errors = trainer.communicate("\n", timeout=120)
        except BaseException:
            trainer.kill()
            raise
    assert trainer.returncode == 0, errors
    assert output == undisturbed


@pytest.mark.slow
def test_the_server_comes_up_healthy_with_its_streams_and_its_memory(server: None) -> None:
    assert "healthy: pid 1; streams: shapes, shapes-test" in _inside("augserver", "health")
    assert _inside("id", "--user").strip() == "1000"
    size = "import os; shm = os.statvfs('/dev/shm'); print(shm.f_frsize * shm.f_blocks)"
    assert int(_inside("python", "-c", size)) == 1 << 30
    assert _inside("stat", "--format", "%a %u", "/dev/shm").split() == ["700", "1000"]
    assert len(_segments()) == 1
    explained = _inside("augserver", "check-config")
    assert 'key = "/etc/augserver/server/server.key"  (environment AUGSERVER_KEY)' in explained
    assert "it fits here" in explained


@pytest.mark.slow
def test_a_trainer_in_a_container_of_its_own_trains_to_the_end(server: None) -> None:
    output = _train()
    assert "Epoch 2/2" in output
    assert "Done: 2 epochs of 384 pictures" in output
    assert "served at ipc:///run/augserver/ctl.sock" in output
    wait_until(lambda: len(_segments()) == 1, "the trainer's rings are freed")


@pytest.mark.slow
def test_a_trainer_gets_the_bytes_that_it_would_get_without_containers(
    server: None, undisturbed: str
) -> None:
    assert _train("python", "-c", PROGRAM) == undisturbed


@pytest.mark.slow
def test_three_more_workers_join_by_themselves_and_the_bytes_stay(
    server: None, undisturbed: str
) -> None:
    up = everything("up", "--detach", "--wait", "--scale", "worker=3", "--no-recreate")
    assert up.returncode == 0, up.stderr
    assert "3 of 3 remote ones" in _inside("augserver", "status")

    def made() -> list[int]:
        said = re.findall(r"remote worker .* (\d+) batches made", _inside("augserver", "status"))
        return list(map(int, said))

    with _midway("warm", undisturbed):  # a worker first shows for a stream that its bytes are right
        wait_until(lambda: min(made()) > 0, "each has made some of the batches", deadline=180)
        before = made()
    assert sum(made()) > sum(before), "none of those of the digest was made in another container"
    fewer = everything("up", "--detach", "--scale", "worker=1", "--no-recreate", "worker")
    assert fewer.returncode == 0, fewer.stderr
    wait_until(
        lambda: "1 of 1 remote ones" in _inside("augserver", "status"), "two have gone again"
    )


@pytest.mark.slow
def test_a_server_that_is_asked_to_end_ends_by_itself(server: None) -> None:
    up = everything("up", "--detach", "--wait", "worker")
    assert up.returncode == 0, up.stderr
    stopped = everything("stop", "--timeout", "60")
    assert stopped.returncode == 0, stopped.stderr
    for name in ("augserver", "worker"):
        state = docker("inspect", "--format", "{{.State.ExitCode}}", f"{PROJECT}-{name}-1")
        assert state.stdout.strip() == "0", f"{name}: 137 is Docker's kill"
    assert "stops: SIGTERM was received" in compose("logs", "augserver").stdout


@pytest.mark.slow
def test_after_a_kill_it_comes_up_again_and_nothing_of_before_is_left(
    server: None, undisturbed: str
) -> None:
    (door,) = _segments()
    with _midway("pause", undisturbed):
        before = _segments()
        assert len(before) > 1, "a consumer has its ring"
        killed = compose("kill", "--signal", "KILL", "augserver")
        assert killed.returncode == 0, killed.stderr
        _up()
        wait_until(lambda: door not in _segments(), "the key of before is swept")
        assert not set(before) & set(_segments())
        assert "healthy" in _inside("augserver", "health")
    wait_until(lambda: len(_segments()) == 1, "the trainer's rings are freed")


@pytest.mark.slow
def test_a_restart_in_mid_epoch_is_a_pause_to_the_trainer_and_no_more(
    server: None, undisturbed: str
) -> None:
    with _midway("pause", undisturbed):
        restarted = compose("restart", "augserver")
        assert restarted.returncode == 0, restarted.stderr
    # What it printed last is how it got its batches: in the shared memory of the new server.
    assert undisturbed.startswith("shared ")


@pytest.mark.slow
def test_kernels_of_another_processor_are_compiled_once_and_kept_beside(server: None) -> None:
    def warmed(processor: str) -> str:
        answer = compose(
            "exec", "--no-TTY", "--env", f"NUMBA_CPU_NAME={processor}", "augserver",
            "augserver", "warmup",
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        assert "kept in /run/augserver/kernels/" in answer.stdout
        return answer.stderr

    assert "compiling kernels" in warmed("nehalem")
    assert "compiling kernels" not in warmed("nehalem")
    own = compose("exec", "--no-TTY", "augserver", "augserver", "warmup")
    assert "compiling kernels" not in own.stderr


@pytest.mark.slow
def test_a_trainer_on_the_host_shares_memory_with_the_container_s_server(
    built: None, undisturbed: str
) -> None:
    memory = Path(tempfile.mkdtemp(prefix="aug.d-", dir="/dev/shm"))
    run = Path(tempfile.mkdtemp(prefix="aug-"))
    variables = {
        "AUGSERVER_SHM": str(memory),
        "AUGSERVER_RUN": str(run),
        "AUGSERVER_UID": str(os.getuid()),
        "AUGSERVER_GID": str(os.getgid()),
    }
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.host.yml")
    host = ("compose", "-p", f"{PROJECT}host", *files)
    address = f"ipc://{run}/ctl.sock"
    try:
        up = docker(*host, "up", "--detach", "--wait", "augserver", environment=variables)
        assert up.returncode == 0, up.stderr
        answer = python(PROGRAM, AUGSERVER_ADDRESS=address, AUGSERVER_SHM_DIR=str(memory))
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout == undisturbed
        blind = python(PROGRAM, AUGSERVER_ADDRESS=address)
        assert blind.stdout == undisturbed.replace("shared", "frames"), "it sees no memory"
        assert len(list(memory.iterdir())) == 1, "all rings are freed"
    finally:
        docker(*host, "down", "--volumes", environment=variables)
        left = list(memory.iterdir())
        shutil.rmtree(memory)
        shutil.rmtree(run)
    assert left == []
