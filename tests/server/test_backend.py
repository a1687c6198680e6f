"""One variable of the environment says which kernels compute."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from augclient import Consumer, local
from augproto.errors import ConfigError
from augserver import backend as chooser


@pytest.mark.parametrize(
    ("value", "found", "wanted"),
    [
        (None, True, "numba"),
        (None, False, "scipy"),
        ("", True, "numba"),
        ("numba", True, "numba"),
        ("scipy", True, "scipy"),
        ("scipy", False, "scipy"),
    ],
)
def test_numba_s_kernels_compute_where_they_are_and_nobody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, value: str | None, found: bool, wanted: str
) -> None:
    _set(monkeypatch, value, found)
    assert chooser.backend.__wrapped__() == wanted


@pytest.mark.parametrize(
    ("value", "found", "message"),
    [
        ("cython", True, "AUGSERVER_KERNELS: got 'cython'; wanted one of numba, scipy"),
        ("numba", False, "AUGSERVER_KERNELS: got 'numba', but numba cannot be imported"),
    ],
)
def test_kernels_that_are_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, found: bool, message: str
) -> None:
    _set(monkeypatch, value, found)
    with pytest.raises(ConfigError, match=message):
        chooser.backend.__wrapped__()
    with pytest.raises(ConfigError, match=message):
        chooser.check()


def test_a_private_server_refuses_kernels_that_are_not_there_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local.shut_down()  # this program may have one, from a time without the variable
    _set(monkeypatch, "cython", True)
    with pytest.raises(ConfigError, match="AUGSERVER_KERNELS: got 'cython'"):
        Consumer(np.zeros((4, 2, 2, 1), np.uint8), batch_size=2, workers=1)


_SERVER = """
import sys
import numpy as np
from augserver import private, server
from augproto.spec import Spec
from augserver.desk import recipe_of
spec = Spec.from_wire({"data": ["-"], "x": "x", "transforms": {"rotation_range": 9.0}})
recipe_of(spec, 1, {"x": np.zeros((64, 8, 8, 3), np.uint8)}, describes=True)
print(*(name for name in ("numba", "scipy") if name in sys.modules))
"""


def test_a_server_describes_streams_without_numba_and_scipy() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _SERVER], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ""


def _set(monkeypatch: pytest.MonkeyPatch, value: str | None, found: bool) -> None:
    if value is None:
        monkeypatch.delenv(chooser.KERNELS_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(chooser.KERNELS_VARIABLE, value)
    if not found:
        monkeypatch.setitem(sys.modules, "numba", None)
