"""Keys in files: what is written, what is read, and what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq
import zmq.auth

from augproto.errors import ConfigError
from augproto.keys import Keys, generate, load_allowed, load_public, load_secret


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return generate(tmp_path, "me")


def test_a_pair_of_files_is_a_secret_of_its_owner_and_a_public_key(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    secret, public = pair
    assert (secret, public) == (tmp_path / "me.key", tmp_path / "me.pub")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert load_secret(secret)[0] == load_public(public)
    assert load_secret(secret)[1].decode() not in public.read_text()


def test_a_secret_file_in_the_place_of_a_public_one_is_refused(pair: tuple[Path, Path]) -> None:
    """It would do; but then a secret lies where it should not."""
    with pytest.raises(ConfigError, match=r"me\.key holds a secret key; wanted NAME\.pub"):
        load_public(pair[0])
    with pytest.raises(ConfigError, match="holds a secret key"):
        load_allowed([str(pair[0])])


def test_the_files_are_certificates_as_zeromq_has_them(pair: tuple[Path, Path]) -> None:
    assert zmq.auth.load_certificate(pair[0]) == load_secret(pair[0])
    assert zmq.auth.load_certificate(pair[1]) == (load_public(pair[1]), None)
    assert zmq.curve_public(load_secret(pair[0])[1]) == load_public(pair[1])


def test_a_mode_that_the_umask_would_open_or_close_is_what_it_should_be(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        secret, _ = generate(tmp_path / "new", "me")
    finally:
        os.umask(before)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("suffix", [".key", ".pub"])
def test_a_key_is_never_written_over(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"me{suffix}").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        generate(tmp_path, "me")
    assert [p.name for p in tmp_path.iterdir()] == [f"me{suffix}"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".me", "/etc/x"])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="keygen: got the name"):
        generate(tmp_path, name)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666, 0o660])
def test_a_secret_that_others_can_read_is_refused_with_what_to_do(
    pair: tuple[Path, Path], mode: int
) -> None:
    pair[0].chmod(mode)
    if os.getuid() == 0 and mode == 0o640:
        load_secret(pair[0])  # as an administrator gives it to a group
        return
    with pytest.raises(ConfigError, match=rf"has mode {mode:04o}.*chmod 600 {pair[0]}"):
        load_secret(pair[0])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no key"),
        ("curve\n public-key = \"short\"\n", "a key of 5 characters; wanted 40"),
        ("x" * 5000, "is no key file"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "bad.pub").write_text(text)
    with pytest.raises(ConfigError, match=why):
        load_public(tmp_path / "bad.pub")


def test_a_public_file_is_no_secret_and_a_folder_no_file(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="holds a public key alone"):
        load_secret(pair[1])
    with pytest.raises(ConfigError, match="is no key file"):
        load_public(pair[1].parent)
    with pytest.raises(ConfigError, match="No such file"):
        load_public(pair[1].parent / "none.pub")


def test_those_that_may_come_in_are_files_and_folders_of_them(tmp_path: Path) -> None:
    one, two, three = (generate(tmp_path / folder, folder)[1] for folder in ("a", "b", "c"))
    assert load_allowed([str(tmp_path / "a"), str(two)]) == {load_public(one), load_public(two)}
    assert load_public(three) not in load_allowed([str(one)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no \.pub file in .*empty"):
        load_allowed([str(tmp_path / "empty")])


def test_what_a_guest_shows_is_both_or_neither_and_no_secret_is_printed(
    pair: tuple[Path, Path],
) -> None:
    assert Keys.of(None, None) is None
    keys = Keys.of(*pair)
    assert keys is not None
    assert keys.secret.decode() not in repr(keys)
    for one in ((pair[0], None), (None, pair[1])):
        with pytest.raises(ConfigError, match="wanted both, or neither"):
            Keys.of(*one)
