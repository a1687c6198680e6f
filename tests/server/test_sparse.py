"""Arrays of which only some rows are here, files of which only the bytes are."""

from __future__ import annotations

import io
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augproto.errors import ConfigError, NoRoom, RemoteProtocolError
from augproto.files import ENDS, PATHS, SIZES, TIMES
from augproto.messages import Inputs, Load, Place, Source
from augproto.pictures import Pictures
from augproto.spec import Spec
from augserver.datasets.sparse import FILES, SparseArrays
from augserver.recipe import Recipe
from augserver.transforms import SampleError

Array = np.ndarray[Any, Any]
NOWHERE, SOMEWHERE = Place(0, 0, 0, 0), Place(0, 0, 0, 1)
X = np.arange(1000 * 6, dtype=np.int32).reshape(1000, 2, 3)
Y = np.linspace(0, 1, 1000)


def sources(**arrays: Array) -> list[Source]:
    return [Source(name, a.dtype.str, a.shape, "", 0) for name, a in arrays.items()]


def rows(*samples: int, place: Place = SOMEWHERE, **loads: bytes) -> tuple[Inputs, dict[str, Any]]:
    announced = tuple(Load(name, len(data)) for name, data in loads.items())
    inputs = Inputs(1, place, np.array(samples, "<i8").tobytes(), announced)
    return inputs, {name: bytearray(data) for name, data in loads.items()}


def resident() -> int:
    """Bytes of this process's own memory that are in use."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def test_rows_come_to_lie_at_their_own_indexes() -> None:
    data = SparseArrays(sources(x=X, y=Y))
    picked = np.array([7, 3, 999])
    data.lay(*rows(7, 3, 999, x=X[picked].tobytes(), y=Y[picked].tobytes()))
    assert data.arrays["x"].shape == X.shape
    assert np.array_equal(data.arrays["x"][picked], X[picked])
    assert np.array_equal(data.arrays["y"][picked], Y[picked])
    assert data.arrays["x"].sum() == X[picked].sum(), "nothing else is there"


def test_what_is_missing_is_told_once_each_in_order() -> None:
    data = SparseArrays(sources(y=Y))
    data.lay(*rows(1, 2, y=Y[1:3].tobytes()))
    assert data.missing(np.array([5, 1, 9, 5, 2])).tolist() == [5, 9]
    assert data.missing(np.array([2, 1])).tolist() == []


def test_an_array_of_a_terabyte_costs_what_is_written() -> None:
    before = resident()
    pixels = 512 * 512 * 3
    shape = ((1 << 40) // pixels, 512, 512, 3)
    data = SparseArrays([Source("x", "|u1", shape, "", 0)])
    last = shape[0] - 1
    data.lay(*rows(0, last, x=bytes([9]) * 2 * pixels))
    assert int(data.arrays["x"][last, 511, 511, 2]) == 9
    assert resident() - before < 64 << 20


def test_rows_beyond_the_budget_are_given_back_and_asked_for_again() -> None:
    data = SparseArrays(sources(x=X, y=Y), kept=20_000)
    samples = list(range(4))
    data.lay(*rows(*samples, x=X[:4].tobytes()))
    data.tidy()
    assert data.missing(np.array(samples)).size == 0, "within the budget rows stay"
    samples = list(range(100))
    data.lay(*rows(*samples, x=X[:100].tobytes()))
    assert data.missing(np.array(samples)).size == 0, "a batch keeps what it needs"
    data.tidy()
    assert data.missing(np.array(samples)).size == 100
    assert not data.arrays["x"].any()


def test_an_array_that_fits_stays_however_often_its_rows_come() -> None:
    data = SparseArrays(sources(x=X), kept=X.nbytes + 4096)
    for _ in range(3):
        data.lay(*rows(*range(1000), x=X.tobytes()))
        data.tidy()
    assert data.missing(np.arange(1000)).size == 0


def test_whole_arrays_stay_whatever_is_given_back() -> None:
    data = SparseArrays(sources(x=X, y=Y), kept=0)
    data.lay(*rows(place=NOWHERE, y=Y.tobytes()))
    data.lay(*rows(4, x=X[4].tobytes(), y=bytes(8)))
    data.tidy()
    assert data.whole == {"y"}
    assert np.array_equal(data.arrays["y"], Y), "rows of it add nothing"
    assert not data.arrays["x"].any()


def test_inputs_of_no_samples_for_a_batch_are_no_whole_arrays() -> None:
    data = SparseArrays(sources(x=X))
    data.lay(*rows(x=b""))
    assert data.whole == set()


@pytest.mark.parametrize(
    ("samples", "loads", "words"),
    [
        ((1,), {"z": b"1234"}, "rows of 'z'; the dataset has x, y"),
        ((1,), {"x": bytes(23)}, "got 23 bytes of 'x'; wanted 24"),
        ((1000,), {"x": bytes(24)}, r"samples \[1000\] of 'x'"),
        ((-1,), {"x": bytes(24)}, r"samples \[-1\] of 'x'"),
        ((), {"x": bytes(24)}, "got 24 bytes of 'x'; wanted 24000"),
        ((1, 2), {FILES: b"ab"}, "2 bytes of 2 files"),
    ],
)
def test_what_does_not_fit_the_dataset_is_refused(
    samples: tuple[int, ...], loads: dict[str, bytes], words: str
) -> None:
    data = SparseArrays(sources(x=X, y=Y))
    place = SOMEWHERE if samples else NOWHERE
    with pytest.raises(RemoteProtocolError, match=words):
        data.lay(*rows(*samples, place=place, **loads))
    assert not data.arrays["x"].any()


@pytest.mark.parametrize("ends", [[2, 1], [1, 3], [1], [-1, 2]])
def test_ends_of_files_that_are_none_are_refused(ends: list[int]) -> None:
    inputs = Inputs(
        1, SOMEWHERE, np.array([1, 2], "<i8").tobytes(), (), np.array(ends, "<i8").tobytes()
    )
    with pytest.raises(RemoteProtocolError, match="one rising end for each"):
        SparseArrays(sources(y=Y)).lay(inputs, {FILES: bytearray(b"ab")})


def test_a_dataset_beyond_all_bounds_is_refused_before_it_is_mapped() -> None:
    with pytest.raises(ConfigError, match="bytes; wanted"):
        SparseArrays([Source("x", "|u1", (1 << 60,), "", 0)])
    with pytest.raises(ConfigError, match="is no dtype"):
        SparseArrays([Source("x", "nonsense", (1,), "", 0)])


def test_a_dataset_without_room_among_the_addresses_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", full)
    with pytest.raises(NoRoom, match=r"6064 bytes .* raise the limit of its address space"):
        SparseArrays([Source("x", "|u1", (6000,), "", 0)])


# -- files -----------------------------------------------------------------------------------------


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def files(count: int) -> dict[str, Array]:
    """A list of files whose paths are not known here."""
    return {
        PATHS: np.zeros(0, np.uint8),
        ENDS: np.zeros(count, np.int64),
        SIZES: np.zeros(count, np.int64),
        TIMES: np.zeros(count, np.int64),
    }


def pets(**options: Any) -> Spec:
    return Spec(
        data=("/nowhere",), x="picture", batch_size=2, target_size=(9, 9), shuffle=False,
        pictures=Pictures(label_mode="none"), dtype="uint8", **options,
    )  # fmt: skip


def test_pictures_are_decoded_from_bytes_and_no_path_is_opened() -> None:
    data = SparseArrays(sources(**files(4)))
    recipe = Recipe(pets(), 0, data.arrays, brought=data.files)
    both = picture(0), picture(1)
    inputs = Inputs(
        1,
        SOMEWHERE,
        np.array([0, 1], "<i8").tobytes(),
        (),
        np.cumsum([len(each) for each in both]).astype("<i8").tobytes(),
    )
    data.lay(inputs, {FILES: bytearray(b"".join(both))})
    out = recipe.layout.arrays(np.zeros(recipe.layout.slot_bytes, np.uint8), 2)
    recipe.fill(0, 0, out)
    for row, file in zip(out["x"], both, strict=True):
        assert np.array_equal(row, np.asarray(Image.open(io.BytesIO(file))))
    data.tidy()
    assert data.files == {}, "files are kept for one batch"
    assert data.missing(np.array([0, 1])).tolist() == [0, 1]


def test_a_bad_file_is_told_without_a_path() -> None:
    recipe = Recipe(pets(), 0, files(2), brought={0: picture(0), 1: b"none"})
    out = recipe.layout.arrays(np.zeros(recipe.layout.slot_bytes, np.uint8), 2)
    with pytest.raises(SampleError, match="no picture in these 4 bytes") as raised:
        recipe.fill(0, 0, out)
    assert (raised.value.sample, raised.value.path) == (1, "")
    assert recipe.path(1) == ""


# -- needs -----------------------------------------------------------------------------------------


def test_a_recipe_says_what_it_needs_before_it_reads_it_and_again_for_substitutes() -> None:
    brought: dict[int, bytes] = {}
    needed: list[list[int]] = []

    def need(samples: Array) -> None:
        needed.append(samples.tolist())
        for sample in samples.tolist():
            brought[sample] = b"none" if sample in (1, 2) else picture(sample)

    recipe = Recipe(pets(bad_samples="substitute"), 0, files(6), brought=brought)
    out = recipe.layout.arrays(np.zeros(recipe.layout.slot_bytes, np.uint8), 2)
    made = recipe.fill(0, 0, out, need=need)
    assert needed == [[0, 1], [0, 2], [0, 3]]
    assert [bad.sample for bad in made.bad] == [1]
    assert np.array_equal(out["x"][1], np.asarray(Image.open(io.BytesIO(picture(3)))))


def test_a_need_that_cannot_be_met_ends_the_batch() -> None:
    class Never(Exception):
        pass

    def need(samples: Array) -> None:
        raise Never

    spec = Spec(data=("a",), x="x", batch_size=2)
    recipe = Recipe(spec, 0, {"x": np.zeros((4, 3))})
    out = recipe.layout.arrays(np.zeros(recipe.layout.slot_bytes, np.uint8), 2)
    with pytest.raises(Never):
        recipe.fill(0, 0, out, need=need)


def test_labels_of_a_binary_dataset_are_taken_as_they_are_then() -> None:
    arrays = files(4) | {"label": np.zeros(4, np.int32)}
    spec = Spec(
        data=("/nowhere",), x="picture", y="label", batch_size=2, target_size=(9, 9),
        shuffle=False, pictures=Pictures(label_mode="binary", class_names=("a", "b")),
    )  # fmt: skip
    recipe = Recipe(spec, 0, arrays, brought={0: picture(0), 1: picture(1)})
    arrays["label"][1] = 1  # comes after the recipe
    out = recipe.layout.arrays(np.zeros(recipe.layout.slot_bytes, np.uint8), 2)
    recipe.fill(0, 0, out)
    assert out["y"].tolist() == [0.0, 1.0]
    assert out["y"].dtype == np.float32
