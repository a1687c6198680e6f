"""This project: a private server with two workers, and a consumer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from augclient import Consumer, local
from augproto.errors import ConfigError
from peers.work import WORKERS, Array, Missing, Work


def consumer(work: Work, workers: int = WORKERS, **options: Any) -> Consumer:
    """A consumer of a work, behind this program's private server."""
    given: Any = {
        "batch_size": work.batch_size,
        "transforms": work.transforms,
        "workers": workers,
    } | options
    if work.x is not None:
        return Consumer(work.x, work.y, **given)
    return Consumer(files=work.files, y=work.y, target_size=work.size, **given)


def batches(source: Consumer) -> Iterator[Array]:
    """The pictures of whole batches, epoch after epoch."""
    epoch, whole = 0, source.samples // source.batch_size
    while True:
        for step in range(whole):
            x = source.get(epoch, step).x
            yield x  # type: ignore[misc] # there is one input
            del x
        epoch += 1


@contextlib.contextmanager
def ours(work: Work, **options: Any) -> Iterator[Iterator[Array]]:
    """The pictures, in order."""
    with consumer(work, **options) as source:
        yield batches(source)


@contextlib.contextmanager
def ours_cached(work: Work) -> Iterator[Iterator[Array]]:
    """The pictures of epochs for which the decoded files are in the cache."""
    try:
        source = consumer(work, cache="decoded")
    except (ConfigError, TypeError) as error:
        raise Missing(f"no decoded cache: {error}") from error
    with source:
        for _ in source.epoch(0):
            pass
        yield batches(source)


def shut_down() -> None:
    """End this program's private server."""
    local.shut_down()
