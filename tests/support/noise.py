"""Pictures of noise in a file, and what its epochs are, for tests with several hosts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from one_truth import bytes_of

from augclient import Consumer


def write_noise(path: Path, samples: int) -> Path:
    """So many pictures of 32x32 with labels, the same ones every time."""
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (samples, 32, 32, 3), np.uint8)
    np.savez(path, x=x, y=rng.integers(0, 10, samples))
    return path


def digest_of(consumer: Consumer, epochs: int = 2) -> str:
    """SHA-256 over everything that comes."""
    sha = hashlib.sha256()
    for batch in consumer.epochs(epochs):
        sha.update(bytes_of(batch))
    return sha.hexdigest()
