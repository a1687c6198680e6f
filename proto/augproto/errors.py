"""Every error that augserver raises on purpose, in one tree.

::

    AugError
    ├── ConfigError (ValueError)         a value that cannot be served: at the door, nothing lost
    │   ├── UnknownStream                the server's config has no stream of that name
    │   └── NotAllowed                   a path or a transform outside what the config allows
    ├── NoRoom (OSError)                 the ring does not fit: sizes and remedy are in the message
    ├── ProtocolError                    never raised itself, only its leaves
    │   ├── LocalProtocolError           this side broke the rules of the conversation
    │   ├── RemoteProtocolError          the peer did: garbage, a bad field, a message out of turn
    │   │   └── VersionMismatch          the peer speaks another version of the protocol
    │   └── SessionLost                  the server does not know this conversation (any more)
    ├── SlotError                        a slot in the wrong state, or a stale sequence
    ├── ConnectTimeout (TimeoutError)    no server answered at the address within the deadline
    ├── BatchTimeout (TimeoutError)      the server lives but this batch did not come in time
    ├── ServerLost (ConnectionError)     the server was there and is silent or dead
    ├── WorkerError                      making a batch failed; carries sample and traceback
    ├── ConsumerClosed                   a consumer used after close()
    └── ForkedProcess                    a consumer used in a forked child of its owner

A message says what was attempted, what was got, what was wanted, and what to do.
"""

from __future__ import annotations


class AugError(Exception):
    """The root: catch this to catch everything that augserver raises on purpose."""


class ConfigError(AugError, ValueError):
    """A spec, a config file or an argument holds a value that cannot be served."""


class UnknownStream(ConfigError):
    """A stream was asked for by a name that the server's config does not define."""


class NotAllowed(ConfigError):
    """A path outside the server's roots, or a transform its config does not allow."""


class NoRoom(AugError, OSError):
    """Shared memory cannot hold the ring; the message gives sizes and the remedy."""


class ProtocolError(AugError):
    """Somebody broke the rules of the conversation; raised only as one of its leaves."""

    def __init__(self, *args: object) -> None:
        if type(self) is ProtocolError:
            raise TypeError("ProtocolError is abstract: raise one of its leaves")
        super().__init__(*args)


class LocalProtocolError(ProtocolError):
    """This side tried to say something that its state does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something malformed, oversized or out of turn."""


class VersionMismatch(RemoteProtocolError):
    """The peer speaks another version of the protocol."""


class SessionLost(ProtocolError):
    """The server does not know this conversation: it was restarted, or has retired a consumer that
    was silent for longer than the lease. The client answers by greeting anew; users see it only
    where that fails."""


class SlotError(AugError):
    """A slot was used against its state: committed twice, read after its release."""


class ConnectTimeout(AugError, TimeoutError):
    """No server answered at the address within the deadline."""


class BatchTimeout(AugError, TimeoutError):
    """The server answers, but a batch was not ready within the deadline."""


class ServerLost(AugError, ConnectionError):
    """The server answered before and is now silent, or its process has ended."""


class ConsumerClosed(AugError):
    """The consumer was closed; open a new one."""


class ForkedProcess(AugError):
    """A consumer belongs to the process that opened it; a forked child owns nothing."""


class WorkerError(AugError):
    """Making a batch failed in a worker.

    Attributes:
        epoch, step: The batch.
        sample: Index of the sample in its dataset, or None where no single one is to blame.
        path: Of the sample's file ("" where it has none).
        traceback: The worker's traceback as text ("" if the worker died without one).
    """

    def __init__(
        self,
        message: str,
        *,
        epoch: int,
        step: int,
        sample: int | None = None,
        path: str = "",
        traceback: str = "",
    ) -> None:
        super().__init__(message if not traceback else f"{message}\n\n{traceback}")
        self.epoch = epoch
        self.step = step
        self.sample = sample
        self.path = path
        self.traceback = traceback
