"""Keras's own class in one process, its PyDataset with two, and a Pool as in 2017.

They are those of `augserver bench`, which users measure beside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from augserver.bench import peers
from peers.work import Batches, Missing, Peer, Work


def _where_there_is_keras(make: Peer) -> Peer:
    @contextlib.contextmanager
    def made(work: Work) -> Iterator[Batches]:
        try:
            peers.keras_image()
        except ImportError as error:
            raise Missing(f"Keras's class cannot be imported: {error}") from error
        with make(work) as batches:
            yield batches

    return made


image_data_generator = _where_there_is_keras(peers.image_data_generator)
py_dataset = _where_there_is_keras(peers.py_dataset)
pool_of_2017 = _where_there_is_keras(peers.plain_pool)
