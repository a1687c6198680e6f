"""SIGTERM and SIGINT are the polite ways to end a server."""

from __future__ import annotations

import signal

from augserver.server import Server


def serve_until_signalled(server: Server) -> None:
    """Run the server until it stops by itself or one of the two signals arrives.

    As the first process of a container (PID 1) a program without handlers ignores SIGTERM, and
    `docker compose down` then takes ten seconds and a SIGKILL.
    """

    def on_signal(number: int, frame: object) -> None:
        server.stop(f"{signal.Signals(number).name} was received")

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
