"""The transforms by scipy and Pillow, picture by picture, bit for bit what Keras computes.

This is the meaning of `Transforms`: every faster backend is measured and tested against it.

Order and arithmetic are those of `ImageDataGenerator.apply_transform` and `.standardize` (keras
3.15, keras/src/legacy/preprocessing/image.py). Memory layout is kept as well: Keras's warped
pictures lie channel by channel and its flips are views with negative strides, and the float32 mean
of a picture depends on the order in which memory is summed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augproto.transforms import Statistic, Transforms
from augserver.draws import Draws
from augserver.transforms import affine, colour
from augserver.transforms.function import UserFunction

_EPSILON = 1e-6  # Keras adds it to every deviation that it divides by


class Reference:
    """A `TransformBatch` that takes every transform, dtype and shape."""

    def __init__(
        self,
        transforms: Transforms,
        *,
        data_format: str,
        dtype: str,
        function: Callable[[NDArray[Any]], Any] | None,
        image_shape: tuple[int, int, int],
        broadcasts: bool,
        mean: NDArray[Any] | float | None,
        std: NDArray[Any] | float | None,
    ) -> None:
        """Args: as for `build`; mean and std are featurewise and broadcast over a picture."""
        self._transforms = transforms
        self._dtype = np.dtype(dtype)
        self._image_shape = image_shape
        self._channel_axis = 0 if data_format == "channels_first" else 2
        self._row_axis, self._column_axis = (
            axis for axis in range(3) if axis != self._channel_axis
        )
        self._named = function if transforms.named else None
        self._function = (
            None
            if function is None or transforms.named
            else UserFunction(function, transforms.function or "", broadcasts=broadcasts)
        )
        self.mean = mean
        self.divisor = None if std is None else std + _EPSILON
        t = transforms
        self._prescale, self._rescale = _operand(t.prescale), _operand(t.rescale)
        self._fixed = bool(
            function is not None
            or t.prescale
            or t.rescale
            or t.offset
            or t.samplewise_center
            or t.samplewise_std_normalization
            or mean is not None
            or std is not None
        )

    def transform_batch(
        self,
        source: NDArray[Any],
        indexes: NDArray[np.int64],
        draws: Draws,
        out: NDArray[Any],
        note: Callable[[int], None] | None = None,
    ) -> None:
        """See `TransformBatch`."""
        self.check(source, indexes, out)
        warped = affine.needed(draws)
        if not (
            self._fixed
            or draws.channel_shift is not None
            or draws.brightness is not None
            or warped.any()
        ):
            self._copy(source, indexes, draws, out)
            return
        for i, sample in enumerate(indexes.tolist()):
            picture = self.change(source[sample], draws, i, bool(warped[i]))
            seeds = None if draws.seeds is None else draws.seeds[i]
            out[i] = self.finish(picture, sample, seeds, note)

    def check(self, source: NDArray[Any], indexes: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Raises: ValueError: Source or out is not of such pictures."""
        for name, got, wanted in (
            ("source", source.shape[1:], self._image_shape),
            ("out", out.shape, (len(indexes), *self._image_shape)),
        ):
            if got != wanted:  # numpy would broadcast, and fill the batch with copies
                raise ValueError(f"{name}: got shape {got}; wanted {wanted}")

    def _copy(
        self, source: NDArray[Any], indexes: NDArray[np.int64], draws: Draws, out: NDArray[Any]
    ) -> None:
        """Pictures that are at most flipped, all at once."""
        pictures = source[indexes]
        if out.dtype != self._dtype:  # a batch of doubles may be of pictures that were rounded
            pictures = pictures.astype(self._dtype)
        out[...] = pictures
        for flipped, axis in (
            (draws.flip_horizontal, self._column_axis),
            (draws.flip_vertical, self._row_axis),
        ):
            if flipped.any():
                out[flipped] = np.flip(out[flipped], 1 + axis)

    def change(self, picture: NDArray[Any], draws: Draws, i: int, warped: bool) -> NDArray[Any]:
        """The random part (`apply_transform`) for the i-th sample of the draws, as a copy."""
        t, axis = self._transforms, self._channel_axis
        picture = picture.astype(self._dtype)
        if self._prescale:
            picture *= self._prescale
        if warped:
            height, width = picture.shape[self._row_axis], picture.shape[self._column_axis]
            picture = affine.warp(
                picture,
                affine.matrix(draws, i, height, width),
                channel_axis=axis,
                order=t.interpolation_order,
                fill_mode=t.fill_mode,
                cval=t.cval,
            )
        # Plain floats from here on: a np.float64 would raise a float32 picture to float64.
        if draws.channel_shift is not None:
            picture = colour.shift_channels(
                picture, float(draws.channel_shift[i]), channel_axis=axis
            )
        if draws.flip_horizontal[i]:
            picture = np.flip(picture, self._column_axis)
        if draws.flip_vertical[i]:
            picture = np.flip(picture, self._row_axis)
        if draws.brightness is not None:
            factor = float(draws.brightness[i])
            picture = colour.brighten(picture, factor, channel_axis=axis, floatx=t.floatx)
        return picture

    def finish(
        self,
        picture: NDArray[Any],
        sample: int,
        seeds: NDArray[np.uint32] | None,
        note: Callable[[int], None] | None,
    ) -> NDArray[Any]:
        """What comes after the random part; the picture is changed where it lies."""
        if self._named is not None:
            picture = self._named(picture)
        if self._function is not None:
            picture = self._function(picture, sample, seeds, note)
        return self._standardize(picture)

    def _standardize(self, picture: NDArray[Any]) -> NDArray[Any]:
        """The fixed part (`standardize`) after the user's function, in place."""
        t = self._transforms
        if self._rescale:  # Keras takes 0 for "no rescale"
            picture *= self._rescale
        if t.offset:
            picture += t.offset
        if t.samplewise_center:
            picture -= np.mean(picture, keepdims=True)
        if t.samplewise_std_normalization:
            picture /= np.std(picture, keepdims=True) + _EPSILON
        if self.mean is not None:
            picture -= self.mean
        if self.divisor is not None:
            picture /= self.divisor
        return picture


def _operand(factor: float | Statistic | None) -> NDArray[Any] | float | None:
    return factor.operand() if isinstance(factor, Statistic) else factor
