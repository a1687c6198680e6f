"""`python -m augserver.private FD WORKERS`: the server behind a client that named no address.

Started by `augclient.local`, never by hand. FD is the inherited end of a socket pair.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from multiprocessing.connection import Connection

from augproto.codec import encode
from augproto.errors import AugError
from augproto.faults import fault_of
from augserver import backend
from augserver.config import Config, cores
from augserver.server import Server
from augserver.signals import serve_until_signalled


def main(fd: int, workers: int) -> None:
    """Serve the program at the other end of `fd` until it ends. workers < 0: one for each core."""
    logging.basicConfig(level=logging.WARNING, format="augserver: %(message)s")
    config = Config(workers=workers if workers >= 0 else cores(), private=True)
    pipe = Connection(fd)
    try:
        backend.check()  # its workers would find out, one after the other
        server = Server(config, pipe)
    except AugError as error:
        with contextlib.suppress(OSError):
            pipe.send_bytes(encode(fault_of(error)))  # it is told to who asks for the server
        sys.exit(1)
    with server:
        serve_until_signalled(server)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
