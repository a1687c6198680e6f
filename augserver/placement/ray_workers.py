"""`augserver ray-workers`: workers of a fleet, placed and kept up by a Ray cluster.

Ray is imported by a process of its own only (`ray_driver`), which is ended when its time is over.
Ray's head node lets everybody in who reaches it, unless it was started with a token; so nothing is
done here before somebody has said which it is to be.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

from augproto.errors import AugError, ConfigError, ConnectTimeout, NotAllowed, VersionMismatch
from augserver.placement.fleet import Fleet, Placed

#: The first that is safe to run: tokens, and no open dashboard.
OLDEST = (2, 54)
#: Seconds to reach the head node, and for Ray's client to join the cluster.
_REACH_SECONDS, _JOIN_SECONDS = 5.0, 40.0
#: Seconds between two looks at what its program says, and bytes of that.
_BETWEEN, _MOST_BYTES = 0.2, 1 << 20
_MODE = "RAY_AUTH_MODE"
_REFUSED = "InvalidAuthToken"
_HOW = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH), as `ray start` had "
    "them on every node"
)


class NotPlaced(AugError):
    """Ray could not do what it was asked."""


def place(
    fleet: Fleet,
    address: str,
    *,
    wait: float = 60.0,
    token: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> list[Placed]:
    """Have a cluster run a fleet, and say what has become of each worker.

    A fleet stays when the caller ends, until one of no workers is asked for.

    Args:
        address: HOST:PORT of the head node.
        wait: Seconds for them to be placed and enlisted with their server.
        token: Whether the cluster has a token, which it should.

    Raises:
        ConfigError: Ray is not there, the address is none, or the token was not said.
        ConnectTimeout: Nobody answers.
        NotAllowed: Another token than the cluster's.
        VersionMismatch: Another Ray, or another Python, than the cluster's.
        NotPlaced: Anything else that Ray says.
    """
    _check_ray()
    env = _with_mode(environ, token)
    _reach(address)
    seconds = wait + _JOIN_SECONDS
    arguments = [str(os.getpid()), address, str(wait), fleet.to_word()]
    code, said, noise = _run("augserver.placement.ray_driver", arguments, env, seconds)
    if code is None:
        reason = _refusal(noise, address)
        raise reason or ConnectTimeout(
            f"the Ray cluster at {address} took more than {seconds:.0f} s: is that the port of its "
            "head node (`ray start --head --port=...`), and does this run on a node of the cluster?"
        )
    if code != 0:
        raise _refusal(noise, address) or NotPlaced(f"Ray at {address} failed: {_last_line(noise)}")
    return [Placed(**each) for each in json.loads(said.splitlines()[-1])]


def _check_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed: pip install 'augserver[ray]'")
    version = importlib.metadata.version("ray")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise ConfigError(
            f"Ray is {version} here; wanted {'.'.join(map(str, OLDEST))} or later, since earlier "
            "ones let others in: pip install --upgrade 'augserver[ray]'"
        )


def _with_mode(environ: Mapping[str, str], token: bool) -> dict[str, str]:
    mode = environ.get(_MODE, "")
    if not token:
        if mode == "token":
            raise ConfigError(f"--no-token: got {_MODE}=token beside it; leave one out")
        return {**environ, _MODE: "disabled"}
    if mode != "token":
        raise ConfigError(
            f"{_MODE}: got {mode!r}; wanted token, since a Ray cluster without one runs whatever "
            f"anybody sends it. To do: {_HOW}; or, where the network is closed by other means, "
            "--no-token"
        )
    if not environ.get("RAY_AUTH_TOKEN") and not environ.get("RAY_AUTH_TOKEN_PATH"):
        raise ConfigError(
            f"RAY_AUTH_TOKEN: got none, nor a RAY_AUTH_TOKEN_PATH; wanted the cluster's. To do: "
            f"{_HOW}"
        )
    return dict(environ)


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"address: got {address!r:.200}; wanted HOST:PORT of Ray's head node")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise ConnectTimeout(
            f"no Ray cluster answers at {address} ({error.strerror or error}): is its head node "
            "up (`ray start --head --port=...`), and is the address the one it prints?"
        ) from error


def _run(
    module: str, arguments: Sequence[str], env: Mapping[str, str], seconds: float
) -> tuple[int | None, str, str]:
    """Run a program; its exit code (None: it was ended before its time), and its words.

    A refused token is known by a line of Ray's client, which then goes on trying: it is ended.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end and _REFUSED not in _all_of(err):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_BETWEEN)
                    break
            return process.poll(), _all_of(out), _all_of(err)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=5)


def _all_of(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), _MOST_BYTES, 0).decode(errors="replace")


def _refusal(noise: str, address: str) -> AugError | None:
    """What Ray's client means, where that is known."""
    if _REFUSED in noise or "AuthenticationError" in noise:
        return NotAllowed(
            f"the Ray cluster at {address} refuses: the token is not the cluster's. To do: {_HOW}"
        )
    if "Version mismatch" in noise:
        start = noise.index("Version mismatch")
        said = " ".join(noise[start:].split())[:500]
        return VersionMismatch(f"the Ray cluster at {address} is another: {said}")
    return None


def _last_line(noise: str) -> str:
    lines = [line for line in noise.splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "it said nothing"
