"""What a config means on this machine, in words: `augserver check-config`.

Nothing is started, bound or taken. What is said of a ring is planned as the server plans it, and
what is said of a dataset stands in its files' headers.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from augproto.errors import AugError
from augproto.files import SIZES
from augproto.keys import load_allowed, load_secret
from augproto.layout import MAX_SPAN
from augproto.messages import Open
from augproto.segment import HOME, room
from augproto.spec import Spec
from augserver import backend, sizing
from augserver.config import Config, cores
from augserver.datasets.outlines import Array, outline, unreadable
from augserver.explanation import Explanation, Setting, Table
from augserver.limits import mib
from augserver.memory import Memory
from augserver.settings import DEFAULT, Settings


def explain(settings: Settings, environ: Mapping[str, str] = os.environ) -> Explanation:
    """Look at what a config names, and say what it means."""
    config = settings.config
    warnings = [*_of_roots(config), *_of_lists(config), *_of_room(config)]
    memory = Memory(most=config.max_total_bytes, workers=config.workers, private=False)
    datasets, streams = [], []
    for name, fields in config.datasets.items():
        datasets.append(_dataset(name, fields, warnings))
    for name, spec in config.streams.items():
        streams.append(_stream(name, spec, config, memory, warnings))
    return Explanation(
        None if settings.file is None else str(settings.file),
        tuple(_settings(settings, environ)),
        tuple(f"{a}: {_reach(a, config)}" for a in config.listen)
        + tuple(f"{a} (workers): {_reach(a, config)}" for a in config.listen_workers)
        + _of_metrics(config),
        tuple(_of_keys(config)),
        tuple(datasets),
        tuple(streams),
        tuple(warnings),
    )


# -- settings ------------------------------------------------------------------------------------


def _settings(settings: Settings, environ: Mapping[str, str]) -> list[Setting]:
    meanings = _meanings()
    found = []
    for field in dataclasses.fields(Config):
        key = field.name
        if key in ("datasets", "streams", "private"):
            continue
        value = getattr(settings.config, key)
        source = settings.sources.get(key, DEFAULT)
        if key == "kernels" and environ.get(backend.KERNELS_VARIABLE):
            value = environ[backend.KERNELS_VARIABLE]
            source = f"environment {backend.KERNELS_VARIABLE}"
        found.append(Setting(key, value, source, meanings.get(key, "")))
    return found


def _meanings() -> dict[str, str]:
    """What the attributes of a config mean, from its own docstring."""
    text = (inspect.getdoc(Config) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {k: " ".join(meaning.split()) for keys, meaning in entries for k in keys.split(", ")}


def _of_keys(config: Config) -> list[Table]:
    """The files of keys, read as the server reads them."""
    found = []
    try:
        if config.key:
            load_secret(Path(config.key))
            found.append(Table("key", ("read",)))
    except AugError as error:
        found.append(Table("key", error=str(error)))
    for name in ("allow_consumers", "allow_workers"):
        paths: tuple[str, ...] = getattr(config, name)
        try:
            if paths:
                found.append(Table(name, (f"{len(load_allowed(paths))} keys",)))
        except AugError as error:
            found.append(Table(name, error=str(error)))
    return found


def _of_metrics(config: Config) -> tuple[str, ...]:
    if not config.metrics:
        return ()
    return (f"http://{config.metrics}/metrics (figures for Prometheus): {_near(config.metrics)}",)


def _reach(address: str, config: Config) -> str:
    """Who can come to an address, and what is asked of him."""
    keys = "; whoever comes shows a key that is allowed" if config.asks_for_keys(address) else ""
    return _near(address) + keys


def _near(address: str) -> str:
    if address.startswith("ipc://"):
        folder = os.path.dirname(os.path.abspath(address.removeprefix("ipc://")))
        return f"programs of this user (uid {os.getuid()}) that see {folder}"
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if host.startswith("127.") or host in ("localhost", "[::1]"):
        return "every program of this machine, or of this container, whoever runs it"
    return "every machine that reaches that interface"


# -- tables --------------------------------------------------------------------------------------


def _dataset(name: str, fields: Mapping[str, object], warnings: list[str]) -> Table:
    # A stream may bring these; here they only make a whole spec of what is one in part.
    spec = Spec.from_wire(
        {"x": "x"} | dict(fields)
        if not fields.get("pictures")
        else {"target_size": (1, 1)} | dict(fields)
    )
    away = unreadable(spec.data)
    if away:
        warnings += [f"datasets.{name}: {path} cannot be read (yet)" for path in away]
        return Table(name, (f"data: {', '.join(spec.data)}",))
    try:
        arrays, classes = outline(spec)
    except AugError as error:
        return Table(name, error=str(error))
    return Table(name, (f"data: {', '.join(spec.data)}", *_contents(arrays, classes)))


def _contents(arrays: Mapping[str, Array], classes: tuple[str, ...]) -> list[str]:
    if SIZES in arrays:
        files = arrays[SIZES]
        facts = [f"{len(files)} files, {mib(int(files.sum()))}"]
        if classes:
            more = ", ..." if len(classes) > 10 else ""
            facts.append(f"{len(classes)} classes: {', '.join(classes[:10])}{more}")
        return facts
    return [f"{name}: {array.dtype} {array.shape}" for name, array in arrays.items()]


def _stream(name: str, spec: Spec, config: Config, memory: Memory, warnings: list[str]) -> Table:
    facts = [f"data: {', '.join(spec.data)}"]
    away = unreadable(spec.data)
    if away:
        warnings += [f"streams.{name}: {path} cannot be read (yet)" for path in away]
        return Table(name, tuple(facts))
    try:
        arrays, classes = outline(spec)
        wish = Open(name, None, None, {}, MAX_SPAN)
        seed = 0 if spec.seed is None else spec.seed
        plan = sizing.plan(wish, spec.with_classes(classes), seed, arrays, config, memory.holds)
    except AugError as error:
        return Table(name, tuple(facts), str(error))
    layout = plan.layout
    samples = "samples" if not classes else f"samples of {len(classes)} classes"
    facts += [
        f"{plan.recipe.sampler.samples} {samples}; {plan.steps} batches of {plan.batch_size} in an "
        f"epoch, {'shuffled' if spec.shuffle else 'in order'}; seed "
        + ("drawn at the start" if spec.seed is None else str(spec.seed)),
        "a batch: " + "; ".join(f"{f.name} {np.dtype(f.dtype)} {f.shape}" for f in layout.fields),
    ]
    fits = memory.fitting(layout, plan.slots)
    batches = "a batch" if plan.span == 1 else f"{plan.span} batches"
    size = mib(layout.segment_bytes(plan.slots))
    facts.append(
        f"a consumer's ring: {plan.slots} slots of {layout.slot_bytes} bytes ({batches} each), "
        f"{size}: " + ("it fits here" if fits == plan.slots else f"here {fits} slots fit")
    )
    if fits < plan.slots:
        warnings.append(
            f"streams.{name}: a ring of {plan.slots} slots, {size}, does not fit into {HOME} and "
            f"memory here: {f'it gets {fits}' if fits else 'consumers are refused'}; give the "
            "container more shared memory (shm_size), or make batch_size or target_size smaller"
        )
    return Table(name, tuple(facts))


# -- warnings ------------------------------------------------------------------------------------


def _of_roots(config: Config) -> list[str]:
    found = []
    if not config.streams and not config.roots and not config.datasets:
        found.append(
            "neither streams, datasets nor roots are configured: consumers can open nothing of "
            "this server's, only what they hand over"
        )
    for root in config.roots:
        real = os.path.realpath(root)
        if not os.path.isdir(root):
            found.append(f"roots: {root} is no folder (yet): nothing below it can be read")
        elif real != root:
            found.append(f"roots: {root} leads through a link: what is allowed is {real}")
    return found


def _of_lists(config: Config) -> list[str]:
    """Who is let in by a door that there is not."""
    found = []
    if config.allow_workers and not config.listen_workers:
        found.append("allow_workers: no worker can dial in: nothing is said of listen_workers")
    if config.allow_consumers and not any(map(config.asks_for_keys, config.listen)):
        found.append(
            "allow_consumers: nobody is asked for a key: none of listen can be reached by others "
            "than this machine"
        )
    return found


def _of_room(config: Config) -> list[str]:
    found = []
    if config.workers > cores():
        found.append(
            f"workers: {config.workers} processes on {cores()} cores: more than one for each core "
            "makes nothing faster"
        )
    free, total = room()
    if total <= 64 << 20:
        found.append(
            f"{HOME} has {mib(free)} free of {mib(total)}, a container's default, which holds a "
            "small ring: give it more (compose: shm_size; docker run: --shm-size)"
        )
    return found
