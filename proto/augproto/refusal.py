"""Why a server lets nobody in: ZeroMQ itself would try again for ever, and say nothing."""

from __future__ import annotations

import struct
from typing import Any

import zmq

_EVENT = struct.Struct("=Hi")
_WATCHED = (
    zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


class Refusal:
    """Watches the greetings of one socket.

    Args:
        dealer: It, before it connects.
        keyed: Whether it shows a key.
        worker: Whether it is a worker's and no consumer's.
    """

    def __init__(self, dealer: Any, *, keyed: bool, worker: bool = False) -> None:
        self._dealer = dealer
        self._keyed = keyed
        self._allow = "allow_workers" if worker else "allow_consumers"
        self._options = "--key and --server-key" if worker else "key= and server_key="
        self._connected = False
        self.socket: Any = dealer.get_monitor_socket(_WATCHED)

    def reason(self) -> str | None:
        """Why the server at the other end does not talk to this program, if that is known."""
        found = None
        while True:
            try:
                event, value = _EVENT.unpack(self.socket.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return found
            if event == zmq.EVENT_CONNECTED:
                self._connected = True
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                found = (
                    f"its {self._allow} has not this key: add the .pub file there, and restart it; "
                    "or this is the address for others"
                )
            elif value == int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH):
                found = (
                    "it asks for no key there: leave key and server_key out"
                    if self._keyed
                    else f"it asks for a key: say {self._options} (or AUGSERVER_CLIENT_KEY and "
                    "AUGSERVER_SERVER_KEY); `augserver keygen` makes one"
                )

    def silence(self) -> str:
        """What it can mean that nothing was heard so far; after `reason`."""
        if not self._connected:
            return "cannot be reached: nobody listens there, or the host's name is not known here"
        if self._keyed:
            return "is reached and does not greet: is the server_key that was given this server's?"
        return "is reached and does not answer: it is stopped, or no augserver's"

    def close(self) -> None:
        """Watch no more; before the socket is closed."""
        self._dealer.disable_monitor()
        self.socket.close(0)
