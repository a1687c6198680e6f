"""Who says what of a setting: a flag before the environment, the environment before the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from augproto.errors import ConfigError
from augserver.settings import gather


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "augserver.toml"
    path.write_text("[server]\nworkers = 5\nlease = 7\nlisten = 'ipc:///file'\n")
    return path


def test_a_flag_wins_over_the_environment_which_wins_over_the_file(file: Path) -> None:
    environ = {"AUGSERVER_WORKERS": "3", "AUGSERVER_LISTEN": "ipc:///a  tcp://127.0.0.1:1"}
    settings = gather(file, {"workers": 1, "listen": None}, environ)
    assert (settings.config.workers, settings.config.lease) == (1, 7)
    assert settings.config.listen == ("ipc:///a", "tcp://127.0.0.1:1")
    assert settings.file == file
    assert settings.sources == {
        "workers": "flag --workers",
        "listen": "environment AUGSERVER_LISTEN",
        "lease": "file",
    }


def test_the_environment_names_the_file_where_no_flag_does(file: Path, tmp_path: Path) -> None:
    environ = {"AUGSERVER_CONFIG": str(file)}
    assert gather(None, {}, environ).config.workers == 5
    other = tmp_path / "other.toml"
    other.write_text("[server]\nworkers = 6\n")
    assert gather(other, {}, environ).config.workers == 6


def test_without_a_file_the_folder_s_own_is_read_if_there_is_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert gather(None, {}, {}).config.workers == 5
    file.unlink()
    settings = gather(None, {"workers": 2, "listen": ["ipc:///x"]}, {})
    assert (settings.config.workers, settings.file) == (2, None)


def test_a_variable_that_is_empty_says_nothing(file: Path) -> None:
    environ = {"AUGSERVER_WORKERS": "", "AUGSERVER_LISTEN": " ", "AUGSERVER_CACHE_BYTES": ""}
    settings = gather(file, {}, environ)
    assert (settings.config.workers, settings.config.listen) == (5, ("ipc:///file",))
    assert settings.config.cache_bytes is None


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"AUGSERVER_WORKERS": "two"}, "AUGSERVER_WORKERS: got 'two'; wanted a whole number"),
        ({"AUGSERVER_WORKERS": "-1"}, r"server\.workers: got -1; .* \(from the environment AUG"),
        ({"AUGSERVER_LISTEN": "udp://x"}, r"listen: got 'udp://x'; .*AUGSERVER_LISTEN\)"),
        ({"AUGSERVER_MAX_STREAMS": "70000"}, r"max_streams: got 70000; .*AUGSERVER_MAX_STREAMS"),
        ({"AUGSERVER_CONFIG": "/none.toml"}, r"config: cannot read /none\.toml"),
    ],
)
def test_what_the_environment_says_wrong_is_named_as_its(
    environ: dict[str, str], complaint: str, file: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        gather(None if "AUGSERVER_CONFIG" in environ else file, {}, environ)


def test_what_the_file_says_wrong_is_not_the_environment_s(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[server]\nworkers = -1\n")
    with pytest.raises(ConfigError, match=r"server\.workers: got -1; wanted .* 1024$"):
        gather(path, {}, {"AUGSERVER_LISTEN": "ipc:///a"})
