"""Everybody by name, and how several are asked in turns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from measure import Rate, rates

from peers.by_hand import by_hand
from peers.grain_loader import grain_processes
from peers.keras_own import image_data_generator, pool_of_2017, py_dataset
from peers.ours import ours, ours_cached
from peers.tf_data import tf_data
from peers.torch_loader import data_loader
from peers.work import Batches, Missing, Peer, Work

OURS, CACHED, HAND, KERAS = (
    "augserver",
    "augserver, decoded cache",
    "two processes, OpenCV, shared memory by hand",
    "Keras's ImageDataGenerator, one process",
)
EVERYBODY: dict[str, Peer] = {
    # Those first that fork this process, as Keras does: later it has threads.
    "Keras's PyDataset, 2 processes": py_dataset,
    KERAS: image_data_generator,
    "Pool as in 2017, 2 processes": pool_of_2017,
    HAND: by_hand,
    "torch's DataLoader and OpenCV": data_loader,
    "grain and OpenCV": grain_processes,
    OURS: ours,
    CACHED: ours_cached,
    "tf.data": tf_data,
}


@contextlib.contextmanager
def started(
    work: Work, peers: Mapping[str, Peer] = EVERYBODY
) -> Iterator[tuple[dict[str, Batches], dict[str, str]]]:
    """Everybody's batches, each after its first; and who is missing, with the reason."""
    with contextlib.ExitStack() as stack:
        batches: dict[str, Batches] = {}
        missing: dict[str, str] = {}
        for name, make in peers.items():
            try:
                batches[name] = stack.enter_context(make(work))
            except Missing as reason:
                missing[name] = str(reason)
                continue
            next(batches[name])
        yield batches, missing


def compare(
    work: Work, rounds: int, seconds: float, warm_up: float, peers: Mapping[str, Peer] = EVERYBODY
) -> tuple[dict[str, Rate], dict[str, str]]:
    """What everybody comes to at one work, and who is missing."""
    with started(work, peers) as (batches, missing):
        return rates(batches, rounds, seconds, warm_up), missing
