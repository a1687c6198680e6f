"""Real pictures for tests; not shipped, so tests that want them skip where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: Beside the checkout, or where AUGSERVER_TEST_DATA says.
FOLDER = Path(os.environ.get("AUGSERVER_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CIFAR10 = FOLDER / "cifar10" / "cifar10.npz"

needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.exists(), reason=f"real CIFAR-10 pictures are not at {CIFAR10}"
)
