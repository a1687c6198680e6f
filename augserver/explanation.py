"""What is said of a config, as values and in words; `augserver.explaining` finds it out."""

from __future__ import annotations

from dataclasses import dataclass

from augserver.config import NO_BOUND
from augserver.settings import VARIABLES


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of [server] in force.

    Attributes:
        source: Who said so: a flag, a variable of the environment, the file, or nobody (default).
    """

    key: str
    value: object
    source: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """What was found for a table [datasets.NAME] or [streams.NAME].

    Attributes:
        facts: In words, a line each.
        error: Why it cannot be served; None where it can, or where that cannot be told yet.
    """

    name: str
    facts: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """All of it."""

    file: str | None
    settings: tuple[Setting, ...]
    addresses: tuple[str, ...]
    keys: tuple[Table, ...]
    datasets: tuple[Table, ...]
    streams: tuple[Table, ...]
    warnings: tuple[str, ...]

    @property
    def errors(self) -> list[str]:
        """What keeps the server from starting, or streams and datasets from being served."""
        tables = [("server", each) for each in self.keys]
        tables += [("datasets", each) for each in self.datasets]
        tables += [("streams", each) for each in self.streams]
        return [f"{kind}.{each.name}: {each.error}" for kind, each in tables if each.error]


def lines(explanation: Explanation) -> list[str]:
    """The explanation for people."""
    said = [explanation.file or "no file: defaults, flags and environment alone", "", "[server]"]
    for setting in explanation.settings:
        said += [
            f"{setting.key} = {_shown(setting.value)}  ({setting.source})",
            f"    {setting.meaning}",
        ]
    said += ["", "listens at"]
    said += [f"    {address}" for address in explanation.addresses]
    for table in explanation.keys:
        said += [f"    {table.name}: {table.error or table.facts[0]}"]
    for kind in ("datasets", "streams"):
        tables: tuple[Table, ...] = getattr(explanation, kind)
        for table in tables:
            said += ["", f"[{kind}.{table.name}]"]
            said += [f"    {fact}" for fact in table.facts]
            said += [f"    ERROR: {table.error}"] if table.error else []
    said += ["", *(f"warning: {warning}" for warning in explanation.warnings)]
    variables = ", ".join(sorted(VARIABLES.values()))
    return [*said, f"variables that say something here when they are set: {variables}"]


def _shown(value: object) -> str:
    if value is None or value == NO_BOUND:
        return "unset"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
