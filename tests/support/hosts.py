"""Several hosts on one machine: network namespaces on a switch, with cables that can be pulled.

Needs root (or CAP_SYS_ADMIN and CAP_NET_ADMIN) and iproute2. A bad cable is a program between two
TAP devices that holds frames back and loses some: what TCP meets is what netem would show it, also
on kernels that have no netem.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
#: Frames that a bad cable holds at most; a real one drops the rest, too.
_HELD = 20_000


@cache
def without_hosts() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if shutil.which("ip", path=_PATH) is None:
        return "no `ip` (iproute2) here, to make hosts with"
    name = f"augtry{os.getpid()}"
    made = _ip("netns", "add", name, check=False)
    if made.returncode:
        return f"no right to make network namespaces: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["ip", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={**os.environ, "PATH": _PATH},
    )
    assert not check or done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done


class Host:
    """One host; its programs see its network alone."""

    def __init__(self, namespace: str, address: str, port: str) -> None:
        self.namespace = namespace
        self.address = address
        self._port = port  # its end at the switch
        self._switch = ""
        self._relay: subprocess.Popen[bytes] | None = None

    def command(self, *command: str) -> list[str]:
        """That command, as run on this host."""
        return [shutil.which("ip", path=_PATH) or "ip", "netns", "exec", self.namespace, *command]

    def start(
        self, command: Sequence[str], env: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a program on this host, in a process group of its own."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(*command),
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def pull_the_cable(self) -> None:
        """From now on nothing comes through, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def limit(self, megabits: float) -> None:
        """From now on its cable carries so much each way (a token bucket), as a slower one would.

        Needs `tc` and a kernel that has the bucket (sch_tbf).
        """
        rate = ("root", "tbf", "rate", f"{megabits}mbit", "burst", "256kb", "latency", "50ms")
        for namespace, device in ((self._switch, self._port), (self.namespace, "eth0")):
            command = ["tc", "-n", namespace, "qdisc", "replace", "dev", device, *rate]
            subprocess.run(command, check=True, timeout=20, env={**os.environ, "PATH": _PATH})

    def unlimit(self) -> None:
        """It carries what it can."""
        for namespace, device in ((self._switch, self._port), (self.namespace, "eth0")):
            command = ["tc", "-n", namespace, "qdisc", "del", "dev", device, "root"]
            subprocess.run(
                command,
                capture_output=True,
                timeout=20,
                check=False,
                env={**os.environ, "PATH": _PATH},
            )  # there may be none

    def carried(self) -> tuple[int, int]:
        """Bytes that its cable has brought here, and taken from here, Ethernet's own among them."""
        files = [f"/sys/class/net/eth0/statistics/{way}_bytes" for way in ("rx", "tx")]
        done = subprocess.run(
            self.command("cat", *files), capture_output=True, text=True, timeout=20, check=True
        )
        brought, taken = map(int, done.stdout.split())
        return brought, taken

    def plug_it_in(self) -> None:
        """It comes through again."""
        _ip("-n", self._switch, "link", "set", self._port, "up")


class Hosts:
    """A switch and its hosts; a context manager that leaves nothing behind."""

    def __init__(self) -> None:
        self._name = f"aug{os.getpid():x}"
        self._switch = f"{self._name}s"
        self._hosts: list[Host] = []

    def __enter__(self) -> Hosts:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        return self

    def __exit__(self, *error: object) -> None:
        for host in self._hosts:
            if host._relay is not None:
                host._relay.send_signal(signal.SIGTERM)
                host._relay.wait(10)
            _ip("netns", "del", host.namespace, check=False)
        _ip("netns", "del", self._switch, check=False)

    @property
    def last(self) -> Host:
        """The one that was added last."""
        return self._hosts[-1]

    def add(self, *, delay: float = 0.0, loss: float = 0.0) -> Host:
        """Another host on the switch.

        Args:
            delay: Seconds that its cable takes, each way.
            loss: Of frames, from 0 to 1, each way.
        """
        number = len(self._hosts) + 1
        host = Host(f"{self._name}{number}", f"10.77.0.{number}", f"port{number}")
        host._switch = self._switch
        _ip("netns", "add", host.namespace)
        self._hosts.append(host)
        if delay or loss:
            host._relay = self._bad_cable(host, delay, loss)
        else:
            peer = ("peer", "name", "eth0", "netns", host.namespace)
            _ip("-n", self._switch, "link", "add", host._port, "type", "veth", *peer)
        _ip("-n", self._switch, "link", "set", host._port, "master", "switch", "up")
        _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", host.namespace, "link", "set", device, "up")
        return host

    def _bad_cable(self, host: Host, delay: float, loss: float) -> subprocess.Popen[bytes]:
        """The program between the two ends; ready when both are there."""
        relay = subprocess.Popen(
            [
                sys.executable,
                __file__,
                f"/run/netns/{host.namespace}",
                f"/run/netns/{self._switch}",
                host._port,
                str(delay),
                str(loss),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert relay.stdout is not None
        with relay.stdout:
            assert select.select([relay.stdout], [], [], 20)[0], "a bad cable is laid"
            assert relay.stdout.readline() == b"laid\n"
        return relay


@contextlib.contextmanager
def _in_network(namespace: str) -> Iterator[None]:
    """This process, with the network of a namespace."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    other = os.open(namespace, os.O_RDONLY)
    try:
        _setns(other)
        yield
    finally:
        _setns(own)
        os.close(own)
        os.close(other)


def _setns(fd: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


def _tap(namespace: str, name: str) -> int:
    with _in_network(namespace):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        return fd


def relay(here: str, there: str, port: str, delay: float, loss: float) -> None:
    """Carry frames between two TAP devices, late, and not all of them; until SIGTERM."""
    ends = (_tap(here, "eth0"), _tap(there, port))
    print("laid", flush=True)
    rng = random.Random(1)
    held: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else 1.0
        for end in select.select(ends, [], [], wait)[0]:
            with contextlib.suppress(OSError):
                while len(held) < _HELD:
                    frame = os.read(end, 65536)
                    if rng.random() >= loss:
                        number += 1
                        other = ends[1] if end == ends[0] else ends[0]
                        heapq.heappush(held, (time.monotonic() + delay, number, other, frame))
        while held and held[0][0] <= time.monotonic():
            _, _, other, frame = heapq.heappop(held)
            with contextlib.suppress(OSError):
                os.write(other, frame)


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5]))
