"""A stream's first batch as a digest: the same for the same bytes, and for no others."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augproto.codec import decode, encode
from augproto.messages import Define, Message, Probe, Probed, Source
from augproto.segment import PREFIX, Segment
from augproto.spec import Spec
from augproto.transforms import Transforms
from augserver import probe
from augserver.desk import recipe_of
from augserver.probe import digest, machine, source
from augserver.recipe import Recipe
from augserver.worker import Worker

ARRAYS = {
    "x": np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), np.uint8),
    "y": np.arange(20),
}
TRANSFORMS = Transforms(rotation_range=20)


def spec(**options: Any) -> Spec:
    return Spec(data=("a",), x="x", y="y", batch_size=8, **options)


def found(spec: Spec, seed: int = 3, function: Any = None) -> tuple[str, str]:
    return digest(lambda: recipe_of(spec, seed, ARRAYS, function), None)


def test_the_digest_is_of_the_fields_of_the_first_batch_in_the_layout_s_order() -> None:
    recipe = Recipe(spec(transforms=TRANSFORMS), 3, ARRAYS)
    out = recipe.layout.arrays(np.zeros(recipe.layout.slot_bytes, np.uint8), 8)
    recipe.fill(0, 0, out)
    wanted = hashlib.sha256(out["x"].tobytes() + out["y"].tobytes()).hexdigest()
    assert found(spec(transforms=TRANSFORMS)) == (wanted, "")
    assert found(spec(transforms=TRANSFORMS), seed=4)[0] != wanted


def test_the_source_of_a_function_s_module_belongs_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    own = spec(transforms=Transforms(function="probed_module:same"))
    digests = set()
    for text in ("def same(p):\n    return p\n", "def same(p):\n    return p + 0\n"):
        (tmp_path / "probed_module.py").write_text(text)
        assert source("probed_module:same") == text.encode()
        digests.add(found(own, function=lambda picture: picture)[0])
        del sys.modules["probed_module"]
        probe.inspect.linecache.clearcache()  # type: ignore[attr-defined]
    assert len(digests) == 2


def test_what_is_compiled_stands_with_its_file_and_what_is_named_with_nothing() -> None:
    module = sys.modules["numpy.random.mtrand"]
    assert source("numpy.random.mtrand:shuffle") == Path(module.__file__ or "").read_bytes()
    assert source("math:sqrt") == Path(__import__("math").__file__ or "").read_bytes()
    assert source("itertools:chain") == b"", "built in"
    assert source("keras:tf:channels_last") == source("handed:abc") == source(None) == b""


def test_a_batch_that_cannot_be_made_names_what_is_to_blame() -> None:
    def fails(picture: Any) -> Any:
        raise ValueError("no good")

    own = spec(transforms=Transforms(function="m:f"), shuffle=False)
    assert found(own, function=fails) == (
        "failed: sample 0",
        "sample 0: function 'm:f' raised ValueError: no good",
    )

    def impossible() -> Recipe:
        raise OSError("no disk")

    assert digest(impossible, None) == ("failed: OSError", "OSError: no disk")


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_a_stream_that_makes_nothing_without_a_script_is_probed_with_one(dtype: str) -> None:
    given = Spec(data=("d",), x="x", scheme="given", batch_size=2)
    arrays = {"x": np.zeros((1, 9, 7, 3), dtype)}
    one, words = digest(lambda: recipe_of(given, 0, arrays), None)
    assert (len(one), words) == (64, "")
    nearest = Spec(
        data=("d",), x="x", scheme="given", batch_size=2,
        transforms=Transforms(fill_mode="constant", cval=200),
    )  # fmt: skip
    other, _ = digest(lambda: recipe_of(nearest, 0, arrays), None)
    assert (one == other) == (dtype == "float16"), "which is not warped"


def test_the_machine_is_a_line_with_processor_and_versions() -> None:
    line = machine()
    assert "\n" not in line
    assert line.count("scipy ") == line.count("pillow ") == line.count("numpy ") == 1
    assert f"python {sys.version.split()[0]}" in line


def test_a_local_worker_answers_a_probe(tmp_path: Path) -> None:
    sources = []
    for name, array in ARRAYS.items():
        np.save(tmp_path / f"{name}.npy", array)
        offset = (tmp_path / f"{name}.npy").stat().st_size - array.nbytes
        path = str(tmp_path / f"{name}.npy")
        sources.append(Source(name, array.dtype.str, array.shape, path, offset))
    own = spec(transforms=TRANSFORMS)
    said: list[Message] = []

    class Channel:
        def receive(self) -> Message | None:
            return None

        def send(self, message: Message) -> None:
            said.append(decode(encode(message)))

    worker = Worker(Channel())
    size = Recipe(own, 3, ARRAYS).layout.segment_bytes(2)
    segment = Segment(f"{PREFIX}probe-{os.getpid()}", size)
    try:
        worker.take(Define(7, own.to_wire(), 3, tuple(sources), segment.name, 2))
        worker.take(Probe(7))
        worker.take(Probe(8))
        assert not segment.path.read_bytes().strip(b"\0"), "a probe writes into no slot"
    finally:
        segment.close()
    first, second = said
    assert first == Probed(7, found(own)[0], machine())
    assert isinstance(second, Probed)
    assert second.digest == "failed: AugError"
    assert "stream 8 was never defined here" in second.reason
