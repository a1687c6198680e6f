"""What a program finds on a backend of Keras: it runs once for each, in a process of its own, and
prints a line of JSON for each of its scenarios."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

BACKENDS = ["tensorflow", "jax", "torch"]
REASON = {
    "tensorflow": "TensorFlow is not installed (pip install 'augserver[tensorflow]')",
    "jax": "JAX is not installed (pip install 'augserver[jax]')",
    "torch": "PyTorch is not installed (make test TORCH=1)",
}


class Scenarios:
    """All that one program finds.

    Args:
        program: Of tests/support; takes the backend as its argument.
        timeout: Seconds that it may take.
        alone: Scenarios that it leaves out unless they are named: each gets another process.
    """

    def __init__(self, program: str, timeout: float, alone: Sequence[str] = ()) -> None:
        self._program = Path(__file__).with_name(program)
        self._alone = alone
        self._timeout = timeout
        self._found: dict[str, dict[str, dict[str, Any]]] = {}
        self._stderr: dict[str, str] = {}

    def run(self, request: pytest.FixtureRequest) -> str:
        """Run it on the backend that a fixture is asked for, and on all others that the module's
        tests will ask for, two at a time; the test skips where there is no such backend.

        Most of a run is the import of a backend and many short waits, in one thread.
        """
        backend = str(request.param)
        if importlib.util.find_spec(backend) is None:
            pytest.skip(REASON[backend])
        if backend not in self._found:
            names = [
                item.name
                for item in request.session.items
                if isinstance(item, pytest.Function) and item.module is request.module
            ]
            wanted = [
                other
                for other in BACKENDS
                if importlib.util.find_spec(other) is not None
                and any(f"[{other}" in name for name in names)
            ]
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(self._run, wanted))
        return backend

    def run_on(self, backend: str) -> str:
        """Run it on this backend alone, if that has not been done."""
        if importlib.util.find_spec(backend) is None:
            pytest.skip(REASON[backend])
        if backend not in self._found:
            self._run(backend)
        return backend

    def _run(self, backend: str) -> None:
        self._stderr[backend] = ""
        found: dict[str, dict[str, Any]] = {}
        for names in ([], *([name] for name in self._alone)):
            done = subprocess.run(
                [sys.executable, str(self._program), backend, *names],
                capture_output=True,
                text=True,
                timeout=self._timeout,
                check=False,
            )
            lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
            self._stderr[backend] += done.stderr
            found |= {line["scenario"]: line for line in lines}
        self._found[backend] = found

    def line(self, backend: str, scenario: str) -> dict[str, Any]:
        """What a scenario has found."""
        line = self._found[backend].get(scenario)
        assert line is not None, f"{scenario} did not end:\n{self._stderr[backend][-6000:]}"
        return line
