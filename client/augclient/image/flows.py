"""From a generator to its iterators: `flow`, `flow_from_directory`, `flow_from_dataframe`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from augclient.image.array_iterator import NumpyArrayIterator
from augclient.image.dataframe_iterator import DataFrameIterator
from augclient.image.desk import Where
from augclient.image.file_iterators import DirectoryIterator


class Flows:
    """The part of `ImageDataGenerator` that opens iterators.

    Attributes:
        data_format, dtype: Of the batches.
        where: The server; its cache is one of pictures of files.
    """

    data_format: str
    dtype: Any
    where: Where

    def flow(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 32,
        shuffle: bool = True,
        sample_weight: Any = None,
        seed: int | None = None,
        save_to_dir: str | None = None,
        save_prefix: str = "",
        save_format: str = "png",
        ignore_class_split: bool = False,
        subset: str | None = None,
    ) -> NumpyArrayIterator:
        """Batches from arrays; see `NumpyArrayIterator`.

        A generator's cache is for pictures of files: here it does nothing, and a warning says so.
        """
        if self.where.cache is not None:
            warnings.warn(
                f"This ImageDataGenerator specifies `cache={self.where.cache!r}`, which keeps "
                "decoded pictures of files; arrays lie in memory as they are, so `flow` takes no "
                "notice of it.",
                stacklevel=2,
            )
        return NumpyArrayIterator(
            x,
            y,
            self,
            batch_size=batch_size,
            shuffle=shuffle,
            sample_weight=sample_weight,
            seed=seed,
            data_format=self.data_format,
            save_to_dir=save_to_dir,
            save_prefix=save_prefix,
            save_format=save_format,
            ignore_class_split=ignore_class_split,
            subset=subset,
            dtype=self.dtype,
        )

    def flow_from_directory(
        self,
        directory: str,
        target_size: tuple[int, int] = (256, 256),
        color_mode: str = "rgb",
        classes: Sequence[str] | None = None,
        class_mode: str | None = "categorical",
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int | None = None,
        save_to_dir: str | None = None,
        save_prefix: str = "",
        save_format: str = "png",
        follow_links: bool = False,
        subset: str | None = None,
        interpolation: str = "nearest",
        keep_aspect_ratio: bool = False,
    ) -> DirectoryIterator:
        """Batches from a folder with one folder for each class; see `DirectoryIterator`."""
        return DirectoryIterator(
            directory,
            self,
            target_size=target_size,
            color_mode=color_mode,
            keep_aspect_ratio=keep_aspect_ratio,
            classes=classes,
            class_mode=class_mode,
            data_format=self.data_format,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            save_to_dir=save_to_dir,
            save_prefix=save_prefix,
            save_format=save_format,
            follow_links=follow_links,
            subset=subset,
            interpolation=interpolation,
            dtype=self.dtype,
        )

    def flow_from_dataframe(
        self,
        dataframe: Any,
        directory: str | None = None,
        x_col: str = "filename",
        y_col: str | Sequence[str] = "class",
        weight_col: str | None = None,
        target_size: tuple[int, int] = (256, 256),
        color_mode: str = "rgb",
        classes: Sequence[str] | None = None,
        class_mode: str | None = "categorical",
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int | None = None,
        save_to_dir: str | None = None,
        save_prefix: str = "",
        save_format: str = "png",
        subset: str | None = None,
        interpolation: str = "nearest",
        validate_filenames: bool = True,
        **kwargs: Any,
    ) -> DataFrameIterator:
        """Batches from files that a pandas table lists; see `DataFrameIterator`.

        Args:
            **kwargs: has_ext, sort and drop_duplicates of earlier versions of Keras warn; all
                are ignored.
        """
        if "has_ext" in kwargs:
            _warn_deprecated(
                "has_ext is deprecated, filenames in the dataframe have to match the exact "
                "filenames in disk."
            )
        if "sort" in kwargs:
            _warn_deprecated(
                "sort is deprecated, batches will be created in the same order than the "
                "filenames provided if `shuffle` is set to `False`."
            )
        if class_mode == "other":
            _warn_deprecated('`class_mode="other"` is deprecated, please use `class_mode="raw"`.')
            class_mode = "raw"
        if "drop_duplicates" in kwargs:
            _warn_deprecated(
                "drop_duplicates is deprecated, you can drop duplicates by using the "
                "pandas.DataFrame.drop_duplicates method."
            )
        return DataFrameIterator(
            dataframe,
            directory,
            self,
            x_col=x_col,
            y_col=y_col,
            weight_col=weight_col,
            target_size=target_size,
            color_mode=color_mode,
            classes=classes,
            class_mode=class_mode,
            data_format=self.data_format,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            save_to_dir=save_to_dir,
            save_prefix=save_prefix,
            save_format=save_format,
            subset=subset,
            interpolation=interpolation,
            validate_filenames=validate_filenames,
            dtype=self.dtype,
        )


def _warn_deprecated(message: str) -> None:
    warnings.warn(message, DeprecationWarning, stacklevel=3)
