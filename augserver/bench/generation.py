"""(a) Small pictures, generation only: how fast batches come, by the number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from augclient import local
from augclient.consumer import Consumer
from augproto.errors import AugError
from augserver.bench import attempts, peers
from augserver.bench.data import Pictures
from augserver.bench.plan import TRANSFORMS, Plan
from augserver.bench.timing import Summary, images_per_second
from augserver.bench.work import Array, Batches, Peer, Work

BATCH = 32
KERAS = "Keras ImageDataGenerator, 1 process"
PEERS: dict[str, Peer] = {
    "Keras PyDataset, 2 processes": peers.py_dataset,
    KERAS: peers.image_data_generator,
    "plain Pool, 2 processes": peers.plain_pool,
}


@dataclass(frozen=True)
class Generation:
    """Images a second, by who makes them.

    Attributes:
        epoch: Pictures of an epoch.
        ours: By the number of worker processes, one at least; 0 computes in this process.
        others: By name.
        missing: Who could not be measured, with the reason.
    """

    batch_size: int
    epoch: int
    ours: dict[int, Summary]
    others: dict[str, Summary]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def keras(self) -> Summary | None:
        """Keras's own class, if it could be measured."""
        return self.others.get(KERAS)


def measure(
    pictures: Pictures, plan: Plan, counts: Sequence[int], say: Callable[[str], None]
) -> Generation:
    """Ask everybody in turns; our private server is started anew for each number of processes.

    Raises:
        AugError: None of ours could be measured: there is nothing to report.
    """
    rows = np.resize(np.arange(len(pictures.x)), max(len(pictures.x), plan.epoch))
    work = Work("small pictures", BATCH, dict(TRANSFORMS), pictures.y[rows], pictures.x[rows])
    ours: dict[int, list[float]] = {count: [] for count in counts}
    others: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    failed: AugError | None = None
    with contextlib.ExitStack() as stack:
        started: dict[str, Batches] = {}
        for name, make in PEERS.items():
            try:
                started[name] = stack.enter_context(make(work))
                next(started[name])
            except Exception as error:  # whatever Keras and its processes come up with
                started.pop(name, None)
                missing[name] = attempts.reason(error)
        for turn in range(plan.rounds):
            say(f"  round {turn + 1} of {plan.rounds}")
            for count in counts:
                if who(count) not in missing:
                    try:
                        with augmented(work, count) as batches:
                            rate = images_per_second(batches, plan.seconds, plan.warm_up)
                    except AugError as error:
                        missing[who(count)] = attempts.reason(error)
                        failed = error
                    else:
                        ours[count].append(rate)
            if failed is not None and not any(ours.values()):
                raise failed
            for name, batches in started.items():
                if name not in missing:
                    try:
                        rate = images_per_second(batches, plan.seconds, plan.warm_up)
                    except Exception as error:  # as above
                        missing[name] = attempts.reason(error)
                    else:
                        others.setdefault(name, []).append(rate)
    return Generation(
        BATCH,
        work.samples,
        {count: Summary.of(values) for count, values in ours.items() if values},
        {name: Summary.of(values) for name, values in others.items()},
        missing,
    )


def who(workers: int) -> str:
    """Us with so many worker processes, in words."""
    return f"augserver, {workers} process{'es' * (workers != 1)}"


@contextlib.contextmanager
def augmented(work: Work, workers: int) -> Iterator[Batches]:
    """Ours, with a private server that has so many workers."""
    local.shut_down()
    try:
        with Consumer(
            work.x, work.y, batch_size=work.batch_size, workers=workers, seed=1,
            transforms=work.transforms,
        ) as consumer:  # fmt: skip
            consumer.get(0, 0)
            yield _pictures(consumer)
    finally:
        local.shut_down()


def _pictures(consumer: Consumer) -> Iterator[Array]:
    whole = consumer.samples // consumer.batch_size
    epoch = 0
    while True:
        for step in range(whole):
            yield consumer.get(epoch, step).x  # type: ignore[misc] # there is one input
        epoch += 1
