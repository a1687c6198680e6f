"""What can be said, as frozen values, and their only form as bytes. Only this file imports msgpack.

A message is a msgpack array: its code, then its fields in the order of the class. Every field is
checked against its annotation on arrival (type, range, length), so that behind `decode` nobody
looks at raw data. Fields at the end may be missing where they have defaults: that is how a minor
version adds one. Everything else that deviates is refused with the field's name.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgpack

from augproto.errors import RemoteProtocolError

#: Both ends must agree on the major number; a minor one only adds fields with defaults.
VERSION = (1, 1)
#: No message is longer: a spec with statistics of 2 MiB fits, payload never travels.
MAX_FRAME_BYTES = 8 << 20
#: A user's function with all that it closes over; it goes through pipes of one machine only.
MAX_FUNCTION_BYTES = 256 << 20
MAX_PIPE_BYTES = MAX_FUNCTION_BYTES + (1 << 20)
#: Longest text (a worker's traceback is cut to it) and longest list in a message.
MAX_TEXT = 64 << 10
MAX_LIST = 64 << 10
#: A frame up to this is decoded as it is. In a longer one lists and maps are counted while they are
#: made: eight million empty lists fit into a frame, and half a gigabyte of them into memory.
SMALL_FRAME = 64 << 10
#: Elements of all lists and maps of a frame: a Want of as many runs and releases as can be.
MAX_ELEMENTS = 10 * MAX_LIST
#: Bad samples that a status lists by path; it counts all of them.
MAX_BAD = 100
_MAX_INT = 2**64 - 1


class Run(NamedTuple):
    """`steps` steps of an epoch, from `first` on."""

    epoch: int
    first: int
    steps: int


class Place(NamedTuple):
    """Where a batch is to be written: the slot, at this sequence."""

    epoch: int
    step: int
    slot: int
    sequence: int


class Entry(NamedTuple):
    """Where a whole batch lies, and how many samples it has."""

    epoch: int
    step: int
    slot: int
    sequence: int
    samples: int


class Release(NamedTuple):
    """A slot whose last view is gone."""

    slot: int
    sequence: int


class Bad(NamedTuple):
    """A sample that could not be made, where the stream's policy goes on without it.

    `path` is its file's, or empty for samples of an array.
    """

    epoch: int
    step: int
    sample: int
    path: str
    reason: str


class ArraySpec(NamedTuple):
    """An array by name, dtype and shape; without its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Source(NamedTuple):
    """Where an array of a dataset lies on this machine: in a file, from `offset` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Consumer: opens the conversation."""

    version: tuple[int, ...]
    program: str
    pid: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """Server: the version fits. `lease` seconds of silence make a consumer silent."""

    version: tuple[int, ...]
    pid: int
    lease: float


@dataclass(frozen=True, slots=True)
class Open:
    """Consumer: asks for a stream, by its name in the server's config or by a spec of its own."""

    stream: str | None
    spec: dict[str, object] | None
    slots: int | None
    changes: dict[str, object] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opened:
    """Server: the stream is there; its slots are in `segment`.

    `structure` maps x, y, sample_weight to the names of the arrays in the layout. `class_names`
    are the classes of a dataset of files, by number.
    """

    stream: int
    segment: str
    slots: int
    batch_size: int
    arrays: tuple[ArraySpec, ...]
    structure: dict[str, object]
    steps: int
    samples: int
    shuffle: bool
    seed: int
    fingerprint: str
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Want:
    """Consumer: all that it wants and has not received, in order; it replaces every earlier Want.

    This is the credit: the server announces nothing that was not wanted. `seen` is the number of
    the last announcement or fault that the consumer had received, so that what crossed on the
    wire is not made twice. `released` slots are free again.
    """

    runs: tuple[Run, ...]
    seen: int
    released: tuple[Release, ...]


@dataclass(frozen=True, slots=True)
class Announce:
    """Server: these batches are whole; their slots belong to the consumer until it releases.

    `bad` lists the samples that those batches had to do without.
    """

    number: int
    entries: tuple[Entry, ...]
    bad: tuple[Bad, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """Server: something asked for cannot be had. `kind` names a leaf of the error tree.

    With a `number` it concerns one batch (epoch, step); without, the conversation.
    """

    kind: str
    message: str
    number: int = 0
    epoch: int = 0
    step: int = 0
    sample: int | None = None
    traceback: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Consumer: I live. The server answers with the same."""


@dataclass(frozen=True, slots=True)
class Close:
    """Consumer: done; the ring may go."""


@dataclass(frozen=True, slots=True)
class Bye:
    """Server: ends; no batch will come any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskStatus:
    """Consumer: how are you?"""


@dataclass(frozen=True, slots=True)
class Status:
    """Server: names of streams, consumers attached, workers alive and wanted, batches made.

    `bad` are samples that could not be made, each once, the first `MAX_BAD` of `bad_samples`.
    """

    streams: tuple[str, ...]
    consumers: int
    workers_alive: int
    workers_wanted: int
    batches: int
    restarts: int
    bad_samples: int = 0
    bad: tuple[Bad, ...] = ()


@dataclass(frozen=True, slots=True)
class Define:
    """Server to worker: everything needed to make a stream's batches.

    `roots` are the folders below which its files must lie, if a consumer has named them.
    """

    stream: int
    spec: dict[str, object]
    seed: int
    sources: tuple[Source, ...]
    segment: str
    slots: int
    roots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forget:
    """Server to worker: the stream is over, its memory may be unmapped."""

    stream: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Server to worker: make these batches, in this order."""

    stream: int
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker to server: up and warm."""

    pid: int


@dataclass(frozen=True, slots=True)
class Done:
    """Worker to server: these batches are whole; it took `seconds` for all of them.

    `bad` lists the samples that they had to do without.
    """

    stream: int
    entries: tuple[Entry, ...]
    seconds: float
    bad: tuple[Bad, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """Worker to server: this batch cannot be made; the worker lives."""

    stream: int
    place: Place
    message: str
    sample: int | None
    traceback: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Function:
    """A private server's client: a function of the user's own, by cloudpickle.

    Only ever read from the inherited pipe of a private server and passed on to its workers: same
    user, same machine, no socket. `path` is the program's sys.path, so that what the function
    imports is found as in the program itself.
    """

    name: str
    code: bytes
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """A private server's client: has arrays to hand over; `name` is their fingerprint."""

    name: str
    arrays: tuple[ArraySpec, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """Private server: write the arrays to these places; none means that they are here already."""

    name: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """A private server's client: the arrays named so are written."""

    name: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A private server's client: one offer of these arrays is over; with the last, they go."""

    name: str


@dataclass(frozen=True, slots=True)
class Scale:
    """A private server's client: wants at least so many workers."""

    workers: int


@dataclass(frozen=True, slots=True)
class Serving:
    """Private server: listens at this address; the answer to everything that needs no other."""

    address: str


#: The codes on the wire. A code is never used again for something else.
CODES: dict[int, type] = {
    1: Hello, 2: Welcome, 3: Open, 4: Opened, 5: Want, 6: Announce, 7: Fault, 8: Heartbeat,
    9: Close, 10: Bye, 11: AskStatus, 12: Status,
    32: Define, 33: Forget, 34: Assign, 35: Ready, 36: Done, 37: Failed,
    48: Function, 49: Offer, 50: Room, 51: Filled, 52: Scale, 53: Serving,
    54: Withdraw,
}  # fmt: skip

Message = (
    Hello | Welcome | Open | Opened | Want | Announce | Fault | Heartbeat | Close | Bye
    | AskStatus | Status | Define | Forget | Assign | Ready | Done | Failed
    | Function | Offer | Room | Filled | Withdraw | Scale | Serving
)  # fmt: skip

_CODE_OF = {cls: code for code, cls in CODES.items()}
_NAMES = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in CODES.values()}

_Check = Callable[[Any], Any]
M = TypeVar("M")


class _Bad(Exception):
    """A field that does not fit; the text says what was wanted."""


def _whole(value: Any) -> Any:
    if type(value) is not int or not 0 <= value <= _MAX_INT:
        raise _Bad("a whole number from 0 to 2**64 - 1")
    return value


def _real(value: Any) -> Any:
    if type(value) is not float and type(value) is not int:
        raise _Bad("a number")
    return float(value)


def _exactly(kind: type, wanted: str) -> _Check:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise _Bad(wanted)
        return value

    return check


def _text(value: Any) -> Any:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise _Bad(f"text of at most {MAX_TEXT} characters")
    return value


def _table(value: Any) -> Any:
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise _Bad("a map with text keys")
    return value


def _list_of(element: _Check) -> _Check:
    def check(value: Any) -> Any:
        if type(value) is not list or len(value) > MAX_LIST:
            raise _Bad(f"a list of at most {MAX_LIST}")
        return tuple([element(v) for v in value])

    return check


def _row_of(row: type) -> _Check:
    checks = [_check_of(kind) for kind in typing.get_type_hints(row).values()]
    make: Callable[..., Any] = row

    def check(value: Any) -> Any:
        if type(value) is not list or len(value) != len(checks):
            raise _Bad(f"a list of the {len(checks)} fields of {row.__name__}")
        return make(*[c(v) for c, v in zip(checks, value, strict=True)])

    return check


def _optional(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


def _check_of(annotation: Any) -> _Check:
    """Compile a field's annotation into the function that checks and converts its value."""
    simple: dict[Any, _Check] = {
        int: _whole,
        float: _real,
        str: _text,
        bool: _exactly(bool, "true or false"),
        bytes: _exactly(bytes, "bytes"),
    }
    if annotation in simple:
        return simple[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return _list_of(_check_of(arguments[0]))
    if origin is dict:
        return _table
    if origin in (typing.Union, types.UnionType):
        (kind,) = (a for a in arguments if a is not type(None))
        return _optional(_check_of(kind))
    return _row_of(annotation)


_CHECKS = {
    cls: tuple(_check_of(kind) for kind in typing.get_type_hints(cls).values())
    for cls in CODES.values()
}
_REQUIRED = {
    cls: sum(
        f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        for f in dataclasses.fields(cls)
    )
    for cls in CODES.values()
}


def encode(message: Message) -> bytes:
    """The message as bytes."""
    cls = type(message)
    fields = [_CODE_OF[cls], *(getattr(message, name) for name in _NAMES[cls])]
    return typing.cast(bytes, msgpack.packb(fields, use_bin_type=True))


def decode(frame: bytes, *, limit: int = MAX_FRAME_BYTES) -> Message:
    """The message that a peer's bytes hold, every field checked.

    Args:
        limit: Bytes that are looked at; pipes between a program and its own server have a larger
            one than sockets.

    Raises:
        RemoteProtocolError: It is none; the text names the field, what was got and wanted.
    """
    if len(frame) > limit:
        raise RemoteProtocolError(f"a frame of {len(frame)} bytes; wanted at most {limit}")
    try:
        count = _Count() if len(frame) > SMALL_FRAME else None
        raw = msgpack.unpackb(
            frame,
            use_list=True,
            raw=False,
            strict_map_key=False,
            max_array_len=min(len(frame), MAX_ELEMENTS),
            max_map_len=min(len(frame), MAX_ELEMENTS),
            list_hook=count,
            object_hook=count,
        )
    except Exception as error:  # msgpack raises a dozen kinds on garbage
        raise RemoteProtocolError(f"a frame that is not msgpack: {error}") from error
    if type(raw) is not list or not raw or type(raw[0]) is not int or raw[0] not in CODES:
        raise RemoteProtocolError(f"a frame that is no message: {reprlib.repr(raw):.120}")
    cls = CODES[raw[0]]
    values, checks, names = raw[1:], _CHECKS[cls], _NAMES[cls]
    if not _REQUIRED[cls] <= len(values) <= len(checks):
        raise RemoteProtocolError(
            f"{cls.__name__}: got {len(values)} fields; wanted {len(checks)}: {', '.join(names)}"
        )
    checked = []
    for check, name, value in zip(checks, names, values, strict=False):
        try:
            checked.append(check(value))
        except _Bad as bad:
            raise RemoteProtocolError(
                f"{cls.__name__}.{name}: got {reprlib.repr(value):.120}; wanted {bad}"
            ) from None
    return typing.cast(Message, cls(*checked))


class _Count:
    """Counts what a frame is made of while it is made, and stops where it is too much."""

    def __init__(self) -> None:
        self._left = MAX_ELEMENTS

    def __call__(self, made: Any) -> Any:
        # One for itself: an empty list takes more memory than an element.
        self._left -= 1 + len(made)
        if self._left < 0:
            raise RemoteProtocolError(f"more than {MAX_ELEMENTS} elements")
        return made


def expect(frame: bytes, kind: type[M]) -> M:
    """Decode a frame that must be this kind of message."""
    message = decode(frame)
    if not isinstance(message, kind):
        raise RemoteProtocolError(f"got {message!r:.120}; wanted {kind.__name__}")
    return message
