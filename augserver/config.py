"""What a server is told: augserver.toml, flags and environment become one frozen value.

Every error names the key, the value that was got and what is wanted.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from augproto.errors import ConfigError
from augproto.pictures import MAX_PIXELS
from augproto.ring import MAX_SLOTS, MIN_SLOTS
from augproto.spec import Spec

#: Bytes of a ring for which no number of slots was asked: slots enough to run ahead, within this.
RING_BYTES = 256 << 20
#: ... and within these numbers of slots. JAX alone keeps 34 batches when nobody reads its logs.
RING_SLOTS = (4, 48)
#: As a number of bytes: no bound but that of memory itself.
NO_BOUND = 1 << 50


def cores() -> int:
    """How many cores this process may use: its affinity, cut to the cgroup's quota."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A server's settings.

    Attributes:
        listen: ZeroMQ addresses: ipc://PATH, or tcp:// on the loopback interface.
        workers: Local worker processes; 0 makes the batches in the server itself.
        streams: Specs by name.
        roots: Folders; a consumer's own spec may name files below them. None are allowed without.
        allow_transforms: Import paths that a consumer's own spec may name as its function.
        lease: Seconds of silence after which a consumer's ring is retired.
        worker_deadline: Seconds that a worker may take without a new sample or batch before it is
            killed. Three of them, after which a batch is given up, are less than a consumer waits.
        max_consumers: At once.
        max_ring_bytes: Of one consumer.
        max_pixels: Of a picture file, in a consumer's own spec.
        max_total_bytes: Of all rings and datasets in shared memory together. A ring becomes smaller
            to stay within it; who asks for more is refused, and the others go on. By default what
            memory, its cgroups and /dev/shm hold is the bound.
        private: Serves one program, which started it and may hand over functions and arrays.
    """

    listen: tuple[str, ...] = ()
    workers: int = field(default_factory=cores)
    streams: Mapping[str, Spec] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    allow_transforms: tuple[str, ...] = ()
    lease: float = 30.0
    worker_deadline: float = 15.0
    max_consumers: int = 64
    max_ring_bytes: int = 4 << 30
    max_pixels: int = MAX_PIXELS
    max_total_bytes: int = NO_BOUND
    private: bool = False

    def __post_init__(self) -> None:
        for address in self.listen:
            _check_address(address)
        _check_whole("server.workers", self.workers, 0, 1024)
        _check_number("server.lease", self.lease, 0.1, 86400)
        _check_number("server.worker_deadline", self.worker_deadline, 0.1, 86400)
        _check_whole("server.max_consumers", self.max_consumers, 1, 65536)
        _check_whole("server.max_ring_bytes", self.max_ring_bytes, 1 << 20, NO_BOUND)
        _check_whole("server.max_total_bytes", self.max_total_bytes, 1 << 20, NO_BOUND)
        _check_whole("server.max_pixels", self.max_pixels, 1, 1 << 34)

    def slots(self, asked: int | None, slot_bytes: int) -> int:
        """How many slots a ring gets, before looking at the room there is."""
        low, high = RING_SLOTS
        slots = min(max(RING_BYTES // slot_bytes, low), high) if asked is None else asked
        if not MIN_SLOTS <= slots <= MAX_SLOTS:
            raise ConfigError(f"slots: got {slots}; wanted {MIN_SLOTS} to {MAX_SLOTS}")
        if slots * slot_bytes > self.max_ring_bytes:
            fit = self.max_ring_bytes // slot_bytes
            if asked is not None or fit < MIN_SLOTS:
                raise ConfigError(
                    f"a ring of {slots} slots of {slot_bytes} bytes is larger than this server's "
                    f"max_ring_bytes ({self.max_ring_bytes}), which holds {fit}; wanted at least "
                    f"{MIN_SLOTS}: make batch_size, target_size or slots smaller"
                )
            slots = fit
        return slots


_SERVER_KEYS = (
    "listen", "workers", "roots", "allow_transforms", "lease", "worker_deadline", "max_consumers",
    "max_ring_bytes", "max_total_bytes", "max_pixels",
)  # fmt: skip


def read(path: Path, overrides: Mapping[str, object]) -> Config:
    """Read augserver.toml; flags and environment (`overrides`) win over it.

    ::

        [server]
        workers = 4

        [streams.cifar]
        data = "cifar10.npz"      # relative to this file
        x = "x_train"
        y = "y_train"
        batch_size = 64

        [streams.cifar.transforms]
        rotation_range = 15
        horizontal_flip = true
    """
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"config: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} is not TOML: {error}") from error
    return parse(raw, path.resolve().parent, overrides)


def parse(raw: Mapping[str, object], folder: Path, overrides: Mapping[str, object]) -> Config:
    """The config in a parsed augserver.toml; relative paths are relative to `folder`."""
    for key in raw:
        if key not in ("server", "streams"):
            raise ConfigError(f"config: unknown table [{key}]; wanted [server] or [streams.NAME]")
    server: dict[str, Any] = dict(_table("server", raw.get("server", {})))
    for key in server:
        if key not in _SERVER_KEYS:
            wanted = ", ".join(_SERVER_KEYS)
            raise ConfigError(f"config: unknown key server.{key}; wanted one of {wanted}")
    server |= {key: value for key, value in overrides.items() if value is not None}
    for key in ("listen", "roots", "allow_transforms"):
        if key in server:
            server[key] = _texts(f"server.{key}", server[key])
    if "roots" in server:
        server["roots"] = tuple(_absolute(folder, root) for root in server["roots"])
    streams = {}
    for name, table in _table("streams", raw.get("streams", {})).items():
        fields = dict(_table(f"streams.{name}", table))
        if "data" in fields:
            data = _texts(f"streams.{name}.data", fields["data"])
            fields["data"] = tuple(_absolute(folder, path) for path in data)
        try:
            streams[name] = Spec.from_wire(fields)
        except ConfigError as error:
            raise ConfigError(f"streams.{name}: {error}") from error
    return Config(streams=streams, **server)


def _absolute(folder: Path, path: str) -> str:
    return os.path.normpath(folder / os.path.expanduser(path))


def _table(where: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: got {value!r:.80}; wanted a table")
    return value


def _texts(where: str, value: object) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise ConfigError(f"{where}: got {value!r:.80}; wanted text or a list of texts")
    return tuple(values)


def _check_whole(where: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{where}: got {value!r}; wanted a whole number from {low} to {high}")


def _check_number(where: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{where}: got {value!r}; wanted a number from {low} to {high}")


def _check_address(address: str) -> None:
    """Only this machine, until there are keys: a socket for everyone is remote code's door."""
    if address.startswith("ipc://") and address[len("ipc://") :][:1] not in ("", "*", "@"):
        if len(os.fsencode(address)) - len("ipc://") > 107:
            raise ConfigError(f"listen: {address!r}: a socket's path has at most 107 bytes")
        return
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if address.startswith("tcp://") and (host.startswith("127.") or host in ("localhost", "[::1]")):
        return
    raise ConfigError(
        f"listen: got {address!r}; wanted ipc://PATH or tcp://127.0.0.1:PORT. Other addresses "
        "need keys, which this version has not"
    )
