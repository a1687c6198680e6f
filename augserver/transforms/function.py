"""A user's own function of one picture: seeded before the call, checked after it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augproto.errors import AugError


class SampleError(AugError):
    """One sample could not be made; the cause is chained.

    Attributes:
        sample: Its index in the dataset.
        path: Of its file; empty where it has none.
        final: The reason is none of the sample's own (no memory, a file that was changed), so
            another try may give another result, and no policy may go on without the sample.
    """

    def __init__(self, sample: int, message: str, path: str = "", *, final: bool = False) -> None:
        super().__init__(sample, message, path)
        self.sample = sample
        self.message = message
        self.path = path
        self.final = final

    def __str__(self) -> str:
        where = f" ({self.path})" if self.path else ""
        return f"sample {self.sample}{where}: {self.message}"


def seed_globals(words: NDArray[np.uint32]) -> None:
    """Seed np.random (words 0, 1) and random (words 2, 3): four uint32 words.

    The generators are the process's own: without this, workers that were started from one parent
    would share a state and give the same "random" pictures again and again.
    """
    np.random.seed(words[:2].tolist())
    random.seed(int(words[2]) | int(words[3]) << 32)


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as another:  # its own code, and anybody's
        return f"(its text cannot be had: {type(another).__name__})"


class UserFunction:
    """Calls a user's function in a world that depends on nothing but the sample."""

    def __init__(
        self, function: Callable[[NDArray[Any]], Any], name: str, *, broadcasts: bool = False
    ) -> None:
        """Args: broadcasts: whether one value may stand for a whole axis, as in Keras, which writes
        into its batch whatever numpy can spread over a picture.
        """
        self._function = function
        self._name = name
        self._broadcasts = broadcasts

    def __call__(
        self,
        picture: NDArray[Any],
        sample: int,
        seeds: NDArray[np.uint32] | None,
        note: Callable[[int], None] | None = None,
    ) -> NDArray[Any]:
        """Apply the function.

        Args:
            picture: The function's to keep or to change.
            sample: Index in the dataset, for errors.
            seeds: Four words, or None where the caller has seeded already.
            note: Called with the sample before the function is; where it kills the process, that
                is all that is left to tell. Only workers note.

        Returns:
            An array of the picture's shape (or one that can be spread over it, where that is
            allowed), safe to change: of the float dtype that the function
            chose, or of the picture's where it gave whole numbers, which no fraction fits into.

        Raises:
            SampleError: The function raised, or gave something else than such a picture.
        """
        if seeds is not None:
            seed_globals(seeds)
        shape = picture.shape  # a function may reshape its argument in place
        if note is not None:
            note(sample)
        process = os.getpid()
        try:
            result = np.asarray(self._function(picture))
        except BaseException as error:
            if os.getpid() != process:
                os._exit(1)
            if note is None and not isinstance(error, Exception):
                raise  # in the caller's own process exit() and Ctrl-C are the caller's
            raise SampleError(
                sample,
                f"function {self._name!r} raised {type(error).__name__}: {_words(error)}",
                final=isinstance(error, MemoryError),
            ) from error
        if os.getpid() != process:
            os._exit(0)  # a fork that returns would go on as a second worker, on the same slot
        if not self._fits(result.shape, shape) or result.dtype.kind not in "biuf":
            raise SampleError(
                sample,
                f"function {self._name!r} gave {result.dtype} of shape {result.shape}; wanted "
                f"numbers of shape {shape}",
            )
        if result.dtype.kind != "f":
            return result.astype(picture.dtype)
        # What follows works in place. An array of the function's own (a constant, a cache) would
        # then change from call to call, and the batch with it.
        own = np.may_share_memory(result, picture) and result.flags.writeable
        return result if own else result.copy(order="K")

    def _fits(self, shape: tuple[int, ...], picture: tuple[int, ...]) -> bool:
        if not self._broadcasts:
            return shape == picture
        try:
            return np.broadcast_shapes(shape, picture) == picture
        except ValueError:
            return False
