"""Keras's `NumpyArrayIterator`: pictures, labels, weights and further inputs from arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from augclient.image.iterator import Iterator, own
from augclient.image.plan import Array, FeedPlan, Indexes
from augclient.image.saving import ARRAY_HASHES

#: What a server takes as it is; pictures of any other dtype are turned into the generator's first.
_SERVED = {"uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"} | {
    "float16", "float32", "float64",
}  # fmt: skip


class NumpyArrayIterator(Iterator):
    """Batches from arrays (keras 3.15, keras/src/legacy/preprocessing/image.py).

    Args:
        x: Pictures of rank 4, or (pictures, further input) or (pictures, [further inputs]).
        y: Labels, with one row for each picture, of any dtype; or None.
        image_data_generator: What transforms and standardizes the pictures.
        batch_size, shuffle, seed: See `Iterator`.
        sample_weight: One for each picture. As with Keras it is not divided by `subset`: the i-th
            picture of a subset has the i-th weight.
        data_format: "channels_last" or "channels_first"; None for Keras's own setting.
        save_to_dir, save_prefix, save_format: Where pictures are saved as well, if at all.
        subset: "training", "validation" (the first share that the generator's validation_split
            says), or None for all.
        ignore_class_split: Accept that the two have different classes.
        dtype: Of the pictures in a batch; None for Keras's floatx.

    Attributes:
        x: The pictures in that dtype, made when they are asked for. What is served are the
            program's own, which so are not held twice; therefore this is read-only. Set it to
            exchange them.
        x_misc: List of the further inputs.
        y, sample_weight: As arrays, or None.

    Raises:
        ValueError: Lengths differ, the rank is not 4, the subset has no such name, or the two
            subsets have different classes.
    """

    _served: Array
    _x: Array | None

    def __init__(
        self,
        x: Any,
        y: Any,
        image_data_generator: Any,
        batch_size: int = 32,
        shuffle: bool = False,
        sample_weight: Any = None,
        seed: Any = None,
        data_format: str | None = None,
        save_to_dir: Any = None,
        save_prefix: str = "",
        save_format: str = "png",
        subset: str | None = None,
        ignore_class_split: bool = False,
        dtype: Any = None,
    ) -> None:
        self.data_format = keras.config.image_data_format() if data_format is None else data_format
        self.dtype = keras.config.floatx() if dtype is None else dtype
        self.image_data_generator = image_data_generator
        x_misc: list[Array] = []
        if isinstance(x, (tuple, list)):
            misc = x[1] if isinstance(x[1], list) else [x[1]]
            x, x_misc = x[0], [np.asarray(array) for array in misc]
        _check_lengths(x, x_misc, y, sample_weight)
        if subset is not None:
            part = _part(len(x), y, image_data_generator, subset, ignore_class_split)
            x, x_misc = x[part], [array[part] for array in x_misc]
            y = y if y is None else y[part]
        samples = x.shape[0]
        self.x = x
        self.x_misc = x_misc
        self._check_pictures()
        self.y = None if y is None else np.asarray(y)
        self.sample_weight = None if sample_weight is None else np.asarray(sample_weight)
        self.save_to_dir = save_to_dir
        self.save_prefix = save_prefix
        self.save_format = save_format
        super().__init__(samples, batch_size, shuffle, seed)

    @property
    def x(self) -> Array:
        """The pictures in the iterator's dtype, read-only."""
        if self._x is None:
            x = np.asarray(self._served, self.dtype).view()
            x.flags.writeable = False
            self._x = x
        return self._x

    @x.setter
    def x(self, pictures: Any) -> None:
        self._x = None
        self._served = np.asarray(pictures)
        if self._served.dtype.name not in _SERVED:
            self._served = np.asarray(pictures, self.dtype)
        elif self._served is pictures and self._served.dtype != self.dtype:
            # Keras has made another array of it by now, so the program may use its own again. (Of
            # uint8 this is a quarter of what Keras takes.)
            self._served = pictures.copy()

    def _check_pictures(self) -> None:
        shape = self._served.shape
        if len(shape) != 4:
            raise ValueError(
                "Input data in `NumpyArrayIterator` should have rank 4. You passed an array with "
                f"shape {shape}"
            )
        axis = 3 if self.data_format == "channels_last" else 1
        if shape[axis] not in {1, 3, 4}:
            warnings.warn(
                "NumpyArrayIterator is set to use the data format convention "
                f'"{self.data_format}" (channels on axis {axis}), i.e. expected either 1, 3, or 4 '
                f"channels on axis {axis}. However, it was passed an array with shape {shape} "
                f"({shape[axis]} channels).",
                stacklevel=4,
            )

    def _plan(self) -> FeedPlan:
        return FeedPlan(
            x=self._served,
            batch_size=self.batch_size,
            shuffle=bool(self.shuffle),
            data_format=self.data_format,
            dtype=np.dtype(self.dtype).name,
            hashes=ARRAY_HASHES if self.save_to_dir else None,
        )

    @own
    def _get_batches_of_transformed_samples(self, index_array: Indexes) -> Any:
        """The batch of these samples: x, (x, y) or (x, y, sample_weight)."""
        pictures, _ = self._pictures(index_array, self._served.shape[1:])
        x = [pictures, *(array[index_array] for array in self.x_misc)] if self.x_misc else pictures
        if self.y is None:
            # Keras takes a lone array for x, but not a lone tensor.
            return x if isinstance(x, (np.ndarray, list)) else (x,)
        if self.sample_weight is None:
            return x, self.y[index_array]
        return x, self.y[index_array], self.sample_weight[index_array]


def _check_lengths(x: Any, x_misc: Sequence[Array], y: Any, sample_weight: Any) -> None:
    for array in x_misc:
        if len(x) != len(array):
            raise ValueError(
                "All of the arrays in `x` should have the same length. Found a pair with: "
                f"len(x[0]) = {len(x)}, len(x[?]) = {len(array)}"
            )
    for name, array in (("`y` (labels)", y), ("`sample_weight`", sample_weight)):
        if array is not None and len(x) != len(array):
            plain = name.split("`")[1]
            raise ValueError(
                f"`x` (images tensor) and {name} should have the same length. Found: "
                f"x.shape = {np.asarray(x).shape}, {plain}.shape = {np.asarray(array).shape}"
            )


def _part(samples: int, y: Any, generator: Any, subset: str, ignore_class_split: bool) -> slice:
    """The rows of a subset; the first share is for validation."""
    if subset not in {"training", "validation"}:
        raise ValueError(f'Invalid subset name: {subset}; expected "training" or "validation".')
    first = int(samples * generator._validation_split)
    if (
        y is not None
        and not ignore_class_split
        and not np.array_equal(np.unique(y[:first]), np.unique(y[first:]))
    ):
        raise ValueError(
            "Training and validation subsets have different number of classes after the split. "
            "If your numpy arrays are sorted by the label, you might want to shuffle them."
        )
    return slice(None, first) if subset == "validation" else slice(first, None)
