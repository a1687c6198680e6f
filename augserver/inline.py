"""The same bytes without a server: a stream computed in the caller's own process (workers=0).

For a debugger, which can step into a user's function here, and for a test that wants no processes.
There is no ring and no prefetching: a batch is computed when it is asked for, in fresh memory.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import WorkerError
from augproto.layout import aligned_empty
from augproto.messages import ArraySpec, Bad, Opened
from augproto.spec import Spec
from augproto.structure import names_to_wire
from augserver.config import NO_BOUND
from augserver.datasets.arrays import attach, load
from augserver.datasets.listing import list_files
from augserver.functions import resolve
from augserver.memory import Memory
from augserver.recipe import Recipe
from augserver.transforms import SampleError

Array = npt.NDArray[Any]


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
        self._draws_global = function is not None
        seed = secrets.randbits(31) if spec.seed is None else spec.seed
        self._recipe = recipe = Recipe(spec, seed, arrays, function)
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

    def fetch(self, key: tuple[int, int], timeout: float) -> dict[str, Array]:
        """Compute a batch; the timeout cannot be kept, since nothing runs beside the caller."""
        layout = self._recipe.layout
        arrays = layout.arrays(aligned_empty(layout.slot_bytes), self._recipe.count(*key))
        # A user's function gets its own seeds; the caller's generators must not notice.
        state = (np.random.get_state(), random.getstate()) if self._draws_global else None
        try:
            made = self._recipe.fill(*key, arrays)
        except SampleError as error:
            raise WorkerError(
                f"epoch {key[0]}, step {key[1]}, {error}",
                epoch=key[0],
                step=key[1],
                sample=error.sample,
                path=error.path,
            ) from error
        finally:
            if state is not None:
                np.random.set_state(state[0])
                random.setstate(state[1])
        if made.bad:
            self._bad[key] = tuple(Bad(*key, b.sample, b.path, b.reason) for b in made.bad)
        return {name: array[: made.samples] for name, array in arrays.items()}

    def bad(self, key: tuple[int, int]) -> tuple[Bad, ...]:
        """The samples that the batch just fetched had to do without."""
        return self._bad.pop(key, ())

    def close(self) -> None:
        """Nothing is held."""
