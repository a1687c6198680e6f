"""Looking at a server's files: below its roots alone, page by page, and as os.walk has it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from augproto.codec import decode, encode
from augproto.errors import ConfigError, NotAllowed, RemoteProtocolError
from augproto.messages import MAX_FRAME_BYTES, MAX_NAMES, AreFiles, FilesAre, Walk, Walked
from augserver.config import Config
from augserver.datasets import looking
from augserver.datasets.looking import Lookout, are_files, pages

ME, OTHER = b"1", b"2"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with classes, a name that is no UTF-8, links, and something beside it."""
    root = tmp_path / "root"
    for name in ("cat/deep", "dog", "empty"):
        (root / name).mkdir(parents=True)
    for path in ("cat/a.png", "cat/deep/b.png", "dog/c.png", os.fsdecode(b"dog/\xff.png")):
        (root / path).write_bytes(b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(b"x")
    (root / "linked").symlink_to(root / "cat")
    return root


def walked(folder: Path, roots: Sequence[Path], **how: bool) -> dict[str, tuple[Any, Any]]:
    """What the pages of a walk hold together."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for page in pages(Walk(os.fsencode(folder), **how), list(map(str, roots))):
        assert decode(encode(page)) == page
        for row in page.rows:
            folders, files = found.setdefault(os.fsdecode(row.path), ([], []))
            folders += map(os.fsdecode, row.folders)
            files += map(os.fsdecode, row.files)
    return found


@pytest.mark.parametrize("follow_links", [False, True])
def test_the_rows_are_those_of_os_walk(tree: Path, follow_links: bool) -> None:
    expected = {p: (d, f) for p, d, f in os.walk(tree, followlinks=follow_links)}
    assert walked(tree, [tree], follow_links=follow_links) == expected
    shallow = walked(tree, [tree], deep=False)
    assert shallow == {str(tree): expected[str(tree)]}
    assert walked(tree / "missing", [tree]) == {}


def test_a_folder_of_many_names_comes_in_pages_that_fit_into_frames(tmp_path: Path) -> None:
    names = {f"{'n' * 240}{number}" for number in range(6000)}
    for name in names:
        (tmp_path / name).touch()
    for number in range(10):
        (tmp_path / "folders" / str(number)).mkdir(parents=True)
    walk = Walk(os.fsencode(tmp_path))
    made = list(pages(walk, [str(tmp_path)]))
    assert len(made) > 1
    assert [page.more for page in made] == [True] * (len(made) - 1) + [False]
    for page in made:
        assert len(encode(page)) < MAX_FRAME_BYTES / 4
        assert sum(len(row.folders) + len(row.files) for row in page.rows) <= MAX_NAMES
    found = walked(tmp_path, [tmp_path])
    assert sorted(found[str(tmp_path)][1]) == sorted(names)
    assert len(found) == 12


def test_a_slow_walk_is_told_as_far_as_it_has_come(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "PAGE_SECONDS", -1.0)
    made = list(pages(Walk(os.fsencode(tree)), [str(tree)]))
    assert [len(page.rows) for page in made] == [1] * len(made)
    assert len(made) == len(list(os.walk(tree)))


def test_what_lies_outside_is_refused_by_name(tree: Path) -> None:
    outside = tree.parent / "outside"
    for path in (outside, tree / ".." / "outside", Path("/")):
        with pytest.raises(NotAllowed, match="is not below a folder this server allows"):
            walked(path, [tree])
        with pytest.raises(NotAllowed, match="is not below a folder this server allows"):
            are_files([os.fsencode(path / "secret.png")], [str(tree)])
    (tree / "dog" / "out").symlink_to(outside)
    assert str(tree / "dog" / "out") not in walked(tree, [tree])
    with pytest.raises(NotAllowed, match=r"dog/out' is not below"):
        walked(tree, [tree], follow_links=True)
    with pytest.raises(NotAllowed, match=r"dog/out/secret\.png' is not below"):
        are_files([os.fsencode(tree / "dog" / "out" / "secret.png")], [str(tree)])
    with pytest.raises(NotAllowed, match="names no roots"):
        walked(tree, [])


@pytest.mark.parametrize("path", [b"", b"relative", b"~", b"/a\0b"])
def test_a_path_that_is_none_from_the_root_on_is_refused(path: bytes) -> None:
    with pytest.raises(ConfigError, match="wanted a path from the root"):
        list(pages(Walk(path), ["/"]))
    with pytest.raises(ConfigError, match="wanted a path from the root"):
        are_files([path], ["/"])


def test_files_are_told_from_folders_pipes_and_nothing(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    (tree / "link").symlink_to(tree / "cat" / "a.png")
    (tree / "dangling").symlink_to(tree / "nothing")
    asked = [
        "cat/a.png",
        "cat",
        "pipe",
        "link",
        "dangling",
        "missing",
        os.fsdecode(b"dog/\xff.png"),
    ]
    answer = are_files([os.fsencode(tree / path) for path in asked], [str(tree)])
    assert answer.are == (True, False, False, True, False, False, True)


class Hall:
    """A lookout, and a wait for its answers."""

    def __init__(self, tree: Path, wait_until: Any, **settings: Any) -> None:
        self._wait = wait_until
        self.lookout = Lookout(Config(workers=0, roots=(str(tree),), **settings), lambda: None)

    def asks(self, who: bytes, question: Walk | AreFiles) -> Any:
        self.lookout.take(who, question)
        said: list[tuple[bytes, Any]] = []

        def answered() -> bool:
            said.extend(self.lookout.answers())
            return bool(said)

        self._wait(answered, "an answer")
        ((told, answer),) = said
        assert told == who
        return answer


@pytest.fixture
def hall(tree: Path, wait_until: Any) -> Iterator[Hall]:
    made = Hall(tree, wait_until)
    yield made
    made.lookout.close()


def test_pages_are_asked_for_one_after_another(
    hall: Hall, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "PAGE_SECONDS", -1.0)
    folder = os.fsencode(tree)
    first = hall.asks(ME, Walk(folder))
    assert first.more
    (row,) = first.rows
    assert (row.path, set(row.folders)) == (folder, {b"cat", b"dog", b"empty", b"linked"})
    for wrong in (
        Walk(folder, page=2),
        Walk(folder + b"/cat", page=1),
        Walk(folder, False, page=1),
    ):
        with pytest.raises(RemoteProtocolError, match=r"Walk\.page"):
            hall.lookout.take(ME, wrong)
    with pytest.raises(RemoteProtocolError, match=r"Walk\.page"):
        hall.lookout.take(OTHER, Walk(folder, page=1))
    page, last = 1, first
    while last.more:
        last = hall.asks(ME, Walk(folder, page=page))
        page += 1
    assert page == len(list(os.walk(tree)))
    with pytest.raises(RemoteProtocolError, match=r"Walk\.page"):
        hall.lookout.take(ME, Walk(folder, page=page))


def test_a_refusal_is_told_and_the_next_question_is_answered(hall: Hall, tree: Path) -> None:
    assert isinstance(hall.asks(ME, Walk(b"/")), NotAllowed)
    assert isinstance(hall.asks(ME, AreFiles((b"/etc/passwd",))), NotAllowed)
    assert hall.asks(ME, AreFiles((os.fsencode(tree),))) == FilesAre((False,))
    assert isinstance(hall.asks(ME, Walk(os.fsencode(tree))), Walked)


def test_who_has_left_is_told_nothing(hall: Hall, tree: Path) -> None:
    hall.lookout.take(ME, Walk(os.fsencode(tree)))
    hall.lookout.leave(ME)
    assert isinstance(hall.asks(OTHER, AreFiles(())), FilesAre)


def test_a_private_server_is_not_looked_at(tree: Path, wait_until: Any) -> None:
    private = Hall(tree, wait_until, private=True)
    with pytest.raises(NotAllowed, match="looks at its files itself"):
        private.lookout.take(ME, AreFiles(()))
