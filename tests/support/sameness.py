"""Whether two streams are the same, and if not, where they differ."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from configurations import Configuration, Options
from streams import Different, Stream

#: What ours may warn of beside.
_SLOW = "The batches of this iterator are"


def compare(c: Configuration, wanted: Stream, got: Stream) -> float:
    """How far the pictures are off at most, as a share of the largest value in each.

    Raises:
        Different: They are not the same.
    """
    try:
        return _compare(c, wanted, got)
    except Different as different:
        raise Different(f"{different}\n{c}") from got.raised


def _compare(c: Configuration, wanted: Stream, got: Stream) -> float:
    if type(wanted.raised).__name__ not in [k.__name__ for k in type(got.raised).__mro__]:
        raise Different(f"raised: wanted {wanted.raised!r}, got {got.raised!r}")
    _same("printed", wanted.printed, got.printed)
    said, heard = ({(kind, _words(text)) for kind, text in side.warnings} for side in (wanted, got))
    if not said <= heard or any(not words.startswith(_SLOW) for _, words in heard - said):
        raise Different(f"warnings: wanted {wanted.warnings}, got {got.warnings}")
    statistics = {"mean", "std", "zca_whitening_matrix"}
    for name, value in wanted.generator.items():
        if name not in got.generator:
            raise Different(f"the generator has no {name}")
        close = name in statistics and value is not None and c.tolerance
        if not close:
            _same(f"generator.{name}", value, got.generator[name])
    for name, value in wanted.singles.items():
        if name == "parameters":
            _same("get_random_transform", value, got.singles.get(name))
        else:
            _close(name, value, got.singles.get(name), c.tolerance)
    _same_attributes("before", wanted.before, got.before)
    if len(wanted.batches) != len(got.batches):
        raise Different(f"batches: wanted {len(wanted.batches)}, got {len(got.batches)}")
    worst = 0.0
    for k, (one, other) in enumerate(zip(wanted.batches, got.batches, strict=True)):
        both = c.way != "flow" and c.flow.get("class_mode") == "input"
        worst = max(worst, _same_batch(f"batch {k}", one, other, c.tolerance, both))
    _same_attributes("after", wanted.after, got.after)
    _same("saved names", list(wanted.saved), list(got.saved))
    if not c.tolerance:
        _same("saved files", wanted.saved, got.saved)
    return worst


def _words(text: str) -> str:
    """The beginning of a warning, by which users filter."""
    return " ".join(re.findall(r"\w+", text)[:6])


def _same_attributes(when: str, wanted: Options, got: Options) -> None:
    for name, value in wanted.items():
        if name not in got:
            raise Different(f"{when}: no attribute {name}")
        _same(f"{when}: {name}", value, got[name])


def _same_batch(where: str, wanted: Any, got: Any, tolerance: float, both: bool) -> float:
    """Structure and all; pictures by the tolerance (`both`: also as labels), the rest exactly."""
    if isinstance(wanted, (tuple, list)):
        if type(wanted) is not type(got) or len(wanted) != len(got):
            raise Different(f"{where}: wanted {_shape(wanted)}, got {_shape(got)}")
        first, *rest = (
            _same_batch(f"{where}[{i}]", one, other, tolerance if i == 0 or both else 0.0, both)
            for i, (one, other) in enumerate(zip(wanted, got, strict=True))
        )
        return max(first, *rest) if rest else first
    if not isinstance(wanted, np.ndarray) or wanted.ndim != 4:
        _same(where, wanted, got)
        return 0.0
    return _close(where, wanted, got, tolerance)


def _shape(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        inner = ", ".join(_shape(part) for part in batch)
        return f"{type(batch).__name__}({inner})"
    return f"{type(batch).__name__} of {getattr(batch, 'dtype', '')} {np.shape(batch)}"


def _close(where: str, wanted: Any, got: Any, tolerance: float) -> float:
    if not isinstance(got, np.ndarray) or (wanted.shape, wanted.dtype) != (got.shape, got.dtype):
        raise Different(f"{where}: wanted {_shape(wanted)}, got {_shape(got)}")
    if wanted.tobytes() == got.tobytes() or not wanted.size:
        return 0.0
    pictures = wanted.reshape(-1, *wanted.shape[-3:]).astype(np.float64)
    others = got.reshape(pictures.shape).astype(np.float64)
    if not np.array_equal(np.isfinite(pictures), np.isfinite(others)):
        raise Different(f"{where}: other values are not finite")
    largest = np.nan_to_num(np.abs(pictures)).max((1, 2, 3), keepdims=True)
    off = np.nan_to_num(np.abs(others - pictures)) / np.maximum(largest, 1e-30)
    worst = float(off.max())
    if worst > tolerance:
        at = np.unravel_index(int(off.argmax()), off.shape)
        raise Different(
            f"{where}: off by {worst:.3g} of the picture's largest value, allowed is "
            f"{tolerance:.3g}; {np.mean(off > tolerance):.1%} of the values; at {at} wanted "
            f"{pictures[at]!r}, got {others[at]!r}"
        )
    return worst


def _same(where: str, wanted: Any, got: Any) -> None:
    if isinstance(wanted, np.ndarray) or isinstance(got, np.ndarray):
        same = (
            type(wanted) is type(got)
            and (wanted.shape, wanted.dtype) == (got.shape, got.dtype)
            and wanted.tolist() == got.tolist()
        )
    elif isinstance(wanted, dict):
        same = isinstance(got, dict) and list(wanted) == list(got)
        for key in wanted if same else ():
            _same(f"{where}[{key!r}]", wanted[key], got[key])
    elif isinstance(wanted, (list, tuple)) and any(isinstance(v, np.ndarray) for v in wanted):
        same = type(wanted) is type(got) and len(wanted) == len(got)
        for i in range(len(wanted)) if same else ():
            _same(f"{where}[{i}]", wanted[i], got[i])
    elif hasattr(wanted, "__array__") and not np.isscalar(wanted):  # a column of a data frame
        same = np.asarray(wanted).tolist() == np.asarray(got).tolist()
    else:
        same = bool(wanted == got or (wanted != wanted and got != got))
    if not same:
        raise Different(f"{where}: wanted {_text(wanted)}, got {_text(got)}")


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{_shape(value)}: {value.tolist()!r}"[:400]
    return repr(value)[:600]
