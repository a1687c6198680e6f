"""Which files a dataset of pictures has, and their labels: a folder's, or those that a .csv lists.

A folder is read in the order of names, class by class, so that the same folder is the same dataset
on every machine. A list is a .csv with a header: `file`, with paths relative to the .csv, and
`label` where the label mode wants one.

What a consumer may name by a spec of its own lies below the server's roots; so does, then, every
file of it, however many links lead there.
"""

from __future__ import annotations

import csv
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from augproto import checks
from augproto.errors import ConfigError
from augproto.files import File, pack
from augproto.fingerprint import fingerprint
from augproto.pictures import MAX_CLASSES, Pictures
from augproto.spec import LABEL
from augserver.datasets.decoding import ENDINGS
from augserver.datasets.roots import Roots

FILE_COLUMN, LABEL_COLUMN = "file", "label"

Array = npt.NDArray[Any]

_log = logging.getLogger("augserver.server")


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
    return path if os.path.isdir(path) else os.path.dirname(path)


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
    known = None if roots is None else Roots(roots)
    try:
        if os.path.isdir(path):
            return _list_folder(path, pictures, known)
        return _list_csv(Path(path), pictures, known)
    except OSError as error:
        raise ConfigError(f"data: {error.filename or path}: {error.strerror}") from error


# -- a folder -----------------------------------------------------------------------------------


def _list_folder(path: str, pictures: Pictures, roots: Roots | None) -> Listing:
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
        names = sorted(e.name for e in entries if not e.name.startswith(".") and _is_dir(e))
    yield from names


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file; a link that leads nowhere is none, which the log says."""
    try:
        if entry.is_file():
            return True
        dangling = entry.is_symlink() and not entry.is_dir()
    except OSError:
        dangling = True
    if dangling:
        _log.warning("%r is a link that leads nowhere; it is left out", entry.path)
    return False


def _walk(folder: str, *, recursive: bool) -> Iterator[os.DirEntry[str]]:
    """Picture files below a folder: folder by folder in the order of their paths, as Keras has it,
    and by name in each."""
    found: dict[str, list[os.DirEntry[str]]] = {}
    ahead = [folder]
    while ahead:
        path = ahead.pop()
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        found[path] = [e for e in visible if e.name.lower().endswith(ENDINGS) and _is_file(e)]
        if recursive:
            # A link may lead back up, and a walk that follows it never ends.
            ahead += [entry.path for entry in visible if entry.is_dir(follow_symlinks=False)]
    for path in sorted(found):
        yield from sorted(found[path], key=lambda entry: entry.name)


def _found(folder: str, base: str, pictures: Pictures, roots: Roots | None) -> list[File]:
    """The picture files of a folder, by their paths from `base`."""
    files = []
    if roots is not None:
        roots.check(folder)
    for entry in _walk(folder, recursive=pictures.recursive):
        if roots is not None and entry.is_symlink():
            roots.check(entry.path)
        files.append(File.of(os.path.relpath(entry.path, base), entry.stat()))
    return files


def _refuse_none(files: Sequence[File], path: str) -> None:
    if not files:
        raise ConfigError(
            f"data: no picture in {path!r}; wanted files that end in {', '.join(ENDINGS)}, for "
            "labels in one sub-folder for each class"
        )


# -- a list -------------------------------------------------------------------------------------


def _list_csv(path: Path, pictures: Pictures, roots: Roots | None) -> Listing:
    labelled = pictures.classified or pictures.label_mode == "number"
    rows = _rows(path, labelled=labelled)
    files = []
    for row in rows:
        file = os.path.join(path.parent, row.file)
        if roots is not None:
            roots.check(file)
        try:
            files.append(File.of(row.file, os.stat(file)))
        except (OSError, ValueError) as error:
            raise ConfigError(f"data: {path}, line {row.line}: {file!r}: {error}") from error
    arrays = pack(files)
    if pictures.label_mode == "number":
        return Listing(arrays | {LABEL: _numbers(path, rows)}, ())
    if not pictures.classified:
        return Listing(arrays, ())
    classes = pictures.class_names or tuple(sorted({row.label for row in rows}))
    _check_classes(classes, str(path), pictures)
    numbers = {name: number for number, name in enumerate(classes)}
    for row in rows:
        if row.label not in numbers:
            known = ", ".join(map(repr, classes[:20]))
            raise ConfigError(
                f"data: {path}, line {row.line}: label {row.label!r} is not in "
                f"pictures.class_names ({known})"
            )
    labels = np.array([numbers[row.label] for row in rows], np.int32)
    return Listing(arrays | {LABEL: labels}, classes)


class _Row(NamedTuple):
    line: int
    file: str
    label: str


def _rows(path: Path, *, labelled: bool) -> list[_Row]:
    """The list below its header."""
    wanted = f"a header with {FILE_COLUMN!r}" + (f" and {LABEL_COLUMN!r}" if labelled else "")
    rows: list[_Row] = []
    columns: list[int] = []
    width = 0
    try:
        with _opened(path) as file:
            reader = csv.reader(file, strict=True)
            for values in reader:
                line = reader.line_num
                if not values:
                    continue
                if not columns:
                    columns, width = _columns(path, values, wanted, labelled=labelled), len(values)
                    continue
                if len(values) != width:
                    raise ConfigError(
                        f"data: {path}, line {line}: got {len(values)} values; wanted {width}"
                    )
                row = _Row(line, values[columns[0]], values[columns[-1]].strip())
                if not row.file or (labelled and not row.label):
                    raise ConfigError(
                        f"data: {path}, line {line}: got an empty value; wanted "
                        f"{FILE_COLUMN!r}" + (f" and {LABEL_COLUMN!r}" if labelled else "")
                    )
                rows.append(row)
    except csv.Error as error:
        raise ConfigError(f"data: {path} is no .csv: {error}; wanted {wanted}") from error
    if not rows:
        raise ConfigError(f"data: {path} lists no file; wanted {wanted}, and files below it")
    return rows


def _opened(path: Path) -> TextIO:
    """The list, if it is a regular file: a pipe would be waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"data: {str(path)!r} is no regular file; wanted a folder or a .csv")
    if os.pread(fd, 2, 0) in (b"\xff\xfe", b"\xfe\xff"):
        os.close(fd)
        raise ConfigError(f"data: {path} is in UTF-16; wanted UTF-8")
    # utf-8-sig: spreadsheets put a mark before the first header.
    return open(fd, newline="", encoding="utf-8-sig", errors="surrogateescape")


def _columns(path: Path, header: Sequence[str], wanted: str, *, labelled: bool) -> list[int]:
    """Where the columns of files and labels are."""
    names = [name.strip() for name in header]
    columns = [FILE_COLUMN, LABEL_COLUMN] if labelled else [FILE_COLUMN]
    if any(names.count(name) != 1 for name in columns):
        raise ConfigError(f"data: {path} has the header {names!r:.200}; wanted {wanted}")
    return [names.index(name) for name in columns]


def _numbers(path: Path, rows: Sequence[_Row]) -> Array:
    numbers = np.empty(len(rows), np.float32)
    for i, row in enumerate(rows):
        try:
            with np.errstate(over="ignore"):
                numbers[i] = float(row.label)
        except ValueError as error:
            raise ConfigError(f"data: {path}, line {row.line}: label: {error}") from None
        if not np.isfinite(numbers[i]):
            raise ConfigError(
                f"data: {path}, line {row.line}: label: got {row.label!r}; wanted a number that is "
                "finite in 32 bits"
            )
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
