"""Several labels for each picture, from a dataframe whose column holds lists."""

import os
import sys

import numpy as np
import pandas as pd
import sample_data
from keras import Input, layers, models, optimizers

# from keras_preprocessing.image import ImageDataGenerator
from augclient.image import ImageDataGenerator

data_dir = sys.argv[1] if len(sys.argv) > 1 else sample_data.folder()
df = pd.read_csv(os.path.join(data_dir, "pictures.csv"))
df["tags"] = df["tags"].apply(lambda tags: tags.split(","))
df = df.sample(frac=1, random_state=3).reset_index(drop=True)
print(df.head())

datagen = ImageDataGenerator(
    rescale=1.0 / 255.0, horizontal_flip=True, rotation_range=10, validation_split=0.25
)
train_generator = datagen.flow_from_dataframe(
    dataframe=df,
    directory=os.path.join(data_dir, "train"),
    x_col="filename",
    y_col="tags",
    subset="training",
    batch_size=8,
    seed=42,
    shuffle=True,
    class_mode="categorical",
    target_size=(100, 100),
)
valid_generator = datagen.flow_from_dataframe(
    dataframe=df,
    directory=os.path.join(data_dir, "train"),
    x_col="filename",
    y_col="tags",
    subset="validation",
    batch_size=8,
    seed=42,
    shuffle=True,
    class_mode="categorical",
    target_size=(100, 100),
)
class_names = list(train_generator.class_indices)

model = models.Sequential()
model.add(Input((100, 100, 3)))
model.add(layers.Conv2D(16, (5, 5), strides=4, activation="relu"))
model.add(layers.GlobalAveragePooling2D())
model.add(layers.Dense(len(class_names), activation="sigmoid"))
model.compile(
    optimizers.RMSprop(learning_rate=0.001), loss="binary_crossentropy", metrics=["binary_accuracy"]
)

STEP_SIZE_TRAIN = int(np.ceil(train_generator.n / train_generator.batch_size))
STEP_SIZE_VALID = int(np.ceil(valid_generator.n / valid_generator.batch_size))
model.fit(
    train_generator,
    steps_per_epoch=STEP_SIZE_TRAIN,
    validation_data=valid_generator,
    validation_steps=STEP_SIZE_VALID,
    epochs=2,
)

pred = model.predict(valid_generator, steps=1, verbose=0)
for row in pred[:3] > 0.5:
    print([name for name, present in zip(class_names, row) if present])
