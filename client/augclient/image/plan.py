"""What an iterator asks of a server: pictures alone, in Keras's order. Values and two protocols.

Labels, weights and extra inputs are no part of it. The iterator knows which samples are in a batch
and takes them from the program's own arrays, of whatever type they are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Indexes = npt.NDArray[np.int64]
#: What `numpy.random.get_state` gives.
State = Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeedPlan:
    """The pictures of an iterator, and how they become a batch, before any transform.

    Attributes:
        x: The program's pictures in their own dtype: (samples, *picture). None for files.
        files: Paths of picture files, as the server has them. None for arrays.
        batch_size, shuffle: Of Keras's order.
        target_size: (height, width) that files are resized to; None for arrays.
        color_mode: "rgb", "rgba" or "grayscale", of files.
        interpolation, keep_aspect_ratio: Of that resize.
        data_format: "channels_last" or "channels_first".
        dtype: Name of the dtype that pictures come in. Arrays are changed in it as well.
        floatx: Keras's setting of that name: what files are read as and changed in.
        hashes: Numbers below this are drawn after each batch, one for each sample, to name saved
            pictures by; None where nothing is saved.
    """

    x: Array | None = None
    files: tuple[str, ...] | None = None
    batch_size: int
    shuffle: bool
    target_size: tuple[int, int] | None = None
    color_mode: str = "rgb"
    interpolation: str = "nearest"
    keep_aspect_ratio: bool = False
    data_format: str
    dtype: str
    floatx: str = "float32"
    hashes: int | None = None

    @property
    def samples(self) -> int:
        """Of the dataset."""
        if self.x is not None:
            return len(self.x)
        return len(self.files or ())

    def same(self, other: FeedPlan) -> bool:
        """Whether both give the same pictures; arrays are the same if they are one object."""
        return self.x is other.x and bool(_COMPARED(self) == _COMPARED(other))


#: All but the arrays, which numpy would compare number by number.
_COMPARED = attrgetter(*(field.name for field in fields(FeedPlan) if field.name != "x"))


class Delivered(Protocol):
    """A batch of finished pictures."""

    @property
    def x(self) -> Array:
        """(n, *picture): a view of shared memory; the batch is held while it lives."""

    @property
    def hashes(self) -> Indexes | None:
        """(n,): the numbers that were drawn for names of saved pictures."""


class Feed(Protocol):
    """One plan under one generator's settings, served."""

    def in_order(self, seed: int, step: int, origin: int, *, sure: bool) -> Delivered | None:
        """The batch that Keras gives for a step of an epoch whose order was drawn (if it shuffles)
        from RandomState(seed + origin), with parameters from RandomState(seed + origin + step);
        batches that follow are made ahead. Where that is not sure to be worth it: None."""

    def of(self, indexes: Indexes, state: State) -> tuple[Delivered, State]:
        """A batch of these samples with draws from that state of np.random; the state after it."""

    def close(self) -> None:
        """Let go of the server's stream; batches that are still alive stay readable."""
