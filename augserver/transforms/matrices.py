"""The matrices of a whole batch, to the last bit those of `augproto.geometry`.

That module's chain of np.dot is what Keras computes, and takes longer than the resampling of a
small picture. np.dot leaves a 3 x 3 product to BLAS, and BLAS to the processor: where it has fused
multiply-adds, BLAS uses them. So the same products are written out here both ways, and the way that
this machine's BLAS takes is found out once, by comparison. Where it takes neither, the chain does
the work.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augserver.compiling import stamp
from augserver.draws import Draws
from augserver.transforms import affine, lanes, vectors
from augserver.transforms.lanes import fused, load_double, store_double, store_flag
from augserver.transforms.room import Room
from augserver.transforms.vectors import compiled, kernel

_PROBES = 64


def find(draws: Draws, height: int, width: int, room: Room) -> None:
    """Write which samples are resampled, and their maps from output to input coordinates.

    Args:
        room: Its `warped` and `matrices` are written, as `affine.needed` and as the upper two rows
            of `affine.matrix` have them. The matrices of other samples mean nothing.
    """
    fuses = _blas_fuses()
    if fuses is None:
        warped = affine.needed(draws)
        room.warped[: len(warped)] = warped
        room.matrices[: len(warped)] = _by_chain(draws, height, width)
    else:
        _write_out(draws, height, width, fuses, room)


def _by_chain(draws: Draws, height: int, width: int) -> NDArray[np.float64]:
    made = [affine.matrix(draws, i, height, width)[:2].ravel() for i in range(len(draws.theta))]
    return np.array(made, np.float64).reshape(-1, 6)


def _write_out(draws: Draws, height: int, width: int, fuses: bool, room: Room) -> None:
    n = len(draws.theta)
    for row, name in zip(room.drawn, ("theta", "tx", "ty", "shear", "zx", "zy"), strict=True):
        row[:n] = getattr(draws, name)
    for k, angle in enumerate((draws.theta, draws.shear)):
        if np.count_nonzero(angle):
            # The sines of an array: those of libm, as of one number, or `_blas_fuses` says so.
            radians = np.deg2rad(angle)
            np.cos(radians, out=room.trigonometry[2 * k, :n])
            np.sin(radians, out=room.trigonometry[2 * k + 1, :n])
    at, middle = room.at, (float(height) / 2 - 0.5, float(width) / 2 - 0.5)
    _chains(
        at["drawn"], at["trigonometry"], room.samples, n, *middle, fuses,
        at["matrices"], at["warped"],
    )  # fmt: skip


@cache
def _blas_fuses() -> bool | None:
    """How np.dot multiplies here: with fused multiply-adds, without, or (None) in another way."""
    rng = np.random.default_rng(1)
    n = _PROBES
    used = rng.random((4, n)) < 0.75
    theta, tx, ty, shear, zx, zy = rng.uniform(-1, 1, (6, n)) * [[180], [20], [20], [60], [1], [1]]
    no = np.zeros(n, np.bool_)
    draws = Draws(
        theta=theta * used[0],
        tx=tx * used[1],
        ty=ty * used[1],
        shear=shear * used[2],
        zx=np.where(used[3], 1 + zx / 2, 1),
        zy=np.where(used[3], 1 + zy / 2, 1),
        flip_horizontal=no,
        flip_vertical=no,
    )
    some = affine.needed(draws)
    wanted = _by_chain(draws, 37, 52)[some]
    room = Room(n)
    for fuses in (True, False):
        _write_out(draws, 37, 52, fuses, room)
        if np.array_equal(room.matrices[:n][some], wanted):
            return fuses
    return None


@compiled
def _line(a, b, c, right, fuses):
    """A row of a product; the third row of all these matrices is 0, 0, 1."""
    d, e, f, g, h, i = right
    if fuses:
        return fused(b, g, a * d), fused(b, h, a * e), c + fused(b, i, a * f)
    return a * d + b * g, a * e + b * h, (a * f + b * i) + c


@compiled
def _product(left, right, fuses):
    """The upper two rows of left . right, as are left and right."""
    a, b, c, d, e, f = left
    return _line(a, b, c, right, fuses) + _line(d, e, f, right, fuses)


def _stamped(text: int) -> Any:
    @kernel
    def _chains(drawn, trigonometry, room, count, row, column, fuses, matrices, warped):
        """`geometry.chain`, `centred` and `swapped` for every sample; all arrays by address.

        Args:
            row, column: The middle of a picture.
        """
        if text < 0:  # see `stamp`
            return
        step = 8 * room
        neutral = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
        for k in range(count):
            at = drawn + 8 * k
            theta, tx, ty = load_double(at), load_double(at + step), load_double(at + 2 * step)
            at += 3 * step
            shear, zx, zy = load_double(at), load_double(at + step), load_double(at + 2 * step)
            at = trigonometry + 8 * k
            # Neutral factors are left out: times 1 plus 0 is exact, so that shows nowhere.
            product = neutral
            if theta != 0:
                cos, sin = load_double(at), load_double(at + step)
                product = (cos, -sin, 0.0, sin, cos, 0.0)
            if tx != 0 or ty != 0:
                product = _product(product, (1.0, 0.0, tx, 0.0, 1.0, ty), fuses)
            if shear != 0:
                cos, sin = load_double(at + 2 * step), load_double(at + 3 * step)
                product = _product(product, (1.0, -sin, 0.0, 0.0, cos, 0.0), fuses)
            if zx != 1 or zy != 1:
                product = _product(product, (zx, 0.0, 0.0, 0.0, zy, 0.0), fuses)
            product = _product((1.0, 0.0, row, 0.0, 1.0, column), product, fuses)
            product = _product(product, (1.0, 0.0, -row, 0.0, 1.0, -column), fuses)
            a, b, c, d, e, f = product
            some = theta != 0 or tx != 0 or ty != 0 or shear != 0 or zx != 1 or zy != 1
            store_flag(warped + k, 1 if some else 0)
            at = matrices + 48 * k  # rows and columns exchanged
            store_double(at, e)
            store_double(at + 8, d)
            store_double(at + 16, f)
            store_double(at + 24, b)
            store_double(at + 32, a)
            store_double(at + 40, c)

    return _chains


_chains = _stamped(stamp(lanes, vectors))
