"""ZCA whitening of small pictures, with samplewise normalisation beside it for comparison."""

import sys

import numpy as np
import sample_data
from keras import Input, Sequential, layers

# from keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

data = np.load(sys.argv[1] if len(sys.argv) > 1 else sample_data.ARRAYS)
# 10x10 pixels: the matrix has (rows * columns * channels) squared entries
X_train = data["x_train"][:1000, 6:26:2, 6:26:2].astype("float32") / 255.0
X_test = data["x_test"][:, 6:26:2, 6:26:2].astype("float32") / 255.0
Y_train, Y_test = data["y_train"][:1000].astype("int32"), data["y_test"].astype("int32")

options = {
    "whitened": dict(featurewise_center=True, zca_whitening=True, zca_epsilon=1e-3),
    "per sample": dict(samplewise_center=True, samplewise_std_normalization=True),
}
flows = {}
for name, option in options.items():
    train_datagen = ImageDataGenerator(horizontal_flip=True, **option)
    test_datagen = ImageDataGenerator(**option)
    if name == "whitened":
        train_datagen.fit(X_train)
        test_datagen.fit(X_train)
    flows[name] = (
        train_datagen.flow(X_train, Y_train, batch_size=64, seed=2),
        test_datagen.flow(X_test, Y_test, batch_size=64, shuffle=False),
    )

for name, (train_flow, test_flow) in flows.items():
    model = Sequential(
        [
            Input(X_train.shape[1:]),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(train_flow, epochs=1, verbose=2)
    score = model.evaluate(test_flow, verbose=0)
    print(f"{name}: loss {score[0]:.3f}, accuracy {score[1]:.3f}")
