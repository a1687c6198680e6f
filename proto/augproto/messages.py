"""What can be said, as frozen values; `codec` has their form as bytes.

A message's fields have types that say what may be in them: `codec` checks what arrives against
these annotations. Fields with defaults stand at the end: that is how a minor version adds one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from augproto.orders import (
    Assign as Assign,
)
from augproto.orders import (
    Define as Define,
)
from augproto.orders import (
    Dismiss as Dismiss,
)
from augproto.orders import (
    Done as Done,
)
from augproto.orders import (
    Enlist as Enlist,
)
from augproto.orders import (
    Enlisted as Enlisted,
)
from augproto.orders import (
    Failed as Failed,
)
from augproto.orders import (
    Forget as Forget,
)
from augproto.orders import (
    Inputs as Inputs,
)
from augproto.orders import (
    Lack as Lack,
)
from augproto.orders import (
    Probe as Probe,
)
from augproto.orders import (
    Probed as Probed,
)
from augproto.orders import (
    Ready as Ready,
)
from augproto.orders import (
    Resign as Resign,
)
from augproto.rows import (
    After as After,
)
from augproto.rows import (
    ArraySpec as ArraySpec,
)
from augproto.rows import (
    Bad as Bad,
)
from augproto.rows import (
    Entry as Entry,
)
from augproto.rows import (
    Folder as Folder,
)
from augproto.rows import (
    Load as Load,
)
from augproto.rows import (
    Place as Place,
)
from augproto.rows import (
    Release as Release,
)
from augproto.rows import (
    Run as Run,
)
from augproto.rows import (
    Script as Script,
)
from augproto.rows import (
    Source as Source,
)
from augproto.rows import (
    Working as Working,
)

#: Both ends must agree on the major number; a minor one only adds fields with defaults.
VERSION = (1, 4)
#: No message is longer: a spec with statistics of 2 MiB fits.
MAX_FRAME_BYTES = 8 << 20
#: Bytes that one `Piece` brings in the frame after it, where there is no shared memory.
MAX_PIECE_BYTES = 4 << 20
#: A user's function with all that it closes over; it goes through pipes of one machine only.
MAX_FUNCTION_BYTES = 256 << 20
MAX_PIPE_BYTES = MAX_FUNCTION_BYTES + (1 << 20)
#: Longest text (a worker's traceback is cut to it) and longest list in a message.
MAX_TEXT = 64 << 10
MAX_LIST = 64 << 10
#: Names, and bytes of names, in one page of what is in folders.
MAX_NAMES = 20_000
MAX_NAME_BYTES = 1 << 20
#: Bytes of arrays in one message, where they cannot be written into shared memory.
MAX_PART_BYTES = 4 << 20
#: Bytes of the key at a server's door, at the beginning of its segment.
DOOR_KEY_BYTES = 32
#: Bad samples that a status lists by path; it counts all of them.
MAX_BAD = 100


@dataclass(frozen=True, slots=True)
class Hello:
    """Consumer: opens the conversation."""

    version: tuple[int, ...]
    program: str
    pid: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """Server: the version fits. `lease` seconds of silence make a consumer silent.

    `door` is the name of a segment that holds a key: who can read it may write into this server's
    segments (see `Offer`).
    """

    version: tuple[int, ...]
    pid: int
    lease: float
    door: str = ""


@dataclass(frozen=True, slots=True)
class Open:
    """Consumer: asks for a stream, by its name in the server's config or by a spec of its own.

    It can take up to `span` batches in one slot. Where it does not share the server's memory, it
    wants their bytes by message (`frames`).
    """

    stream: str | None
    spec: dict[str, object] | None
    slots: int | None
    changes: dict[str, object] = dataclasses.field(default_factory=dict)
    span: int = 1
    frames: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """Server: the stream is there; its slots are in `segment`.

    `structure` maps x, y, sample_weight to the names of the arrays in the layout. `class_names`
    are the classes of a dataset of files, by number.

    Of a stream of small batches a slot holds several, one after the other as if they were one: its
    `span`. What is wanted, assigned, announced and refused of such a stream are slots full: step k
    of a message then stands for the batches k * span, k * span + 1, ... of the epoch. `steps` and
    `batch_size` are of batches in any case.

    With `frames` there is no segment to look at: the bytes of a slot come as `Piece`s, before the
    `Announce` that names it.
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
    span: int = 1
    frames: bool = False


@dataclass(frozen=True, slots=True)
class Want:
    """Consumer: all that it wants and has not received, in order; it replaces every earlier Want.

    This is the credit: the server announces nothing that was not wanted. `seen` is the number of
    the last announcement or fault that the consumer had received, so that what crossed on the
    wire is not made twice. `released` slots are free again. `scripts` say what some of the batches
    wanted are made of; one that was said stays said until its batch was made, refused, or is
    wanted no more.
    """

    runs: tuple[Run, ...]
    seen: int
    released: tuple[Release, ...]
    scripts: tuple[Script, ...] = ()


@dataclass(frozen=True, slots=True)
class Announce:
    """Server: these batches are whole; their slots belong to the consumer until it releases.

    `bad` lists the samples that those batches had to do without, `after` the states that those
    with a script have left.
    """

    number: int
    entries: tuple[Entry, ...]
    bad: tuple[Bad, ...] = ()
    after: tuple[After, ...] = ()


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
    Caches of decoded pictures have `cache_places` for samples, in `cache_bytes` of memory, of which
    `cached_samples` are taken. `by_frames` of the consumers do not share the server's memory.
    `remote` are the workers that have dialled in.
    """

    streams: tuple[str, ...]
    consumers: int
    workers_alive: int
    workers_wanted: int
    batches: int
    restarts: int
    bad_samples: int = 0
    bad: tuple[Bad, ...] = ()
    cached_samples: int = 0
    cache_places: int = 0
    cache_bytes: int = 0
    by_frames: int = 0
    remote: tuple[Working, ...] = ()


@dataclass(frozen=True, slots=True)
class Upload:
    """Consumer: the next bytes of what was offered, as it is laid out, from `offset` on."""

    name: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """Server: has so many bytes of an upload; the next may come."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Walk:
    """Consumer: what is in this folder, and below it if `deep`?

    Names are bytes, as the file system has them. The first page has the number 0; the next ones
    are asked for one by one, until there is no more.
    """

    folder: bytes
    deep: bool = True
    follow_links: bool = False
    page: int = 0


@dataclass(frozen=True, slots=True)
class Walked:
    """Server: some of it, and whether there is more. A folder may have several rows."""

    rows: tuple[Folder, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class AreFiles:
    """Consumer: are these paths those of regular files, or of links to such?"""

    paths: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FilesAre:
    """Server: they are, or are not."""

    are: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Server, or a remote worker: bytes, which are the next frame of the same ZeroMQ message.

    Those of `name` are `size` in all, of which these begin at `offset`. The bytes of a batch have
    no name: they are its slot's, header and all. Others are what `Inputs` has announced.
    """

    stream: int
    place: Place
    name: str
    offset: int
    size: int


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
    """Consumer, or a private server's client: has arrays to hand over, named by their fingerprint.

    A consumer adds what makes its program known, a secret of its own, so that its other consumers
    share them (`owner`), and what it has read at the server's door, if it could (`key`).
    """

    name: str
    arrays: tuple[ArraySpec, ...]
    owner: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """Server: write the arrays to these places; none means that they are here.

    Where a `path` is empty, they are uploaded, laid out in this way.
    """

    name: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """Consumer, or a private server's client: the arrays named so are written."""

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
    9: Close, 10: Bye, 11: AskStatus, 12: Status, 13: Upload, 14: Taken,
    15: Walk, 16: Walked, 17: AreFiles, 18: FilesAre, 19: Piece,
    32: Define, 33: Forget, 34: Assign, 35: Ready, 36: Done, 37: Failed, 38: Probe, 39: Probed,
    40: Enlist, 41: Enlisted, 42: Inputs, 43: Lack, 44: Dismiss, 45: Resign,
    48: Function, 49: Offer, 50: Room, 51: Filled, 52: Scale, 53: Serving,
    54: Withdraw,
}  # fmt: skip

Message = (
    Hello | Welcome | Open | Opened | Want | Announce | Fault | Heartbeat | Close | Bye
    | AskStatus | Status | Upload | Taken | Walk | Walked | AreFiles | FilesAre | Piece
    | Define | Forget | Assign | Ready | Done | Failed | Probe | Probed
    | Enlist | Enlisted | Inputs | Lack | Dismiss | Resign
    | Function | Offer | Room | Filled | Withdraw | Scale | Serving
)  # fmt: skip
