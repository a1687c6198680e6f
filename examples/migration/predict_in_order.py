"""Predictions in the order of the files: shuffle=False, filenames and class_indices."""

import os
import sys
import tempfile

import numpy as np
import pandas as pd
import sample_data
from keras import Input
from keras.layers import Conv2D, Dense, GlobalAveragePooling2D
from keras.models import Sequential

# from keras.preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

data_dir = sys.argv[1] if len(sys.argv) > 1 else sample_data.folder()
out_dir = sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()

train_datagen = ImageDataGenerator(rescale=1.0 / 255, horizontal_flip=True)
test_datagen = ImageDataGenerator(rescale=1.0 / 255)
train_generator = train_datagen.flow_from_directory(
    os.path.join(data_dir, "train"), target_size=(72, 72), batch_size=8, seed=0
)
# shuffle=False: the k-th prediction belongs to the k-th file
test_generator = test_datagen.flow_from_directory(
    directory=os.path.join(data_dir, "validation"),
    target_size=(72, 72),
    color_mode="rgb",
    batch_size=5,
    class_mode=None,
    shuffle=False,
)

model = Sequential(
    [
        Input((72, 72, 3)),
        Conv2D(16, 5, strides=3, activation="relu"),
        GlobalAveragePooling2D(),
        Dense(train_generator.num_classes, activation="softmax"),
    ]
)
model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
model.fit(train_generator, epochs=1)

test_generator.reset()
pred = model.predict(test_generator, steps=len(test_generator), verbose=1)
predicted_class_indices = np.argmax(pred, axis=1)

labels = dict((v, k) for k, v in train_generator.class_indices.items())
predictions = [labels[k] for k in predicted_class_indices]
results = pd.DataFrame({"Filename": test_generator.filenames, "Predictions": predictions})
results.to_csv(os.path.join(out_dir, "results.csv"), index=False)
print(results.head())

right = sum(predicted_class_indices == test_generator.classes)
print(f"{right} of {test_generator.samples} right; written to {out_dir}/results.csv")
