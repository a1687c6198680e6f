"""Whether another machine would give the same bytes: found out by one batch, before it makes any.

No list of versions says it: a library that rounds another way in one processor's vector unit has
the same number. So whoever joins makes step 0 of epoch 0 of the stream, as everybody else has, and
compares what came of it. The source of the stream's own function belongs to it, since two machines
may have two files of one name, and the first batch need not show it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from augproto.layout import aligned_empty
from augproto.messages import Script
from augproto.spec import HANDED
from augproto.transforms import NAMED
from augserver.backend import backend
from augserver.desk import Desk
from augserver.recipe import Need, Recipe
from augserver.transforms import SampleError

_CPUINFO = Path("/proc/cpuinfo")
#: What pictures and numbers go through, beside Python and numpy.
_LIBRARIES = ("scipy", "pillow", "simplejpeg")


def digest(recipe: Callable[[], Recipe | Desk], need: Need | None) -> tuple[str, str]:
    """What comes of a stream's first batch here.

    Args:
        recipe: Makes the recipe, or raises what keeps it from being made.
        need: See `Recipe.fill`.

    Returns:
        SHA-256 over the rows of all fields in the layout's order, and then the source of the
        function's module; and no words. Where the batch cannot be made, what is to blame ("failed:
        sample 7") and why.
    """
    try:
        made = recipe()
        script = _given(made) if isinstance(made, Desk) else None
        out = made.layout.arrays(aligned_empty(made.layout.slot_bytes), made.count(0, 0, script))
        samples = made.fill(0, 0, out, None, script, need).samples
        text = source(made.spec.transforms.function)
    except SampleError as error:
        return f"failed: sample {error.sample}", str(error)
    except (Exception, SystemExit) as error:
        return f"failed: {type(error).__name__}", f"{type(error).__name__}: {error}"
    found = hashlib.sha256()
    for array in out.values():
        found.update(np.ascontiguousarray(array[:samples]).view(np.uint8).data)
    found.update(text)
    return found.hexdigest(), ""


def source(function: str | None) -> bytes:
    """The text of the module that a function is imported from; empty where it is none.

    What a program has handed over has no file, and never leaves its machine.
    """
    if function is None or function.startswith((NAMED, HANDED)):
        return b""
    module = importlib.import_module(function.partition(":")[0])
    try:
        return inspect.getsource(module).encode(errors="backslashreplace")
    except (OSError, TypeError):  # compiled: then the file itself
        file = getattr(module, "__file__", None)
        return Path(file).read_bytes() if file else b""


@functools.cache
def machine() -> str:
    """What bytes could depend on here, in one line: processor and versions of libraries."""
    parts = [platform.machine(), _processor(), f"python {platform.python_version()}"]
    parts.append(f"numpy {np.__version__}")
    kernels = backend()
    parts.append(f"numba {_version('numba')}" if kernels == "numba" else f"kernels by {kernels}")
    parts += [f"{name} {_version(name)}" for name in _LIBRARIES]
    return ", ".join(part for part in parts if part)


def _processor() -> str:
    """The processor's model; Arm's kernels have numbers in the place of names."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    said: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        said.setdefault(name.strip(), value.strip())
    numbers = [said[name] for name in ("CPU implementer", "CPU part") if name in said]
    return said.get("model name") or " ".join(numbers)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _given(desk: Desk) -> Script:
    """A script for a stream that makes nothing without one: a slope, warped and brightened."""
    (field,) = desk.layout.fields
    kind = np.dtype(field.dtype)
    slope = np.arange(int(np.prod(field.shape)), dtype=np.int64) % 251
    matrices = b""
    if kind != np.float16:  # which is not resampled
        matrices = np.array([[0.9, 0.2, 0.5], [-0.1, 1.1, 0.25]], "<f8").tobytes()
    return Script(0, 0, b"", slope.astype(kind).tobytes(), b"", matrices, 0.75)
