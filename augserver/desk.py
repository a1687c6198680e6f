"""Work on pictures that a consumer sends along: a warp by a given matrix, a given brightness.

A stream like any other, with a ring, workers and deadlines, except that its batches come by script
alone. Its dataset is one array of pictures, which says their shape and dtype; a script takes
pictures out of it or brings its own. So a face like Keras's `random_rotation` needs no scipy in the
program that calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError
from augproto.files import File
from augproto.layout import Layout
from augproto.messages import Script
from augproto.spec import Spec
from augproto.structure import Structure
from augserver.datasets.cache import DecodedCache
from augserver.datasets.columns import Indexes
from augserver.parts import Function
from augserver.policy import Made
from augserver.recipe import Need, Note, Recipe, indexes_of
from augserver.sampling import Sampler
from augserver.transforms import affine, colour

Array = npt.NDArray[Any]


class Desk:
    """How to make the batches of a stream of scheme "given"; for the rest, what a recipe is.

    Args:
        spec: `x` names the array of pictures. Of the transforms only fill_mode, cval and
            interpolation_order count.
        arrays: The dataset.

    Raises:
        ConfigError: The spec does not fit the dataset.
    """

    span = 1
    whole: tuple[str, ...] = ()

    def __init__(self, spec: Spec, arrays: Mapping[str, Array]) -> None:
        self.spec = spec
        self.arrays = arrays
        if not isinstance(spec.x, str) or spec.x not in arrays or arrays[spec.x].ndim != 4:
            raise ConfigError(
                f"scheme 'given': got x={spec.x!r} of arrays {', '.join(arrays)}; wanted the name "
                "of one array of pictures (samples, height, width, channels)"
            )
        self._pictures = arrays[spec.x]
        self._channel_axis = 0 if spec.data_format == "channels_first" else 2
        self.structure: dict[str, Structure[str]] = {"x": "x"}
        self.sampler = Sampler(
            low=0, high=len(self._pictures), batch_size=spec.batch_size, shuffle=False, seed=0
        )
        shape = self._pictures.shape[1:]
        self.layout = Layout.of(spec.batch_size, [("x", self._pictures.dtype, shape)])

    def count(self, epoch: int, step: int, script: Script | None = None) -> int:
        """Pictures that a script asks for.

        Raises:
            ConfigError: There is none, or it asks for something else.
        """
        return len(self._source(script))

    def samples(self, epoch: int, step: int, script: Script | None = None) -> Indexes:
        """The samples of the dataset that a script names, each once; see `Recipe.samples`."""
        named = np.empty(0, np.int64) if script is None else indexes_of(script)
        return np.array(list(dict.fromkeys(named.tolist())), np.int64)

    @property
    def length(self) -> int:
        """Samples of the dataset."""
        return len(self._pictures)

    @property
    def inputs(self) -> tuple[str, ...]:
        """See `Recipe.inputs`."""
        return (str(self.spec.x),)

    def file(self, sample: int) -> File | None:
        """Pictures here have no files."""
        return None

    def path(self, sample: int) -> str:
        """Pictures here have no files."""
        return ""

    def fill(
        self,
        epoch: int,
        step: int,
        out: Mapping[str, Array],
        note: Note | None = None,
        script: Script | None = None,
        need: Need | None = None,
    ) -> Made:
        """Write what the script asks for; see `Recipe.fill`."""
        if need is not None and script is not None and not script.pictures:
            need(self._indexes(script))
        source = self._source(script)
        assert script is not None, "or there were no source"
        matrices = np.frombuffer(script.matrices, "<f8").reshape(-1, 2, 3)
        for i, picture in enumerate(source):
            if note is not None:
                note(i)
            if len(matrices) and not np.isnan(matrices[i, 0, 0]):
                if picture.dtype == np.float16:
                    raise ConfigError(
                        "a picture: got float16, which scipy.ndimage does not resample; wanted "
                        "float32, float64 or whole numbers"
                    )
                picture = affine.warp(
                    picture,
                    matrices[i],
                    channel_axis=self._channel_axis,
                    order=self.spec.transforms.interpolation_order,
                    fill_mode=self.spec.transforms.fill_mode,
                    cval=self.spec.transforms.cval,
                )
            if script.brightness is not None:
                picture = colour.brighten(
                    picture, script.brightness, channel_axis=self._channel_axis
                )
            out["x"][i] = picture
        return Made(len(source))

    def _indexes(self, script: Script) -> Indexes:
        indexes = indexes_of(script)
        if len(indexes) and not 0 <= indexes.min() <= indexes.max() < len(self._pictures):
            raise ConfigError(
                f"script: got samples {indexes[:8].tolist()}; wanted 0 to {len(self._pictures) - 1}"
            )
        return indexes

    def _source(self, script: Script | None) -> Array:
        shape, dtype = self._pictures.shape[1:], self._pictures.dtype
        if script is None or script.state or (script.pictures and script.indexes):
            raise ConfigError(
                "script: got none, a state, or pictures as well as indexes; wanted one with given "
                "parameters for either"
            )
        if script.pictures:
            each = int(np.prod(shape)) * dtype.itemsize
            if len(script.pictures) % each:
                raise ConfigError(
                    f"script: got {len(script.pictures)} bytes of pictures; wanted a multiple of "
                    f"{each}, which is one of {dtype} and shape {shape}"
                )
            source: Array = np.frombuffer(script.pictures, dtype).reshape(-1, *shape)
        else:
            source = self._pictures[self._indexes(script)]
        if not 0 < len(source) <= self.layout.batch_size:
            raise ConfigError(
                f"script: got {len(source)} pictures; wanted 1 to {self.layout.batch_size}"
            )
        if len(script.matrices) not in (0, 48 * len(source)):
            raise ConfigError(
                f"script: got {len(script.matrices)} bytes of matrices; wanted none, or "
                f"{48 * len(source)}: six float64 for each of {len(source)} pictures"
            )
        return source


def recipe_of(
    spec: Spec,
    seed: int,
    arrays: Mapping[str, Array],
    function: Function | None = None,
    roots: tuple[str, ...] = (),
    cache: DecodedCache | None = None,
    span: int = 1,
    *,
    describes: bool = False,
    brought: Mapping[int, bytes] | None = None,
) -> Recipe | Desk:
    """How to make the batches of a stream, whichever its scheme is."""
    if spec.scheme == "given":
        return Desk(spec, arrays)
    return Recipe(
        spec, seed, arrays, function, roots, cache, span, describes=describes, brought=brought
    )
