"""What a server is told: augserver.toml, flags and environment become one frozen value.

Every error names the key, the value that was got and what is wanted.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from augproto.errors import ConfigError
from augproto.pictures import MAX_PIXELS
from augproto.ring import MAX_SLOTS, MIN_SLOTS
from augproto.spec import Spec
from augserver import addresses
from augserver.backend import KERNELS
from augserver.datasets import named

#: Bytes of a ring for which no number of slots was asked: slots enough to run ahead, within this.
RING_BYTES = 256 << 20
#: ... and within these numbers of slots, of which the fewest are beside one for each worker. JAX
#: alone keeps 34 batches when nobody reads its logs.
RING_SLOTS = (4, 48)
#: Small batches are said and heard of many at a time, which takes more of them under way: where
#: they are no more bytes than this, a ring has so many slots.
SMALL_RING = (64 << 20, 128)
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
        listen: ZeroMQ addresses for consumers: ipc://PATH or tcp://HOST:PORT. Beyond the loopback
            interface they need `key` and the matching list, or `insecure`.
        listen_workers: ... of the same kind, for workers that dial in.
        key: Path of the server's secret key (`augserver keygen`).
        allow_consumers: Paths of consumers' public keys that may come in, or of folders of them.
        allow_workers: Paths of workers' public keys, likewise; they open no consumers' door.
        insecure: Let anybody in who reaches an address, and send everything in the clear.
        encrypt_loopback: Ask for keys at tcp:// addresses of the loopback interface as well.
        metrics: HOST:PORT where Prometheus may fetch the server's figures by HTTP, "" for nowhere.
            Whoever reaches it may read them.
        workers: Local worker processes; 0 makes the batches in the server itself.
        datasets: Fields of specs by name, for streams to start from (`augserver.datasets.named`).
        streams: Specs by name.
        roots: Folders; a consumer's own spec may name files below them. None are allowed without.
        allow_transforms: Import paths that a consumer's own spec may name as its function.
        lease: Seconds of silence after which a consumer's ring is retired.
        worker_deadline: Seconds that a worker may take without a new sample or batch before it is
            killed. Three of them, after which a batch is given up, are less than a consumer waits.
        worker_lease: Seconds of silence after which what a remote worker holds is given to others.
        max_workers: Remote ones, at once.
        max_consumers: Consumers at once; each has one stream open at a time.
        max_streams: Streams open at once that consumers describe themselves; 0 leaves them those
            that the config names. By default as many as there are consumers.
        max_slots: Slots of one consumer's ring.
        max_ring_bytes: Bytes of one consumer's ring.
        max_pixels: Pixels of a picture file, in a consumer's own spec.
        max_total_bytes: Of all rings and datasets in shared memory together. A ring becomes smaller
            to stay within it; who asks for more is refused, and the others go on. By default what
            memory, its cgroups and /dev/shm hold is the bound.
        max_upload_bytes: Of all arrays that consumers have handed over by message, where they
            cannot write into this server's shared memory; 0 allows none. (What a program of the
            same machine and user writes there itself is bounded by `max_total_bytes` alone.)
        cache_bytes: Of all caches of decoded pictures together (`Spec.cache`); 0 allows none.
            Within it a cache takes at most three quarters of the memory that is left when it is
            made. By default 4 GiB, and a quarter.
        kernels: "numba", "scipy", or "": numba where it can be imported. AUGSERVER_KERNELS wins.
        private: Serves one program, which started it and may hand over functions and arrays.
    """

    listen: tuple[str, ...] = ()
    listen_workers: tuple[str, ...] = ()
    key: str = ""
    allow_consumers: tuple[str, ...] = ()
    allow_workers: tuple[str, ...] = ()
    insecure: bool = False
    encrypt_loopback: bool = False
    metrics: str = ""
    workers: int = field(default_factory=cores)
    datasets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    streams: Mapping[str, Spec] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    allow_transforms: tuple[str, ...] = ()
    lease: float = 30.0
    worker_deadline: float = 15.0
    worker_lease: float = 3.0
    max_workers: int = 1024
    max_consumers: int = 64
    max_streams: int | None = None
    max_slots: int = MAX_SLOTS
    max_ring_bytes: int = 4 << 30
    max_pixels: int = MAX_PIXELS
    max_total_bytes: int = NO_BOUND
    max_upload_bytes: int = 1 << 30
    cache_bytes: int | None = None
    kernels: str = ""
    private: bool = False

    def __post_init__(self) -> None:
        for key in ("insecure", "encrypt_loopback"):
            if type(getattr(self, key)) is not bool:
                raise ConfigError(
                    f"server.{key}: got {getattr(self, key)!r:.80}; wanted true or false"
                )
        if not isinstance(self.key, str):
            raise ConfigError(f"server.key: got {self.key!r:.80}; wanted the path of a secret key")
        for key, listened, allow in (
            ("listen", self.listen, "allow_consumers"),
            ("listen_workers", self.listen_workers, "allow_workers"),
        ):
            for address in listened:
                addresses.check(key, address)
                if self.asks_for_keys(address):
                    addresses.check_keys(key, address, self.key, allow, getattr(self, allow))
        if self.metrics != "" and not (
            isinstance(self.metrics, str) and addresses.is_host_and_port(self.metrics)
        ):
            raise ConfigError(
                f"server.metrics: got {self.metrics!r:.80}; wanted HOST:PORT, as in "
                "127.0.0.1:9464, or 0.0.0.0:9464 for all interfaces"
            )
        _check_whole("server.workers", self.workers, 0, 1024)
        _check_number("server.lease", self.lease, 0.1, 86400)
        _check_number("server.worker_deadline", self.worker_deadline, 0.1, 86400)
        _check_number("server.worker_lease", self.worker_lease, 0.1, 86400)
        _check_whole("server.max_workers", self.max_workers, 1, 65536)
        _check_whole("server.max_consumers", self.max_consumers, 1, 65536)
        if self.max_streams is not None:
            _check_whole("server.max_streams", self.max_streams, 0, 65536)
        _check_whole("server.max_slots", self.max_slots, MIN_SLOTS, MAX_SLOTS)
        _check_whole("server.max_ring_bytes", self.max_ring_bytes, 1 << 20, NO_BOUND)
        _check_whole("server.max_total_bytes", self.max_total_bytes, 1 << 20, NO_BOUND)
        _check_whole("server.max_upload_bytes", self.max_upload_bytes, 0, NO_BOUND)
        if self.cache_bytes is not None:
            _check_whole("server.cache_bytes", self.cache_bytes, 0, NO_BOUND)
        if self.kernels not in ("", *KERNELS):
            raise ConfigError(
                f"server.kernels: got {self.kernels!r}; wanted one of {', '.join(KERNELS)}"
            )
        _check_whole("server.max_pixels", self.max_pixels, 1, 1 << 34)

    def asks_for_keys(self, address: str) -> bool:
        """Whether whoever comes in there has to show a key."""
        return addresses.asks_for_keys(
            address, insecure=self.insecure, encrypt_loopback=self.encrypt_loopback
        )

    def holds(self, slots: int, slot_bytes: int) -> bool:
        """Whether one consumer's ring may be so large."""
        return slots * slot_bytes <= self.max_ring_bytes

    def slots(self, asked: int | None, slot_bytes: int) -> int:
        """How many slots a ring gets, before looking at the room there is."""
        low, high = RING_SLOTS
        low = min(low + self.workers, high)
        small_bytes, small_slots = SMALL_RING
        slots = min(max(RING_BYTES // slot_bytes, low), high)
        slots = max(slots, min(small_bytes // slot_bytes, small_slots))
        slots = min(slots, self.max_slots) if asked is None else asked
        if not MIN_SLOTS <= slots <= self.max_slots:
            why = "" if self.max_slots == MAX_SLOTS else ", this server's max_slots"
            raise ConfigError(f"slots: got {slots}; wanted {MIN_SLOTS} to {self.max_slots}{why}")
        if not self.holds(slots, slot_bytes):
            fit = self.max_ring_bytes // slot_bytes
            if asked is not None or fit < MIN_SLOTS:
                raise ConfigError(
                    f"a ring of {slots} slots of {slot_bytes} bytes is larger than this server's "
                    f"max_ring_bytes ({self.max_ring_bytes}), which holds {fit}; wanted at least "
                    f"{MIN_SLOTS}: make batch_size, target_size or slots smaller"
                )
            slots = fit
        return slots


#: Every setting has its key, but for what other tables hold and what a program alone may say.
_SERVER_KEYS = tuple(
    field.name for field in fields(Config) if field.name not in ("datasets", "streams", "private")
)

#: ... of which these are lists of texts, or one text.
_LISTS = (
    "listen", "listen_workers", "allow_consumers", "allow_workers", "roots", "allow_transforms",
)  # fmt: skip


def read(path: Path, overrides: Mapping[str, object]) -> Config:
    """Read augserver.toml; flags and environment (`overrides`) win over it.

    ::

        [server]
        workers = 4

        [datasets.cifar]
        data = "cifar10.npz"      # relative to this file
        x = "x_train"
        y = "y_train"

        [streams.cifar]
        dataset = "cifar"         # or data, x and y as above, where no other stream needs them
        batch_size = 64

        [streams.cifar.transforms]
        rotation_range = 15
        horizontal_flip = true
    """
    return parse(load(path), path.resolve().parent, overrides)


def load(path: Path) -> dict[str, object]:
    """The tables of augserver.toml as they stand there.

    Raises:
        ConfigError: It cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"config: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} is not TOML: {error}") from error


def parse(raw: Mapping[str, object], folder: Path, overrides: Mapping[str, object]) -> Config:
    """The config in a parsed augserver.toml; relative paths are relative to `folder`."""
    for key in raw:
        if key not in ("server", "datasets", "streams"):
            raise ConfigError(
                f"config: unknown table [{key}]; wanted [server], [datasets.NAME] or [streams.NAME]"
            )
    server: dict[str, Any] = dict(_table("server", raw.get("server", {})))
    for key in server:
        if key not in _SERVER_KEYS:
            wanted = ", ".join(_SERVER_KEYS)
            raise ConfigError(f"config: unknown key server.{key}; wanted one of {wanted}")
    server |= {key: value for key, value in overrides.items() if value is not None}
    for key in _LISTS:
        if key in server:
            server[key] = _texts(f"server.{key}", server[key])
    for key in ("allow_consumers", "allow_workers"):
        if key in server:
            server[key] = tuple(_absolute(folder, path) for path in server[key])
    if isinstance(server.get("key"), str) and server["key"]:
        server["key"] = _absolute(folder, server["key"])
    if "roots" in server:
        server["roots"] = tuple(_absolute(folder, root) for root in server["roots"])
    datasets = {}
    for name, table in _table("datasets", raw.get("datasets", {})).items():
        where = f"datasets.{name}"
        fields = _with_paths(where, _table(where, table), folder)
        with _at(where):
            datasets[name] = named.checked(fields)
    streams = {}
    for name, table in _table("streams", raw.get("streams", {})).items():
        where = f"streams.{name}"
        fields = _with_paths(where, _table(where, table), folder)
        with _at(where):
            streams[name] = _stream(fields, datasets)
    return Config(datasets=datasets, streams=streams, **server)


def _stream(fields: dict[str, object], datasets: Mapping[str, Mapping[str, object]]) -> Spec:
    if "dataset" not in fields:
        return Spec.from_wire(fields)
    dataset = named.table_of(fields.pop("dataset"), datasets)
    if "data" in fields:
        raise ConfigError(
            f"data: got {fields['data']!r:.200} beside dataset, which has its own; leave one out"
        )
    return Spec.from_wire(named.merged(dataset, fields))


@contextlib.contextmanager
def _at(where: str) -> Iterator[None]:
    """Say of what is wrong in which table it is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _with_paths(where: str, table: Mapping[str, object], folder: Path) -> dict[str, object]:
    fields = dict(table)
    if "data" in fields:
        data = _texts(f"{where}.data", fields["data"])
        fields["data"] = tuple(_absolute(folder, path) for path in data)
    return fields


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
