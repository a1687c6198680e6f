"""A folder or a list is the same dataset for everyone, and stays below the roots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augproto.errors import ConfigError, NotAllowed
from augproto.files import File, FileTable, pack
from augproto.pictures import Pictures
from augserver.datasets.listing import Listing, list_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, a folder in one of them, and what has no place among pictures."""
    root = tmp_path / "pets"
    for name in ("dog/2.JPG", "dog/10.png", "cat/b.webp", "cat/a.jpeg", "cat/deep/er/c.tif",
                 "cat/deep/d.gif", "cat/notes.txt", "cat/.hidden.jpg", "cat/._a.jpeg",
                 ".git/x.jpg", "loose.bmp", "empty/readme.md"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "dog" / "folder.jpg").mkdir()
    return root


def paths(listing: Listing) -> list[str]:
    table = FileTable(listing.arrays)
    return [table[i].path for i in range(len(table))]


def labels(listing: Listing) -> list[Any]:
    return listing.arrays["label"].tolist()  # type: ignore[no-any-return]


def listed(path: Path, roots: list[str] | None = None, **pictures: Any) -> Listing:
    return list_files(str(path), Pictures(**pictures), roots)


# -- folders -------------------------------------------------------------------------------------


def test_classes_are_sub_folders_and_files_come_in_the_order_of_names(folder: Path) -> None:
    listing = listed(folder)
    assert listing.class_names == ("cat", "dog", "empty")
    assert paths(listing) == [
        "cat/a.jpeg", "cat/b.webp", "cat/deep/d.gif", "cat/deep/er/c.tif", "dog/10.png",
        "dog/2.JPG",
    ]  # fmt: skip
    assert labels(listing) == [0, 0, 0, 0, 1, 1]


def test_without_recursive_only_a_folders_own_files_count(folder: Path) -> None:
    assert paths(listed(folder, recursive=False)) == [
        "cat/a.jpeg", "cat/b.webp", "dog/10.png", "dog/2.JPG",
    ]  # fmt: skip


def test_classes_that_are_named_take_part_in_that_order(folder: Path) -> None:
    listing = listed(folder, class_names=("dog", "cat"), label_mode="binary")
    assert listing.class_names == ("dog", "cat")
    assert labels(listing) == [0, 0, 1, 1, 1, 1]
    assert paths(listed(folder, class_names=["dog"])) == ["dog/10.png", "dog/2.JPG"]


@pytest.mark.parametrize("mode", ["none", "input"])
def test_without_classes_every_picture_below_the_folder_counts(folder: Path, mode: str) -> None:
    assert paths(listed(folder, label_mode=mode, recursive=False)) == ["loose.bmp"]
    every = paths(listed(folder, label_mode=mode))
    assert every == ["loose.bmp", *paths(listed(folder))]


def test_a_table_knows_each_files_size_and_time(folder: Path) -> None:
    table = FileTable(listed(folder).arrays, str(folder))
    status = (folder / "cat/deep/d.gif").stat()
    assert table[2] == File(str(folder / "cat/deep/d.gif"), status.st_size, status.st_mtime_ns)


def test_a_name_in_no_known_encoding_is_a_file_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with open(os.fsencode(tmp_path) + b"/a/\xff\xfe.png", "wb"):
        pass
    (tmp_path / "a" / "été 猫 🐱.png").touch()
    found = paths(listed(tmp_path))
    assert os.fsencode("a/") + b"\xff\xfe.png" in [os.fsencode(p) for p in found]
    assert "a/été 猫 🐱.png" in found
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(ConfigError, match=r"class .* has a name that is not UTF-8; rename it"):
        listed(tmp_path)


def test_links_to_folders_are_not_followed_so_a_walk_ends(folder: Path) -> None:
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "cat" / "z.jpg").symlink_to(folder / "dog" / "10.png")
    assert paths(listed(folder, class_names=["cat"])) == [
        "cat/a.jpeg", "cat/b.webp", "cat/z.jpg", "cat/deep/d.gif", "cat/deep/er/c.tif",
    ]  # fmt: skip


def test_a_link_that_leads_nowhere_is_left_out_with_a_word(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = paths(listed(folder))
    (folder / "cat" / "loop.jpg").symlink_to("loop.jpg")
    (folder / "cat" / "gone.jpg").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    assert paths(listed(folder)) == whole
    assert sum("leads nowhere" in record.getMessage() for record in caplog.records) == 2


def test_a_folder_may_be_called_as_a_list(folder: Path) -> None:
    whole = paths(listed(folder))
    assert paths(listed(folder.rename(folder.with_name("pets.csv")))) == whole


def test_a_class_may_be_a_link_to_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (folder / "dog").rename(tmp_path / "other" / "dog")
    (folder / "dog").symlink_to(tmp_path / "other" / "dog")
    assert paths(listed(folder, class_names=["dog"])) == ["dog/10.png", "dog/2.JPG"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda f: None, True),
        (lambda f: (f / "cat/notes.txt").write_text("more"), True),
        (lambda f: (f / "cat/a.jpeg").write_text("longer than before"), False),
        (lambda f: os.utime(f / "cat/a.jpeg", (1, 1)), False),
        (lambda f: (f / "cat/a.jpeg").rename(f / "cat/aa.jpeg"), False),
        (lambda f: (f / "dog/2.JPG").unlink(), False),
        (lambda f: (f / "another").mkdir(), False),
    ],
)
def test_the_fingerprint_is_that_of_names_sizes_and_times(
    folder: Path, change: Any, same: bool
) -> None:
    before = listed(folder).fingerprint
    change(folder)
    assert (listed(folder).fingerprint == before) is same


def test_where_a_folder_lies_is_no_part_of_who_it_is(folder: Path, tmp_path: Path) -> None:
    before = listed(folder)
    moved = folder.rename(tmp_path / "moved")
    assert listed(moved).fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("pictures", "complaint"),
    [
        ({"class_names": ["cat", "fish"]}, r"fish: No such file"),
        ({"class_names": ["../pets"]}, r"class_names: got '\.\./pets'; wanted names of sub-fol"),
        ({"class_names": [".."]}, r"class_names: got '\.\.'; wanted names of sub-folders"),
        ({"class_names": ["empty"]}, r"no picture in .*; wanted files that end in \.png"),
        ({"label_mode": "binary"}, r"'binary' for 3 classes \(cat, dog, empty\)"),
        ({"label_mode": "number"}, r"'number' for .*; wanted a \.csv"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    folder: Path, pictures: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        listed(folder, **pictures)


def test_a_folder_without_classes_or_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 0 classes in .*one sub-folder for each"):
        listed(tmp_path)
    with pytest.raises(ConfigError, match="no picture in"):
        listed(tmp_path, label_mode="none")
    with pytest.raises(ConfigError, match="none: No such file"):
        listed(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file lists no file; wanted a header"):
        listed(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ConfigError, match=r"pipe\.csv' is no regular file; wanted a folder or"):
        listed(tmp_path / "pipe.csv")
    (tmp_path / "wide.csv").write_text("file\na.png\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"is in UTF-16; wanted UTF-8"):
        listed(tmp_path / "wide.csv")


# -- lists ---------------------------------------------------------------------------------------


def csv(folder: Path, text: str) -> Path:
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_gives_files_in_its_own_order_with_classes_by_name(folder: Path) -> None:
    path = csv(
        folder, "\ufefflabel,file,other\nb,dog/2.JPG,1\n a ,loose.bmp,2\nb,cat/notes.txt,3\n"
    )
    listing = listed(path)
    assert paths(listing) == ["dog/2.JPG", "loose.bmp", "cat/notes.txt"]
    assert listing.class_names == ("a", "b")
    assert labels(listing) == [1, 0, 1]
    assert labels(listed(path, class_names=["b", "a"])) == [0, 1, 0]
    assert "label" not in listed(path, label_mode="none").arrays


def test_a_list_gives_numbers_where_labels_are_numbers(folder: Path) -> None:
    path = csv(folder, 'file,label\n"loose.bmp",1.5\ndog/2.JPG,-2e3\n')
    listing = listed(path, label_mode="number")
    assert listing.arrays["label"].dtype == np.float32
    assert labels(listing) == [1.5, -2000.0]


@pytest.mark.parametrize(
    ("text", "pictures", "complaint"),
    [
        ("", {}, r"lists no file; wanted a header with 'file' and 'label'"),
        ("file\nloose.bmp\n", {}, r"wanted a header with 'file' and 'label'"),
        ("file,file,label\na,b,c\n", {}, r"wanted a header"),
        ("file,label\n", {}, r"lists no file"),
        ("file,label\nloose.bmp\n", {}, r"line 2: got 1 values; wanted 2"),
        ("\n\nfile,label\n\n\nloose.bmp,a\nnone.bmp,a\n", {}, r"line 7: '.*none\.bmp'"),
        ("file,label\n,a\n", {}, r"line 2: got an empty value; wanted 'file' and 'label'"),
        ("file,label\nloose.bmp, \n", {}, r"line 2: got an empty value"),
        ("file,label\nnone.bmp,a\n", {}, r"line 2: '.*none\.bmp': .*No such file"),
        ("file,label\na\0b,a\n", {}, r"line 2|no \.csv"),
        ('file,label\n"loose.bmp,a\n', {}, r"is no \.csv: .*; wanted a header"),
        ("file,label\nloose.bmp,fish\n", {"class_names": ["cat"]}, r"label 'fish' is not in .*cat"),
        (
            "file,label\nloose.bmp,x\n",
            {"label_mode": "number"},
            r"line 2: label: could not convert",
        ),
        (
            "file,label\nloose.bmp,nan\n",
            {"label_mode": "number"},
            r"line 2: label: got 'nan'; wanted a number that is finite",
        ),
        ("file,label\nloose.bmp,x\n", {"label_mode": "binary"}, r"'binary' for 1 classes"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_its_line(
    folder: Path, text: str, pictures: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        listed(csv(folder, text), **pictures)


# -- roots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["cat/out.jpg", "out/a.jpg"])
def test_no_link_leads_out_of_the_roots(folder: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.jpg").touch()
    if link.startswith("out"):
        (folder / "out").symlink_to(outside)
    else:
        (folder / link).symlink_to(outside / "a.jpg")
    assert link in paths(listed(folder)), "who has no roots may read it"
    with pytest.raises(NotAllowed, match=r"out.* is not below a folder this server allows"):
        listed(folder, [str(folder)])
    assert link in paths(listed(folder, [str(tmp_path)]))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "cat/../../secret.png"])
def test_no_list_leads_out_of_the_roots(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").touch()
    path = csv(folder, f"file\n{name}\n")
    with pytest.raises(NotAllowed, match="is not below a folder this server allows"):
        listed(path, [str(folder)], label_mode="none")


# -- the table -----------------------------------------------------------------------------------


def test_a_table_of_no_such_arrays_says_what_is_missing() -> None:
    arrays = pack([File("a", 1, 2)])
    assert FileTable(arrays)[0] == File("a", 1, 2)
    del arrays["files.ends"]
    with pytest.raises(ConfigError, match=r"has no array 'files\.ends'; wanted a folder"):
        FileTable(arrays)
