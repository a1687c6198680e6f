"""The server's end of a worker's pipe, beside a plain Connection at the other."""

from __future__ import annotations

import os
import threading
from multiprocessing import Pipe as connections
from multiprocessing.connection import Connection

import pytest

from augproto.errors import RemoteProtocolError
from augserver.pipe import Pipe


@pytest.fixture
def ends() -> tuple[Pipe, Connection]:
    mine, theirs = connections()
    return Pipe(mine), theirs


def test_messages_go_both_ways_whole(ends: tuple[Pipe, Connection]) -> None:
    pipe, worker = ends
    for frame in (b"", b"one", b"x" * 100_000):
        pipe.send(frame)
        assert worker.recv_bytes() == frame
    for frame in (b"", b"two", b"y" * 50_000):
        worker.send_bytes(frame)
    assert b"".join(pipe.receive()) == b"two" + b"y" * 50_000
    pipe.close()
    worker.close()


def test_a_worker_that_does_not_read_makes_nobody_wait(ends: tuple[Pipe, Connection]) -> None:
    pipe, worker = ends
    sent = [bytes([i]) * 300_000 for i in range(10)]
    for frame in sent:
        pipe.send(frame)  # returns, though the pipe is full
    assert pipe.pending
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.extend(worker.recv_bytes() for _ in sent))
    reader.start()
    while pipe.pending:
        pipe.flush()
    reader.join(30)
    assert got == sent
    pipe.close()
    worker.close()


def test_a_message_that_comes_by_halves_is_kept_until_it_is_whole(
    ends: tuple[Pipe, Connection],
) -> None:
    pipe, worker = ends
    os.write(worker.fileno(), b"\0\0\0\5he")
    assert pipe.receive() == []
    os.write(worker.fileno(), b"llo\0\0\0\1")
    assert pipe.receive() == [b"hello"]
    os.write(worker.fileno(), b"!")
    assert pipe.receive() == [b"!"]
    pipe.close()
    worker.close()


def test_an_absurd_length_is_refused_before_anything_is_kept(
    ends: tuple[Pipe, Connection],
) -> None:
    pipe, worker = ends
    os.write(worker.fileno(), b"\x7f\xff\xff\xff")
    with pytest.raises(RemoteProtocolError, match="2147483647 bytes"):
        pipe.receive()
    pipe.close()
    worker.close()


def test_the_end_of_the_other_end_is_noticed_after_its_last_words(
    ends: tuple[Pipe, Connection],
) -> None:
    pipe, worker = ends
    assert pipe.receive() == []
    assert not pipe.ended
    worker.send_bytes(b"last words")
    worker.close()
    assert pipe.receive() == [b"last words"]
    assert pipe.ended
    pipe.close()


def test_a_dead_worker_is_written_to_without_an_error(ends: tuple[Pipe, Connection]) -> None:
    pipe, worker = ends
    worker.close()
    pipe.send(b"to nobody")
    assert not pipe.pending
    assert pipe.receive() == []
    pipe.close()
