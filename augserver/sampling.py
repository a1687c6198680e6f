"""Which samples make which batch: an order as a pure function of (spec, seed, epoch).

Nothing is advanced and nothing remembered, so any worker finds any batch of any epoch by itself.
(The orders of the last two epochs are kept, since sorting them anew for each batch is waste.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augproto.errors import ConfigError
from augproto.spec import Spec
from augserver.keras_draws import state_before

#: "order" in ASCII, the second key word: orders never share a stream with another use of the seed.
_ORDER = 0x6F72646572
_KEPT_ORDERS = 2  # the epoch that ends and the one that begins overlap in the pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """The order of samples and their batches, for one shard of one stream.

    Attributes:
        low, high: The subset [low, high) of the dataset that the stream reads, or of `members`.
        members: int64, rising: the samples of a subset that is no such range; None for all.
        batch_size: Samples in a batch.
        shuffle: A new order every epoch; otherwise the dataset's own.
        seed: 64 bits.
        shard: (index, count): every count-th sample of an epoch's order, from index on.
        drop_remainder: Leave out a last batch that is not full.
        scheme: Whose orders: our own ("counter") or Keras's ("keras", see keras_draws.py).
        samples: Samples of this shard in an epoch (before drop_remainder).
        steps: Batches of this shard in an epoch.
    """

    low: int
    high: int
    batch_size: int
    shuffle: bool
    seed: int
    shard: tuple[int, int] = (0, 1)
    drop_remainder: bool = False
    scheme: str = "counter"
    members: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    samples: int = field(init=False, repr=False, compare=False)
    steps: int = field(init=False, repr=False, compare=False)
    _orders: dict[int, NDArray[np.int64]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        index, count = self.shard
        samples = len(range(index, self.high - self.low, count))
        whole, rest = divmod(samples, self.batch_size)
        # Kept, since every batch asks for them.
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "steps", whole + (rest > 0 and not self.drop_remainder))
        if not self.steps:
            raise ConfigError(
                f"no batch: samples {self.low} to {self.high} leave {self.samples} to shard "
                f"{self.shard[0]} of {self.shard[1]}; wanted at least "
                + (f"{self.batch_size}, one full batch" if self.drop_remainder else "1")
            )

    @classmethod
    def of(cls, spec: Spec, length: int, seed: int, groups: NDArray[Any] | None = None) -> Sampler:
        """The sampler of a stream.

        Args:
            spec: The stream.
            length: Samples in its dataset.
            seed: The seed in force (the spec's own, or the one drawn for it).
            groups: The class of each sample, where a subset is a share of each class.

        Raises:
            ConfigError: Subset, shard and batch size leave not a single batch.
        """
        members = None
        if groups is not None and spec.subset is not None:
            members = _share(groups, spec.validation_split, spec.subset)
            low, high = 0, len(members)
        else:
            low, high = _range(length, spec.validation_split, spec.subset)
        return cls(
            low=low,
            high=high,
            batch_size=spec.batch_size,
            shuffle=spec.shuffle,
            seed=seed,
            shard=spec.shard,
            drop_remainder=spec.drop_remainder,
            scheme=spec.scheme,
            members=members,
        )

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Dataset indexes of this shard in the epoch's order: int64 (samples,), read-only."""
        if epoch < 0:
            raise IndexError(f"epoch {epoch} asked for; epochs count from 0")
        if not self.shuffle:
            epoch = 0
        order = self._orders.get(epoch)
        if order is None:
            order = self._compute(epoch)
            self._orders[epoch] = order
            # Copying the keys and popping leniently is safe beside other threads; at worst two of
            # them compute the same order twice.
            for old in list(self._orders)[:-_KEPT_ORDERS]:
                self._orders.pop(old, None)
        return order

    def batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Dataset indexes of one batch: int64, batch_size long or shorter at an epoch's end."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} asked for; an epoch has steps 0 to {self.steps - 1}")
        return self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def several(self, epoch: int, first: int, batches: int) -> NDArray[np.int64]:
        """Dataset indexes of so many batches, one after the other, or as many as there are."""
        end = min((first + batches) * self.batch_size, self.steps * self.batch_size)
        return self.order(epoch)[first * self.batch_size : end]

    def after(self, sample: int, distance: int) -> int:
        """The sample that many places after one in the subset's own order, round and round."""
        count = self.high - self.low
        if self.members is None:
            return self.low + (sample - self.low + distance) % count
        place = int(np.searchsorted(self.members, sample))
        return int(self.members[(place + distance) % count])

    def keras_state(self, epoch: int, step: int) -> np.random.RandomState:
        """np.random as Keras has it when it draws the parameters of a batch."""
        state = state_before(self.seed, epoch * self.steps + step)
        if step == 0 and self.shuffle:
            state.permutation(self.high - self.low)  # the epoch's order comes first
        return state

    def _compute(self, epoch: int) -> NDArray[np.int64]:
        order = np.arange(self.low, self.high, dtype=np.int64)
        if self.members is not None:
            order = self.members[self.low : self.high]
        if self.shuffle and self.scheme == "keras":
            state = state_before(self.seed, epoch * self.steps)
            order = order[state.permutation(self.high - self.low)]
        elif self.shuffle:
            order = order[np.argsort(self._keys(epoch), kind="stable")]
        # A copy, so that a shard does not hold the whole epoch in memory.
        index, count = self.shard
        order = order[index::count].copy()
        order.setflags(write=False)
        return order

    def _keys(self, epoch: int) -> NDArray[np.uint64]:
        """One random uint64 per sample of the subset, to sort by.

        numpy promises the raw stream of a bit generator for good, `Generator.permutation` not
        (NEP 19, and "Compatibility Guarantee" in the docstring of `np.random.Philox`).

        numpy counts in word 0, carrying into word 1, and increments BEFORE its first block: an
        epoch uses counters (1, 0, epoch, 0), (2, 0, epoch, 0), ... and reaches the next epoch's
        only after 2**128 blocks of four numbers.
        """
        # As arrays: Python integers from 2**63 on would not pass as a list.
        generator = np.random.Philox(
            key=np.array([self.seed, _ORDER], np.uint64),
            counter=np.array([0, 0, epoch, 0], np.uint64),
        )
        return np.asarray(generator.random_raw(self.high - self.low), np.uint64)


def _range(length: int, split: float, subset: str | None) -> tuple[int, int]:
    """Keras's rule for arrays: validation is the FIRST share, rounded down."""
    first = int(length * split)
    return {None: (0, length), "validation": (0, first), "training": (first, length)}[subset]


def _share(groups: NDArray[Any], split: float, subset: str) -> NDArray[np.int64]:
    """Keras's rule for folders: the first share of each class (`DirectoryIterator`)."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    shares = [
        order[start:][slice(*_range(count, split, subset))]
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
    ]
    return np.sort(np.concatenate(shares)).astype(np.int64)
