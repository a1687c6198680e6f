"""Addresses that a server listens at: who can reach them, and what is asked of whom there."""

from __future__ import annotations

import ipaddress
import os
import re

from augproto.addresses import MAX_PORT, is_address
from augproto.errors import ConfigError

#: Bytes of a path in a socket's address.
_MAX_PATH = 107
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\[\]:/*\s]+):([0-9]{1,5})")


def _is_loopback(address: str) -> bool:
    """Whether nobody beyond this machine can reach it; what cannot be proven is not so.

    A name is not looked up, but for the one that stands for this machine everywhere.
    """
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def asks_for_keys(address: str, *, insecure: bool, encrypt_loopback: bool) -> bool:
    """Whether whoever comes in there has to show a key."""
    if insecure or address.startswith("ipc://"):
        return False
    return encrypt_loopback or not _is_loopback(address)


def is_host_and_port(text: str) -> bool:
    """Whether this is HOST:PORT, as HTTP servers listen at."""
    found = _HOST_AND_PORT.fullmatch(text)
    return found is not None and int(found[2]) <= MAX_PORT


def check(key: str, address: str) -> None:
    """Refuse what is no address.

    Args:
        key: What it is the value of.

    Raises:
        ConfigError: It is none.
    """
    if address.startswith("ipc://") and is_address(address):
        if len(os.fsencode(address)) - len("ipc://") > _MAX_PATH:
            raise ConfigError(f"{key}: {address!r}: a socket's path has at most {_MAX_PATH} bytes")
        return
    if not is_address(address):
        raise ConfigError(
            f"{key}: got {address!r}; wanted ipc://PATH or tcp://HOST:PORT, as in "
            "tcp://127.0.0.1:5555, or tcp://*:5555 for all interfaces; ports end at 65535"
        )


def check_keys(key: str, address: str, secret: str, allow: str, allowed: tuple[str, ...]) -> None:
    """Refuse an address that others than this machine can reach, if their keys are not known.

    Args:
        secret: The path of the server's secret key, or "".
        allow: The setting of those who may come in.
        allowed: Its value.

    Raises:
        ConfigError: Something is missing; it says what to do.
    """
    missing = [name for name, value in (("key", secret), (allow, allowed)) if not value]
    if missing:
        raise ConfigError(
            f"{key}: {address!r} can be reached by others than this machine, and there is no "
            f"{' and no '.join(missing)}. To do: `augserver keygen server` and name its secret "
            f'file (key = "server.key"); a pair for each guest, whose public file is named in '
            f"{allow}; or, where everybody who can connect may read and train: insecure = true"
        )
