"""An address that cannot be bound is named with the key that has it, and with what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from augproto.errors import ConfigError
from augserver.config import Config
from augserver.server import Server


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield f"tcp://127.0.0.1:{other.getsockname()[1]}"


@pytest.mark.parametrize("key", ["listen", "listen_workers"])
def test_a_port_that_is_taken_is_named_with_its_key(key: str, taken: str) -> None:
    config = Config(workers=0, **({key: (taken,)}))  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError,
        match=rf"^{key}: cannot bind {taken}: Address already in use; another program, or another",
    ):
        Server(config)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tcp://nosuchhost:0", "No such device; wanted an address or interface of this machine"),
        ("tcp://192.0.2.77:0", "wanted an address of this machine, or \\* for all of them"),
    ],
)
def test_a_host_that_is_another_s_is_told_from_one_s_own(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^listen: cannot bind {address}: .*{words}"):
        Server(Config(workers=0, listen=(address,), insecure=True))


def test_a_server_knows_where_workers_dial_in() -> None:
    config = Config(workers=0, listen_workers=("tcp://127.0.0.1:*",))
    with Server(config) as server:
        (address,) = server.workers_addresses
        assert address.startswith("tcp://127.0.0.1:")
        assert address not in server.addresses
