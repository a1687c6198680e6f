"""CIFAR-10 in memory, with every knob of the generator spelled out and featurewise statistics."""

import sys

import keras
import numpy as np
import sample_data
from keras.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from keras.models import Sequential

# from keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

batch_size = 32
num_classes = 10
epochs = 1

# The data, split between train and test sets
data = np.load(sys.argv[1] if len(sys.argv) > 1 else sample_data.ARRAYS)
x_train, y_train = data["x_train"][:1000], data["y_train"][:1000]
x_test, y_test = data["x_test"], data["y_test"]
print("x_train shape:", x_train.shape)
print(x_train.shape[0], "train samples")
print(x_test.shape[0], "test samples")

# Convert class vectors to binary class matrices
y_train = keras.utils.to_categorical(y_train, num_classes)
y_test = keras.utils.to_categorical(y_test, num_classes)

x_train = x_train.astype("float32") / 255
x_test = x_test.astype("float32") / 255

model = Sequential()
model.add(keras.Input(x_train.shape[1:]))
model.add(Conv2D(16, (3, 3), padding="same", activation="relu"))
model.add(MaxPooling2D(pool_size=(2, 2)))
model.add(Conv2D(32, (3, 3), padding="same", activation="relu"))
model.add(MaxPooling2D(pool_size=(2, 2)))
model.add(Flatten())
model.add(Dropout(0.25))
model.add(Dense(num_classes, activation="softmax"))
model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])

datagen = ImageDataGenerator(
    featurewise_center=True,  # set input mean to 0 over the dataset
    samplewise_center=False,  # set each sample mean to 0
    featurewise_std_normalization=True,  # divide inputs by std of the dataset
    samplewise_std_normalization=False,  # divide each input by its std
    zca_whitening=False,  # apply ZCA whitening
    rotation_range=15,  # degrees
    width_shift_range=0.1,  # fraction of total width
    height_shift_range=0.1,  # fraction of total height
    channel_shift_range=0.1,
    fill_mode="nearest",
    horizontal_flip=True,
    vertical_flip=False,
)
# Compute what is needed for featurewise normalization
datagen.fit(x_train)

test_datagen = ImageDataGenerator(featurewise_center=True, featurewise_std_normalization=True)
test_datagen.fit(x_train)

history = model.fit(
    datagen.flow(x_train, y_train, batch_size=batch_size, seed=0),
    epochs=epochs,
    validation_data=test_datagen.flow(x_test, y_test, batch_size=batch_size, shuffle=False),
)

scores = model.evaluate(test_datagen.flow(x_test, y_test, shuffle=False), verbose=0)
print("Test loss:", scores[0])
print("Test accuracy:", scores[1])
