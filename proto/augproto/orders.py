"""What a server and its workers say to each other, near and far; a part of `augproto.messages`."""

from __future__ import annotations

from dataclasses import dataclass

from augproto.rows import After, Bad, Entry, Load, Place, Script, Source


@dataclass(frozen=True, slots=True)
class Define:
    """Server to worker: everything needed to make a stream's batches.

    `roots` are the folders below which its files must lie, if a consumer has named them. `cache`
    is where decoded pictures are kept, if anywhere; every worker writes there.

    A remote worker gets no segment, and `sources` without a path: what it needs of them comes as
    `Inputs`.
    """

    stream: int
    spec: dict[str, object]
    seed: int
    sources: tuple[Source, ...]
    segment: str
    slots: int
    roots: tuple[str, ...] = ()
    cache: tuple[Source, ...] = ()
    span: int = 1


@dataclass(frozen=True, slots=True)
class Forget:
    """Server to worker: the stream is over, its memory may be unmapped."""

    stream: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Server to worker: make these batches, in this order, by their scripts if they have any."""

    stream: int
    places: tuple[Place, ...]
    scripts: tuple[Script, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker to server: up and warm."""

    pid: int


@dataclass(frozen=True, slots=True)
class Done:
    """Worker to server: these batches are whole; it took `seconds` for all of them.

    `bad` lists the samples that they had to do without, `after` the states that those with a
    script have left.
    """

    stream: int
    entries: tuple[Entry, ...]
    seconds: float
    bad: tuple[Bad, ...] = ()
    after: tuple[After, ...] = ()


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
class Probe:
    """Server to worker: make step 0 of epoch 0 of this stream aside, and say what came of it."""

    stream: int


@dataclass(frozen=True, slots=True)
class Probed:
    """Worker to server: the digest of that batch and of its function's source, and on what machine.

    Where it cannot be made, the digest is that of the sample to blame; `reason` has the words.
    """

    stream: int
    digest: str
    machine: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Enlist:
    """Remote worker to server: here I am, whole every time, every second.

    `worker` is its own name while its process lives (32 hexadecimal digits), by whatever connection
    it comes. `machine` is what its bytes could depend on: processor and versions of libraries.
    `begun` grows with every sample that it begins. It may be `heir` of a worker that has died, and
    then knows of what: `cause`, and perhaps a `traceback`. `origin` says who has placed it there,
    if anybody, in words for people.
    """

    version: tuple[int, ...]
    worker: str
    host: str
    pid: int
    machine: str
    begun: int
    heir: str = ""
    cause: str = ""
    traceback: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Enlisted:
    """Server to remote worker: the answer to every `Enlist`.

    After `lease` seconds of silence its work is given to others. With `fresh` the server did not
    know it (any more): streams and assignments of before mean nothing.
    """

    version: tuple[int, ...]
    lease: float
    fresh: bool


@dataclass(frozen=True, slots=True)
class Inputs:
    """Server to remote worker: what comes now, as pieces of that place, before its assignment.

    `samples` (int64, little-endian) are indexes of the dataset; of each array in `loads` come the
    rows of these, in this order. A load "files" is the bytes of their files, one after the other,
    each up to its number in `ends` (int64, little-endian). Without samples the arrays are whole.
    """

    stream: int
    place: Place
    samples: bytes
    loads: tuple[Load, ...]
    ends: bytes = b""


@dataclass(frozen=True, slots=True)
class Lack:
    """Remote worker to server: for this batch it needs other samples as well (int64,
    little-endian), in the place of bad ones; the answer is `Inputs`."""

    stream: int
    place: Place
    samples: bytes


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Server to remote worker: end, and let another process take your place."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resign:
    """Remote worker to server: ends; what it holds is for others."""

    reason: str
