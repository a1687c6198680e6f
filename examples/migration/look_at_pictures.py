# %% [markdown]
# What does augmentation do to my pictures? Look before training.

# %%
import glob
import os
import sys
import tempfile

import numpy as np
import sample_data

# from keras.preprocessing import image
from augclient import image

data_dir = sys.argv[1] if len(sys.argv) > 1 else sample_data.folder()
out_dir = sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()

# %%
fnames = sorted(glob.glob(os.path.join(data_dir, "train", "*", "*")))
img_path = fnames[3]  # one picture to augment
img = image.load_img(img_path, target_size=(150, 150))
x = image.img_to_array(img)
x = x.reshape((1,) + x.shape)
print(img_path, x.shape, x.min(), x.max())

# %%
datagen = image.ImageDataGenerator(
    rotation_range=40,
    width_shift_range=0.2,
    height_shift_range=0.2,
    shear_range=0.2,
    zoom_range=0.2,
    brightness_range=[0.5, 1.5],
    horizontal_flip=True,
    fill_mode="nearest",
)
it = datagen.flow(x, batch_size=1, seed=3)
rows = []
for _ in range(3):
    rows.append(np.hstack([next(it)[0] for _ in range(3)]))
image.array_to_img(np.vstack(rows)).save(os.path.join(out_dir, "nine.png"))

# %%
# the same, straight to files
i = 0
for batch in datagen.flow(
    x, batch_size=1, seed=4, save_to_dir=out_dir, save_prefix="aug", save_format="jpeg"
):
    i += 1
    if i >= 20:
        break  # otherwise the generator would loop indefinitely

# %%
# one transform at a time
np.random.seed(5)
params = datagen.get_random_transform(x[0].shape)
print({name: round(float(value), 2) for name, value in params.items() if value is not None})
turned = datagen.apply_transform(x[0], {"theta": 30, "flip_horizontal": True})
image.save_img(os.path.join(out_dir, "turned.png"), turned)

# %%
print(len(os.listdir(out_dir)), "pictures in", out_dir)
