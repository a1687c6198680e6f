"""What fields of messages are made of: rows of a few values, as frozen as the messages are."""

from __future__ import annotations

from typing import NamedTuple


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


class Script(NamedTuple):
    """What a batch is made of where its consumer says so, in the place of the stream's own order.

    Its samples are `indexes` (int64, little-endian) of the dataset, or the `pictures` themselves,
    of the dataset's dtype and shape. Their parameters are drawn from `state` (see
    `augproto.twister`), or given: `matrices` (float64, little-endian, six for each sample: the two
    rows of a map from output to input coordinates; a NaN first leaves its picture unwarped) and
    `brightness`, a factor.
    """

    epoch: int
    step: int
    indexes: bytes = b""
    pictures: bytes = b""
    state: bytes = b""
    matrices: bytes = b""
    brightness: float | None = None


class After(NamedTuple):
    """np.random's state after the draws of a batch that had a script with a state."""

    epoch: int
    step: int
    state: bytes


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


class Load(NamedTuple):
    """So many bytes that come under this name, piece by piece."""

    name: str
    size: int


class Working(NamedTuple):
    """A worker: its number, host and process; "ready", "starting", "refused" or "silent"; what it
    has made; and who has placed it there, if anybody."""

    number: int
    host: str
    pid: int
    state: str
    batches: int
    remark: str
    origin: str


class Folder(NamedTuple):
    """What is in a folder: the names of its sub-folders, and of everything else."""

    path: bytes
    folders: tuple[bytes, ...]
    files: tuple[bytes, ...]
