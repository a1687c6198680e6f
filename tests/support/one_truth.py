"""The stream that plain_reference.py computes, as a consumer asks for it and reads it."""

from __future__ import annotations

import hashlib

import numpy as np

from augclient import Batch, Consumer

TRANSFORMS: dict[str, object] = {
    "rotation_range": 30,
    "height_shift_range": 0.1,
    "width_shift_range": 0.2,
    "shear_range": 8,
    "zoom_range": 0.2,
    "channel_shift_range": 20,
    "horizontal_flip": True,
    "brightness_range": (0.7, 1.3),
    "rescale": 1 / 255,
    "featurewise_mean": np.float32(0.5),
    "featurewise_std": np.float32(0.25),
}


def bytes_of(batch: Batch) -> bytes:
    """All that a batch holds."""
    arrays = (batch.x, batch.y, batch.sample_weight)
    return b"".join(np.asarray(array).tobytes() for array in arrays if array is not None)


def two_epochs(consumer: Consumer) -> str:
    """SHA-256 of two epochs."""
    sha = hashlib.sha256()
    for epoch in range(2):
        for batch in consumer.epoch(epoch):
            sha.update(bytes_of(batch))
    return sha.hexdigest()
