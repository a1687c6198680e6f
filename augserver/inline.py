"""The same bytes without a server: a stream computed in the caller's own process (workers=0).

For a debugger, which can step into a user's function here, and for a test that wants no processes.
There is no ring and no prefetching: a batch is computed when it is asked for, in fresh memory.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import WorkerError
from augproto.files import ENDS
from augproto.layout import aligned_empty
from augproto.messages import ArraySpec, Bad, Opened, Script
from augproto.spec import Spec
from augproto.structure import names_to_wire
from augserver.config import NO_BOUND
from augserver.datasets.arrays import attach, load
from augserver.datasets.cache import DecodedCache
from augserver.datasets.listing import list_files
from augserver.desk import recipe_of
from augserver.functions import resolve
from augserver.memory import Memory
from augserver.transforms import SampleError

Array = npt.NDArray[Any]


#: np.random and random belong to the whole program: one stream draws from them at a time.
_generators = threading.RLock()


@contextlib.contextmanager
def _caller_s_generators() -> Iterator[None]:
    """A user's function gets its own seeds; the caller's generators must not notice."""
    with _generators:
        state = np.random.get_state(), random.getstate()
        try:
            yield
        finally:
            np.random.set_state(state[0])
            random.setstate(state[1])


class Inline:
    """A stream in this process; what a link to a server is, without the server.

    Args:
        spec: The stream.
        arrays: The dataset, or None where `spec.data` names files.
        function: The user's own function, if it is not named by an import path.
        fingerprint: Of the arrays.
    """

    leased = 0
    copies = 0
    memory = "own"
    connected = True

    def __init__(
        self,
        spec: Spec,
        arrays: Mapping[str, Array] | None,
        function: Callable[[Any], Any] | None,
        fingerprint: str | None,
    ) -> None:
        if arrays is None and spec.pictures is not None:
            listing = list_files(spec.data[0], spec.pictures)
            arrays, fingerprint = listing.arrays, listing.fingerprint
            spec = spec.with_classes(listing.class_names)
        if arrays is None:
            memory = Memory(most=NO_BOUND, workers=0, private=True)
            dataset = load(spec.data, memory)
            arrays = attach(dataset.sources)
            fingerprint = dataset.fingerprint
            dataset.close()  # the maps stay
        if function is None and spec.transforms.function is not None:
            function = resolve(spec.transforms.function, {})
        self._draws_global = function is not None and not spec.transforms.named
        seed = secrets.randbits(31) if spec.seed is None else spec.seed
        cache = None
        if spec.cache is not None and ENDS in arrays:
            cache = DecodedCache.private(spec, len(arrays[ENDS]))
        self._recipe = recipe = recipe_of(spec, seed, arrays, function, (), cache)
        self.opened = Opened(
            stream=0,
            segment="",
            slots=0,
            batch_size=recipe.layout.batch_size,
            arrays=tuple(ArraySpec(f.name, f.dtype, f.shape) for f in recipe.layout.fields),
            structure={role: names_to_wire(names) for role, names in recipe.structure.items()},
            steps=recipe.sampler.steps,
            samples=recipe.sampler.samples,
            shuffle=spec.shuffle,
            seed=seed,
            fingerprint=fingerprint or "",
            class_names=spec.pictures.class_names if spec.pictures is not None else (),
        )
        self._bad: dict[tuple[int, int], tuple[Bad, ...]] = {}
        self._scripts: dict[tuple[int, int], Script] = {}
        self._after: dict[tuple[int, int], bytes] = {}

    def fetch(self, key: tuple[int, int], timeout: float) -> dict[str, Array]:
        """Compute a batch; the timeout cannot be kept, since nothing runs beside the caller."""
        layout = self._recipe.layout
        script = self._scripts.pop(key, None)
        arrays = layout.arrays(aligned_empty(layout.slot_bytes), self._recipe.count(*key, script))
        try:
            with _caller_s_generators() if self._draws_global else contextlib.nullcontext():
                made = self._recipe.fill(*key, arrays, None, script)
        except SampleError as error:
            raise WorkerError(
                f"epoch {key[0]}, step {key[1]}, {error}",
                epoch=key[0],
                step=key[1],
                sample=error.sample,
                path=error.path,
            ) from error
        if made.bad:
            self._bad[key] = tuple(Bad(*key, b.sample, b.path, b.reason) for b in made.bad)
        if made.state:
            self._after[key] = made.state
        return {name: array[: made.samples] for name, array in arrays.items()}

    def give(self, script: Script) -> None:
        """Say what the batch of that name will be made of when it is fetched."""
        self._scripts[script.epoch, script.step] = script

    def take_back(self, key: tuple[int, int]) -> None:
        """Forget a script whose batch nobody will fetch."""
        self._scripts.pop(key, None)

    def after(self, key: tuple[int, int]) -> bytes:
        """np.random's state after the draws of a scripted batch just fetched."""
        return self._after.pop(key, b"")

    def bad(self, key: tuple[int, int]) -> tuple[Bad, ...]:
        """The samples that the batch just fetched had to do without."""
        return self._bad.pop(key, ())

    def close(self) -> None:
        """Nothing is held."""
