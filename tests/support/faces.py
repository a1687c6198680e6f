"""The two modules that must give the same: Keras's own, and ours behind the same names.

With AUGSERVER_FACE=keras Keras's own module stands in ours' place, which shows that a test agrees
with itself; what a test would notice is shown by mutants: Keras's module with one thing wrong.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from keras_own import keras_module

KERAS = "keras.src.legacy.preprocessing.image"
#: Whether Keras's own module stands in ours' place.
THEIRS_TWICE = os.environ.get("AUGSERVER_FACE") == "keras"


def theirs() -> ModuleType:
    """Keras's own module."""
    return keras_module(KERAS)


def ours() -> ModuleType:
    """The module that stands in for it."""
    return theirs() if THEIRS_TWICE else importlib.import_module("augclient.image")


def own(**options: Any) -> dict[str, Any]:
    """Arguments that only our `ImageDataGenerator` has."""
    return {} if THEIRS_TWICE else options


def shut_down() -> None:
    """End this program's private server, so that the next one has the workers it is asked for."""
    local = sys.modules.get("augclient.local")
    if local is not None:
        local.shut_down()


def restarts() -> int:
    """How many workers of this program's private server have died; 0 where there is none."""
    local = sys.modules.get("augclient.local")
    if local is None or local._server is None:
        return 0
    from augserver import health

    _, status = health.ask(local._server.address, 10)
    return int(status.restarts)


def pandas() -> Any:
    """pandas, which `flow_from_dataframe` is given frames of; a test skips where it is missing."""
    return pytest.importorskip("pandas", reason="pandas is not installed: no data frames to flow")


# -- mutants -------------------------------------------------------------------------------------

Patch = Callable[[ModuleType], None]
MUTANTS: dict[str, Patch] = {}


def mutant(name: str) -> ModuleType:
    """A copy of Keras's module with one thing wrong."""
    path = theirs().__file__
    assert path is not None
    spec = importlib.util.spec_from_file_location("keras_with_one_thing_wrong", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    MUTANTS[name](module)
    return module


def _wrong(name: str) -> Callable[[Patch], Patch]:
    def note(patch: Patch) -> Patch:
        MUTANTS[name] = patch
        return patch

    return note


def _wrap(owner: Any, name: str, change: Callable[..., Any]) -> None:
    """`change(original, *arguments)` in a function's place."""
    original = getattr(owner, name)

    def changed(*arguments: Any, **options: Any) -> Any:
        return change(original, *arguments, **options)

    setattr(owner, name, changed)


def _parameters(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A mutant whose drawn parameters are changed."""

    def changed(original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        drawn = original(*arguments, **options)
        return drawn | change(drawn)

    MUTANTS[name] = lambda m: _wrap(m.ImageDataGenerator, "get_random_transform", changed)


_parameters("theta is off by a millionth", lambda d: {"theta": d["theta"] * (1 + 1e-6)})
_parameters("tx and ty are swapped", lambda d: {"tx": d["ty"], "ty": d["tx"]})
_parameters("zx and zy are swapped", lambda d: {"zx": d["zy"], "zy": d["zx"]})
_parameters("shear is off by a millionth", lambda d: {"shear": d["shear"] * (1 + 1e-6)})
_parameters(
    "the flips are swapped",
    lambda d: {"flip_horizontal": d["flip_vertical"], "flip_vertical": d["flip_horizontal"]},
)
_parameters(
    "the channel shift has the other sign",
    lambda d: {"channel_shift_intensity": d["channel_shift_intensity"] and
               -d["channel_shift_intensity"]},
)  # fmt: skip
_parameters(
    "brightness is off by a hundredth",
    lambda d: {"brightness": d["brightness"] and d["brightness"] + 0.01},
)


def _warp(name: str, **fixed: Any) -> None:
    """A mutant that warps with something fixed."""

    def changed(original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return original(*arguments, **options | fixed)

    MUTANTS[name] = lambda m: _wrap(m, "apply_affine_transform", changed)


_warp("cval is ignored", cval=0.0)
_warp("the order is always 1", order=1)
_warp("the fill mode is always nearest", fill_mode="nearest")


class _Numpy:
    """numpy, but for one function of numpy.random."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.random = _Except(np.random, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class _Except:
    def __init__(self, module: Any, name: str, function: Callable[..., Any]) -> None:
        self._module = module
        setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _random(name: str, function: str, change: Callable[..., Any]) -> None:
    """A mutant that sees another np.random."""
    MUTANTS[name] = lambda m: setattr(m, "np", _Numpy(function, change))


_random("every batch has the next one's seed", "seed", lambda s: np.random.seed(s + 1))
_random("the order is the permutation backwards", "permutation",
        lambda n: np.random.permutation(n)[::-1])  # fmt: skip
_random("saved names have another number", "randint", lambda n: np.random.randint(n) + 1)


def _batches(name: str, kind: str, change: Callable[[Any, Any], Any]) -> None:
    """A mutant whose batches are changed."""

    def changed(original: Callable[..., Any], self: Any, indexes: Any) -> Any:
        return change(self, original(self, indexes))

    MUTANTS[name] = lambda m: _wrap(
        getattr(m, kind), "_get_batches_of_transformed_samples", changed
    )


def _with_y(change: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def changed(_: Any, batch: Any) -> Any:
        return (batch[0], change(batch[1]), *batch[2:]) if isinstance(batch, tuple) else batch

    return changed


_batches("labels of arrays are of the next sample", "NumpyArrayIterator",
         _with_y(lambda y: np.roll(y, 1, axis=0)))  # fmt: skip
_batches("labels of files are of another dtype", "BatchFromFilesMixin",
         _with_y(lambda y: y if isinstance(y, list) or y.dtype.kind != "f"
                 else y.astype("float16")))  # fmt: skip
_batches("pictures are float64", "NumpyArrayIterator",
         lambda _, b: b.astype("float64") if isinstance(b, np.ndarray) else b)  # fmt: skip
_batches("sample weights are forgotten", "NumpyArrayIterator",
         lambda _, b: b[:2] if isinstance(b, tuple) else b)  # fmt: skip
_batches("a frame's weights are forgotten", "BatchFromFilesMixin",
         lambda _, b: b[:2] if isinstance(b, tuple) else b)  # fmt: skip
_batches("further inputs are forgotten", "NumpyArrayIterator",
         lambda _, b: (b[0][:1], *b[1:]) if isinstance(b, tuple) and isinstance(b[0], list)
         else b)  # fmt: skip


def _shortened(self: Any, batch: Any) -> Any:
    short = isinstance(batch, np.ndarray) and 1 < len(batch) < self.batch_size
    return batch[:-1] if short else batch


_batches("an incomplete batch lacks its last sample", "BatchFromFilesMixin", _shortened)
_batches("an array's incomplete batch lacks its last sample", "NumpyArrayIterator", _shortened)


@_wrong("the third epoch repeats the first")
def _(module: ModuleType) -> None:
    def changed(original: Callable[..., Any], self: Any) -> Any:
        seen = self.total_batches_seen
        if seen >= 2 * len(self) > 0:
            self.total_batches_seen = seen % len(self)
        batch = original(self)
        self.total_batches_seen = seen + 1
        return batch

    _wrap(module.Iterator, "__next__", changed)


def _scaled(name: str, when: str, factor: float) -> None:
    """A mutant whose standardized pictures are off by a factor."""

    def changed(original: Callable[..., Any], self: Any, x: Any) -> Any:
        x = original(self, x)
        return x * np.asarray(factor, x.dtype) if getattr(self, when) else x

    MUTANTS[name] = lambda m: _wrap(m.ImageDataGenerator, "standardize", changed)


_scaled("rescaled pictures are off by an ulp", "rescale", 1 + 2e-7)
_scaled("samplewise pictures are off by three millionths", "samplewise_center", 1 + 3e-6)


def _fitted(name: str, what: str, factor: float) -> None:
    """A mutant whose statistics are off by a factor."""

    def changed(original: Callable[..., Any], self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        value = getattr(self, what)
        if value is not None:
            setattr(self, what, (value * factor).astype(value.dtype))

    MUTANTS[name] = lambda m: _wrap(m.ImageDataGenerator, "fit", changed)


_fitted("the fitted mean is off by an ulp or two", "mean", 1 + 2e-7)
_fitted("the fitted deviation is off by an ulp or two", "std", 1 + 2e-7)
_fitted("the whitening is off by three hundred-thousandths", "zca_whitening_matrix", 1 + 3e-5)


@_wrong("a function's result is thrown away")
def _(module: ModuleType) -> None:
    def changed(original: Callable[..., Any], self: Any, x: Any) -> Any:
        function, self.preprocessing_function = self.preprocessing_function, None
        try:
            return original(self, x)
        finally:
            self.preprocessing_function = function

    _wrap(module.ImageDataGenerator, "standardize", changed)


@_wrong("classes are numbered backwards")
def _(module: ModuleType) -> None:
    def changed(original: Callable[..., Any], self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.class_indices = {
            name: len(self.class_indices) - 1 - i for name, i in self.class_indices.items()
        }

    _wrap(module.DirectoryIterator, "__init__", changed)


@_wrong("files are not sorted")
def _(module: ModuleType) -> None:
    def changed(original: Callable[..., Any], *arguments: Any) -> Any:
        return reversed(list(original(*arguments)))

    _wrap(module, "_iter_valid_files", changed)


@_wrong("no file is ever invalid")
def _(module: ModuleType) -> None:
    module.DataFrameIterator._filter_valid_filepaths = lambda _, frame, __: frame


@_wrong("nothing is warned of")
def _(module: ModuleType) -> None:
    silent: Any = ModuleType("warnings")
    silent.warn = lambda *_, **__: None
    vars(module)["warnings"] = silent


@_wrong("nothing is printed")
def _(module: ModuleType) -> None:
    silent: Any = ModuleType("io_utils")
    silent.print_msg = lambda *_, **__: None
    vars(module)["io_utils"] = silent


@_wrong("standardize works on a copy")
def _(module: ModuleType) -> None:
    def changed(original: Callable[..., Any], self: Any, x: Any) -> Any:
        return original(self, x.copy())

    _wrap(module.ImageDataGenerator, "standardize", changed)
