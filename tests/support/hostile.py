"""A server that cannot be trusted, and a client that meets it."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fuzz
import numpy as np
import zmq

from augclient.link import Link
from augproto.errors import AugError
from augproto.layout import Layout
from augproto.messages import Open
from augproto.ring import Header, Ring
from augproto.segment import PREFIX, Segment

#: Seconds that a client may wait for a stream, and for a batch.
CONNECT, BATCH = 0.5, 0.15
#: ... and how much longer its error may take on a busy machine: a hang is longer.
LATE = 20.0


class Hostile:
    """Answers every greeting with the next of a seeded row of conversations."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.address = f"ipc://{folder}/hostile.sock"
        self.frames = 0
        self.last: list[bytes] = []
        self._rng = random.Random(seed)
        layout = Layout.of(4, [("x", "<f4", (1,))])
        self._segment = Segment(f"{PREFIX}{os.getuid()}-{os.getpid():x}facade-1", 1 << 16)
        ring = Ring(self._segment.map(), layout, 4)
        for slot in range(4):
            header = Header(1, 0, slot, slot + 1, 4)
            ring.claim(slot, header)
            ring.commit(slot, header)
        self._over = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(self.address)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        known: set[bytes] = set()
        while not self._over.is_set():
            if not self._router.poll(20):
                continue
            identity = self._router.recv_multipart(zmq.NOBLOCK)[0]
            if identity in known:
                continue
            known.add(identity)
            self.last = fuzz.said_to_a_client(self._rng, self._segment.name)
            with contextlib.suppress(zmq.ZMQError):
                for frame in self.last:
                    self._router.send_multipart([identity, frame], zmq.NOBLOCK)
                    self.frames += 1

    def close(self) -> None:
        """End it."""
        self._over.set()
        self._thread.join(30)
        self._context.destroy(linger=0)
        self._segment.close()


@contextlib.contextmanager
def hostile(seed: int, folder: Path) -> Iterator[Hostile]:
    """Such a server until the end of the block."""
    server = Hostile(seed, folder)
    try:
        yield server
    finally:
        server.close()


def meet(server: Hostile) -> str:
    """Open a stream of it and take batches; returns how it ended, which must be typed and soon."""
    started = time.monotonic()
    try:
        link = Link(server.address, Open("s", None, None), writable=False, connect_timeout=CONNECT)
        try:
            for step in range(3):
                arrays = link.fetch((0, step), BATCH)
                assert all(isinstance(array, np.ndarray) for array in arrays.values())
        finally:
            link.close()
    except AugError as error:
        ended = type(error).__name__
    else:
        ended = "served"
    took = time.monotonic() - started
    assert took < CONNECT + 3 * BATCH + LATE, f"it took {took:.1f} s: {server.last!r:.2000}"
    return ended
