"""A few pictures for those who run these programs without pictures of their own."""

import csv
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

#: Arrays as CIFAR-10 has them: x_train, y_train, x_test, y_test, 32x32 pixels in RGB.
ARRAYS = str(Path(__file__).parents[1] / "data" / "shapes.npz")

#: The two classes of the folder, by their labels in ARRAYS.
CLASSES = {"disc": 0, "frame": 3}


def folder() -> str:
    """The path of a folder with `train`, `validation` and `pictures.csv`.

    Both sub-folders hold a folder of PNG files for each of two classes. All of it goes when the
    program ends.
    """
    place = tempfile.TemporaryDirectory(prefix="pictures-")
    _kept.append(place)
    with np.load(ARRAYS) as arrays:
        for part, suffix in (("train", "train"), ("validation", "test")):
            pictures, labels = arrays[f"x_{suffix}"], arrays[f"y_{suffix}"]
            for name, label in CLASSES.items():
                into = Path(place.name, part, name)
                into.mkdir(parents=True)
                for number in np.flatnonzero(labels == label):
                    Image.fromarray(pictures[number]).save(into / f"{number:03}.png")
    write_list(place.name)
    return place.name


def write_list(place: str) -> None:
    """Write `pictures.csv`: what can be seen of each picture below `train` without looking long.

    Columns: `filename`, relative to `train`; `tags`, several with commas in between; `brightness`,
    the mean from 0 to 1; and `trust`, from 0.5 to 1, the more the picture differs from gray.
    """
    train = Path(place, "train")
    with open(Path(place, "pictures.csv"), "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "tags", "brightness", "trust"])
        for path in sorted(path for path in train.rglob("*") if path.is_file()):
            with Image.open(path) as picture:
                small = np.asarray(picture.convert("RGB").resize((8, 8))) / 255
            brightness = float(small.mean())
            tags = [path.parent.name, "bright" if brightness > 0.45 else "dark"]
            if small[..., 0].mean() > small[..., 2].mean():
                tags.append("warm")
            trust = 0.5 + min(float(small.std()), 0.5)
            name = path.relative_to(train).as_posix()
            rows.writerow([name, ",".join(tags), f"{brightness:.4f}", f"{trust:.4f}"])


#: Folders that are there until the program ends.
_kept: list[tempfile.TemporaryDirectory[str]] = []
