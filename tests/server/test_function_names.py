"""A function that is allowed has to have a name, and a module that is there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from augproto.errors import ConfigError
from augserver.functions import check_name


def test_a_module_that_is_there_is_looked_for_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "expensive.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    check_name("expensive:augment")
    check_name("expensive:Augmenter.call")
    assert "expensive" not in sys.modules


@pytest.mark.parametrize("name", ["foo", "", ":f", "module:", "module:1f", "module:f g"])
def test_what_is_no_name_of_a_function_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"allow_transforms: got .*; wanted 'package\.module:"):
        check_name(name)


@pytest.mark.parametrize("name", ["nosuchmodule:f", "os.nosuch:f", "nosuch.module:f"])
def test_a_module_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no module '.*' here; to do: install it"):
        check_name(name)
