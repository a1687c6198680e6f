"""Some workers that an engine is to place, as one value, and what has become of each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from augproto.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is wanted of an engine.

    Attributes:
        name: Tells fleets of one cluster apart; letters, digits, "_" and ".".
        workers: How many; None asks only how they are.
        server: tcp://HOST:PORT, where the server listens for workers, as the nodes see it.
        num_cpus: Cores that the engine sets aside for each.
        resources: Other resources of the engine's, by name, for each.
        key, server_key: Paths on the nodes.
        allow_transforms: Import paths of functions that may be run there.
        version: Of augserver, which the nodes have to have as well.
    """

    name: str = "augserver"
    workers: int | None = None
    server: str = ""
    num_cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    key: str | None = None
    server_key: str | None = None
    allow_transforms: tuple[str, ...] = ()
    version: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"fleet: got {self.name!r:.80}; wanted letters, digits, '_' and '.', 64 at most"
            )

    @property
    def digest(self) -> str:
        """Of all that its workers are told: another one wants other workers."""
        told = dataclasses.asdict(dataclasses.replace(self, workers=None))
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]

    def name_of(self, number: int) -> str:
        """What the engine calls its worker of that number, from 0 on."""
        return f"{self.name}-{number}-{self.digest}"

    def number_of(self, name: str) -> int | None:
        """The number of a worker of this fleet, whatever it was told; None of others."""
        found = re.fullmatch(rf"{re.escape(self.name)}-(\d{{1,6}})-[0-9a-f]{{8}}", name)
        return int(found[1]) if found else None

    def to_word(self) -> str:
        """As text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of_word(cls, word: str) -> Fleet:
        """From that text."""
        told = json.loads(word)
        told["allow_transforms"] = tuple(told["allow_transforms"])
        return cls(**told)


def resources_of(text: str) -> dict[str, float]:
    """What a flag says of an engine's resources, as JSON.

    Raises:
        ConfigError: It is no table of numbers.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    numbers = isinstance(found, dict) and all(
        type(amount) in (int, float) and amount >= 0 for amount in found.values()
    )
    if not numbers:
        raise ConfigError(
            f"resources: got {text!r:.200}; wanted JSON as `ray start --resources` has it, as in "
            '{"cpu_node": 1}'
        )
    return dict(found)


@dataclass(frozen=True, slots=True)
class Placed:
    """One worker of a fleet.

    Attributes:
        number: From 0 on.
        state: "enlisted" with its server, "dialling", "failed", "starting", "waiting" for room in
            the cluster, or "lost": the engine is starting it again.
        node: Where, as the engine and the host call it; empty where it is not placed.
        pid: Of its agent there.
        remark: What is wrong, if anything.
    """

    number: int
    state: str
    node: str = ""
    pid: int = 0
    remark: str = ""

    def __str__(self) -> str:
        where = f" on {self.node} (pid {self.pid})" if self.node else ""
        return f"worker {self.number}{where}: {self.state}" + (
            f"; {self.remark}" if self.remark else ""
        )
