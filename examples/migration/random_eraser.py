"""Random erasing: a preprocessing_function that draws from np.random and is a closure."""

import sys

import numpy as np
import sample_data
from keras import Input
from keras.layers import Conv2D, Dense, GlobalAveragePooling2D
from keras.models import Sequential

# from tensorflow.keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator


def get_random_eraser(p=0.5, area=(0.02, 0.3), aspect=(0.4, 2.5), value=(0, 255)):
    def eraser(img):
        if np.random.rand() > p:
            return img
        height, width, _ = img.shape
        while True:
            size = np.random.uniform(*area) * height * width
            ratio = np.random.uniform(*aspect)
            h, w = int(np.sqrt(size * ratio)), int(np.sqrt(size / ratio))
            top, left = np.random.randint(0, height), np.random.randint(0, width)
            if top + h <= height and left + w <= width:
                break
        img[top : top + h, left : left + w, :] = np.random.uniform(*value)
        return img

    return eraser


data = np.load(sys.argv[1] if len(sys.argv) > 1 else sample_data.ARRAYS)
x_train, y_train = data["x_train"][:1000], data["y_train"][:1000]
x_test, y_test = data["x_test"] / 255.0, data["y_test"]

datagen = ImageDataGenerator(
    rescale=1 / 255.0,
    width_shift_range=4,  # whole pixels, up to 3 to either side
    height_shift_range=4,
    horizontal_flip=True,
    fill_mode="reflect",
    preprocessing_function=get_random_eraser(),
)
train_gen = datagen.flow(x_train, y_train, batch_size=50, seed=7)

model = Sequential(
    [
        Input((32, 32, 3)),
        Conv2D(16, 3, strides=2, activation="relu"),
        Conv2D(32, 3, strides=2, activation="relu"),
        GlobalAveragePooling2D(),
        Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(train_gen, epochs=1, validation_data=(x_test, y_test))
print("accuracy without erasing: %.3f" % model.evaluate(x_test, y_test, verbose=0)[1])
