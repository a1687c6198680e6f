"""Keras's `DataFrameIterator`: picture files and their labels from a pandas.DataFrame.

pandas is not imported here: whoever has a frame has pandas.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from augclient.image.file_iterators import BatchFromFilesMixin, files_of, say
from augclient.image.iterator import Iterator
from augclient.image.labels import CLASSIFIED
from augclient.image.listing import valid


class DataFrameIterator(BatchFromFilesMixin, Iterator):
    """Batches of the picture files that a frame lists (keras 3.15,
    keras/src/legacy/preprocessing/image.py).

    Args:
        dataframe: A pandas.DataFrame with a row for each file.
        directory: That file names are relative to; None where they are paths.
        x_col: The column of file names.
        y_col: The column of labels, or a list of columns.
        weight_col: The column of sample weights, if any.
        classes: Those that take part, in the order of their numbers; None for all, sorted. Other
            labels are left out, and rows that so have none.
        class_mode: "categorical" (strings, or lists of strings for several classes at once),
            "binary" or "sparse" (strings), "raw" (values of y_col as they are), "multi_output" (a
            list of the columns y_col), "input" (the pictures themselves), or None (no labels).
        validate_filenames: Leave out files that are missing or have other endings; False saves
            looking.
        batch_size, shuffle, seed: See `Iterator`.
        dtype: Of pictures and of labels that are classes.
        others: See `BatchFromFilesMixin.set_processing_attrs`. A subset is a share of the frame.

    Attributes:
        samples: How many rows are left.
        class_indices, classes: The number of each class; the class, or list of classes, of each
            sample. Only where labels are classes.
        filenames, filepaths: Of the files, as the frame has them, and with the directory.

    Raises:
        ValueError: A mode has no such name, or "binary" has not two classes.
        TypeError: A column has values of another type than its use needs.
    """

    allowed_class_modes: ClassVar[set[str | None]] = {
        "binary", "categorical", "input", "multi_output", "raw", "sparse", None,
    }  # fmt: skip

    def __init__(
        self,
        dataframe: Any,
        directory: Any = None,
        image_data_generator: Any = None,
        x_col: str = "filename",
        y_col: Any = "class",
        weight_col: str | None = None,
        target_size: Sequence[int] = (256, 256),
        color_mode: str = "rgb",
        classes: Any = None,
        class_mode: str | None = "categorical",
        batch_size: int = 32,
        shuffle: bool = True,
        seed: Any = None,
        data_format: str = "channels_last",
        save_to_dir: Any = None,
        save_prefix: str = "",
        save_format: str = "png",
        subset: str | None = None,
        interpolation: str = "nearest",
        keep_aspect_ratio: bool = False,
        dtype: Any = "float32",
        validate_filenames: bool = True,
    ) -> None:
        self.set_processing_attrs(
            image_data_generator,
            target_size,
            color_mode,
            data_format,
            save_to_dir,
            save_prefix,
            save_format,
            subset,
            interpolation,
            keep_aspect_ratio,
        )
        df = dataframe.copy()
        self.directory = directory or ""
        self.class_mode = class_mode
        self.dtype = dtype
        self._check_params(df, x_col, y_col, weight_col, classes)
        if validate_filenames:
            df = self._filter_valid_filepaths(df, x_col)
        found = f"{'validated' if validate_filenames else 'non-validated'} image filenames"
        if class_mode in CLASSIFIED:
            df, classes = self._filter_classes(df, y_col, classes)
            self.class_indices = dict(zip(classes, range(len(classes)), strict=True))
            found += f" belonging to {len(classes)} classes"
        if self.split:
            start, stop = (int(share * len(df)) for share in self.split)
            df = df.iloc[start:stop, :]
        if class_mode in CLASSIFIED:
            self.classes = self.get_classes(df, y_col)
        self.filenames = df[x_col].tolist()
        self._sample_weight = df[weight_col].values if weight_col else None
        if class_mode == "multi_output":
            self._targets = [np.array(df[column].tolist()) for column in y_col]
        elif class_mode == "raw":
            self._targets = df[y_col].values
        self.samples = len(self.filenames)
        say(f"Found {self.samples} {found}.")
        self._filepaths = [os.path.join(self.directory, name) for name in self.filenames]
        super().__init__(self.samples, batch_size, shuffle, seed)

    def _check_params(
        self, df: Any, x_col: str, y_col: Any, weight_col: str | None, classes: Any
    ) -> None:
        """Whether the columns hold what the class mode needs."""
        mode = self.class_mode
        if mode not in self.allowed_class_modes:
            raise ValueError(
                f"Invalid class_mode: {mode}; expected one of: {self.allowed_class_modes}"
            )
        if mode == "multi_output" and not isinstance(y_col, list):
            raise TypeError(
                f'If class_mode="{mode}", y_col must be a list. Received {type(y_col).__name__}.'
            )
        if not _all_are(df[x_col], str):
            raise TypeError(f"All values in column x_col={x_col} must be strings.")
        if mode in {"binary", "sparse"} and not _all_are(df[y_col], str):
            raise TypeError(
                f'If class_mode="{mode}", y_col="{y_col}" column values must be strings.'
            )
        if mode == "binary":
            if classes and len(set(classes)) != 2:
                raise ValueError(
                    f'If class_mode="binary" there must be 2 classes. {len(set(classes))} class/es '
                    "were given."
                )
            if not classes and df[y_col].nunique() != 2:
                raise ValueError(
                    'If class_mode="binary" there must be 2 classes. Found '
                    f"{df[y_col].nunique()} classes."
                )
        if mode == "categorical" and not _all_are(df[y_col], str, list, tuple):
            raise TypeError(
                f'If class_mode="{mode}", y_col="{y_col}" column values must be type string, list '
                "or tuple."
            )
        if classes and mode not in CLASSIFIED:
            warnings.warn(f'`classes` will be ignored given the class_mode="{mode}"', stacklevel=4)
        if weight_col and not issubclass(df[weight_col].dtype.type, np.number):
            raise TypeError(f"Column weight_col={weight_col} must be numeric.")

    def get_classes(self, df: Any, y_col: str) -> list[Any]:
        """The number of each row's class, or the list of those of its classes."""
        number = self.class_indices
        return [
            [number[one] for one in label] if isinstance(label, (list, tuple)) else number[label]
            for label in df[y_col]
        ]

    @staticmethod
    def _filter_classes(df: Any, y_col: str, classes: Any) -> tuple[Any, list[str]]:
        """The rows that have one of these classes, or of any if none are given; the classes."""
        df = df.copy()
        if not classes:
            present: set[str] = set()
            for label in df[y_col]:
                present.update(label if isinstance(label, (list, tuple)) else [label])
            return df.dropna(subset=[y_col]), sorted(present)
        classes = list(dict.fromkeys(classes))
        wanted = set(classes)

        def those_wanted(label: Any) -> Any:
            if isinstance(label, (list, tuple)):
                return [one for one in label if one in wanted] or None
            if isinstance(label, str):
                return label if label in wanted else None
            raise TypeError(
                f"Expect string, list or tuple but found {type(label)} in {y_col} column "
            )

        df[y_col] = df[y_col].apply(those_wanted)
        return df.dropna(subset=[y_col]), classes

    def _filter_valid_filepaths(self, df: Any, x_col: str) -> Any:
        """The rows whose files are there and have an ending of `white_list_formats`."""
        paths = [os.path.join(self.directory, name) for name in df[x_col]]
        files = files_of(self.image_data_generator)
        mask = np.array(valid(files, paths, self.white_list_formats), bool)
        if not mask.all():
            warnings.warn(
                f'Found {int((~mask).sum())} invalid image filename(s) in x_col="{x_col}". These '
                "filename(s) will be ignored.",
                stacklevel=4,
            )
        return df[mask]

    @property
    def filepaths(self) -> list[str]:
        """The files, one for each sample."""
        return self._filepaths

    @property
    def labels(self) -> Any:
        """Modes "raw" and "multi_output": the columns' values. Otherwise the classes' numbers."""
        return self._targets if self.class_mode in {"multi_output", "raw"} else self.classes

    @property
    def sample_weight(self) -> Any:
        """The weights of all samples, or None."""
        return self._sample_weight


def _all_are(column: Any, *types: type) -> bool:
    return all(isinstance(value, types) for value in column)
