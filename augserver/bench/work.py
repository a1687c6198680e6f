"""What everybody who is measured is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

#: Worker processes of those peers whose number is fixed.
TWO = 2


@dataclass(frozen=True)
class Work:
    """float32 batches of augmented pictures, delivered to a loop in the main process.

    Attributes:
        name: Of the work.
        batch_size: Samples in a batch.
        transforms: In the words of Keras's `ImageDataGenerator`.
        y: Whole numbers (samples,).
        x: uint8 pictures (samples, height, width, channels); or None, and then
        files: picture files, in a folder for each class, and
        size: (height, width) to which they are resized.
    """

    name: str
    batch_size: int
    transforms: dict[str, Any]
    y: Array
    x: Array | None = None
    files: tuple[str, ...] = ()
    size: tuple[int, int] = (32, 32)

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.y)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a batch."""
        channels = 3 if self.x is None else self.x.shape[3]
        return (self.batch_size, *self.size, channels)


#: An endless iterator of float32 batches: the pictures of each.
Batches = Iterator[Array]
#: Starts whoever makes the batches, and ends them.
Peer = Callable[[Work], AbstractContextManager[Batches]]
