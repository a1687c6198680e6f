"""One folder, split by the generator itself: validation_split and subset=."""

import os
import sys

import sample_data
from keras import layers, models

# from tensorflow.keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

train_data_dir = os.path.join(sys.argv[1] if len(sys.argv) > 1 else sample_data.folder(), "train")
img_height, img_width, batch_size, nb_epochs = 80, 80, 8, 2

train_datagen = ImageDataGenerator(
    rescale=1.0 / 255,
    rotation_range=20,
    width_shift_range=[-6, -3, 0, 3, 6],
    height_shift_range=0.1,
    horizontal_flip=True,
    fill_mode="constant",
    cval=0.5,
    validation_split=0.2,
)  # set validation split

train_generator = train_datagen.flow_from_directory(
    train_data_dir,
    target_size=(img_height, img_width),
    batch_size=batch_size,
    class_mode="sparse",
    keep_aspect_ratio=True,
    seed=123,
    subset="training",
)  # set as training data

validation_generator = train_datagen.flow_from_directory(
    train_data_dir,  # same directory as training data
    target_size=(img_height, img_width),
    batch_size=batch_size,
    class_mode="sparse",
    keep_aspect_ratio=True,
    seed=123,
    subset="validation",
)  # set as validation data

model = models.Sequential(
    [
        layers.Input((img_height, img_width, 3)),
        layers.Conv2D(8, 5, strides=3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(train_generator.num_classes, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(
    train_generator,
    validation_data=validation_generator,
    epochs=nb_epochs,
)
print(train_generator.samples, "for training,", validation_generator.samples, "for validation")
