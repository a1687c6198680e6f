"""A server of an earlier minor version is asked for nothing that it does not know."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import pytest
import zmq

from augclient import Consumer
from augproto.codec import decode, encode
from augproto.errors import ConfigError
from augproto.messages import VERSION, Fault, Hello, Open, Welcome


@pytest.mark.parametrize(("version", "fields"), [((1, 2), 3), (VERSION, 5)])
def test_a_slot_of_several_batches_is_asked_for_where_the_server_knows_what_that_is(
    tmp_path: Path, version: tuple[int, ...], fields: int
) -> None:
    address = f"ipc://{tmp_path}/s"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, 20_000)
        router.bind(address)
        with ThreadPoolExecutor(1) as pool:
            consumer = pool.submit(Consumer, stream="shapes", address=address)
            identity, hello = router.recv_multipart()
            assert isinstance(decode(hello), Hello)
            router.send_multipart([identity, encode(Welcome(version, 1, 30.0))])
            identity, wish = router.recv_multipart()
            assert isinstance(decode(wish), Open)
            assert len(msgpack.unpackb(wish)) == 1 + fields
            router.send_multipart([identity, encode(Fault("ConfigError", "that will do"))])
            with pytest.raises(ConfigError, match="that will do"):
                consumer.result(20)
