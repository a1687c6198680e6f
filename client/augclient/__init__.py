"""The thin client: batches of an augmentation server, on this machine without a copy.

`Consumer` is framework-free. `augclient.sequence.AugSequence` is for Keras; it is found here too,
and imports Keras when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from augclient.consumer import Batch, Consumer
from augproto.spec import Spec
from augproto.transforms import Transforms

if TYPE_CHECKING:
    from augclient.sequence import AugSequence

__all__ = ["AugSequence", "Batch", "Consumer", "Spec", "Transforms"]


def __getattr__(name: str) -> object:
    if name == "AugSequence":
        from augclient.sequence import AugSequence

        return AugSequence
    raise AttributeError(f"module 'augclient' has no attribute {name!r}")
