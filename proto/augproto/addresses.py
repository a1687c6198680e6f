"""Addresses of ZeroMQ's, as far as both ends have to agree on what one is."""

from __future__ import annotations

from augproto.errors import ConfigError

#: A port's number, from 1 on; ZeroMQ itself would take the rest of a larger one by 65536.
MAX_PORT = (1 << 16) - 1


def is_address(address: str) -> bool:
    """Whether this could be one: of a socket's file, or of a port."""
    if address.startswith("ipc://"):
        return address[len("ipc://") :][:1] not in ("", "*", "@")
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return (
        address.startswith("tcp://")
        and bool(host)
        and (port == "*" or (port.isdecimal() and int(port) <= MAX_PORT))
    )


def check_dialled(
    key: str,
    address: str,
    where: str = "as the server prints it, with a host that can be reached from here",
) -> None:
    """Refuse what nobody can be reached at.

    Args:
        key: What it is the value of.
        where: Which address is wanted.

    Raises:
        ConfigError: It is no address, or one that stands for several.
    """
    if not is_address(address) or (address.startswith("tcp://") and "*" in address):
        raise ConfigError(
            f"{key}: got {address!r:.200}; wanted ipc://PATH or tcp://HOST:PORT, {where}"
        )
