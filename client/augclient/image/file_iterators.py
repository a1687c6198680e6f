"""Keras's iterators over picture files: what they have in common, and `DirectoryIterator`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import keras
import numpy as np

from augclient import access
from augclient.consumer import ADDRESS_VARIABLE
from augclient.files import ServerFiles
from augclient.image import labels
from augclient.image.iterator import Iterator, own
from augclient.image.listing import Files, LocalFiles, pictures_of_classes
from augclient.image.plan import FeedPlan, Indexes
from augclient.image.saving import FILE_HASHES

_CHANNELS = {"rgba": 4, "rgb": 3, "grayscale": 1}


def files_of(generator: Any) -> Files:
    """The file system that a generator's paths belong to: a shared server's, or this process's."""
    where = getattr(generator, "where", None)
    address = getattr(where, "address", None) or os.environ.get(ADDRESS_VARIABLE)
    if not address:
        return LocalFiles()
    keys = access.keys(getattr(where, "key", None), getattr(where, "server_key", None))
    return ServerFiles(address, keys)


def say(message: str) -> None:
    """Tell the user what was found, where Keras's setting of interactive logging wants it."""
    if keras.config.is_interactive_logging_enabled():
        print(message, flush=True)
        return
    from absl import logging  # Keras's own

    logging.info(message)


class BatchFromFilesMixin:
    """Batches of picture files, for an `Iterator` that knows `filepaths`, `labels`,
    `sample_weight`, `class_mode` and `dtype` (keras 3.15,
    keras/src/legacy/preprocessing/image.py).
    """

    # Of the iterator and of those that derive from this.
    n: int
    batch_size: int
    shuffle: bool
    dtype: Any
    class_mode: str | None
    classes: Any
    class_indices: dict[str, int]

    def set_processing_attrs(
        self,
        image_data_generator: Any,
        target_size: Sequence[int],
        color_mode: str,
        data_format: str,
        save_to_dir: Any,
        save_prefix: str,
        save_format: str,
        subset: str | None,
        interpolation: str,
        keep_aspect_ratio: bool,
    ) -> None:
        """Take over how files become pictures.

        Args:
            image_data_generator: What transforms and standardizes the pictures; None: nothing.
            target_size: (height, width) that pictures are resized to.
            color_mode: "rgb", "rgba" or "grayscale".
            data_format: "channels_last" or "channels_first".
            save_to_dir, save_prefix, save_format: Where pictures are saved as well, if at all.
            subset: "training", "validation", or None for all.
            interpolation: "nearest", "bilinear", "bicubic", "hamming", "box" or "lanczos".
            keep_aspect_ratio: Cut out the middle of a picture instead of distorting it.

        Raises:
            ValueError: The colour mode or the subset has no such name.
        """
        self.image_data_generator = image_data_generator
        self.target_size = cast(tuple[int, int], tuple(target_size))
        self.keep_aspect_ratio = keep_aspect_ratio
        if color_mode not in _CHANNELS:
            raise ValueError(
                f'Invalid color mode: {color_mode}; expected "rgb", "rgba", or "grayscale".'
            )
        self.color_mode = color_mode
        self.data_format = data_format
        channels = (_CHANNELS[color_mode],)
        last = self.data_format == "channels_last"
        self.image_shape: tuple[int, ...] = (
            self.target_size + channels if last else channels + self.target_size
        )
        self.save_to_dir = save_to_dir
        self.save_prefix = save_prefix
        self.save_format = save_format
        self.interpolation = interpolation
        self.split: tuple[float, float] | None = None
        if subset is not None:
            share = image_data_generator._validation_split
            if subset not in ("validation", "training"):
                raise ValueError(
                    f'Invalid subset name: {subset};expected "training" or "validation"'
                )
            self.split = (0, share) if subset == "validation" else (share, 1)
        self.subset = subset

    @property
    def filepaths(self) -> list[str]:
        """The files, one for each sample."""
        raise NotImplementedError(_missing("filepaths", self))

    @property
    def labels(self) -> Any:
        """The labels of all samples, one for each."""
        raise NotImplementedError(_missing("labels", self))

    @property
    def sample_weight(self) -> Any:
        """The weights of all samples, or None."""
        raise NotImplementedError(_missing("sample_weight", self))

    def _plan(self) -> FeedPlan:
        paths = self.filepaths
        listed, files = self.__dict__.get("_listed", (None, ()))
        if listed is not paths or len(files) != len(paths):
            files = tuple(paths)
            self._listed = paths, files
        return FeedPlan(
            files=files,
            batch_size=self.batch_size,
            shuffle=bool(self.shuffle),
            target_size=self.target_size,
            color_mode=self.color_mode,
            interpolation=self.interpolation,
            keep_aspect_ratio=self.keep_aspect_ratio,
            data_format=self.data_format,
            # Keras reads pictures in floatx, and casts the finished ones to the iterator's dtype.
            dtype=np.dtype(self.dtype).name,
            floatx=keras.config.floatx(),
            hashes=FILE_HASHES if self.save_to_dir else None,
        )

    @own
    def _get_batches_of_transformed_samples(self, index_array: Indexes) -> Any:
        """The batch of these samples: x, (x, y) or (x, y, sample_weight)."""
        x, leased = self._pictures(index_array, self.image_shape)  # type: ignore[attr-defined]
        match self.class_mode:
            case "input":
                y = x if leased else x.copy()
            case "binary" | "sparse":
                y = labels.numbers(self.classes, index_array, self.dtype)
            case "categorical":
                count = len(self.class_indices)
                y = labels.one_hot(self.classes, count, index_array, self.dtype)
            case "multi_output":
                y = labels.columns(self.labels, index_array)
            case "raw":
                y = self.labels[index_array]
            case _:
                # Keras takes a lone array for x, but not a lone tensor.
                return x if isinstance(x, np.ndarray) else (x,)
        weights = self.sample_weight
        return (x, y) if weights is None else (x, y, weights[index_array])


def _missing(name: str, iterator: object) -> str:
    return f"`{name}` property method has not been implemented in {type(iterator).__name__}."


class DirectoryIterator(BatchFromFilesMixin, Iterator):
    """Batches of the picture files below a folder, whose sub-folders are the classes (keras 3.15,
    keras/src/legacy/preprocessing/image.py).

    Args:
        directory: The folder; on the server, where the generator names one.
        classes: Names of the sub-folders that take part, in the order of their numbers; None for
            all, sorted.
        class_mode: "categorical" (one-hot), "binary" or "sparse" (numbers), "input" (the pictures
            themselves), or None (no labels).
        batch_size, shuffle, seed: See `Iterator`.
        follow_links: Into linked folders below a class.
        dtype: Of pictures and labels; None for Keras's floatx.
        others: See `BatchFromFilesMixin.set_processing_attrs`. A subset is a share of each class.

    Attributes:
        samples, num_classes: How many were found.
        class_indices: The number of each class.
        classes: int32 (samples,): the class of each file.
        filenames, filepaths: Of the files, relative to the directory, and with it.

    Raises:
        ValueError: The class mode, the colour mode or the subset has no such name.
        OSError: The folder cannot be listed.
    """

    allowed_class_modes: ClassVar[set[str | None]] = {
        "categorical", "binary", "sparse", "input", None,
    }  # fmt: skip

    def __init__(
        self,
        directory: Any,
        image_data_generator: Any,
        target_size: Sequence[int] = (256, 256),
        color_mode: str = "rgb",
        classes: Any = None,
        class_mode: str | None = "categorical",
        batch_size: int = 32,
        shuffle: bool = True,
        seed: Any = None,
        data_format: str | None = None,
        save_to_dir: Any = None,
        save_prefix: str = "",
        save_format: str = "png",
        follow_links: bool = False,
        subset: str | None = None,
        interpolation: str = "nearest",
        keep_aspect_ratio: bool = False,
        dtype: Any = None,
    ) -> None:
        self.set_processing_attrs(
            image_data_generator,
            target_size,
            color_mode,
            keras.config.image_data_format() if data_format is None else data_format,
            save_to_dir,
            save_prefix,
            save_format,
            subset,
            interpolation,
            keep_aspect_ratio,
        )
        self.directory = directory
        if class_mode not in self.allowed_class_modes:
            raise ValueError(
                f"Invalid class_mode: {class_mode}; expected one of: {self.allowed_class_modes}"
            )
        self.class_mode = class_mode
        self.dtype = keras.config.floatx() if dtype is None else dtype
        files, folder = files_of(image_data_generator), os.fspath(directory)
        names: Sequence[str] = classes or files.folders(folder)
        self.num_classes = len(names)
        self.class_indices = dict(zip(names, range(len(names)), strict=True))
        found = pictures_of_classes(
            files,
            folder,
            names,
            white_list_formats=self.white_list_formats,
            split=self.split,
            follow_links=follow_links,
        )
        self.filenames = [filename for of_class in found for filename in of_class]
        self.samples = len(self.filenames)
        # By the last part of a class's path, as Keras looks it up.
        self.classes = np.array(
            [
                self.class_indices[os.path.basename(name)]
                for name, of_class in zip(names, found, strict=True)
                for _ in of_class
            ],
            "int32",
        )
        say(f"Found {self.samples} images belonging to {self.num_classes} classes.")
        self._filepaths = [os.path.join(folder, filename) for filename in self.filenames]
        super().__init__(self.samples, batch_size, shuffle, seed)

    @property
    def filepaths(self) -> list[str]:
        """The files, one for each sample."""
        return self._filepaths

    @property
    def labels(self) -> Any:
        """The number of each sample's class."""
        return self.classes

    @property
    def sample_weight(self) -> Any:
        """None."""
        return None
