"""How batches lie in memory: a batch spec becomes offsets, and only this file knows a number.

A *segment* is one page of header and then equal *slots*. A slot is a header of 64 bytes and the
batch's arrays, its *fields*::

    segment                     slot
    +------------------+ 0      +---------------------+ 0
    | segment header   |        | slot header         |
    +------------------+ 4096   +---------------------+ 64
    | slot 0           |        | field 0             |
    +------------------+        | ... padding to 64   |
    | slot 1           |        +---------------------+ multiple of 64
    +------------------+        | field 1             |
    | ...              |        | ... padding to 4096 |
    +------------------+        +---------------------+ slot_bytes, a multiple of 4096

Fields start at multiples of 64 bytes because TensorFlow, JAX and PyTorch alias an array that does
and copy one that does not (TensorFlow without a word). Slots start at multiples of 4096 so that no
page belongs to two slots. The last batch of an epoch may be smaller: its arrays are the first
`count` rows of the fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError, RemoteProtocolError

FIELD_ALIGNMENT = 64
SLOT_ALIGNMENT = 4096
SLOT_HEADER_BYTES = 64
SEGMENT_HEADER_BYTES = 4096

#: Kinds of numpy dtypes that may lie in a slot: fixed size and no references.
DTYPE_KINDS = "biufc"
#: A layout beyond these comes from a hostile or broken peer.
MAX_FIELDS = 256
MAX_RANK = 16
MAX_SLOT_BYTES = 1 << 40
#: Batches in a slot (see `messages.Opened`).
MAX_SPAN = 16


def _round_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a batch: `shape` of one sample, `offset` from the slot's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The offsets of a batch's arrays in a slot; a value that both sides compute with."""

    batch_size: int
    fields: tuple[Field, ...]
    slot_bytes: int
    _views: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int, int], ...] = dataclasses.field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        # `arrays` is called for every batch at both ends: dtypes are parsed once.
        views = tuple(
            (f.name, np.dtype(f.dtype), f.shape, f.offset, f.sample_bytes) for f in self.fields
        )
        object.__setattr__(self, "_views", views)

    @classmethod
    def of(
        cls, batch_size: int, samples: Iterable[tuple[str, npt.DTypeLike, tuple[int, ...]]]
    ) -> Layout:
        """Lay out batches whose samples have these (name, dtype, shape of one sample).

        Offsets never travel: both sides compute them from this, within bounds that are checked
        before anything is mapped.
        """
        samples = list(samples)
        if not 0 < len(samples) <= MAX_FIELDS or batch_size < 1:
            raise ConfigError(
                f"a batch of {batch_size} samples of {len(samples)} arrays; wanted at least one "
                f"sample and 1 to {MAX_FIELDS} arrays"
            )
        fields = []
        offset = SLOT_HEADER_BYTES
        for name, dtype, shape in samples:
            kind = np.dtype(dtype)
            if len(shape) > MAX_RANK or any(n < 0 for n in shape):
                raise ConfigError(
                    f"array {name!r}: got the shape {shape}; wanted at most {MAX_RANK} axes"
                )
            if kind.kind not in DTYPE_KINDS:
                raise ConfigError(
                    f"array {name!r}: got dtype {kind}; wanted numbers or booleans "
                    "(encode strings and objects as numbers first)"
                )
            field = Field(name, kind.newbyteorder("=").str, tuple(shape), offset)
            fields.append(field)
            offset = _round_up(offset + field.sample_bytes * batch_size, FIELD_ALIGNMENT)
        layout = cls(batch_size, tuple(fields), _round_up(offset, SLOT_ALIGNMENT))
        if layout.slot_bytes > MAX_SLOT_BYTES:
            raise ConfigError(
                f"a batch: got {layout.slot_bytes} bytes; wanted at most {MAX_SLOT_BYTES}. "
                "Make batch_size or target_size smaller"
            )
        return layout

    def segment_bytes(self, slots: int) -> int:
        """Bytes of a segment with that many slots."""
        return SEGMENT_HEADER_BYTES + slots * self.slot_bytes

    def slot_offset(self, slot: int) -> int:
        """Where a slot starts in its segment."""
        return SEGMENT_HEADER_BYTES + slot * self.slot_bytes

    def extent(self, count: int) -> int:
        """Bytes of a slot up to the end of what `count` samples take in it."""
        last = self.fields[-1]
        return last.offset + count * last.sample_bytes

    def arrays(
        self, slot: npt.NDArray[np.uint8], count: int, first: int = 0
    ) -> dict[str, npt.NDArray[Any]]:
        """Views of `count` samples of every field; they keep `slot`'s base alive.

        Args:
            slot: The bytes of one slot, 1-D.
            first: The sample to begin with.
        """
        if not 0 <= first <= first + count <= self.batch_size:
            where = f" from {first} on" if first else ""
            raise RemoteProtocolError(
                f"a batch of {count} samples{where}; wanted 0..{self.batch_size}"
            )
        return {
            name: np.ndarray((count, *shape), dtype, slot, offset + first * sample_bytes)
            for name, dtype, shape, offset, sample_bytes in self._views
        }


def aligned_empty(nbytes: int) -> npt.NDArray[np.uint8]:
    """Private memory that is aligned like a slot, so that frameworks alias it as well."""
    raw = np.empty(nbytes + SLOT_ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % SLOT_ALIGNMENT
    return raw[start : start + nbytes]
