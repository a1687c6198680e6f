"""A convolutional autoencoder: with class_mode="input" the pictures are their own targets."""

import os
import sys

import numpy as np
import sample_data
from keras.layers import Conv2D, Input, MaxPooling2D, UpSampling2D
from keras.models import Model

# from keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

if __name__ == "__main__":
    path = os.path.join(sys.argv[1] if len(sys.argv) > 1 else sample_data.folder(), "train")

    BATCH_SIZE = 8
    EPOCHS = 1

    datagen = ImageDataGenerator(rescale=1.0 / 255, horizontal_flip=True, validation_split=0.2)
    common = dict(
        target_size=(64, 64),
        color_mode="grayscale",
        class_mode="input",
        batch_size=BATCH_SIZE,
        seed=9,
    )
    train_batches = datagen.flow_from_directory(path, subset="training", **common)
    val_batches = datagen.flow_from_directory(path, subset="validation", shuffle=False, **common)

    # ENCODER
    input_img = Input(shape=(64, 64, 1))
    x = Conv2D(8, (3, 3), activation="relu", padding="same")(input_img)
    x = MaxPooling2D((2, 2), padding="same")(x)
    x = Conv2D(4, (3, 3), activation="relu", padding="same")(x)
    encoded = MaxPooling2D((2, 2), padding="same")(x)

    # DECODER
    x = Conv2D(4, (3, 3), activation="relu", padding="same")(encoded)
    x = UpSampling2D((2, 2))(x)
    x = Conv2D(8, (3, 3), activation="relu", padding="same")(x)
    x = UpSampling2D((2, 2))(x)
    decoded = Conv2D(1, (3, 3), activation="sigmoid", padding="same")(x)

    autoencoder = Model(input_img, decoded)
    autoencoder.compile(optimizer="adam", loss="binary_crossentropy")
    autoencoder.fit(train_batches, epochs=EPOCHS, validation_data=val_batches)

    original, _ = val_batches[0]
    restored = autoencoder.predict(original, verbose=0)
    print("mean error of a pixel: %.3f" % np.mean(np.abs(original - restored)))
