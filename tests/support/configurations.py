"""Programs that use `ImageDataGenerator`, drawn at random: all that Keras's class can be asked.

A configuration is a function of (seed, number) alone, so that a failing one can be drawn again.
Left out is only what Keras itself cannot do, and what has no one answer: brightness of two or five
channels, 8-bit results that are scaled in place, and whitening by fewer pictures than they have
values (the smallest singular value is then noise, and its reciprocal a factor).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from keras_own import keras_module

Array = np.ndarray[Any, Any]
Options = dict[str, Any]

APPLICATIONS = (
    "vgg16", "resnet", "mobilenet_v2", "inception_v3", "densenet", "efficientnet",
)  # fmt: skip
CLASSES = ("bird", "cat", "dog")


@dataclass(frozen=True)
class Configuration:
    """One such program.

    Attributes:
        number: Which of its seed.
        image_data_format, floatx: Keras's global settings.
        generator: Arguments of `ImageDataGenerator`; `positional` if they are given by place.
        way: "flow", "flow_from_directory" or "flow_from_dataframe".
        flow: Arguments of it, but for the data and `save_to_dir`.
        data: What x, y, the folder or the frame are made of (see streams.py).
        saves: Whether `save_to_dir` is given.
        fit: Arguments of `fit` beside the pictures; None if it is not called.
        order: "stream", or "keras", where the global np.random decides.
        batches: How many are taken.
    """

    number: str
    image_data_format: str
    floatx: str
    generator: Options
    positional: bool
    way: str
    flow: Options
    data: Options
    saves: bool
    fit: Options | None
    order: str
    batches: int

    @property
    def tolerance(self) -> float:
        """How far a value may be off, as a share of the picture's largest."""
        if self.generator.get("zca_whitening"):
            return 1e-5
        samplewise = ("samplewise_center", "samplewise_std_normalization")
        return 1e-6 if any(self.generator.get(name) for name in samplewise) else 0.0

    def __str__(self) -> str:
        generator = ", ".join(f"{k}={_named(v)}" for k, v in self.generator.items())
        flow = ", ".join(f"{k}={_named(v)}" for k, v in self.flow.items())
        return (
            f"configuration {self.number}: ImageDataGenerator({generator}"
            f"{', by place' * self.positional}; {self.order}).{self.way}({flow}) over {self.data}"
            f"{', saved' * self.saves}, fit={self.fit}, {self.image_data_format}, {self.floatx}"
        )


def _named(value: object) -> str:
    name = getattr(value, "__qualname__", None)
    module = getattr(value, "__module__", "")
    return repr(value) if name is None else f"{module}.{name}"


def configuration(seed: int, number: int) -> Configuration:
    """The configuration of that number."""
    return _Drawing(random.Random(f"{seed}:{number}")).draw(f"{number} of seed {seed}")


# -- users' functions ----------------------------------------------------------------------------


def halved(picture: Array) -> Array:
    """A function that a worker can import."""
    return picture * 0.5 + 3


def _lambda(rng: random.Random) -> Callable[[Array], Array]:
    shift = rng.choice([1.5, 7.0])
    return lambda picture: picture[::-1] + shift


def _drawing_lambda(rng: random.Random) -> Callable[[Array], Array]:
    return rng.choice(
        [
            lambda picture: picture + np.random.normal(size=picture.shape),
            lambda picture: picture * np.random.uniform(0.5, 1.5),
            lambda picture: picture if np.random.randint(2) else -picture,
        ]
    )


@dataclass
class _Drawing:
    """Draws a configuration, from the pictures outwards."""

    rng: random.Random
    channels: int = 3
    floats: bool = True  # whether the generator's dtype is a float
    generator: Options = field(default_factory=dict)

    def draw(self, number: str) -> Configuration:
        rng = self.rng
        way = rng.choices(["flow", "flow_from_directory", "flow_from_dataframe"], [60, 20, 20])[0]
        whitened = way == "flow" and rng.random() < 0.08
        self.channels = rng.choices([1, 3, 4, 2, 5], [25, 50, 15, 5, 5])[0]
        if way != "flow":
            self.channels = rng.choice([1, 3, 3, 4])
        if whitened:
            self.channels = rng.choice([1, 3])
        data_format = rng.choice(["channels_last", "channels_last", "channels_first"])
        # Keras converts by its global setting inside brightness and preprocess_input.
        odd = rng.random() < 0.1
        other = {"channels_last": "channels_first", "channels_first": "channels_last"}[data_format]
        image_data_format = other if odd else data_format
        self.floats = way != "flow" or whitened or rng.random() > 0.04
        self._geometry(odd)
        self._values(odd, whitened)
        if odd or rng.random() < 0.7:
            self.generator["data_format"] = data_format
        if not self.floats:
            self.generator["dtype"] = "uint8"
        elif rng.random() < 0.4:
            self.generator["dtype"] = rng.choice(["float32", "float32", "float64"])
        if rng.random() < 0.3:
            self.generator["validation_split"] = rng.choice([0.2, 0.3, 0.5])
        size = rng.randint(5, 12), rng.randint(5, 12)
        if rng.random() < 0.4:
            size = (size[0], size[0])
        if whitened:
            size = rng.choice([(3, 4), (3, 3), (4, 3)])
        common = self._common()
        order = "keras" if rng.random() < 0.2 else "stream"
        if order == "keras" and rng.random() < 0.6:
            common.pop("seed")
        flow, data = getattr(self, f"_{way}")(size, whitened)
        data |= {"channels": self.channels, "data_format": data_format}
        n = data["n"]
        if way == "flow" and n * size[0] > 400:  # whitening needs many; their batches are large
            common["batch_size"] = rng.choice([24, 32, 64])
        per_epoch = -(-n // common.get("batch_size", 32))
        saves = self.channels in (1, 3, 4) and rng.random() < 0.12
        if saves:
            formats = ["png", "png", "bmp"] if self.channels == 4 else ["png", "jpeg"]
            common |= {"save_prefix": rng.choice(["", "aug"]), "save_format": rng.choice(formats)}
        fit, batches = self._fit(whitened), 2 * per_epoch + max(1, min(per_epoch // 2, 3))
        return Configuration(
            number=number,
            image_data_format=image_data_format,
            floatx="float64" if rng.random() < 0.06 else "float32",
            generator=self.generator,
            positional=rng.random() < 0.1,
            way=way,
            flow=common | flow,
            data=data,
            saves=saves,
            fit=fit,
            order=order,
            batches=batches + rng.randint(0, 1),
        )

    def _geometry(self, odd: bool) -> None:
        rng = self.rng
        shifts: list[Any] = [
            0.2, 0.4, 1.0, 2.5, 2, 4, [0.1, 0.3], (1.0, 2.0, 3.0), [-2, 0, 1], [0.2, 2.0],
        ]  # fmt: skip
        every: Options = {
            "rotation_range": rng.choice([30, 7.5, 180]),
            "width_shift_range": rng.choice(shifts),
            "height_shift_range": rng.choice(shifts),
            "shear_range": rng.choice([15.0, 40]),
            "zoom_range": rng.choice([0.3, [0.7, 1.2], (1.5, 1.5), (0.5, 2.0), 0]),
            "channel_shift_range": rng.choice([20.0, 0.3, 150]),
            "horizontal_flip": True,
            "vertical_flip": True,
            "brightness_range": rng.choice([(0.5, 1.5), [0.2, 0.9], (1.0, 1.0)]),
        }
        for name, value in every.items():
            if rng.random() < 0.42:
                self.generator[name] = value
        if odd or self.channels not in (1, 3, 4) or rng.random() < 0.3:
            self.generator.pop("brightness_range", None)
        self.generator["fill_mode"] = rng.choices(
            ["nearest", "constant", "reflect", "wrap", "mirror"], [24, 24, 24, 24, 4]
        )[0]
        self.generator["cval"] = rng.choice([0.0, 3.0, -7.5, 255])
        self.generator["interpolation_order"] = rng.choices(range(6), [20, 48, 10, 16, 3, 3])[0]
        if not self.floats:
            self.generator["cval"] = abs(int(self.generator["cval"]))
        for name in ("fill_mode", "cval", "interpolation_order"):
            if rng.random() < 0.2:
                del self.generator[name]

    def _values(self, odd: bool, whitened: bool) -> None:
        """What `standardize` does."""
        rng = self.rng
        if not self.floats:
            return
        function = rng.choices(["", "named", "importable", "lambda", "draws"], [64, 14, 7, 7, 8])[0]
        if function == "named" and not odd and self.channels == 3:
            application = keras_module(f"keras.src.applications.{rng.choice(APPLICATIONS)}")
            self.generator["preprocessing_function"] = application.preprocess_input
        elif function == "importable":
            self.generator["preprocessing_function"] = halved
        elif function == "lambda":
            self.generator["preprocessing_function"] = _lambda(rng)
        elif function == "draws":
            self.generator["preprocessing_function"] = _drawing_lambda(rng)
        chances = {
            "rescale": 0.4,
            "samplewise_center": 0.15,
            "samplewise_std_normalization": 0.12,
            "featurewise_center": 0.2,
            "featurewise_std_normalization": 0.15,
        }
        for name, chance in chances.items():
            if rng.random() < chance:
                self.generator[name] = True
        if "rescale" in self.generator:
            self.generator["rescale"] = rng.choice([1 / 255, 1.0 / 127.5, 2, 0.5, 0])
        if whitened:
            self.generator["zca_whitening"] = True
            self.generator["zca_epsilon"] = rng.choice([1e-6, 1e-4, 0.1])

    def _common(self) -> Options:
        """What all three flows are given."""
        rng = self.rng
        seed = rng.choice([0, 1, 12345, 2**31, 4_000_000_000, rng.randrange(10**6)])
        common: Options = {"batch_size": rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 32]), "seed": seed}
        if rng.random() < 0.6:
            common["shuffle"] = rng.random() < 0.5
        if rng.random() < 0.05:
            del common["batch_size"]
        if "validation_split" in self.generator and rng.random() < 0.8:
            common["subset"] = rng.choice(["training", "validation"])
        return common

    def _fit(self, whitened: bool) -> Options | None:
        rng = self.rng
        wanted = any(name.startswith(("featurewise", "zca")) for name in self.generator)
        if not wanted or rng.random() < 0.12:
            return None
        fit: Options = {"seed": rng.choice([None, 3])}
        if not whitened and rng.random() < 0.35:
            fit |= {"augment": True, "rounds": rng.choice([1, 2])}
        return fit

    # -- the three flows -------------------------------------------------------------------------

    def _flow(self, size: tuple[int, int], whitened: bool) -> tuple[Options, Options]:
        rng = self.rng
        n = rng.choice([1, 2, 4, 6, 8, 9, 12, 13])
        if whitened:
            n = 3 * size[0] * size[1] * self.channels
        data: Options = {
            "n": n,
            "size": size,
            "dtype": rng.choices(["uint8", "float32", "float64", "int32"], [45, 35, 15, 5])[0],
            "values": rng.choice(["bytes", "unit", "wide"]),
            "y": rng.choice([None, "numbers", "one-hot", "list", "strings", "two columns"]),
            "sample_weight": rng.random() < 0.2,
            "more": rng.choice([0] * 8 + [1, 2]),  # further inputs
            "contents": rng.randrange(10**6),
        }
        if data["dtype"] == "uint8" or not self.floats:
            data["values"] = "bytes"
        flow: Options = {}
        if rng.random() < 0.5:
            flow["ignore_class_split"] = True
        return flow, data

    def _files(self, size: tuple[int, int]) -> Options:
        rng = self.rng
        flow: Options = {
            "target_size": size,
            "color_mode": {1: "grayscale", 3: "rgb", 4: "rgba"}[self.channels],
            "interpolation": rng.choice(
                ["nearest", "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
            ),
        }
        if flow["color_mode"] == "rgb" and rng.random() < 0.5:
            del flow["color_mode"]
        if rng.random() < 0.3:
            del flow["interpolation"]
        return flow

    def _flow_from_directory(
        self, size: tuple[int, int], whitened: bool
    ) -> tuple[Options, Options]:
        rng = self.rng
        flow = self._files(size)
        folder = rng.choice(["three", "three", "two"])
        mode = rng.choice(["categorical", "sparse", "input", None, "default", "binary"])
        if mode == "binary":
            folder = "two"
        if mode != "default":
            flow["class_mode"] = mode
        if folder == "three" and rng.random() < 0.3:
            flow["classes"] = rng.choice([["dog", "cat"], ["cat", "dog", "bird"], ["dog"]])
        if rng.random() < 0.3:
            flow["keep_aspect_ratio"] = True
        if rng.random() < 0.3:
            flow["follow_links"] = True
        return flow, {"folder": folder, "n": 14}

    def _flow_from_dataframe(
        self, size: tuple[int, int], whitened: bool
    ) -> tuple[Options, Options]:
        rng = self.rng
        flow = self._files(size)
        mode = rng.choice(
            ["categorical", "sparse", "binary", "input", None, "raw", "multi_output", "default",
             "other"]
        )  # fmt: skip
        if mode != "default":
            flow["class_mode"] = mode
        flow["y_col"] = {
            "binary": "two",
            "raw": rng.choice(["a", ["a", "b"], "three"]),
            "other": "a",
            "multi_output": ["a", "three", "both"],
        }.get(str(mode), rng.choice(["three", "three", "two"]))
        if mode in ("categorical", "default") and rng.random() < 0.4:
            flow["y_col"] = "lists"
        if flow["y_col"] in ("three", "lists") and rng.random() < 0.3:
            flow["classes"] = rng.choice([["dog", "cat"], ["cat", "dog", "bird"]])
        flow["x_col"] = rng.choice(["name", "path"])
        if rng.random() < 0.3:
            flow["weight_col"] = "weight"
        if rng.random() < 0.1:
            flow[rng.choice(["drop_duplicates", "has_ext", "sort"])] = True
        invalid = rng.random() < 0.3
        if not invalid and rng.random() < 0.3:
            flow["validate_filenames"] = False
        rows = rng.choice([6, 9, 13])
        return flow, {"frame": rng.randrange(10**6), "rows": rows, "invalid": invalid, "n": rows}
