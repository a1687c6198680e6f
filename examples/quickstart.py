"""The whole change to a program: its arrays go through AugSequence on their way to model.fit."""

import keras
import numpy as np

from augclient import AugSequence

rng = np.random.default_rng(0)
y = rng.integers(0, 3, 512)  # your labels
x = rng.integers(0, 160, (512, 32, 32, 3), np.uint8)  # your pictures; here: noise ...
x[np.arange(512), ..., y] += 80  # ... with more of one colour

head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 3), *head])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

transforms = {"rotation_range": 15, "horizontal_flip": True, "rescale": 1 / 255}
model.fit(AugSequence(x, y, batch_size=16, transforms=transforms), epochs=5)
