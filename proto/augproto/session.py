"""One consumer's conversation as a state machine, without any I/O; both ends run this code.

Theory of operation. Rule 1: every transition is in TRANSITIONS; an absent key is the protocol
error. Rule 2: nothing here knows a socket, a thread or a clock; bytes come in and go out, the time
is an argument. Rule 3: whoever receives something that the table forbids says so
(RemoteProtocolError): a server answers it with a Fault and goes on, a consumer ends the
conversation; whoever tries to *send* such a thing gets LocalProtocolError and nothing is sent.

The consumer speaks first, and it alone decides what is made: the server announces nothing that
no `Want` has named. The consumer's side holds all the state that matters (which steps of which
epoch), so a conversation that is lost can be taken up by a new one at the exact next step.
"""

from __future__ import annotations

import enum

from augproto.codec import decode, encode
from augproto.errors import LocalProtocolError, RemoteProtocolError, VersionMismatch
from augproto.messages import (
    VERSION,
    Announce,
    AreFiles,
    AskStatus,
    Bye,
    Close,
    Fault,
    FilesAre,
    Filled,
    Heartbeat,
    Hello,
    Message,
    Offer,
    Open,
    Opened,
    Piece,
    Room,
    Status,
    Taken,
    Upload,
    Walk,
    Walked,
    Want,
    Welcome,
)

#: Seconds of saying nothing after which a consumer says that it lives.
BEAT = 1.0


class Role(enum.Enum):
    """Which end of the conversation this is."""

    CONSUMER = "consumer"
    SERVER = "server"


class State(enum.Enum):
    """How far the conversation has come; the same on both ends, give or take what is under way."""

    IDLE = "idle"  #: nothing was said
    GREETING = "greeting"  #: Hello is out
    READY = "ready"  #: versions agree, no stream
    OFFERING = "offering"  #: arrays are to be handed over: the server makes room, or takes them in
    LOOKING = "looking"  #: the server's files are looked at
    OPENING = "opening"  #: a stream was asked for
    OPEN = "open"  #: batches are wanted, announced, released
    CLOSED = "closed"  #: over


#: These are owed an answer; Want is answered when a batch is ready.
_QUESTIONS = (Hello, Open, Offer, Upload, Filled, Walk, AreFiles, AskStatus, Heartbeat)

#: Who may say what when, and where that leads.
TRANSITIONS: dict[Role, dict[State, dict[type, State]]] = {
    Role.CONSUMER: {
        State.IDLE: {Hello: State.GREETING},
        State.GREETING: {Close: State.CLOSED},
        State.READY: {
            Open: State.OPENING,
            Offer: State.OFFERING,
            Upload: State.READY,
            Filled: State.OFFERING,
            Walk: State.LOOKING,
            AreFiles: State.LOOKING,
            AskStatus: State.READY,
            Heartbeat: State.READY,
            Close: State.CLOSED,
        },
        State.OFFERING: {Heartbeat: State.OFFERING, Close: State.CLOSED},
        State.LOOKING: {Heartbeat: State.LOOKING, Close: State.CLOSED},
        State.OPENING: {Heartbeat: State.OPENING, Close: State.CLOSED},
        State.OPEN: {
            Want: State.OPEN,
            AskStatus: State.OPEN,
            Heartbeat: State.OPEN,
            Close: State.CLOSED,
        },
        State.CLOSED: {},
    },
    Role.SERVER: {
        State.IDLE: {Fault: State.CLOSED},
        State.GREETING: {Welcome: State.READY, Fault: State.CLOSED, Bye: State.CLOSED},
        State.READY: {
            Taken: State.READY,
            Status: State.READY,
            Heartbeat: State.READY,
            Fault: State.READY,
            Bye: State.CLOSED,
        },
        State.OFFERING: {
            Room: State.READY,
            Taken: State.OFFERING,
            Heartbeat: State.OFFERING,
            Status: State.OFFERING,
            Fault: State.READY,
            Bye: State.CLOSED,
        },
        State.LOOKING: {
            Walked: State.READY,
            FilesAre: State.READY,
            Heartbeat: State.LOOKING,
            Status: State.LOOKING,
            Fault: State.READY,
            Bye: State.CLOSED,
        },
        State.OPENING: {
            Opened: State.OPEN,
            Heartbeat: State.OPENING,
            Status: State.OPENING,
            Fault: State.READY,
            Bye: State.CLOSED,
        },
        State.OPEN: {
            Piece: State.OPEN,
            Announce: State.OPEN,
            Fault: State.OPEN,
            Status: State.OPEN,
            Heartbeat: State.OPEN,
            Bye: State.CLOSED,
        },
        State.CLOSED: {},
    },
}


class Session:
    """One end of one conversation.

    Args:
        role: Which end.
        now: The time, in seconds of any monotonic clock; all later times are of the same.
        beat: Seconds of saying nothing after which a consumer says Heartbeat.
    """

    def __init__(self, role: Role, now: float, *, beat: float = BEAT) -> None:
        self.role = role
        self.peer = Role.SERVER if role is Role.CONSUMER else Role.CONSUMER
        self.state = State.IDLE
        self.beat = beat
        self.heard_at = now  #: when the peer last said anything
        self._spoke_at = now
        self._unanswered_since: float | None = None

    def send(self, message: Message, now: float) -> bytes:
        """Say it: the bytes for the peer."""
        allowed = TRANSITIONS[self.role][self.state]
        if type(message) not in allowed:
            raise LocalProtocolError(self._complaint("cannot send", message, allowed))
        frame = encode(message)
        self.state = allowed[type(message)]
        self._spoke_at = now
        owes = isinstance(message, _QUESTIONS)
        if owes and self._unanswered_since is None:
            self._unanswered_since = now
        return frame

    def receive(self, frame: bytes, now: float) -> Message:
        """Take what the peer said, checked against the table and, in a Hello, the version."""
        message = decode(frame)
        allowed = TRANSITIONS[self.peer][self.state]
        if type(message) not in allowed:
            raise RemoteProtocolError(self._complaint("got", message, allowed))
        if isinstance(message, (Hello, Welcome)) and message.version[:1] != VERSION[:1]:
            theirs = ".".join(map(str, message.version))
            raise VersionMismatch(
                f"the {self.peer.value} speaks protocol {theirs}, this end "
                f"{VERSION[0]}.{VERSION[1]}: install the same augserver on both sides"
            )
        self.state = allowed[type(message)]
        self.heard_at = now
        self._unanswered_since = None
        return message

    def due(self, now: float) -> float:
        """Seconds until a heartbeat is due; 0 or less means now. (For the consumer.)"""
        return self._spoke_at + self.beat - now

    def silence(self, now: float) -> float:
        """For how many seconds the peer has owed an answer.

        Counted from a question, not from the last word: a process that was stopped for an hour
        finds the answer in its socket and does not take its own sleep for the peer's.
        """
        return 0.0 if self._unanswered_since is None else now - self._unanswered_since

    def _complaint(self, verb: str, message: Message, allowed: dict[type, State]) -> str:
        wanted = ", ".join(sorted(kind.__name__ for kind in allowed)) or "nothing"
        return (
            f"{self.role.value}: {verb} {type(message).__name__} while {self.state.value}; "
            f"wanted {wanted}"
        )
