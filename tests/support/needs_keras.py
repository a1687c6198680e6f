"""For modules that import what imports Keras: where there is none, they are skipped as a whole.

Import it before those; the order of imports sees to that.
"""

from __future__ import annotations

from keras_own import keras_module

keras = keras_module("keras")
