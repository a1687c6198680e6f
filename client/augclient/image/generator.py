"""`ImageDataGenerator` with Keras's arguments, attributes, warnings and numbers.

It is a face: it holds the settings, draws the parameters of single pictures and standardizes with
numpy. Pictures are resampled by a server, and batches are made by its workers. (keras 3.15,
keras/src/legacy/preprocessing/image.py.)
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import DTypeLike, NDArray

from augclient.image import functions, statistics
from augclient.image.augmented import augmented
from augclient.image.desk import Where
from augclient.image.flows import Flows
from augclient.image.pool import NOT_GIVEN, workers_of
from augclient.image.progress import Progress
from augclient.image.ranges import low_and_high, shift, within
from augclient.image.watch import METHODS

Picture = NDArray[Any]

ORDERS = ("stream", "keras")


class ImageDataGenerator(Flows):
    """Augmented pictures in Keras's terms, made by a server's workers.

    The first 23 arguments are Keras's, in Keras's order; they and what `fit` finds are attributes
    and may be changed at any time. Those behind them can only be given by name.

    Args:
        featurewise_center: Subtract each channel's mean, which `fit` finds.
        samplewise_center: Subtract each picture's mean.
        featurewise_std_normalization: Divide by each channel's deviation, which `fit` finds.
        samplewise_std_normalization: Divide by each picture's deviation.
        zca_whitening: Whiten with the matrix that `fit` finds.
        zca_epsilon: What is added to the singular values there.
        rotation_range: Degrees in either direction.
        width_shift_range, height_shift_range: A float below 1 is a share, from 1 on it is pixels,
            in either direction; a whole number n or a sequence is chosen from, with either sign.
        brightness_range: (low, high) of a factor.
        shear_range: Degrees in either direction.
        zoom_range: (low, high) of two factors, or a number z for (1 - z, 1 + z).
        channel_shift_range: Amount in either direction.
        fill_mode: What lies outside: "nearest", "constant" (cval), "reflect", "wrap".
        cval: See fill_mode.
        horizontal_flip, vertical_flip: Mirror every second picture, at random.
        rescale: Factor of all values; None or 0 for none.
        preprocessing_function: Of one picture, rank 3, after the random changes.
        data_format: "channels_last", "channels_first"; by default Keras's global one.
        validation_split: The share of the samples that is for subset="validation".
        interpolation_order: Of the spline that resamples.
        dtype: Of the pictures; by default Keras's global floatx.
        address: A server's address. Without one (and without the environment variable
            AUGSERVER_ADDRESS) a private server is started, which ends with this program and is
            shared by all its generators.
        workers: Processes of the private server; by default AUGSERVER_WORKERS, or one for each
            core. 0 computes in this process.
        pool: Of an earlier version of this package: a multiprocessing pool, of which the size is
            taken for `workers`; None is workers=0.
        order: "stream": the k-th batch taken is Keras's k-th, whoever takes it, and np.random is
            left alone. "keras": np.random is seeded and used as Keras does, which depends on the
            order of calls, and nothing is made ahead.
        slots: Of a stream's ring: how many batches can be ready or in use at once.
        timeout: Seconds that a batch or an answer may take.
        cache: "decoded" keeps decoded pictures, of files alone; see `augproto.spec.Spec`.
        key, server_key: For a server that asks for keys; see `augclient.Consumer`.

    Attributes:
        channel_axis, row_axis, col_axis: In a batch.
        mean, std: float arrays that broadcast over a picture; None before `fit`.
        zca_whitening_matrix: (values of a picture, values of a picture); None before `fit`.
        where: The server, as address, workers, slots, timeout and cache.

    Raises:
        ValueError: data_format, validation_split, zoom_range, brightness_range, order or cache is
            not what it says above.
    """

    def __init__(
        self,
        featurewise_center: bool = False,
        samplewise_center: bool = False,
        featurewise_std_normalization: bool = False,
        samplewise_std_normalization: bool = False,
        zca_whitening: bool = False,
        zca_epsilon: float = 1e-6,
        rotation_range: float = 0,
        width_shift_range: Any = 0.0,
        height_shift_range: Any = 0.0,
        brightness_range: Sequence[float] | None = None,
        shear_range: float = 0.0,
        zoom_range: float | Sequence[float] = 0.0,
        channel_shift_range: float = 0.0,
        fill_mode: str = "nearest",
        cval: float = 0.0,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
        rescale: float | None = None,
        preprocessing_function: Callable[[Picture], Any] | None = None,
        data_format: str | None = None,
        validation_split: float = 0.0,
        interpolation_order: int = 1,
        dtype: DTypeLike | None = None,
        *,
        address: str | None = None,
        workers: int | None = None,
        pool: Any = NOT_GIVEN,
        order: str = "stream",
        slots: int | None = None,
        timeout: float = 60.0,
        cache: str | None = None,
        key: str | os.PathLike[str] | None = None,
        server_key: str | os.PathLike[str] | None = None,
    ) -> None:
        self.featurewise_center = featurewise_center
        self.samplewise_center = samplewise_center
        self.featurewise_std_normalization = featurewise_std_normalization
        self.samplewise_std_normalization = samplewise_std_normalization
        self.zca_whitening = zca_whitening
        self.zca_epsilon = zca_epsilon
        self.rotation_range = rotation_range
        self.width_shift_range = width_shift_range
        self.height_shift_range = height_shift_range
        self.brightness_range = brightness_range
        self.shear_range = shear_range
        self.channel_shift_range = channel_shift_range
        self.fill_mode = fill_mode
        self.cval = cval
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.rescale = rescale
        self.preprocessing_function = preprocessing_function
        self.data_format: str = (
            keras.config.image_data_format() if data_format is None else data_format
        )
        self.interpolation_order = interpolation_order
        self.dtype: Any = keras.config.floatx() if dtype is None else dtype

        if self.data_format not in ("channels_last", "channels_first"):
            raise ValueError(
                '`data_format` should be `"channels_last"` (channel after row and column) or '
                f'`"channels_first"` (channel before row and column). Received: {data_format}'
            )
        if validation_split and not 0 < validation_split < 1:
            raise ValueError(
                f"`validation_split` must be strictly between 0 and 1. Received: {validation_split}"
            )
        if brightness_range is not None and not (
            isinstance(brightness_range, (tuple, list)) and len(brightness_range) == 2
        ):
            raise ValueError(
                "`brightness_range should be tuple or list of two floats. "
                f"Received: {brightness_range}"
            )
        if order not in ORDERS:
            raise ValueError(f"`order` should be one of {ORDERS}. Received: {order!r}")
        last = self.data_format == "channels_last"
        self.channel_axis, self.row_axis, self.col_axis = (3, 1, 2) if last else (1, 2, 3)
        self.zoom_range = low_and_high(zoom_range)
        self._validation_split = validation_split
        self.mean: Picture | None = None
        self.std: Picture | None = None
        self.zca_whitening_matrix: NDArray[Any] | None = None
        self._heed_overrides()
        if pool is not NOT_GIVEN:
            workers = workers_of(pool, workers)
        self.where = Where(address, workers, slots, timeout, cache, key, server_key)
        self.order = order

    def _heed_overrides(self) -> None:
        """Switch on what others imply, and say so, as often as Keras does."""
        center, deviation = self.featurewise_center, self.featurewise_std_normalization
        if self.zca_whitening and not center:
            self.featurewise_center = True
            _warn_overrides("zca_whitening", "featurewise_center")
        if self.zca_whitening and deviation:
            self.featurewise_std_normalization = False
            _warn_overrides("zca_whitening", "featurewise_std_normalization")
        if deviation and not center:
            self.featurewise_center = True
            _warn_overrides("featurewise_std_normalization", "featurewise_center")
        if self.samplewise_std_normalization and not self.samplewise_center:
            self.samplewise_center = True
            _warn_overrides("samplewise_std_normalization", "samplewise_center")

    def standardize(self, x: Picture) -> Picture:
        """Apply what is not random, IN PLACE: pass a copy to keep x.

        Args:
            x: A picture or a batch of them, of a float dtype.

        Returns:
            The same values, where possible in the same memory.
        """
        if self.preprocessing_function:
            x = self.preprocessing_function(x)
        if self.rescale:
            x *= self.rescale
        if self.samplewise_center:
            x -= np.mean(x, keepdims=True)
        if self.samplewise_std_normalization:
            x /= np.std(x, keepdims=True) + statistics.EPSILON
        if self.featurewise_center:
            if self.mean is None:
                warn_unfitted("featurewise_center")
            else:
                x -= self.mean
        if self.featurewise_std_normalization:
            if self.std is None:
                warn_unfitted("featurewise_std_normalization")
            else:
                x /= self.std + statistics.EPSILON
        if self.zca_whitening:
            if self.zca_whitening_matrix is None:
                warn_unfitted("zca_whitening")
            else:
                flat = x.reshape(-1, math.prod(x.shape[-3:]))
                x = np.reshape(flat @ self.zca_whitening_matrix, x.shape)
        return x

    def get_random_transform(
        self, img_shape: Sequence[int], seed: int | None = None
    ) -> dict[str, Any]:
        """Draw the parameters of one picture from the global np.random.

        Args:
            img_shape: Of the picture, rank 3: a shift may be a share of it.
            seed: np.random is seeded with it before, if it is given.

        Returns:
            theta, tx, ty, shear, zx, zy, flip_horizontal, flip_vertical, and
            channel_shift_intensity and brightness, which are None where there is no range.
        """
        if seed is not None:
            np.random.seed(seed)
        # One after the other: the order of the draws is what makes them Keras's.
        theta = within(self.rotation_range) if self.rotation_range else 0
        tx = shift(self.height_shift_range, img_shape, self.row_axis - 1)
        ty = shift(self.width_shift_range, img_shape, self.col_axis - 1)
        shear = within(self.shear_range) if self.shear_range else 0
        low, high = self.zoom_range
        zx, zy = (1, 1) if low == 1 and high == 1 else np.random.uniform(low, high, 2)
        flips = [
            (np.random.random() < 0.5) * allowed
            for allowed in (self.horizontal_flip, self.vertical_flip)
        ]
        channel_shift = within(self.channel_shift_range) if self.channel_shift_range != 0 else None
        brightness = None
        if self.brightness_range is not None:
            brightness = np.random.uniform(self.brightness_range[0], self.brightness_range[1])
        return {
            "theta": theta,
            "tx": tx,
            "ty": ty,
            "shear": shear,
            "zx": zx,
            "zy": zy,
            "flip_horizontal": flips[0],
            "flip_vertical": flips[1],
            "channel_shift_intensity": channel_shift,
            "brightness": brightness,
        }

    def apply_transform(self, x: Picture, transform_parameters: Mapping[str, Any]) -> Picture:
        """Change one picture by parameters as `get_random_transform` gives them.

        Args:
            x: Rank 3.
            transform_parameters: What is missing is neutral.

        Returns:
            A picture of the same shape; x itself if all is neutral.
        """
        row_axis, col_axis, channel_axis = (
            axis - 1 for axis in (self.row_axis, self.col_axis, self.channel_axis)
        )
        given = transform_parameters.get
        x = functions.apply_affine_transform(
            x,
            given("theta", 0),
            given("tx", 0),
            given("ty", 0),
            given("shear", 0),
            given("zx", 1),
            given("zy", 1),
            row_axis=row_axis,
            col_axis=col_axis,
            channel_axis=channel_axis,
            fill_mode=self.fill_mode,
            cval=self.cval,
            order=self.interpolation_order,
            where=self.where,
        )
        intensity = given("channel_shift_intensity")
        if intensity is not None:
            x = functions.apply_channel_shift(x, intensity, channel_axis)
        if given("flip_horizontal", False):
            x = functions.flip_axis(x, col_axis)
        if given("flip_vertical", False):
            x = functions.flip_axis(x, row_axis)
        factor = given("brightness")
        if factor is not None:
            x = functions.brightness_shifted(
                x, factor, False, channel_axis=channel_axis, where=self.where
            )
        return x

    def random_transform(self, x: Picture, seed: int | None = None) -> Picture:
        """Change one picture at random: `get_random_transform`, then `apply_transform`."""
        return self.apply_transform(x, self.get_random_transform(x.shape, seed))

    def fit(self, x: Any, augment: bool = False, rounds: int = 1, seed: int | None = None) -> None:
        """Find mean, std and whitening matrix, as far as the settings ask for them.

        mean and std are Keras's to the last bit; see `augclient.image.statistics` for what is
        done to get there without Keras's memory, and for the matrix.

        Args:
            x: Pictures, rank 4, before rescale.
            augment: Fit to randomly changed pictures instead.
            rounds: How often each picture is changed then.
            seed: np.random is seeded with it before, if it is given.

        Raises:
            ValueError: x is not of rank 4.
        """
        if not isinstance(x, np.ndarray):
            x = np.asarray(x, self.dtype)
        if x.ndim != 4:
            raise ValueError(
                f"Input to `.fit()` should have rank 4. Got array with shape: {x.shape}"
            )
        axis = self.channel_axis
        if x.shape[axis] not in (1, 3, 4):
            warnings.warn(
                "Expected input to be images (as Numpy array) following the data format "
                f'convention "{self.data_format}" (channels on axis {axis}), i.e. expected '
                f"either 1, 3 or 4 channels on axis {axis}. However, it was passed an array with "
                f"shape {x.shape} ({x.shape[axis]} channels).",
                stacklevel=2,
            )
        if seed is not None:
            np.random.seed(seed)
        wanted = statistics.Wanted(
            mean=self.featurewise_center,
            std=self.featurewise_std_normalization,
            whitening=self.zca_whitening,
            epsilon=self.zca_epsilon,
        )
        size = x.size * (rounds if augment else 1)
        with Progress(size * (wanted.passes + augment)) as progress:
            rescale = self.rescale
            if augment:
                # Drawn even where nothing is wanted: np.random has to move on as in Keras.
                changed = progress.over(augmented(self, x, rounds))
                x = statistics.gathered(changed, (rounds * len(x), *x.shape[1:]), self.dtype)
                rescale = None  # was done before the change
            fitted = statistics.fit(
                x,
                wanted,
                channel_axis=axis,
                dtype=self.dtype,
                rescale=rescale,
                advance=progress.advance,
            )
        if fitted.mean is not None:
            self.mean = fitted.mean
        if fitted.std is not None:
            self.std = fitted.std
        if fitted.whitening is not None:
            self.zca_whitening_matrix = fitted.whitening


def _warn_overrides(setting: str, other: str) -> None:
    warnings.warn(
        f"This ImageDataGenerator specifies `{setting}`, which overrides setting of `{other}`.",
        stacklevel=4,
    )


def warn_unfitted(setting: str) -> None:
    """Tell that a statistic is wanted and was not found, in Keras's words."""
    warnings.warn(
        f"This ImageDataGenerator specifies `{setting}`, but it hasn't been fit on any training "
        "data. Fit it first by calling `.fit(numpy_data)`.",
        stacklevel=3,
    )


#: What Keras's iterators call for each picture, as it is here. Programs put functions of their own
#: in the place of these, in a class derived from this one or in this one itself.
OWN_METHODS = {name: vars(ImageDataGenerator)[name] for name in METHODS}
#: ... and what `fit(augment=True)` calls.
OWN_RANDOM_TRANSFORM = ImageDataGenerator.random_transform
