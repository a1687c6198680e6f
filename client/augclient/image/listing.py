"""Which picture files there are: of a folder's classes, or among given paths.

All looking at a file system goes through `Files`, since the files may be a server's.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

#: Threads that list classes at once: a file system over a network answers each in its own time.
_THREADS = 8


class Files(Protocol):
    """A file system, as far as iterators look at one."""

    def folders(self, directory: str) -> list[str]:
        """The names of a folder's sub-folders, links to folders among them, sorted.

        Raises:
            OSError: The folder cannot be listed.
        """

    def walk(self, directory: str, follow_links: bool) -> Iterable[tuple[str, Sequence[str]]]:
        """(folder, names of the files in it) of a folder and all below it, in any order; nothing
        where there is no such folder.

        Args:
            follow_links: Into linked folders, too.
        """

    def are_files(self, paths: Sequence[str]) -> list[bool]:
        """Whether each path is that of a regular file, or of a link to one."""


class LocalFiles:
    """The file system of this process."""

    def folders(self, directory: str) -> list[str]:
        """See `Files`."""
        names = sorted(os.listdir(directory))
        return [name for name in names if os.path.isdir(os.path.join(directory, name))]

    def walk(self, directory: str, follow_links: bool) -> Iterable[tuple[str, Sequence[str]]]:
        """See `Files`."""
        for folder, _, names in os.walk(directory, followlinks=follow_links):
            yield folder, names

    def are_files(self, paths: Sequence[str]) -> list[bool]:
        """See `Files`."""
        return [os.path.isfile(path) for path in paths]


def validate_filename(filename: str, white_list_formats: tuple[str, ...]) -> bool:
    """Whether a path ends, in whatever case, in one of these formats and is a file's."""
    return has_format(filename, white_list_formats) and os.path.isfile(filename)


def has_format(filename: str, white_list_formats: tuple[str, ...]) -> bool:
    """Whether a name ends, in whatever case, in one of these formats."""
    return filename.lower().endswith(white_list_formats)


def valid(files: Files, paths: Sequence[str], white_list_formats: tuple[str, ...]) -> list[bool]:
    """`validate_filename` of many paths, where they are."""
    named = [path for path in paths if has_format(path, white_list_formats)]
    there = dict(zip(named, files.are_files(named), strict=True))
    return [there.get(path, False) for path in paths]


def pictures_of_classes(
    files: Files,
    directory: str,
    classes: Sequence[str],
    *,
    white_list_formats: tuple[str, ...],
    split: tuple[float, float] | None,
    follow_links: bool,
) -> list[list[str]]:
    """The picture files of each class, relative to the directory, in Keras's order: folders by
    their paths, then files by their names.

    Args:
        directory: Whose sub-folders the classes are.
        split: The share of each class that is taken: (0.2, 1) leaves out the first fifth.
    """

    def of(name: str) -> list[str]:
        root = os.path.join(directory, name)
        paths = _pictures_below(files, root, white_list_formats, follow_links)
        if split:
            paths = paths[int(split[0] * len(paths)) : int(split[1] * len(paths))]
        base = os.path.basename(root)
        return [os.path.join(base, os.path.relpath(path, root)) for path in paths]

    if not len(classes):
        return []
    with ThreadPoolExecutor(min(_THREADS, len(classes)), "augserver-listing") as threads:
        return list(threads.map(of, classes))


def _pictures_below(
    files: Files, root: str, white_list_formats: tuple[str, ...], follow_links: bool
) -> list[str]:
    paths = []
    for folder, names in sorted(files.walk(root, follow_links), key=lambda found: found[0]):
        for name in sorted(names):
            if name.lower().endswith(".tiff"):
                warnings.warn(
                    'Using ".tiff" files with multiple bands will cause distortion. Please verify '
                    "your output.",
                    stacklevel=2,
                )
            if has_format(name, white_list_formats):
                paths.append(os.path.join(folder, name))
    return paths
