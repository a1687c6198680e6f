"""The one interface of every backend, and the door at which a backend is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from augproto import named
from augproto.errors import ConfigError
from augproto.transforms import Statistic, Transforms
from augserver.backend import backend
from augserver.draws import Draws
from augserver.transforms.compiled import Compiled, takes
from augserver.transforms.reference import Reference


class TransformBatch(Protocol):
    """Turns samples of a source into one batch."""

    def transform_batch(
        self,
        source: NDArray[Any],
        indexes: NDArray[np.int64],
        draws: Draws,
        out: NDArray[Any],
        note: Callable[[int], None] | None = None,
    ) -> None:
        """Write the transformed pictures source[indexes] to out, in that order.

        Args:
            source: (N, H, W, C) or (N, C, H, W) by the data format, of any real dtype; only read.
            indexes: int64 (n,).
            draws: Parameters of these n samples, in the same order.
            out: (n, *picture), of the spec's dtype. Every byte of it is written.
            note: Called with the index in the source before a user's function gets its picture.

        Raises:
            SampleError: The user's function failed on a sample.
        """


def build(
    transforms: Transforms,
    *,
    data_format: str,
    dtype: str,
    function: Callable[[NDArray[Any]], Any] | None,
    image_shape: tuple[int, int, int],
    broadcasts: bool = False,
    describes: bool = False,
) -> TransformBatch:
    """Choose the backend for these transforms and refuse what no backend could do.

    Args:
        transforms: What to do to each picture.
        data_format: "channels_last" or "channels_first", of source and batch alike.
        dtype: What is computed in; batches may be of another.
        function: What the name `transforms.function` stands for.
        image_shape: A picture's shape, in that data format.
        broadcasts: Whether a function may give one value for a whole axis, as in Keras.
        describes: Nothing will be computed: a server that describes streams needs no kernels.

    Raises:
        ConfigError: A transform does not fit a picture of this shape.
    """
    channels = image_shape[0 if data_format == "channels_first" else 2]
    if transforms.brightness_range is not None and channels not in (1, 3, 4):
        raise ConfigError(
            f"transforms.brightness_range: got pictures of {channels} channels (shape "
            f"{image_shape}, {data_format}); wanted 1, 3 or 4, which Pillow can take"
        )
    if (function is None) != (transforms.function is None):
        raise ConfigError(
            f"transforms.function: got the name {transforms.function!r} with the function "
            f"{function!r}; wanted both or neither"
        )
    if transforms.named and not named.fits(transforms.function or "", image_shape):
        raise ConfigError(
            f"transforms.function: got {transforms.function!r} for pictures of shape "
            f"{image_shape}; wanted at least three channels where it looks for them"
        )
    mean = _statistic("featurewise_mean", transforms.featurewise_mean, image_shape)
    std = _statistic("featurewise_std", transforms.featurewise_std, image_shape)
    reference = Reference(
        transforms,
        data_format=data_format,
        dtype=dtype,
        function=function,
        image_shape=image_shape,
        broadcasts=broadcasts,
        mean=mean,
        std=std,
    )
    if describes or backend() == "scipy":
        return reference
    if not takes(
        transforms,
        dtype=dtype,
        image_shape=image_shape,
        channel_axis=0 if data_format == "channels_first" else 2,
    ):
        return reference
    return Compiled(
        transforms,
        reference,
        data_format=data_format,
        image_shape=image_shape,
    )


def _statistic(
    name: str, statistic: Statistic | None, image_shape: tuple[int, int, int]
) -> NDArray[Any] | float | None:
    """What to compute with, if it broadcasts over a picture without making it larger."""
    if statistic is None or statistic.weak:
        return None if statistic is None else statistic.operand()
    array = statistic.array()
    # Statistics of a batch often keep its axis: (1, 1, 1, C) stands for (1, 1, C).
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    try:
        fits = np.broadcast_shapes(array.shape, image_shape) == image_shape
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(
            f"transforms.{name}: got shape {statistic.shape}; wanted one that broadcasts over a "
            f"picture of shape {image_shape}"
        )
    return array
