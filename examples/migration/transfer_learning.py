"""A network of keras.applications with a new head, fed through its own preprocess_input.

The weights are random here, so that nothing has to be downloaded; weights="imagenet" was meant.
"""

import os
import sys

import sample_data
from keras.applications.mobilenet import MobileNet, preprocess_input
from keras.layers import Dense, GlobalAveragePooling2D
from keras.models import Model
from keras.optimizers import Adam

# from tensorflow.keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

IMG_SIZE = (96, 96)
BATCH_SIZE = 8
EPOCHS = 1


def make_generators(data_dir):
    train_datagen = ImageDataGenerator(
        preprocessing_function=preprocess_input,
        rotation_range=40,
        width_shift_range=0.2,
        height_shift_range=0.2,
        brightness_range=(0.7, 1.3),
        horizontal_flip=True,
        fill_mode="nearest",
    )
    test_datagen = ImageDataGenerator(preprocessing_function=preprocess_input)
    train = train_datagen.flow_from_directory(
        os.path.join(data_dir, "train"),
        target_size=IMG_SIZE,
        interpolation="bilinear",
        batch_size=BATCH_SIZE,
        class_mode="categorical",
        seed=42,
    )
    test = test_datagen.flow_from_directory(
        os.path.join(data_dir, "validation"),
        target_size=IMG_SIZE,
        interpolation="bilinear",
        batch_size=BATCH_SIZE,
        class_mode="categorical",
        shuffle=False,
    )
    return train, test


def make_model(num_classes):
    base_model = MobileNet(weights=None, alpha=0.25, include_top=False, input_shape=(*IMG_SIZE, 3))
    for layer in base_model.layers:
        layer.trainable = False
    x = GlobalAveragePooling2D()(base_model.output)
    x = Dense(32, activation="relu")(x)
    predictions = Dense(num_classes, activation="softmax")(x)
    model = Model(inputs=base_model.input, outputs=predictions)
    model.compile(Adam(1e-3), loss="categorical_crossentropy", metrics=["accuracy"])
    return model


if __name__ == "__main__":
    train_gen, test_gen = make_generators(
        sys.argv[1] if len(sys.argv) > 1 else sample_data.folder()
    )
    print("classes:", train_gen.class_indices)
    model = make_model(train_gen.num_classes)
    history = model.fit(train_gen, validation_data=test_gen, epochs=EPOCHS)
    print("val_accuracy:", history.history["val_accuracy"])
