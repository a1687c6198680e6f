"""An iterator's pictures from a server: made ahead in Keras's order, or one batch as told.

Two streams of one dataset. The first has the seed of the epoch at which its order began and is
gone through step by step; a server foresees it. The second is opened when it is first needed and
makes what it is told: samples, and the state of np.random that their parameters are drawn from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from augclient.consumer import Batch, Consumer
from augclient.image.desk import Where
from augclient.image.plan import FeedPlan, State
from augclient.image.settings import settings_of
from augclient.link import CONNECT_TIMEOUT
from augclient.scripted import Scripted, of_samples
from augproto.errors import BatchTimeout, NoRoom

Array = npt.NDArray[Any]
Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Delivered:
    """A batch of finished pictures.

    Attributes:
        x: (n, *picture): a view of shared memory, whose slot is held while it lives.
        hashes: int64 (n,), for names of saved pictures; None where nothing is saved.
    """

    x: Array
    hashes: Indexes | None


class Feed:
    """One plan under one generator's settings; see `augclient.image.plan.Feed`.

    Raises:
        Unsaid: No spec says what the generator does (see `augclient.image.settings`).
        ConfigError: The server cannot serve it.
        ConnectTimeout: Nobody answers at the address.
    """

    def __init__(self, plan: FeedPlan, generator: object, where: Where | None) -> None:
        self._plan = plan
        self._settings = settings_of(generator, plan.dtype)
        self._where = where or Where()
        self._ordered: Consumer | None = None
        self._seed = 0
        self._origin = 0
        self._expected: tuple[int, int, int] | None = None
        self._scripted: Scripted | None = None
        # One batch at a time: threads that ask for different ones would open streams against each
        # other. (A batch is made by a server, and several are made ahead.)
        self._turn = threading.RLock()

    def in_order(self, seed: int, step: int, origin: int, *, sure: bool) -> Delivered | None:
        """The batch that Keras gives for a step of an epoch whose order was drawn (if it shuffles)
        from RandomState(seed + origin); those that follow are made ahead.

        Args:
            sure: Others will follow. Otherwise a batch that is not of the stream that is open is
                not answered (None: ask by script) until its follower comes: an index here and
                there is no reason for a new stream.
        """
        with self._alone():
            stream = self._ordered
            ahead = origin - self._origin
            if stream is None or seed != self._seed or ahead < 0 or ahead % stream.steps:
                expected, self._expected = self._expected, (seed, origin, step + 1)
                if not (sure or stream is None or expected == (seed, origin, step)):
                    return None
                # Keras's epochs begin at any number; a stream's at multiples of its steps.
                stream = self._reopened(seed + origin)
                self._seed, self._origin, ahead = seed, origin, 0
            return _delivered(stream.get(ahead // stream.steps, step))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        patience = 2 * self._where.timeout + CONNECT_TIMEOUT
        if not self._turn.acquire(timeout=patience):
            raise BatchTimeout(
                f"another thread has waited for a batch of this iterator for {patience:.0f} s"
            )
        try:
            yield
        finally:
            self._turn.release()

    def _reopened(self, seed: int) -> Consumer:
        """A stream from another seed. It is opened before the last one is closed, so that what was
        handed over need not be handed over again; unless there is room for one alone."""
        before, self._ordered = self._ordered, None
        try:
            self._ordered = Consumer(**self._options(seed))
        except NoRoom:
            if before is None:
                raise
            before.close()
            self._ordered = Consumer(**self._options(seed))
        finally:
            if before is not None:
                before.close()
        return self._ordered

    def of(self, indexes: Indexes, state: State) -> tuple[Delivered, State]:
        """A batch of these samples with draws from that state of np.random; the state after it."""
        with self._alone():
            if self._scripted is None:
                self._scripted = Scripted(**self._options(0))
            batch, after = self._scripted.make(of_samples(indexes, state))
        assert after is not None, "a script with a state leaves one"
        return _delivered(batch), after

    def close(self) -> None:
        """Let go of the streams; batches that are still alive stay readable."""
        for stream in (self._ordered, self._scripted):
            if stream is not None:
                stream.close()
        self._ordered = self._scripted = None

    def _options(self, seed: int) -> dict[str, Any]:
        plan, settings = self._plan, self._settings
        options: dict[str, Any] = {
            "address": self._where.address,
            "key": self._where.key,
            "server_key": self._where.server_key,
            "workers": self._where.workers,
            "slots": self._where.slots,
            "timeout": self._where.timeout,
            # PyTorch's in-place operations do not ask whether memory may be written.
            "writable": keras.backend.backend() == "torch",
            "scheme": "keras",
            "seed": seed,
            "batch_size": plan.batch_size,
            "shuffle": plan.shuffle,
            "data_format": plan.data_format,
            "dtype": plan.dtype,
            "transforms": settings.transforms,
            "function": settings.function,
            "whitening": settings.whitening,
            "hashes": plan.hashes,
        }
        if plan.x is not None:
            return options | {"x": plan.x}
        transforms = dataclasses.replace(settings.transforms, floatx=plan.floatx)
        pictures = {
            "label_mode": "none",
            "color_mode": plan.color_mode,
            "keep_aspect_ratio": plan.keep_aspect_ratio,
            "wide": "keras",
        }
        return options | {
            "files": plan.files,
            "target_size": plan.target_size,
            "interpolation": plan.interpolation,
            "pictures": pictures,
            "transforms": transforms,
            "cache": self._where.cache,
        }


def _delivered(batch: Batch) -> Delivered:
    x, hashes = batch.x, batch.hashes
    assert isinstance(x, np.ndarray), "one array of pictures was asked for"
    assert hashes is None or isinstance(hashes, np.ndarray)
    return Delivered(x, hashes)
