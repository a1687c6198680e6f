"""The thin client: batches of an augmentation server, on this machine without a copy.

`Consumer` is framework-free. `augclient.sequence.AugSequence` is for Keras, and
`augclient.torch_data.TorchDataset` for PyTorch; they are found here too, and import their framework
when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from augclient.consumer import Batch, Consumer
from augproto.spec import Spec
from augproto.transforms import Transforms

if TYPE_CHECKING:
    from augclient.sequence import AugSequence
    from augclient.torch_data import TorchDataset

__all__ = ["AugSequence", "Batch", "Consumer", "Spec", "TorchDataset", "Transforms"]

_LATER = {"AugSequence": "augclient.sequence", "TorchDataset": "augclient.torch_data"}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'augclient' has no attribute {name!r}")
