"""Segmentation: pictures and their masks go through twin generators with one seed."""

import sys

import numpy as np
import sample_data
from keras import Input
from keras.layers import Concatenate, Conv2D, MaxPooling2D, UpSampling2D
from keras.models import Model

# from keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

data = np.load(sys.argv[1] if len(sys.argv) > 1 else sample_data.ARRAYS)
images = data["x_train"][:960]
masks = np.where(images.mean(axis=3, keepdims=True) > 127, 255, 0)  # what is bright

# we create two instances with the same arguments
data_gen_args = dict(
    rotation_range=90,
    width_shift_range=0.1,
    height_shift_range=0.1,
    zoom_range=0.2,
    horizontal_flip=True,
    vertical_flip=True,
)
image_datagen = ImageDataGenerator(
    featurewise_center=True, featurewise_std_normalization=True, **data_gen_args
)
mask_datagen = ImageDataGenerator(interpolation_order=0, **data_gen_args)

# the same seed for fit and for both flows
seed = 1
image_datagen.fit(images[:100], augment=True, seed=seed)
image_generator = image_datagen.flow(images, batch_size=32, seed=seed)
mask_generator = mask_datagen.flow(masks, batch_size=32, seed=seed)


def train_generator():
    for image_batch, mask_batch in zip(image_generator, mask_generator):
        mask_batch /= 255
        mask_batch[mask_batch > 0.5] = 1
        mask_batch[mask_batch <= 0.5] = 0
        yield image_batch, mask_batch


inputs = Input((32, 32, 3))
fine = Conv2D(8, 3, padding="same", activation="relu")(inputs)
coarse = Conv2D(16, 3, padding="same", activation="relu")(MaxPooling2D()(fine))
merged = Concatenate()([fine, UpSampling2D()(coarse)])
outputs = Conv2D(1, 1, activation="sigmoid")(merged)
model = Model(inputs, outputs)
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
history = model.fit(train_generator(), steps_per_epoch=len(image_generator), epochs=1)
print("pixels right: %.3f" % history.history["accuracy"][-1])
