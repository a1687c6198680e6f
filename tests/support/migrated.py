"""Programs of examples/migration beside their originals: `migrated.py FOLDER [NAME DATA]...`.

Each program holds the import that it once began with as a comment above the one that stands in its
place, so its original can be had back. Both are run up to their training, the original with Keras's
own class where programs once found it, and the first batches of every flow are compared. As a
program, this runs each of them to its end afterwards, on the backend that is named.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import image_data_generators, keras_module

FOLDER = Path(__file__).parents[2] / "examples" / "migration"
PROGRAMS = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem != "sample_data"}

#: So many batches of each flow are compared; more than an epoch of the photographs.
BATCHES = 20

#: The import that is now a comment, and the one that stands in its place.
TWO_LINES = re.compile(
    r"^# from (?P<package>[\w.]+) import (?P<names>.+)\n"
    r"from augclient(?:\.image)? import (?P=names)$",
    re.MULTILINE,
)
#: Where programs found Keras's class at one time or another.
ONCE = ("keras.preprocessing", "tensorflow.keras.preprocessing", "keras_preprocessing")


def source(name: str) -> str:
    """The program."""
    return PROGRAMS[name].read_text()


def original(name: str) -> str:
    """The program as it was before it was changed."""
    return TWO_LINES.sub(r"from \g<package> import \g<names>", source(name))


def is_of_arrays(name: str) -> bool:
    """Whether the program takes an .npz; the others take a folder of pictures."""
    return "sample_data.ARRAYS" in source(name)


class Trains(Exception):
    """A program has come to its training; what is before that is its data."""


@dataclass
class Data:
    """What a program has made up to its training.

    Attributes:
        flows: Each makes an iterator of the program's anew.
        fitted: What was given to `fit`; None if nothing was.
    """

    flows: list[Callable[[], Any]] = field(default_factory=list)
    fitted: Any = None


def data_part(text: str, image: ModuleType, *arguments: str) -> Data:
    """Run a program up to its training, in this process, and note the flows that it makes.

    Args:
        image: The module whose `ImageDataGenerator` it uses. It is found where programs once
            found Keras's; `augclient.image` is found where it is.
        arguments: Of the command line.
    """
    data = Data()
    keras = keras_module("keras")
    generator = image.ImageDataGenerator

    def trains(model: object, x: object = None, *_: object, **__: object) -> None:
        data.fitted = x
        raise Trains

    def noting(flow: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **options: Any) -> Any:
            data.flows.append(lambda: flow(*given, **options))
            return flow(*given, **options)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        patch.setattr(sys, "argv", ["program.py", *arguments])
        patch.setattr(keras.Model, "fit", trains)
        patch.setattr(keras.preprocessing, "image", image)
        for package in ONCE:
            patch.setitem(sys.modules, f"{package}.image", image)
        for name in ("flow", "flow_from_directory", "flow_from_dataframe"):
            patch.setattr(generator, name, noting(getattr(generator, name)))
        np.random.seed(0)
        with contextlib.suppress(Trains):
            exec(compile(text, "program.py", "exec"), {"__name__": "__main__"})
    return data


def ours() -> ModuleType:
    """The module that programs find now."""
    keras_module("keras")
    return importlib.import_module("augclient.image")


def theirs(legacy: ModuleType) -> ModuleType:
    """A module with what programs once found in keras.preprocessing.image.

    Args:
        legacy: The module in which Keras still has its class.
    """
    image = ModuleType("image")
    vars(image).update(vars(legacy))
    for name in ("load_img", "img_to_array", "array_to_img", "save_img"):
        setattr(image, name, getattr(keras_module("keras.utils"), name))
    return image


def compare(name: str, data: str, folder: Path) -> None:
    """Check that a program has the batches of its original, and writes the same files.

    Args:
        data: What the program works on: its first argument.
        folder: For what the two write; it is empty.
    """
    our_image = ours()
    for legacy in image_data_generators():
        keras_image = theirs(legacy)
        _compare(name, data, folder, our_image, keras_image)


def _compare(
    name: str, data: str, folder: Path, our_image: ModuleType, keras_image: ModuleType
) -> None:
    places = [folder / "original", folder / "changed"]
    for place in places:
        place.mkdir()
    was = data_part(original(name), keras_image, data, str(places[0]))
    now = data_part(source(name), our_image, data, str(places[1]))

    wrote = [{path.name: path.read_bytes() for path in place.iterdir()} for place in places]
    assert wrote[0] == wrote[1]
    assert len(was.flows) == len(now.flows) > 0
    for make_original, make in zip(was.flows, now.flows, strict=True):
        wanted, flow = make_original(), make()
        assert isinstance(wanted, keras_image.Iterator)
        assert isinstance(flow, our_image.Iterator)
        assert len(flow) == len(wanted)
        for known in ("n", "samples", "class_indices", "num_classes", "filenames", "image_shape"):
            assert getattr(flow, known, None) == getattr(wanted, known, None), known
        allowed = _tolerance(wanted.image_data_generator)
        for got, batch in itertools.islice(zip(flow, wanted, strict=True), BATCHES):
            _assert_equal(got, batch, allowed)
    if isinstance(was.fitted, Iterator) and not isinstance(was.fitted, keras_image.Iterator):
        # A generator of the program's own, over its flows.
        for got, batch in itertools.islice(zip(now.fitted, was.fitted, strict=True), BATCHES):
            _assert_equal(got, batch, 0.0)


def _tolerance(generator: Any) -> float:
    """How much of the largest value pictures may differ by; 0 for bit for bit."""
    if generator.zca_whitening:
        return 1e-5  # one matrix product for a batch adds up in another order
    if generator.samplewise_center or generator.samplewise_std_normalization:
        return 1e-6  # means are summed in another order
    return 0.0


def _assert_equal(got: Any, wanted: Any, allowed: float) -> None:
    """The same tuples and lists of the same arrays; the first, the pictures, nearly the same."""
    if isinstance(wanted, np.ndarray):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        if allowed:
            limit = allowed * float(np.abs(wanted).max())
            np.testing.assert_allclose(got, wanted, rtol=0, atol=limit)
        else:
            np.testing.assert_array_equal(got, wanted)
        return
    assert type(got) is type(wanted)
    assert len(got) == len(wanted)
    for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
        _assert_equal(one, other, 0.0 if number else allowed)


def main(folder: Path, pairs: list[str]) -> None:
    """Compare programs with their originals, and run them; a failure of one is told and passed."""
    for name, data in zip(pairs[::2], pairs[1::2], strict=True):
        place = folder / name
        place.mkdir()
        try:
            compare(name, data, place)
            print("same:", name, flush=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [str(PROGRAMS[name]), data, str(place)])
                patch.syspath_prepend(FOLDER)
                runpy.run_path(sys.argv[0], run_name="__main__")
            print("ran:", name, flush=True)
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Keras's own, one for each channel of each picture
    main(Path(sys.argv[1]), sys.argv[2:])
