"""The server's side of one consumer: what it opened, its ring, and whether it still lives.

Everything here is about one consumer alone, so that whatever happens to it happens to no other.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
from concurrent.futures import Future
from dataclasses import dataclass

from augproto.errors import ConfigError, NotAllowed, UnknownStream
from augproto.messages import ArraySpec, Define, Open, Opened
from augproto.ring import Ring
from augproto.segment import Segment
from augproto.session import Session
from augproto.spec import HANDED, Spec
from augproto.structure import names_to_wire
from augserver import sizing
from augserver.config import Config
from augserver.datasets import named
from augserver.datasets.arrays import ArrayDataset, attach
from augserver.datasets.roots import check_roots
from augserver.desk import Desk
from augserver.memory import Memory
from augserver.recipe import Recipe

#: Fields of a configured stream that a consumer may set for itself.
CHANGEABLE = ("batch_size", "shuffle", "seed", "shard", "drop_remainder", "subset")


_log = logging.getLogger("augserver.server")


@dataclass(slots=True)
class Ringed:
    """A stream that is open: its ring and its dataset."""

    opened: Opened
    define: Define
    segment: Segment
    ring: Ring
    recipe: Recipe | Desk
    dataset: ArrayDataset


@dataclass(slots=True)
class Conversation:
    """One consumer.

    Attributes:
        wish: What it asked to open, until that is done.
        loading: The dataset that the wish waits for.
        holds: Whether it has said Want: from then on it holds its segment, or is dead.
        hands: Whether it hands over arrays, or has done so.
        describes: Whether its stream, open or wished for, is one that it describes itself.
    """

    identity: bytes
    session: Session
    program: str = ""
    wish: tuple[Open, Spec] | None = None
    loading: Future[ArrayDataset] | None = None
    ringed: Ringed | None = None
    holds: bool = False
    hands: bool = False
    describes: bool = False

    @property
    def opens(self) -> bool:
        """Whether it has a stream, or waits for one, or brings what it is to be made of."""
        return self.ringed is not None or self.wish is not None or self.hands

    @property
    def dead(self) -> bool:
        """Whether its process is provably gone (not merely silent)."""
        ringed = self.ringed
        shares = self.holds and ringed is not None and not ringed.opened.frames
        return shares and ringed is not None and not ringed.segment.consumer_lives()


def spec_of(wish: Open, config: Config, handed: str | None = None) -> Spec:
    """The spec that a consumer asked for, checked against what the server allows.

    Args:
        handed: The name of what this consumer has handed over, if anything.

    Raises:
        ConfigError: There is no such stream, or a field cannot be served.
        NotAllowed: A path or a transform outside what the config allows.
    """
    if (wish.stream is None) == (wish.spec is None):
        raise ConfigError("open: wanted the name of a stream, or a spec, and not both")
    if wish.stream is not None:
        if wish.stream not in config.streams:
            known = ", ".join(sorted(config.streams)) or "none"
            raise UnknownStream(
                f"open: this server has no stream {wish.stream!r:.80}; it has: {known}"
            )
        spec = config.streams[wish.stream]
        for key in wish.changes:
            if key not in CHANGEABLE:
                raise NotAllowed(
                    f"open: {key!r:.80} of a configured stream is the server's; a consumer may set "
                    + ", ".join(CHANGEABLE)
                )
        return Spec.from_wire(spec.to_wire() | wish.changes) if wish.changes else spec
    asked = Spec.from_wire(wish.spec)
    spec = named.resolved(asked, config.datasets)
    function = spec.transforms.function
    if config.private:
        return spec
    if (function or "").startswith(HANDED):
        raise NotAllowed(
            "open: functions of your program can only be handed to a private server (leave address "
            "out), not to one that others use"
        )
    if asked.dataset is not None:
        pass  # its files are the config's own
    elif any(path.startswith(HANDED) for path in spec.data):
        if spec.data != (f"{HANDED}{handed}",):
            raise NotAllowed(f"data: {spec.data!r:.200} was not handed over by this consumer")
    else:
        for path in spec.data:
            if not os.path.isabs(path):
                raise NotAllowed(f"data: got {path!r:.200}; wanted a path from the root (/) on")
        check_roots(spec.data, config.roots)
    if asked.pictures is not None and asked.pictures.max_pixels > config.max_pixels:
        raise NotAllowed(
            f"pictures.max_pixels: got {asked.pictures.max_pixels}; this server allows at most "
            f"{config.max_pixels} (max_pixels)"
        )
    own = spec.transforms.named  # these are the server's
    if function is not None and not own and function not in config.allow_transforms:
        raise NotAllowed(
            f"transforms.function: {function!r:.80} is not in this server's allow_transforms"
        )
    return spec


def roots_of(wish: Open, config: Config) -> tuple[str, ...] | None:
    """Folders below which the files of a wish must lie; None for any.

    What the config names, be it a stream or a dataset, is the server's own word; what a consumer
    names has bounds.
    """
    if wish.spec is None or config.private or Spec.from_wire(wish.spec).dataset is not None:
        return None
    return config.roots


def open_stream(
    stream: int, wish: Open, spec: Spec, dataset: ArrayDataset, config: Config, memory: Memory
) -> Ringed:
    """Make the ring and the messages that tell the consumer and the workers of it.

    Raises:
        ConfigError: The spec does not fit the dataset.
        NoRoom: Not even the fewest slots fit into shared memory.
    """
    seed = secrets.randbits(31) if spec.seed is None else spec.seed
    spec = spec.with_classes(dataset.class_names)
    arrays = attach(dataset.sources)
    plan = sizing.plan(wish, spec, seed, arrays, config, memory.holds)
    recipe, layout, span = plan.recipe, plan.layout, plan.span
    segment, slots = memory.ring(layout, plan.slots)
    structure = {role: names_to_wire(names) for role, names in recipe.structure.items()}
    opened = Opened(
        stream=stream,
        segment="" if wish.frames else segment.name,
        slots=slots,
        batch_size=plan.batch_size,
        arrays=tuple(ArraySpec(f.name, f.dtype, f.shape) for f in layout.fields),
        structure=structure,
        steps=plan.steps,
        samples=recipe.sampler.samples,
        shuffle=spec.shuffle,
        seed=seed,
        fingerprint=dataset.fingerprint,
        class_names=dataset.class_names,
        span=span,
        frames=wish.frames,
    )
    roots = roots_of(wish, config) or ()
    define = Define(
        stream,
        spec.to_wire(),
        seed,
        dataset.sources,
        segment.name,
        slots,
        roots,
        dataset.cache,
        span,
    )
    return Ringed(opened, define, segment, Ring(segment.map(), layout, slots), recipe, dataset)


def with_seeds(config: Config) -> Config:
    """Draw the seeds of configured streams that name none, once for all their consumers."""
    streams = {
        name: spec
        if spec.seed is not None
        else dataclasses.replace(spec, seed=secrets.randbits(31))
        for name, spec in config.streams.items()
    }
    return dataclasses.replace(config, streams=streams)
