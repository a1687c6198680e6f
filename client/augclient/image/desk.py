"""Work on one picture of the program's, done by a server's worker.

A desk is a stream of one picture a batch that is kept open for the next picture of the same shape.
The picture goes along with the request; one that is too large for a message is handed over in
shared memory, with a desk of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augclient.consumer import TIMEOUT
from augclient.demand import SCRIPT_BYTES
from augclient.scripted import Scripted
from augproto.errors import (
    AugError,
    BatchTimeout,
    ConfigError,
    ConsumerClosed,
    ServerLost,
    WorkerError,
)
from augproto.messages import Script

Picture = NDArray[Any]

#: Desks that are kept open, of as many shapes and settings.
KEPT = 4


@dataclass(frozen=True, slots=True)
class Where:
    """Which server is meant.

    Attributes:
        address: A server's address, or None for the program's private server.
        workers: Processes of the private server; 0 computes in this process.
        slots: Of a stream's ring.
        timeout: Seconds that a batch or an answer may take.
        cache: Whether it keeps pictures of files ("decoded"), or not (None); see
            `augproto.spec.Spec`.
        key, server_key: Of a server that asks for keys; see `augclient.Consumer`.
    """

    address: str | None = None
    workers: int | None = None
    slots: int | None = None
    timeout: float = TIMEOUT
    cache: str | None = None
    key: str | os.PathLike[str] | None = None
    server_key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.cache not in (None, "decoded"):
            raise ValueError(f'`cache` should be None or "decoded". Received: {self.cache!r}')


@dataclass(frozen=True, slots=True)
class _Kind:
    """What pictures a desk takes, and what it does to them."""

    where: Where
    shape: tuple[int, ...]
    dtype: str
    channels_first: bool
    transforms: tuple[tuple[str, Any], ...] = ()

    def open(self, picture: Picture) -> Scripted:
        return Scripted(
            picture[np.newaxis],
            batch_size=1,
            scheme="given",
            data_format="channels_first" if self.channels_first else "channels_last",
            transforms=dict(self.transforms),
            address=self.where.address,
            key=self.where.key,
            server_key=self.where.server_key,
            workers=self.where.workers,
            slots=3,
            timeout=self.where.timeout,
        )


class _Desks:
    """The open desks; those that nobody works at are closed when there are too many."""

    def __init__(self) -> None:
        # Reentrant, for a signal's handler; and never held while a desk is opened, which may wait.
        self._lock = threading.RLock()
        self._open: OrderedDict[_Kind, Scripted] = OrderedDict()
        self._at_work: dict[int, int] = {}

    @contextlib.contextmanager
    def borrow(self, kind: _Kind, picture: Picture) -> Iterator[Scripted]:
        """A desk for pictures of this kind, such as this one."""
        desk = self._take(kind, kind.open(picture) if kind not in self._open else None)
        if desk is None:  # it was closed in the meantime
            desk = self._take(kind, kind.open(picture))
        assert desk is not None, "one was opened"
        try:
            yield desk
        except (WorkerError, BatchTimeout):  # of this picture alone
            raise
        except AugError:
            self._discard(kind, desk)
            raise
        finally:
            self._give_back(desk)

    def _take(self, kind: _Kind, fresh: Scripted | None) -> Scripted | None:
        with self._lock:
            desk = self._open.setdefault(kind, fresh) if fresh else self._open.get(kind)
            if desk is not None:
                self._open.move_to_end(kind)
                self._at_work[id(desk)] = self._at_work.get(id(desk), 0) + 1
        if fresh is not None and desk is not fresh:
            fresh.close()  # another thread was faster
        return desk

    def _give_back(self, desk: Scripted) -> None:
        idle = []
        with self._lock:
            self._at_work[id(desk)] -= 1
            if not self._at_work[id(desk)]:
                del self._at_work[id(desk)]
            for kind, other in list(self._open.items()):
                if len(self._open) > KEPT and id(other) not in self._at_work:
                    idle.append(self._open.pop(kind))
        for other in idle:
            other.close()

    def _discard(self, kind: _Kind, desk: Scripted) -> None:
        with self._lock:
            if self._open.get(kind) is desk:
                del self._open[kind]
        desk.close()


_desks = _Desks()


def _forget_in_child() -> None:
    # A forked process has no part in its parent's conversations.
    global _desks
    _desks = _Desks()


os.register_at_fork(after_in_child=_forget_in_child)


def warp(
    picture: Picture,
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    *,
    channel_axis: int,
    fill_mode: str,
    cval: float,
    order: int,
    where: Where,
) -> Picture:
    """Resample every channel of a picture, as scipy.ndimage.affine_transform does.

    Args:
        picture: Rank 3, of any real dtype that scipy takes.
        matrix, offset: float64 (2, 2) and (2,): from output to input coordinates, along the two
            axes that are not the channels'.
        channel_axis: 0 or 2.
        fill_mode, cval, order: What lies outside, and the order of the spline.

    Returns:
        A picture of the same shape and dtype, private and writable. Its memory lies channel by
        channel, as that of Keras's `apply_affine_transform` does.

    Raises:
        WorkerError: scipy refuses the picture or the settings.
        BatchTimeout, ServerLost, ConfigError: There is no answer.
    """
    rows = np.concatenate([np.asarray(matrix), np.asarray(offset)[:, np.newaxis]], axis=1)
    transforms = (
        ("fill_mode", fill_mode), ("cval", float(cval)), ("interpolation_order", int(order)),
    )  # fmt: skip
    script = Script(0, 0, matrices=np.asarray(rows, "<f8").tobytes())
    done = _ask(picture, script, channel_axis, where, transforms)
    planes = np.ascontiguousarray(np.moveaxis(done, channel_axis, 0))
    return np.moveaxis(_private(planes, done), 0, channel_axis)


def brighten(pixels: NDArray[np.uint8], factor: float, *, where: Where) -> NDArray[np.uint8]:
    """Multiply the brightness of a picture of 8 bits by a factor, as Pillow does.

    Args:
        pixels: uint8 (height, width, channels).

    Returns:
        The same, private and writable. The alpha of four channels stays as it is.

    Raises:
        WorkerError: Pillow cannot take as many channels.
        BatchTimeout, ServerLost, ConfigError: There is no answer.
    """
    if pixels.dtype != np.uint8:
        raise ConfigError(
            f"a picture: got {pixels.dtype} of shape {pixels.shape}; wanted uint8, which is what "
            "Pillow brightens"
        )
    return _ask(pixels, Script(0, 0, brightness=float(factor)), 2, where).copy()


def _ask(
    picture: Picture,
    script: Script,
    channel_axis: int,
    where: Where,
    transforms: tuple[tuple[str, Any], ...] = (),
) -> Picture:
    """What a worker makes of the picture: a view of shared memory."""
    _check(picture)
    plain = np.ascontiguousarray(picture, picture.dtype.newbyteorder("="))
    kind = _Kind(where, plain.shape, plain.dtype.str, channel_axis == 0, transforms)
    if plain.nbytes > SCRIPT_BYTES:
        with kind.open(plain) as desk:
            return _made(desk, script._replace(indexes=bytes(8)))
    script = script._replace(pictures=plain.tobytes())
    try:
        with _desks.borrow(kind, plain) as desk:
            return _made(desk, script)
    except (ServerLost, ConsumerClosed):
        # A private server that has ended is followed by another, which makes the same of it.
        with _desks.borrow(kind, plain) as desk:
            return _made(desk, script)


def _check(picture: Picture) -> None:
    if picture.ndim != 3 or picture.dtype.kind not in "biuf" or not picture.size:
        raise ConfigError(
            f"a picture: got {picture.dtype} of shape {picture.shape}; wanted numbers of shape "
            "(height, width, channels) or (channels, height, width), none of them 0"
        )


def _made(desk: Scripted, script: Script) -> Picture:
    batch, _ = desk.make(script)
    x = batch.x
    assert isinstance(x, np.ndarray), "a desk has one array"
    made: Picture = x[0]
    return made


def _private(array: Picture, lease: Picture) -> Picture:
    """A copy, if it is none already, so that the lease ends with this call."""
    return array.copy() if np.shares_memory(array, lease) else array
