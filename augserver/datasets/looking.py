"""Consumers look at this machine's files: folders below the server's roots, page by page.

That is what a program needs to find its classes and pictures, and nothing more: names, and whether
something is a file. Looking is done by threads of its own, so that a disk that hangs holds up
neither the server's loop nor the loading of datasets; a page has bounds in names, bytes and time,
and the next one is only begun when it is asked for.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from augproto.errors import ConfigError, NotAllowed, RemoteProtocolError
from augproto.messages import (
    MAX_NAME_BYTES,
    MAX_NAMES,
    AreFiles,
    FilesAre,
    Folder,
    Message,
    Walk,
    Walked,
)
from augserver.config import Config
from augserver.datasets.loader import Loader
from augserver.datasets.roots import Roots

#: Seconds after which a page is sent as far as it has come.
PAGE_SECONDS = 1.0
#: Of a name, bytes that are its own place in a row and in a list.
NAME_BYTES = 8


@dataclass(slots=True)
class _Look:
    """What one conversation looks at."""

    answer: Future[Message] | None = None
    walk: Walk | None = None
    pages: Iterator[Walked] | None = None


class Lookout:
    """Looks on behalf of all consumers.

    Args:
        config: Where they may look.
        looked: Called, in another thread, when an answer is there.
    """

    def __init__(self, config: Config, looked: Callable[[], None]) -> None:
        self._config = config
        self._looked = looked
        self._looks: dict[bytes, _Look] = {}
        self._loader = Loader()

    def take(self, who: bytes, question: Walk | AreFiles) -> None:
        """Take a question; `answers` has the answer later.

        Raises:
            RemoteProtocolError: It asks for another page than the next one.
            NotAllowed: There is nothing to be looked at here.
        """
        if self._config.private:
            raise NotAllowed("a private server's program looks at its files itself")
        look = self._looks.setdefault(who, _Look())
        work: Callable[[], Message]
        if isinstance(question, AreFiles):
            work = functools.partial(are_files, question.paths, self._config.roots)
        else:
            work = self._next(look, question)
        look.answer = self._loader.submit(work)
        # Not at the end of `work`: whoever is woken there finds the future not done yet.
        look.answer.add_done_callback(lambda _: self._looked())

    def _next(self, look: _Look, walk: Walk) -> Callable[[], Message]:
        before = look.walk
        if walk.page == 0:
            look.pages = pages(walk, self._config.roots)
        elif before is None or look.pages is None or walk != _following(before):
            raise RemoteProtocolError(f"Walk.page: got {walk.page}; wanted 0, or the one after")
        look.walk, taken = walk, look.pages
        return functools.partial(next, taken)

    def answers(self) -> list[tuple[bytes, Message | Exception]]:
        """Who is to be told what by now."""
        said: list[tuple[bytes, Message | Exception]] = []
        for who, look in self._looks.items():
            if look.answer is None or not look.answer.done():
                continue
            error = look.answer.exception(0)
            answer = look.answer.result(0) if error is None else None
            look.answer = None
            if not (isinstance(answer, Walked) and answer.more):
                look.walk = look.pages = None
            said.append((who, answer if answer is not None else _told(error)))
        return said

    def leave(self, who: bytes) -> None:
        """A conversation is over."""
        self._looks.pop(who, None)

    def close(self) -> None:
        """Begin nothing more."""
        self._loader.close()


def _following(walk: Walk) -> Walk:
    return Walk(walk.folder, walk.deep, walk.follow_links, walk.page + 1)


def _told(error: BaseException | None) -> Exception:
    if isinstance(error, OSError):
        return ConfigError(f"{os.fsdecode(error.filename or b'')!r:.200}: {error.strerror}")
    return error if isinstance(error, Exception) else ConfigError(f"{error!r}")


def pages(walk: Walk, roots: Sequence[str]) -> Iterator[Walked]:
    """A walk's rows in pages, in the order of os.walk; a missing folder has none.

    Raises:
        ConfigError: The folder's path is relative.
        NotAllowed: It, or a folder that a link leads to, lies outside the roots.
    """
    rows: list[Folder] = []
    names = size = 0
    due = time.monotonic() + PAGE_SECONDS
    for row in _rows(walk, Roots(roots)):
        count, length = len(row.folders) + len(row.files) + 1, _bytes_of(row)
        full = names + count > MAX_NAMES or size + length > MAX_NAME_BYTES
        if rows and (full or time.monotonic() > due):
            yield Walked(tuple(rows), True)
            rows, names, size = [], 0, 0
            due = time.monotonic() + PAGE_SECONDS
        rows.append(row)
        names, size = names + count, size + length
    yield Walked(tuple(rows), False)


def _rows(walk: Walk, roots: Roots) -> Iterator[Folder]:
    """The rows of os.walk, those with too many names in several."""
    top = os.fsdecode(walk.folder)
    _check(top, roots)
    for path, folders, files in os.walk(top, followlinks=walk.follow_links):
        if walk.follow_links and path != top and os.path.islink(path):
            roots.check(path)
        yield from _divided(Folder(*map(_encoded, (path, folders, files))))  # type: ignore[arg-type]
        if not walk.deep:
            return


def _encoded(value: str | list[str]) -> bytes | tuple[bytes, ...]:
    return os.fsencode(value) if isinstance(value, str) else tuple(map(os.fsencode, value))


def _divided(row: Folder) -> Iterator[Folder]:
    """A row, or several that fit into a page each."""
    path, folders, files = row
    most = min(MAX_NAMES, MAX_NAME_BYTES // (256 + NAME_BYTES)) - 1
    yield Folder(path, folders[:most], files[: max(0, most - len(folders))])
    for start in range(most, len(folders), most):
        yield Folder(path, folders[start : start + most], ())
    for start in range(max(0, most - len(folders)), len(files), most):
        yield Folder(path, (), files[start : start + most])


def _bytes_of(row: Folder) -> int:
    names = (row.path, *row.folders, *row.files)
    return sum(map(len, names)) + NAME_BYTES * len(names)


def are_files(paths: Sequence[bytes], roots: Sequence[str]) -> FilesAre:
    """Whether each path is that of a regular file, or of a link to one: of as many, from the first
    on, as can be looked at in the time of a page.

    Raises:
        ConfigError: A path is relative.
        NotAllowed: One lies outside the roots.
    """
    known = Roots(roots)
    are: list[bool] = []
    due = time.monotonic() + PAGE_SECONDS
    for path in map(os.fsdecode, paths):
        if are and time.monotonic() > due:
            break
        _check(path, known)
        are.append(os.path.isfile(path))
    return FilesAre(tuple(are))


def _check(path: str, roots: Roots) -> None:
    if not os.path.isabs(path) or "\0" in path:
        raise ConfigError(f"got {path!r:.200}; wanted a path from the root (/) on")
    roots.check(path)
