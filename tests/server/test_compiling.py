"""What is wrong with the files in which kernels are kept stops no kernel."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")

from numba import types
from numba.core import config

from augserver import compiling

_SOURCE = """
def doubled(x):
    return 2 * x

def halved(x):
    return x / 2
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Callable[..., Any]]:
    """Two functions of a file of their own, whose kernels are kept below `tmp_path`."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "kept"))
    _as_in_a_new_process(monkeypatch)
    file = tmp_path / "some.py"
    file.write_text(_SOURCE)
    spec = importlib.util.spec_from_file_location("some", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [module.doubled, module.halved]


def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_said", "_folders"):
        monkeypatch.setattr(compiling, name, set())
    monkeypatch.setattr(compiling, "_reasons", [])


def _values(functions: list[Callable[..., Any]]) -> list[float]:
    return [compiling.kept(each, types.float64(types.float64))(3.0) for each in functions]


_PROGRAM = """
import logging, sys
logging.basicConfig(format="%(message)s")
sys.path.insert(0, sys.argv[1])
import some
from numba import types
from augserver import compiling
for each in (some.doubled, some.halved):
    print(compiling.kept(each, types.float64(types.float64))(3.0))
print(*compiling.folders(), compiling.reason())
"""


@pytest.mark.parametrize(("ending", "content"), [("nbi", b""), ("nbc", b"no pickle at all")])
def test_kernels_whose_files_are_damaged_are_compiled_and_kept_anew(
    tmp_path: Path, ending: str, content: bytes
) -> None:
    (tmp_path / "some.py").write_text(_SOURCE)

    def run() -> tuple[str, list[str]]:
        """Where a program of its own keeps its kernels, and what it says."""
        ran = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(tmp_path)],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept")},
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        *values, kept = ran.stdout.splitlines()
        assert values == ["6.0", "1.5"]
        folder, reason = kept.split()
        assert reason == "None"
        return folder, ran.stderr.splitlines()

    folder, said = run()
    assert said == [compiling._COMPILING]
    damaged = list(Path(folder).glob(f"*.{ending}"))
    assert len(damaged) == 2
    for path in damaged:
        path.write_bytes(content)
    again, said = run()
    assert again == folder
    (damage,) = [text for text in said if text != compiling._COMPILING]
    assert f"kernels that were kept in {folder} cannot be read" in damage
    assert run() == (folder, [])


def test_a_folder_that_cannot_be_written_to_is_named_once(
    functions: list[Callable[..., Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuses(*_: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", refuses)
    assert _values(functions) == [6.0, 1.5]
    (said,) = caplog.messages
    assert "cannot be kept (cannot cache function" in said
    assert "NUMBA_CACHE_DIR" in said
    assert compiling.folders() == []


_FULL = """
import logging, resource, sys
sys.path.insert(0, sys.argv[1])
from numba import types
from augserver import compiling
import some
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
for function in (some.doubled, some.halved):
    print(compiling.kept(function, types.float64(types.float64))(3.0))
print(compiling.reason())
"""


def test_where_no_file_can_grow_kernels_are_compiled_all_the_same(
    functions: list[Callable[..., Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    ran = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    *values, reason = ran.stdout.splitlines()
    assert values == ["6.0", "1.5"]
    assert "File too large" in reason
    assert ran.stderr.count("cannot be kept") == 1
    assert not list((tmp_path / "kept").rglob("*.nb?"))
