"""Which files a dataset of pictures has, and their labels: a folder's, or those that a .csv lists.

A folder is read in the order of names, class by class, so that the same folder is the same dataset
on every machine. A list is a .csv with a header: `file`, with paths relative to the .csv, and
`label` where the label mode wants one.

What a consumer may name by a spec of its own lies below the server's roots; so does, then, every
file of it, however many links lead there.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from augproto import checks
from augproto.errors import ConfigError, NotAllowed
from augproto.files import File, pack
from augproto.fingerprint import fingerprint
from augproto.pictures import MAX_CLASSES, Pictures
from augproto.spec import LABEL
from augserver.datasets.decoding import ENDINGS

LIST_ENDING = ".csv"
FILE_COLUMN, LABEL_COLUMN = "file", "label"

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Listing:
    """A dataset of files.

    Attributes:
        arrays: The files (see `augproto.files`) and, where there are any, the labels: int32
            classes or float32 numbers, one for each file.
        class_names: By number.
    """

    arrays: dict[str, Array]
    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Digest of paths, sizes, times, labels and the names of classes."""
        names = "\n".join(self.class_names).encode(errors="surrogateescape")
        return fingerprint(self.arrays | {"class_names": np.frombuffer(names, np.uint8)})


def base_of(path: str) -> str:
    """The folder that a dataset's paths are relative to."""
    return os.path.dirname(path) if path.endswith(LIST_ENDING) else path


def list_files(path: str, pictures: Pictures, roots: Sequence[str] | None = None) -> Listing:
    """List a dataset's files.

    Args:
        path: A folder, or a .csv.
        pictures: What is wanted of them.
        roots: Folders below which all files must lie; None for any.

    Raises:
        ConfigError: There is no such folder or list, or no file in it.
        NotAllowed: A file lies outside the roots.
    """
    try:
        if path.endswith(LIST_ENDING):
            return _list_csv(Path(path), pictures, roots)
        return _list_folder(path, pictures, roots)
    except OSError as error:
        raise ConfigError(f"data: {error.filename or path}: {error.strerror}") from error


# -- a folder -----------------------------------------------------------------------------------


def _list_folder(path: str, pictures: Pictures, roots: Sequence[str] | None) -> Listing:
    files: list[File] = []
    if not pictures.classified:
        if pictures.label_mode == "number":
            raise ConfigError(
                f"pictures.label_mode: got 'number' for {path!r}; wanted a .csv that lists the "
                "numbers, since a folder has none"
            )
        files = _found(path, path, pictures, roots)
        _refuse_none(files, path)
        return Listing(pack(files), ())
    names = pictures.class_names or tuple(_sub_folders(path))
    _check_classes(names, path, pictures)
    labels: list[int] = []
    for number, name in enumerate(names):
        folder = os.path.join(path, name)
        if os.path.basename(name) != name or name in (os.curdir, os.pardir):
            raise ConfigError(f"pictures.class_names: got {name!r}; wanted names of sub-folders")
        found = _found(folder, path, pictures, roots)
        files += found
        labels += [number] * len(found)
    _refuse_none(files, path)
    return Listing(pack(files) | {LABEL: np.array(labels, np.int32)}, names)


def _sub_folders(path: str) -> Iterator[str]:
    with os.scandir(path) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    yield from names


def _walk(folder: str, *, recursive: bool) -> Iterator[os.DirEntry[str]]:
    """Picture files below a folder: folder by folder in the order of their paths, as Keras has it,
    and by name in each."""
    found: dict[str, list[os.DirEntry[str]]] = {}
    ahead = [folder]
    while ahead:
        path = ahead.pop()
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        found[path] = [e for e in visible if e.name.lower().endswith(ENDINGS) and e.is_file()]
        if recursive:
            # A link may lead back up, and a walk that follows it never ends.
            ahead += [entry.path for entry in visible if entry.is_dir(follow_symlinks=False)]
    for path in sorted(found):
        yield from sorted(found[path], key=lambda entry: entry.name)


def _found(folder: str, base: str, pictures: Pictures, roots: Sequence[str] | None) -> list[File]:
    """The picture files of a folder, by their paths from `base`."""
    files = []
    if roots is not None:
        check_roots([folder], roots)
    for entry in _walk(folder, recursive=pictures.recursive):
        if roots is not None and entry.is_symlink():
            check_roots([entry.path], roots)
        status = entry.stat()
        path = os.path.relpath(entry.path, base)
        files.append(File(path, status.st_size, status.st_mtime_ns))
    return files


def _refuse_none(files: Sequence[File], path: str) -> None:
    if not files:
        raise ConfigError(
            f"data: no picture in {path!r}; wanted files that end in {', '.join(ENDINGS)}, for "
            "labels in one sub-folder for each class"
        )


# -- a list -------------------------------------------------------------------------------------


def _list_csv(path: Path, pictures: Pictures, roots: Sequence[str] | None) -> Listing:
    labelled = pictures.classified or pictures.label_mode == "number"
    names, texts = _rows(path, labelled=labelled)
    files = []
    for line, name in enumerate(names, 2):
        file = os.path.join(path.parent, name)
        if roots is not None:
            check_roots([file], roots)
        try:
            status = os.stat(file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"data: {path}, line {line}: {file!r}: {error}") from error
        files.append(File(name, status.st_size, status.st_mtime_ns))
    arrays = pack(files)
    if pictures.label_mode == "number":
        return Listing(arrays | {LABEL: _numbers(path, texts)}, ())
    if not pictures.classified:
        return Listing(arrays, ())
    classes = pictures.class_names or tuple(sorted(set(texts)))
    _check_classes(classes, str(path), pictures)
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        labels = np.array([numbers[text] for text in texts], np.int32)
    except KeyError as error:
        known = ", ".join(map(repr, classes[:20]))
        raise ConfigError(
            f"data: {path}: label {error} is not in pictures.class_names ({known})"
        ) from None
    return Listing(arrays | {LABEL: labels}, classes)


def _rows(path: Path, *, labelled: bool) -> tuple[list[str], list[str]]:
    """The columns of files and labels."""
    wanted = f"a header with {FILE_COLUMN!r}" + (f" and {LABEL_COLUMN!r}" if labelled else "")
    try:
        # utf-8-sig: spreadsheets put a mark before the first header.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = list(csv.reader(file, strict=True))
    except csv.Error as error:
        raise ConfigError(f"data: {path} is no .csv: {error}; wanted {wanted}") from error
    header = [name.strip() for name in rows[0]] if rows else []
    columns = [FILE_COLUMN, LABEL_COLUMN] if labelled else [FILE_COLUMN]
    for name in columns:
        if header.count(name) != 1:
            raise ConfigError(f"data: {path} has the header {header!r:.200}; wanted {wanted}")
    body = [row for row in rows[1:] if row]
    for line, row in enumerate(body, 2):
        if len(row) != len(header):
            raise ConfigError(
                f"data: {path}, row {line}: got {len(row)} values; wanted {len(header)}"
            )
    if not body:
        raise ConfigError(f"data: {path} lists no file; wanted at least one below its header")
    at = [header.index(name) for name in columns]
    return [row[at[0]] for row in body], [row[at[-1]].strip() for row in body]


def _numbers(path: Path, texts: Sequence[str]) -> Array:
    try:
        numbers = np.array([float(text) for text in texts], np.float32)
    except ValueError as error:
        raise ConfigError(f"data: {path}: label: {error}; wanted numbers") from None
    if not np.isfinite(numbers).all():
        raise ConfigError(f"data: {path}: a label is not finite in 32 bits; wanted numbers")
    return numbers


# -- both ---------------------------------------------------------------------------------------


def _check_classes(names: Sequence[str], path: str, pictures: Pictures) -> None:
    if not 0 < len(names) <= MAX_CLASSES:
        raise ConfigError(
            f"data: got {len(names)} classes in {path!r}; wanted 1 to {MAX_CLASSES}: one "
            "sub-folder for each (or label_mode 'none')"
        )
    strange = next((name for name in names if not checks.travels(name)), None)
    if strange is not None:
        raise ConfigError(
            f"data: the class {strange!r} in {path!r} has a name that is not UTF-8; rename it"
        )
    if pictures.label_mode == "binary" and len(names) != 2:
        listed = ", ".join(names[:20])
        raise ConfigError(
            f"pictures.label_mode: got 'binary' for {len(names)} classes ({listed}) in {path!r}; "
            "wanted two, or another label_mode"
        )


def check_roots(paths: Sequence[str], roots: Sequence[str]) -> None:
    """Refuse paths outside some folders, also through links and `..`.

    Raises:
        NotAllowed: One lies elsewhere.
    """
    real_roots = [os.path.realpath(root) for root in roots]
    for path in paths:
        real = os.path.realpath(path)
        if not any(os.path.commonpath([real, root]) == root for root in real_roots):
            allowed = ", ".join(roots) or "none (the server's config names no roots)"
            raise NotAllowed(f"data: {path!r} is not below a folder this server allows: {allowed}")
