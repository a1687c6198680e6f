"""What a consumer asks for, in the user's terms, becomes a spec and what must be handed over.

Arrays of the program itself go to a private server once, in their own dtype, and are known there
by their fingerprint. Functions of the program go as bytes; both never travel on a socket.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt

from augproto.errors import ConfigError
from augproto.files import File, pack, pack_paths
from augproto.fingerprint import fingerprint
from augproto.messages import MAX_FUNCTION_BYTES, Function
from augproto.pictures import Pictures
from augproto.spec import DATASET, HANDED, Spec
from augproto.structure import Structure, leaves, places, rebuild
from augproto.transforms import Transforms

Array = npt.NDArray[Any]
#: One path on the server's side, or several.
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
PictureFunction = Callable[[Any], Any]

ROLES = ("x", "y", "sample_weight")
#: Inputs, outputs or weights of one batch.
MAX_ARRAYS = 64


class SpecOptions(TypedDict, total=False):
    """Fields of `augproto.spec.Spec`, which documents them; what is left out has its default.

    `whitening` may be the matrix itself, which is then handed over with the other arrays.
    `function` is the user's own function of one picture, or the import path of one; it stands at
    the place of Keras's preprocessing_function.
    """

    images: Sequence[str] | str | None
    batch_size: int
    shuffle: bool
    seed: int | None
    shard: tuple[int, int]
    drop_remainder: bool
    validation_split: float
    subset: str | None
    target_size: tuple[int, int] | None
    interpolation: str
    data_format: str
    dtype: str
    pictures: Pictures | Mapping[str, object]
    scheme: str
    whitening: str | npt.ArrayLike | None
    hashes: int | None
    cache: str | None
    bad_samples: str
    transforms: Transforms | Mapping[str, object]
    function: PictureFunction | str | None


@dataclass(frozen=True, slots=True)
class Request:
    """A stream by name, or a spec with what it needs from this program.

    Attributes:
        changes: Fields of a named stream that this consumer sets for itself.
        arrays: To be handed over, by name; empty where the server reads files.
        function, code: The user's own function, as itself and for a private server; there is no
            code for one that others use.
    """

    stream: str | None = None
    changes: dict[str, object] = field(default_factory=dict)
    spec: Spec | None = None
    arrays: dict[str, Array] = field(default_factory=dict)
    function: PictureFunction | None = None
    code: Function | None = None


def request(
    x: object,
    y: object,
    sample_weight: object,
    *,
    data: Paths | None,
    files: Iterable[str | os.PathLike[str]] | None = None,
    stream: str | None,
    dataset: str | None = None,
    options: SpecOptions,
    shared: bool = False,
) -> Request:
    """Read what a user passed.

    Args:
        shared: The server is one that others use, so that a function goes by its import path.
        x, y, sample_weight: Arrays (or a tuple or dict of them); with `data`, their names.
        data: Files on the server that hold the arrays, or with `pictures` a folder or a .csv.
        files: Paths of picture files: of this machine, or of the server's if it is shared.
        stream: The name of a stream in the server's config, instead of all these.
        dataset: The name of a dataset in the server's config, instead of data and files.

    Raises:
        ConfigError: The arguments contradict each other or cannot be served.
    """
    fields = dict(options)
    function = fields.pop("function", None)
    if stream is not None:
        if function or any(v is not None for v in (data, files, x, y, sample_weight, dataset)):
            raise ConfigError(
                f"stream={stream!r} names a stream of the server's config, which has its own data "
                "and transforms; leave x, y, sample_weight, data, files, dataset and function out"
            )
        return Request(stream=stream, changes=_plain(fields))
    if dataset is not None:
        data = _named(dataset, data, files)
    if files is not None:
        if x is not None or data is not None:
            raise ConfigError("files: got x or data beside it; wanted the pictures once")
        given_pictures = fields.get("pictures", {})
        if isinstance(given_pictures, Mapping):  # such files have no classes of their own
            fields["pictures"] = {"label_mode": "none", **given_pictures}
    elif x is None and dataset is None and (data is None or "pictures" not in fields):
        raise ConfigError(
            "x: got None; wanted arrays, names of arrays together with data=, or pictures= "
            "together with data= (a folder or a .csv) or files="
        )
    given = {role: _tupled(v) for role, v in zip(ROLES, (x, y, sample_weight), strict=True)}
    named = {role: value for role, value in given.items() if value is not None}
    arrays: dict[str, Array] = {}
    if files is not None:
        arrays |= _on_server(files) if shared else _stat(files)
    whitening = fields.get("whitening")
    if whitening is not None and not isinstance(whitening, str):
        if data is not None:
            raise ConfigError(
                "whitening: got a matrix beside data=; wanted the name of an array in that dataset"
            )
        _take("whitening", whitening, arrays)
        fields["whitening"] = "whitening"
    if data is None:
        named = {role: _take(role, value, arrays) for role, value in named.items()}
        names: Sequence[str] | str = (f"{HANDED}{fingerprint(arrays)}",)
        if "images" in fields and fields["images"] is not None:
            fields["images"] = _image_names(fields["images"])
    else:
        names = _paths(data)
        if fields.get("pictures") is not None and len(named):
            raise ConfigError(
                f"{next(iter(named))}: got a value beside data= and pictures=, whose labels come "
                "with them (label_mode); labels of your own go with files="
            )
    code, fields["transforms"] = _with_function(
        fields.get("transforms", Transforms()), function, shared=shared
    )
    spec = Spec.from_wire(fields | named | {"data": names})
    own = function if callable(function) else None
    return Request(spec=spec, arrays=arrays, function=own, code=code)


def _named(dataset: object, data: object, files: object) -> str:
    """As data, the name of a dataset that the server's config describes."""
    if not isinstance(dataset, str) or not dataset:
        raise ConfigError(
            f"dataset: got {dataset!r:.80}; wanted the name of a dataset in the server's config"
        )
    if data is not None or files is not None:
        raise ConfigError(
            f"dataset={dataset!r} names a dataset of the server's config, whose files the server "
            "knows; leave data and files out"
        )
    return f"{DATASET}{dataset}"


def _paths(data: Paths) -> list[str]:
    several = [data] if isinstance(data, (str, os.PathLike)) else data
    if not isinstance(several, Sequence):
        raise ConfigError(f"data: got {data!r:.80}; wanted a path, or a list of paths")
    return [os.fspath(path) for path in several]


def _listed(files: Iterable[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    if isinstance(files, (str, bytes, os.PathLike)) or not isinstance(files, Iterable):
        raise ConfigError(f"files: got {files!r:.80}; wanted a list of paths")
    files = list(files)
    if not files:
        raise ConfigError(f"files: got {files!r:.80}; wanted a list of at least one path")
    return files


def _on_server(files: Iterable[str | os.PathLike[str]]) -> dict[str, Array]:
    """The paths alone: what they are, the server finds out, for they are of its machine."""
    listed = []
    for path in _listed(files):
        text = os.fspath(path)
        if not isinstance(text, str) or not os.path.isabs(text) or "\0" in text:
            raise ConfigError(
                f"files: got {path!r:.200}; wanted paths from the root (/) on, as the server has "
                "them at whose address this is"
            )
        listed.append(text)
    return pack_paths(listed)


def _stat(files: Iterable[str | os.PathLike[str]]) -> dict[str, Array]:
    """The files as the arrays that are handed over, with their sizes and times as they are now."""
    listed = []
    for path in _listed(files):
        try:
            absolute = os.path.abspath(os.fspath(path))
            status = os.stat(absolute)
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(f"files: {path!r:.200}: {error}; wanted paths of files") from error
        listed.append(File.of(absolute, status))
    return pack(listed)


def _tupled(value: object) -> object:
    return tuple(value) if isinstance(value, list) and _holds_arrays(value) else value


def _holds_arrays(value: list[object]) -> bool:
    """Whether a list is Keras's list of inputs rather than numbers in need of np.asarray."""
    return bool(value) and all(isinstance(v, (np.ndarray, str)) for v in value)


def _take(role: str, value: object, arrays: dict[str, Array]) -> Structure[str]:
    """Put the arrays into `arrays` under names made of their place; returns the names."""
    structure: Structure[object] = value
    count = sum(1 for _ in leaves(structure))
    if count > MAX_ARRAYS:
        raise ConfigError(
            f"{role}: got {count} arrays, which Keras takes for as many inputs; wanted at most "
            f"{MAX_ARRAYS}. For one input of many samples, np.stack them"
        )
    names = places(role, structure)
    for name, leaf in zip(leaves(names), leaves(structure), strict=True):
        try:
            array = np.asarray(leaf)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}: got no array ({error}); wanted one of numbers") from error
        if array.dtype.kind not in "biufc" or array.ndim == 0:
            raise ConfigError(
                f"{name}: got {type(leaf).__name__} of dtype {array.dtype} and shape "
                f"{array.shape}; wanted an array of numbers with one row per sample"
            )
        # The same array in two places (an auto-encoder's x and y) is handed over once.
        same = next((n for n, a in arrays.items() if a is array), None)
        if same is None:
            plain = array.flags.c_contiguous and array.dtype.isnative
            arrays[name] = (
                array if plain else np.array(array, array.dtype.newbyteorder("="), order="C")
            )
        else:
            names = rebuild(names, {**{n: n for n in leaves(names)}, name: same}.__getitem__)
    return names


def _image_names(images: object) -> list[str]:
    """With arrays, users name inputs by key or position: images=("left", "right") or (0, 1)."""
    listed = [images] if isinstance(images, (str, int)) else list(cast(Sequence[object], images))
    return [
        name if name == "x" or name.startswith("x/") else f"x/{name}" for name in map(str, listed)
    ]


def _with_function(
    transforms: object, function: object, *, shared: bool
) -> tuple[Function | None, Transforms | object]:
    checked = transforms if isinstance(transforms, Transforms) else Transforms.from_wire(transforms)
    if function is None:
        return None, checked
    if isinstance(function, str):
        return None, replace(checked, function=function)
    if not callable(function):
        raise ConfigError(
            f"function: got {function!r:.80}; wanted a function of one picture, or the import "
            "path of one ('package.module:name')"
        )
    if shared:
        return None, replace(checked, function=import_path(function))
    code = pickled(function)
    return code, replace(checked, function=code.name)


def import_path(function: PictureFunction) -> str:
    """Where others find a function: 'package.module:name'.

    A server that others use gets no code, only such a path, and its config says which it allows.

    Raises:
        ConfigError: Nobody else can import this very function.
    """
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    found: object = None
    if module and module != "__main__" and name:
        with contextlib.suppress(ImportError, AttributeError):
            found = operator.attrgetter(name)(importlib.import_module(module))
    if found is not function:
        shown = f"{module or '?'}:{name or type(function).__qualname__}"
        raise ConfigError(
            f"function: {shown:.200} cannot be imported by a server that others use (it is of the "
            "program itself, inside another function, a lambda, or made of others). Move it to the "
            "top of a module that the server has, too, and name it in its config "
            "(allow_transforms); or leave the address (and AUGSERVER_ADDRESS) out for a private "
            "server, which takes any function"
        )
    return f"{module}:{name}"


def pickled(function: PictureFunction) -> Function:
    """The function as bytes for a private server of the same user on the same machine."""
    try:
        import cloudpickle
    except ImportError as error:
        raise ConfigError(
            "function: handing over a function needs cloudpickle: pip install 'augserver[server]'"
        ) from error
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        code = cloudpickle.dumps(function)
    except Exception as error:
        raise ConfigError(
            f"function: {name} cannot be handed over: {type(error).__name__}: {error}; "
            "wanted one that closes over no locks, files or sockets"
        ) from error
    if len(code) > MAX_FUNCTION_BYTES:
        raise ConfigError(
            f"function: got {len(code)} bytes with all that it closes over; wanted at most "
            f"{MAX_FUNCTION_BYTES}. Save large arrays to a .npy and open them in the function"
        )
    path = tuple(entry or "." for entry in sys.path)
    if "." in path:
        with contextlib.suppress(OSError):  # the working directory may be gone
            path = tuple(os.getcwd() if entry == "." else entry for entry in path)
    return Function(f"{HANDED}{hashlib.sha256(code).hexdigest()[:32]}:{name[:80]}", code, path)


def _plain(fields: Mapping[str, object]) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
