"""From pictures and drawn parameters to a finished batch: Keras's transforms without Keras.

Several backends may stand behind `build`; each must give the bytes that `reference` gives.
"""

from augserver.transforms.function import SampleError
from augserver.transforms.pipeline import TransformBatch, build

__all__ = ["SampleError", "TransformBatch", "build"]
