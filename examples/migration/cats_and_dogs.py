"""Cats and dogs from two folders: a small convnet on a small set, as in countless tutorials."""

import os
import sys

import sample_data
from keras import Input
from keras.layers import Activation, Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from keras.models import Sequential

# from keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

img_width, img_height = 150, 150
epochs = 2
batch_size = 10

data_dir = sys.argv[1] if len(sys.argv) > 1 else sample_data.folder()
train_data_dir = os.path.join(data_dir, "train")
validation_data_dir = os.path.join(data_dir, "validation")

# augmentation for training; pictures for validation are only rescaled
train_datagen = ImageDataGenerator(
    rescale=1.0 / 255, shear_range=0.2, zoom_range=0.2, horizontal_flip=True
)
test_datagen = ImageDataGenerator(rescale=1.0 / 255)

train_generator = train_datagen.flow_from_directory(
    train_data_dir,
    target_size=(img_width, img_height),
    batch_size=batch_size,
    class_mode="binary",
    seed=1,
)
validation_generator = test_datagen.flow_from_directory(
    validation_data_dir,
    target_size=(img_width, img_height),
    batch_size=batch_size,
    class_mode="binary",
    seed=1,
)

model = Sequential()
model.add(Input((img_width, img_height, 3)))
model.add(Conv2D(8, (3, 3), strides=2))
model.add(Activation("relu"))
model.add(MaxPooling2D(pool_size=(2, 2)))
model.add(Conv2D(16, (3, 3)))
model.add(Activation("relu"))
model.add(MaxPooling2D(pool_size=(2, 2)))
model.add(Flatten())
model.add(Dropout(0.5))
model.add(Dense(1))
model.add(Activation("sigmoid"))
model.compile(loss="binary_crossentropy", optimizer="rmsprop", metrics=["accuracy"])

model.fit(
    train_generator,
    epochs=epochs,
    validation_data=validation_generator,
)

loss, accuracy = model.evaluate(validation_generator, verbose=0)
print(f"validation accuracy: {accuracy:.3f}")
