"""Regression on numbers of a csv (class_mode="raw"); a column says how far each is trusted."""

import os
import sys

import keras
import numpy as np
import pandas as pd
import sample_data

# from keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

TARGET_SIZE = (64, 64)
BATCH_SIZE = 8


def main():
    data_dir = sys.argv[1] if len(sys.argv) > 1 else sample_data.folder()
    table = pd.read_csv(os.path.join(data_dir, "pictures.csv"))
    table["path"] = table["filename"].map(lambda name: os.path.join(data_dir, "train", name))
    held_out = table.sample(frac=0.2, random_state=0)
    table = table.drop(held_out.index)

    train = ImageDataGenerator(rescale=1 / 255, zoom_range=0.1, vertical_flip=True)
    train_flow = train.flow_from_dataframe(
        table,
        x_col="path",
        y_col="brightness",
        weight_col="trust",
        class_mode="raw",
        target_size=TARGET_SIZE,
        batch_size=BATCH_SIZE,
        seed=5,
    )
    test_flow = ImageDataGenerator(rescale=1 / 255).flow_from_dataframe(
        held_out,
        x_col="path",
        y_col="brightness",
        class_mode="raw",
        target_size=TARGET_SIZE,
        batch_size=BATCH_SIZE,
        shuffle=False,
    )

    model = keras.Sequential(
        [
            keras.Input((*TARGET_SIZE, 3)),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    model.fit(train_flow, validation_data=test_flow, epochs=2, verbose=2)

    predicted = model.predict(test_flow, verbose=0)[:, 0]
    error = np.abs(predicted - held_out["brightness"].to_numpy())
    print(f"mean absolute error on {len(error)} pictures: {error.mean():.3f}")


if __name__ == "__main__":
    main()
