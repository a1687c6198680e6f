"""Where a server's settings come from: a flag wins over the environment, which wins over the file.

The environment is for what containers set: where the server listens, how many workers it has, what
may be read and how much may be taken. Everything else stands in the file. A variable that is set
to nothing, as compose files do, says nothing.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from augproto.errors import ConfigError
from augserver import runtime
from augserver.config import Config, load, parse

#: Read where neither a flag nor the environment names a file.
CONFIG_FILE = Path("augserver.toml")
CONFIG_VARIABLE = "AUGSERVER_CONFIG"
#: The variable of a key of [server]; several texts are parted by blanks.
VARIABLES = {
    "listen": "AUGSERVER_LISTEN",
    "listen_workers": "AUGSERVER_LISTEN_WORKERS",
    "key": "AUGSERVER_KEY",
    "allow_consumers": "AUGSERVER_ALLOW_CONSUMERS",
    "allow_workers": "AUGSERVER_ALLOW_WORKERS",
    "insecure": "AUGSERVER_INSECURE",
    "metrics": "AUGSERVER_METRICS",
    "workers": "AUGSERVER_WORKERS",
    "roots": "AUGSERVER_ROOTS",
    "max_consumers": "AUGSERVER_MAX_CONSUMERS",
    "max_streams": "AUGSERVER_MAX_STREAMS",
    "max_ring_bytes": "AUGSERVER_MAX_RING_BYTES",
    "max_total_bytes": "AUGSERVER_MAX_TOTAL_BYTES",
    "max_upload_bytes": "AUGSERVER_MAX_UPLOAD_BYTES",
    "cache_bytes": "AUGSERVER_CACHE_BYTES",
}
_TEXTS = ("listen", "listen_workers", "allow_consumers", "allow_workers", "roots")
#: Paths that a flag or the environment says are relative to the working directory, not to the file.
_PATHS = ("key", "allow_consumers", "allow_workers", "roots")
_SWITCHES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Settings:
    """A config, and who said what of it.

    Attributes:
        config: What is in force.
        file: What was read, if anything.
        sources: For keys of [server] that somebody has set, who: "flag --KEY", "environment NAME"
            or "file". All others have their default.
    """

    config: Config
    file: Path | None
    sources: Mapping[str, str]


def gather(
    file: Path | None, flags: Mapping[str, object], environ: Mapping[str, str] = os.environ
) -> Settings:
    """Put together what a server was told.

    Args:
        file: The flag that names augserver.toml, if it was given.
        flags: Keys of [server] with what flags say; None where one was not given.
        environ: The environment.

    Raises:
        ConfigError: Of a key, its value and what is allowed; where the environment says it, with
            the variable's name.
    """
    if file is None and environ.get(CONFIG_VARIABLE):
        file = Path(environ[CONFIG_VARIABLE])
    if file is None and CONFIG_FILE.exists():
        file = CONFIG_FILE
    told: dict[str, object] = {}
    sources: dict[str, str] = {}
    for key, variable in VARIABLES.items():
        if environ.get(variable, "").strip():
            told[key] = _value(key, variable, environ[variable])
            sources[key] = f"environment {variable}"
    for key, value in flags.items():
        if value is not None:
            told[key] = value
            sources[key] = f"flag --{key.replace('_', '-')}"
    for key in _PATHS:
        if key in told:
            told[key] = _absolute(told[key])
    raw = {} if file is None else load(file)
    folder = Path.cwd() if file is None else file.resolve().parent
    try:
        config = parse(raw, folder, told)
    except ConfigError as error:
        raise _with_variable(error, sources) from error
    table = raw.get("server")
    if isinstance(table, Mapping):
        sources = dict.fromkeys(table, "file") | sources
    if not config.listen:
        config = dataclasses.replace(config, listen=(runtime.default_address(),))
    return Settings(config, file, sources)


def _absolute(said: object) -> object:
    if isinstance(said, str):
        return os.path.abspath(os.path.expanduser(said))
    return tuple(map(_absolute, said)) if isinstance(said, (list, tuple)) else said


def _value(key: str, variable: str, text: str) -> object:
    if key in _TEXTS:
        return tuple(text.split())
    if key in ("key", "metrics"):
        return text.strip()
    if key == "insecure":
        if text.strip().lower() not in _SWITCHES:
            raise ConfigError(f"{variable}: got {text!r:.80}; wanted true or false")
        return _SWITCHES[text.strip().lower()]
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{variable}: got {text!r:.80}; wanted a whole number") from error


def _with_variable(error: ConfigError, sources: Mapping[str, str]) -> ConfigError:
    """Say which variable a value that is refused has come from."""
    where = str(error).partition(":")[0].removeprefix("server.")
    source = sources.get(where, "")
    if not source.startswith("environment"):
        return error
    return ConfigError(f"{error} (from the {source})")
