"""What an address is, and that a wrong one is refused with what is wanted."""

from __future__ import annotations

import pytest

from augproto.addresses import check_dialled, is_address
from augproto.errors import ConfigError


@pytest.mark.parametrize(
    "address",
    ["ipc:///run/a.sock", "tcp://host:5555", "tcp://127.0.0.1:65535", "tcp://[::1]:1", "tcp://*:*"],
)
def test_addresses_of_sockets_and_ports_are_addresses(address: str) -> None:
    assert is_address(address)


@pytest.mark.parametrize(
    "address",
    ["", "host:5555", "tcp://host", "tcp://:5555", "tcp://host:", "tcp://host:5x", "ipc://",
     "ipc://@a", "ipc://*", "tcp://host:65536", "tcp://host:99999", "udp://host:5555"],
)  # fmt: skip
def test_what_zeromq_would_refuse_or_misread_is_none(address: str) -> None:
    assert not is_address(address)
    with pytest.raises(ConfigError, match=r"address: got .*; wanted ipc://PATH or tcp://HOST:PORT"):
        check_dialled("address", address)


@pytest.mark.parametrize("address", ["tcp://*:5555", "tcp://host:*"])
def test_nobody_can_be_dialled_at_an_address_that_stands_for_several(address: str) -> None:
    assert is_address(address)
    with pytest.raises(ConfigError, match=r"server: got .*, as it says"):
        check_dialled("server", address, "as it says")
