"""What a configuration gives through one of the two modules."""

from __future__ import annotations

import contextlib
import inspect
import io
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import faces
import numpy as np
from configurations import CLASSES, Configuration, Options
from keras_own import keras_module
from PIL import Image

Array = np.ndarray[Any, Any]

#: Of an iterator; where Keras's has one, ours must have the same.
ATTRIBUTES = (
    "n", "batch_size", "seed", "shuffle", "batch_index", "total_batches_seen", "index_array",
    "data_format", "dtype", "save_prefix", "save_format", "white_list_formats", "x", "y", "x_misc",
    "sample_weight", "filenames", "filepaths", "classes", "labels", "class_indices", "num_classes",
    "samples", "target_size", "image_shape", "color_mode", "interpolation", "subset", "split",
    "class_mode", "directory", "keep_aspect_ratio", "allowed_class_modes",
)  # fmt: skip
#: What the world of Keras warns of without meaning the user.
_NOISE = ("scipy.ndimage", "affine_transform")


class Different(AssertionError):
    """Two streams are not the same; says where."""


@dataclass
class Stream:
    """What one module has given."""

    raised: BaseException | None = None
    warnings: set[tuple[str, str]] = field(default_factory=set)
    printed: str = ""
    generator: Options = field(default_factory=dict)
    singles: dict[str, Any] = field(default_factory=dict)
    before: Options = field(default_factory=dict)
    batches: list[Any] = field(default_factory=list)
    after: Options = field(default_factory=dict)
    saved: dict[str, bytes] = field(default_factory=dict)


# -- data ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def folders() -> Iterator[Path]:
    """The folders "two" and "three" of small pictures of every kind that both read alike."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve()
        rng = np.random.default_rng(7)
        modes = ("RGB", "RGB", "L", "RGBA", "P", "1", "LA", "CMYK")
        ends = ("png", "jpg", "JPG", "bmp", "tif", "jpeg", "ppm", "png")
        for name, classes in (("two", CLASSES[:2]), ("three", CLASSES)):
            for i in range(17):
                below = ("", "a", "a/x", "a-b")[i % 4]  # "a-b" is between "a" and "a/x"
                path = root / name / classes[i % 5 % len(classes)] / below / f"{i:02}.{ends[i % 8]}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (6 + i, 20 - i // 2, 3), np.uint8)
                mode = modes[(i * 5) % 8]
                image = Image.fromarray(pixels)
                with contextlib.suppress(OSError):  # some formats have not this mode
                    image.convert(mode).save(path)
                    continue
                image.save(path)
            (root / name / "cat" / "notes.txt").write_text("no picture")
            beside = root / f"beside-{name}"
            beside.mkdir()
            image.save(beside / "linked.png")
            (root / name / "bird" / "link").symlink_to(beside)
        yield root


def pictures(data: Options) -> Array:
    """The array x of a configuration."""
    rng = np.random.default_rng(data["contents"])
    h, w = data["size"]
    shape = (data["n"], h, w, data["channels"])
    if data["data_format"] == "channels_first":
        shape = (data["n"], data["channels"], h, w)
    if data["values"] == "unit":
        return rng.random(shape).astype(data["dtype"])
    if data["values"] == "wide":
        return rng.uniform(-100, 400, shape).astype(data["dtype"])
    return rng.integers(0, 256, shape).astype(data["dtype"])


def labels(data: Options) -> Any:
    """The y of a configuration."""
    n = data["n"]
    numbers = np.arange(n) % 3
    return {
        None: None,
        "numbers": numbers,
        "one-hot": np.eye(3, dtype=np.float32)[numbers],
        "list": [int(v) for v in numbers],
        "strings": np.array(["a", "b", "c"])[numbers],
        "two columns": np.arange(2.0 * n).reshape(n, 2),
    }[data["y"]]


def frame(data: Options, root: Path) -> Any:
    """The data frame of a configuration."""
    rng = np.random.default_rng(data["frame"])
    files = sorted(
        str(path.relative_to(root / "three"))
        for path in (root / "three").glob("*/**/*.*")
        if path.suffix != ".txt"
    )
    names = rng.choice(files, (data["rows"],)).tolist()  # some of them twice
    if data["invalid"]:
        names[1], names[-1] = "cat/gone.png", "cat/notes.txt"
    rows = range(data["rows"])
    return faces.pandas().DataFrame(
        {
            "name": names,
            "path": [str(root / "three" / name) for name in names],
            "three": [CLASSES[i * i % 5 % 3] for i in rows],
            "two": [("yes", "no")[i % 2] for i in rows],
            "lists": [[("dog",), ("cat", "bird"), ["dog", "cat", "bird"]][i % 3] for i in rows],
            "a": rng.random(len(rows)),
            "b": rng.integers(0, 9, len(rows)),
            "both": [(i, i / 2) for i in rows],
            "weight": rng.random(len(rows)),
        },
        index=[3 * i + 5 for i in rows],  # places and labels of rows are not the same
    )


# -- a run ---------------------------------------------------------------------------------------


def run(face: ModuleType, configuration: Configuration, root: Path, **own: Any) -> Stream:
    """All that a configuration gives through one module; np.random is as before afterwards.

    Args:
        own: Arguments that only this module's generator has.
    """
    c, stream = configuration, Stream()
    config = keras_module("keras").config
    state = np.random.get_state()
    before = config.image_data_format(), config.floatx()
    config.set_image_data_format(c.image_data_format)
    config.set_floatx(c.floatx)
    np.random.seed(len(c.number))
    printed = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as saved,
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(printed),
    ):
        warnings.simplefilter("always")
        try:
            _run(face, c, root, saved, stream, own)
        except Exception as error:
            stream.raised = error
        finally:
            np.random.set_state(state)
            config.set_image_data_format(before[0])
            config.set_floatx(before[1])
        stream.saved = {path.name: path.read_bytes() for path in sorted(Path(saved).iterdir())}
        # A bar that shows how far a long fit is redraws its line, and depends on time.
        lines = printed.getvalue().split("\n")
        stream.printed = "\n".join(line for line in lines if "\r" not in line)
        stream.warnings = {
            (warning.category.__name__, str(warning.message))
            for warning in warned
            if not any(noise in str(warning.message) for noise in _NOISE)
        }
    return stream


def _run(
    face: ModuleType, c: Configuration, root: Path, saved: str, stream: Stream, own: Options
) -> None:
    generator = _generator(face, c, own)
    stream.generator = {
        name: value for name, value in vars(generator).items() if not name.startswith("_")
    }
    if c.way == "flow":
        x = pictures(c.data)
    else:
        like = {"size": c.flow["target_size"], "dtype": "uint8", "values": "bytes", "contents": 1}
        x = pictures(c.data | like | {"n": 9})
    if c.fit is not None:
        generator.fit(x, **c.fit)
        stream.generator |= {
            name: getattr(generator, name) for name in ("mean", "std", "zca_whitening_matrix")
        }
    _singles(generator, c, x[0], stream)
    flow = _flow(generator, c, root, saved if c.saves else None)
    stream.before = _attributes(flow)
    for _ in range(c.batches):
        batch = next(flow)
        for array in _arrays(batch):
            if isinstance(array, np.ndarray) and not array.flags.writeable:
                raise Different("a batch of next() cannot be written to")
        stream.batches.append(_copied(batch))
        _spoil(batch)  # it is the user's own: what is done to it must not be seen again
    stream.after = _attributes(flow)


def _generator(face: ModuleType, c: Configuration, own: Options) -> Any:
    if not c.positional:
        return face.ImageDataGenerator(**c.generator, **own)
    names = inspect.signature(faces.theirs().ImageDataGenerator.__init__).parameters
    arguments = [
        c.generator.get(name, parameter.default)
        for name, parameter in names.items()
        if name != "self"
    ]
    return face.ImageDataGenerator(*arguments, **own)


def _flow(generator: Any, c: Configuration, root: Path, saved: str | None) -> Any:
    options = c.flow | ({"save_to_dir": saved} if saved else {})
    if c.way == "flow_from_directory":
        return generator.flow_from_directory(str(root / c.data["folder"]), **options)
    if c.way == "flow_from_dataframe":
        if c.flow["x_col"] == "name":
            options["directory"] = str(root / "three")
        return generator.flow_from_dataframe(frame(c.data, root), **options)
    x: Any = pictures(c.data)
    n = c.data["n"]
    if c.data["more"] == 1:
        x = (x, np.arange(n))
    elif c.data["more"] == 2:
        x = [x, [np.arange(3.0 * n).reshape(n, 3), np.array([f"s{i}" for i in range(n)])]]
    if c.data["sample_weight"]:
        options["sample_weight"] = np.linspace(0, 1, n)
    return generator.flow(x, labels(c.data), **options)


def _singles(generator: Any, c: Configuration, picture: Array, stream: Stream) -> None:
    """What can be done to one picture."""
    picture = picture.astype(generator.dtype)
    stream.singles["parameters"] = generator.get_random_transform(picture.shape, seed=5)
    stream.singles["transformed"] = generator.random_transform(picture.copy(), seed=6)
    some = {"theta": 20, "zx": 0.9, "flip_vertical": True}
    stream.singles["applied"] = generator.apply_transform(picture.copy(), some)
    given = picture.copy()
    np.random.seed(8)  # for a function that draws
    stream.singles["standardized"] = generator.standardize(given)
    stream.singles["in place"] = given


def _attributes(flow: Any) -> Options:
    found: Options = {"length": len(flow)}
    for name in ATTRIBUTES:
        with contextlib.suppress(AttributeError):
            value = getattr(flow, name)
            found[name] = value.copy() if isinstance(value, np.ndarray) else value
    return found


def _arrays(batch: Any) -> Iterator[Any]:
    if isinstance(batch, (tuple, list)):
        for part in batch:
            yield from _arrays(part)
    else:
        yield batch


def _copied(batch: Any) -> Any:
    if isinstance(batch, (tuple, list)):
        return type(batch)(_copied(part) for part in batch)
    return batch.copy()


def _spoil(batch: Any) -> None:
    for array in _arrays(batch):
        if isinstance(array, np.ndarray) and array.dtype.kind in "uif":
            array[...] = 77
