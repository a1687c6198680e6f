"""Reads what remote workers need of a dataset, in threads: a disk may be slow, the loop never.

What comes of a portion are the frames that bring it, ready to be sent. Files are read by the rules
of a local worker, and what is wrong with one is told in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.codec import encode
from augproto.errors import NotAllowed
from augproto.files import SIZES
from augproto.messages import MAX_PIECE_BYTES, Inputs, Load, Piece, Place
from augserver.datasets.decoding import FileUnavailable, read_bytes
from augserver.datasets.loader import Loader
from augserver.datasets.roots import Roots
from augserver.desk import Desk
from augserver.recipe import Recipe
from augserver.transforms import SampleError

#: The load that brings the bytes of files.
FILES = "files"
#: Where whole arrays belong, and the batch of a probe.
NOWHERE = Place(0, 0, 0, 0)
#: Inputs of a batch, or whole arrays of a stream, in bytes: more are not sent to anybody.
MAX_INPUT_BYTES = 1 << 30
#: Samples of a batch: `Inputs` names each of them in its frame, and where its file ends.
MAX_INPUT_SAMPLES = 250_000

Indexes = npt.NDArray[np.int64]
#: A message, and the bytes that it brings if it is a piece.
Frames = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Portion:
    """Something to be read: samples of a batch, or whole arrays.

    Attributes:
        names: The arrays to be read.
        samples: int64: of these the rows, and the files if there are any; None for whole arrays.
        roots: Folders below which files must lie, if any.
    """

    recipe: Recipe | Desk
    stream: int
    place: Place
    names: tuple[str, ...]
    samples: Indexes | None
    roots: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that it will have."""
        arrays = self.recipe.arrays
        if self.samples is None:
            return sum(arrays[name].nbytes for name in self.names)
        rows = sum(_row_bytes(arrays[name]) for name in self.names) * len(self.samples)
        if self.recipe.spec.pictures is None:
            return rows
        return rows + int(np.asarray(arrays[SIZES])[self.samples].sum())


@dataclass(frozen=True, slots=True)
class Fed:
    """A portion that was read.

    Attributes:
        messages: What brings it, in order.
        reasons: Why samples could not be read that a stream's policy goes on without. Their bytes
            are none, which no worker takes for a picture.
    """

    messages: list[Frames]
    reasons: dict[int, str] = field(default_factory=dict)


class Feeder:
    """A few threads that read.

    Args:
        wake: Called, from any thread, when a portion is there.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._loader = Loader()
        self._wake = wake

    def feed(self, portion: Portion) -> Future[Fed]:
        """Have a portion read; a `SampleError` if its batch cannot be made."""
        future = self._loader.submit(lambda: read(portion))
        future.add_done_callback(lambda _: self._wake())
        return future

    def close(self) -> None:
        """Begin nothing more."""
        self._loader.close()


def unsuited(recipe: Recipe | Desk) -> str | None:
    """Why batches of a stream can be made on this machine alone; None if they can elsewhere."""
    samples, arrays = recipe.layout.batch_size, recipe.arrays
    most = sum(_row_bytes(arrays[name]) for name in recipe.inputs) * samples
    if recipe.spec.pictures is not None:
        sizes = np.asarray(arrays[SIZES])
        count = min(samples, len(sizes))
        most += int(np.partition(sizes, len(sizes) - count)[len(sizes) - count :].sum())
    most = max(most, sum(arrays[name].nbytes for name in recipe.whole))
    if most <= MAX_INPUT_BYTES and samples <= MAX_INPUT_SAMPLES:
        return None
    return (
        f"a batch of {samples} samples needs up to {most} bytes of the dataset; remote workers are "
        f"sent at most {MAX_INPUT_SAMPLES} samples and {MAX_INPUT_BYTES} bytes at once. Make "
        "batch_size smaller"
    )


def read(portion: Portion) -> Fed:
    """Read a portion.

    Raises:
        SampleError: A file cannot be read, and the stream's policy does not go on without it.
    """
    loads: list[Load] = []
    contents: list[memoryview] = []
    ends = b""
    reasons: dict[int, str] = {}
    for name in portion.names:
        array = portion.recipe.arrays[name]
        rows = array if portion.samples is None else np.take(array, portion.samples, axis=0)
        flat = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        loads.append(Load(name, flat.nbytes))
        contents.append(flat.data)
    if portion.samples is not None and portion.recipe.spec.pictures is not None:
        files, reasons = _read_files(portion, portion.samples)
        ends = np.cumsum([len(file) for file in files], dtype="<i8").tobytes()
        joined = b"".join(files)
        loads.append(Load(FILES, len(joined)))
        contents.append(memoryview(joined))
    samples = b"" if portion.samples is None else portion.samples.astype("<i8").tobytes()
    said = Inputs(portion.stream, portion.place, samples, tuple(loads), ends)
    messages: list[Frames] = [(encode(said),)]
    for load, content in zip(loads, contents, strict=True):
        messages += _pieces(portion, load, content)
    return Fed(messages, reasons)


def _pieces(portion: Portion, load: Load, content: memoryview) -> Iterator[Frames]:
    for offset in range(0, load.size, MAX_PIECE_BYTES):
        piece = Piece(portion.stream, portion.place, load.name, offset, load.size)
        yield encode(piece), content[offset : offset + MAX_PIECE_BYTES]


def _read_files(portion: Portion, samples: Indexes) -> tuple[list[bytes], dict[int, str]]:
    spec = portion.recipe.spec
    assert spec.pictures is not None, "there are files"
    roots = Roots(portion.roots) if portion.roots else None
    files: list[bytes] = []
    reasons: dict[int, str] = {}
    for sample in samples.tolist():
        file = portion.recipe.file(sample)
        assert file is not None, "each sample has one"
        try:
            files.append(read_bytes(file, spec.pictures.max_bytes, roots))
        except (FileUnavailable, NotAllowed, MemoryError) as error:
            message = str(error) or "out of memory"
            raise SampleError(sample, message, file.path, final=True) from error
        except Exception as error:  # what local workers take for a damaged file, in their words
            message = f"{type(error).__name__}: {error}"
            if spec.bad_samples == "raise":
                raise SampleError(sample, message, file.path) from error
            reasons[sample] = message
            files.append(b"")
    return files, reasons


def _row_bytes(array: npt.NDArray[Any]) -> int:
    return int(np.prod(array.shape[1:], dtype=np.int64)) * array.itemsize
