"""Arrays as a dataset: .npz and .npy files, or arrays that a client has handed over.

However they come, every process reads them in the same way: as read-only maps of a file, a .npy
where it lies, everything else in a segment that the server fills once. A worker therefore costs no
copy of the dataset, and the server never sends a sample to a worker of its own machine.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import AugError, ConfigError
from augproto.fingerprint import fingerprint
from augproto.layout import (
    DTYPE_KINDS,
    FIELD_ALIGNMENT,
    MAX_FIELDS,
    MAX_RANK,
)
from augproto.messages import ArraySpec, Source
from augproto.segment import Segment, map_file
from augserver.config import NO_BOUND
from augserver.memory import Memory

Array = npt.NDArray[Any]


@dataclass(slots=True)
class ArrayDataset:
    """Where the arrays of a dataset lie, and who they are.

    Attributes:
        sources: One for each array, in files that stay as they are while the dataset lives.
        fingerprint: Digest of names, dtypes, shapes and contents (files that are mapped in place:
            path, size and time instead of contents). Part of a stream's identity.
        class_names: Of a dataset of files, by number.
        segment: The memory that the server holds for it, if any.
        users: How many need it.
        handed: Whether a client gave it, so that its users are the client's offers.
        cache: Where its pictures are kept as they are decoded; the segment is for these then.
        whole: The dataset that this one adds a cache to, and is a user of.
    """

    sources: tuple[Source, ...]
    fingerprint: str
    class_names: tuple[str, ...] = ()
    segment: Segment | None = None
    users: int = 0
    handed: bool = False
    cache: tuple[Source, ...] = ()
    whole: ArrayDataset | None = None

    def close(self) -> None:
        """Give back its memory; maps in workers stay readable until they drop them."""
        if self.segment is not None:
            self.segment.close()


def places(arrays: Iterable[ArraySpec], path: str) -> tuple[tuple[Source, ...], int]:
    """Lay arrays out one after another, at multiples of 64 bytes; returns sources and the size.

    Raises:
        ConfigError: They are none that can be in a batch, or too many.
    """
    sources: list[Source] = []
    offset = 0
    for array in arrays:
        kind = _checked_dtype(array.name, array.dtype)
        if len(sources) >= MAX_FIELDS or any(array.name == source.name for source in sources):
            raise ConfigError(
                f"array {array.name!r:.80}: wanted at most {MAX_FIELDS} arrays, each with a name "
                "of its own"
            )
        # In whole numbers without a bound, and then held against one: numpy's would wrap around.
        nbytes = kind.itemsize * math.prod(array.shape)
        if len(array.shape) > MAX_RANK or nbytes > NO_BOUND:
            raise ConfigError(
                f"array {array.name!r:.80}: got {len(array.shape)} axes and {nbytes} bytes; wanted "
                f"at most {MAX_RANK} and {NO_BOUND}"
            )
        sources.append(Source(array.name, kind.str, tuple(array.shape), path, offset))
        offset += -(-nbytes // FIELD_ALIGNMENT) * FIELD_ALIGNMENT
    return tuple(sources), max(offset, FIELD_ALIGNMENT)


def reserve(name: str, arrays: Sequence[ArraySpec], memory: Memory) -> ArrayDataset:
    """Make room for arrays that a client will write into it.

    Raises:
        NoRoom: They do not fit.
    """
    sources, size = places(arrays, "")
    segment = memory.segment(size)
    placed = tuple(source._replace(path=str(segment.path)) for source in sources)
    return ArrayDataset(placed, name, segment=segment)


def hold(name: str, arrays: dict[str, Array], memory: Memory) -> ArrayDataset:
    """Put arrays into memory that all workers share.

    Raises:
        NoRoom: They do not fit.
    """
    specs = [ArraySpec(n, a.dtype.str, a.shape) for n, a in arrays.items()]
    dataset = reserve(name, specs, memory)
    write(dataset.sources, arrays)
    return dataset


def load(paths: Sequence[str], memory: Memory) -> ArrayDataset:
    """Open .npz and .npy files.

    A .npz is unpacked into a segment; a .npy is mapped where it lies. Objects (pickles) are
    refused: loading one runs code.

    Raises:
        ConfigError: A file is missing, is neither, or holds what cannot be in a batch.
        NoRoom: The unpacked arrays do not fit into shared memory.
    """
    mapped: list[Source] = []
    unpacked: dict[str, Array] = {}
    digest = hashlib.sha256()
    for path in paths:
        try:
            if path.endswith(".npz"):
                # Opened here: numpy leaves the file open when it is no archive after all.
                with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                    # Unpacked once into the process, and then copied to where all can see it.
                    memory.check(2 * sum(entry.file_size for entry in archive.zip.infolist()))
                    for name in archive.files:
                        _add(unpacked, mapped, name, _plain(name, archive[name]), path)
            elif path.endswith(".npy"):
                name = Path(path).stem
                array = np.load(path, mmap_mode="r", allow_pickle=False)
                if isinstance(array, np.memmap) and array.flags.c_contiguous:
                    _checked_dtype(name, array.dtype)
                    status = os.stat(path)
                    digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
                    _refuse_twice(unpacked, mapped, name, path)
                    source = Source(name, array.dtype.str, array.shape, path, array.offset)
                    mapped.append(source)
                else:
                    _add(unpacked, mapped, name, _plain(name, np.asarray(array)), path)
            else:
                raise ConfigError(f"data: got {path!r}; wanted the path of a .npz or .npy file")
        except AugError:
            raise
        except Exception as error:  # zip, zlib and numpy raise a dozen kinds on damaged files
            raise ConfigError(
                f"data: {path!r} cannot be read: {type(error).__name__}: {error}"
            ) from error
    digest.update(fingerprint(unpacked).encode())
    if not unpacked:
        return ArrayDataset(tuple(mapped), digest.hexdigest())
    dataset = hold(digest.hexdigest(), unpacked, memory)
    dataset.sources += tuple(mapped)
    return dataset


def _plain(name: str, array: Array) -> Array:
    if array.dtype.kind in "OVmM":
        _checked_dtype(name, array.dtype)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _add(
    unpacked: dict[str, Array], mapped: list[Source], name: str, array: Array, path: str
) -> None:
    if array.dtype.kind not in DTYPE_KINDS:
        return  # a list of class names may lie beside the pictures; it can only not be in a batch
    _refuse_twice(unpacked, mapped, name, path)
    unpacked[name] = array


def _refuse_twice(unpacked: dict[str, Array], mapped: list[Source], name: str, path: str) -> None:
    if name in unpacked or any(source.name == name for source in mapped):
        raise ConfigError(f"data: {path!r} brings a second array named {name!r}; rename one")


def _checked_dtype(name: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except Exception as error:  # numpy parses texts, and raises what a parser does
        raise ConfigError(f"array {name!r}: {dtype!r:.80} is no dtype") from error
    if kind.kind not in DTYPE_KINDS:
        raise ConfigError(f"array {name!r}: got dtype {kind}; wanted numbers or booleans")
    return kind


def attach(sources: Iterable[Source], *, writable: bool = False) -> dict[str, Array]:
    """Map the arrays; the maps live as long as the arrays."""
    maps: dict[str, npt.NDArray[np.uint8]] = {}
    arrays = {}
    for source in sources:
        if source.path not in maps:
            maps[source.path] = map_file(source.path, writable=writable)
        kind = np.dtype(source.dtype)
        count = int(np.prod(source.shape, dtype=np.int64))
        flat = np.frombuffer(maps[source.path], kind, count, source.offset)
        arrays[source.name] = flat.reshape(source.shape)
    return arrays


def write(sources: Iterable[Source], arrays: dict[str, Array]) -> None:
    """Copy arrays to the places made for them."""
    for name, place in attach(sources, writable=True).items():
        place[...] = arrays[name]
