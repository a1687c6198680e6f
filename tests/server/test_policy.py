"""A batch without its bad samples: the same one whoever makes it, and told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augproto.errors import ConfigError
from augproto.files import File, pack
from augproto.pictures import Pictures
from augproto.spec import Spec
from augproto.transforms import Transforms
from augserver.datasets.roots import Roots
from augserver.policy import MAX_SUBSTITUTES, BadSample, Made, Rows
from augserver.recipe import Recipe
from augserver.sampling import Sampler
from augserver.transforms import SampleError

Array = np.ndarray[Any, Any]


def sampler(length: int, batch_size: int = 4, **options: Any) -> Sampler:
    spec = Spec(data=("a.npz",), x="x", batch_size=batch_size, shuffle=False, **options)
    return Sampler.of(spec, length, 0)


def bad(sample: int, *, final: bool = False) -> SampleError:
    return SampleError(sample, f"no {sample}", f"{sample}.jpg", final=final)


# -- the rule alone ------------------------------------------------------------------------------


def test_raise_ends_with_the_first_bad_sample() -> None:
    rows = Rows(sampler(8), 0, 0, "raise")
    with pytest.raises(SampleError, match=r"sample 2 \(2\.jpg\): no 2") as raised:
        rows.without(bad(2))
    assert raised.value.sample == 2


def test_skip_leaves_the_others_in_their_order() -> None:
    rows = Rows(sampler(8), 0, 1, "skip")
    for sample in (5, 7):
        rows.without(bad(sample))
    assert rows.drawn.tolist() == rows.taken.tolist() == [4, 6]
    assert rows.made() == Made(2, (BadSample(5, "5.jpg", "no 5"), BadSample(7, "7.jpg", "no 7")))


def test_where_nothing_is_left_to_skip_one_substitute_stands_for_the_batch() -> None:
    rows = Rows(sampler(8, 2), 0, 3, "skip")
    rows.without(bad(6), bad(7))
    assert (rows.drawn.tolist(), rows.taken.tolist()) == ([6], [0]), (
        "the one after 7, round the end"
    )
    rows.without(bad(0))
    assert rows.taken.tolist() == [1]
    assert rows.made().samples == 1
    assert [b.sample for b in rows.made().bad] == [6, 7]


def test_substitute_takes_the_next_sample_with_the_draws_of_the_first() -> None:
    rows = Rows(sampler(10), 0, 0, "substitute")
    rows.without(bad(1))
    rows.without(bad(3))
    rows.without(bad(4))  # which stood for 3
    assert rows.drawn.tolist() == [0, 1, 2, 3]
    assert rows.taken.tolist() == [0, 2, 2, 5]
    assert [b.sample for b in rows.made().bad] == [1, 3], "4 was none of this batch"


def test_a_substitute_is_of_the_same_subset_and_found_round_its_end() -> None:
    rows = Rows(sampler(10, validation_split=0.4, subset="training"), 0, 1, "substitute")
    rows.without(bad(9))
    assert rows.drawn.tolist() == [8, 9]
    assert rows.taken.tolist() == [8, 4], "the training subset is 4 to 9"
    last = Rows(sampler(10, 3, validation_split=0.4, subset="validation"), 0, 1, "substitute")
    last.without(bad(3))
    assert last.taken.tolist() == [0]


def test_substitutes_are_not_looked_for_for_ever() -> None:
    rows = Rows(sampler(1000, 1), 0, 0, "substitute")
    for sample in range(MAX_SUBSTITUTES):
        rows.without(bad(sample))
    with pytest.raises(SampleError, match=r"None of the 64 samples after it can be made"):
        rows.without(bad(MAX_SUBSTITUTES))
    assert rows.taken.tolist() == [MAX_SUBSTITUTES]


def test_all_samples_bad_ends_also_with_few_of_them() -> None:
    rows = Rows(sampler(3, 3), 0, 0, "substitute")
    rows.without(bad(0))
    rows.without(bad(1))
    with pytest.raises(SampleError, match="None of the 64"):
        rows.without(bad(2))


@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_what_is_no_fault_of_the_sample_ends_in_an_error_under_any_policy(policy: str) -> None:
    with pytest.raises(SampleError, match="no 1"):
        Rows(sampler(8), 0, 0, policy).without(bad(1, final=True))


# -- subsets of classes --------------------------------------------------------------------------


def test_a_split_takes_the_first_share_of_each_class_in_the_datasets_order() -> None:
    groups = np.array([1, 0, 1, 0, 1, 0, 1, 2, 1, 0])
    options: dict[str, Any] = {"batch_size": 20, "shuffle": False, "validation_split": 0.5}

    def members(subset: str | None) -> list[int]:
        spec = Spec(data=("a",), x="x", subset=subset, **options)
        return Sampler.of(spec, 10, 0, groups).order(0).tolist()  # type: ignore[no-any-return]

    assert members("validation") == [0, 1, 2, 3]
    assert members("training") == [4, 5, 6, 7, 8, 9]
    assert members(None) == list(range(10))


def test_shards_of_a_subset_of_classes_are_disjoint_and_complete() -> None:
    groups = np.arange(97) % 5
    shards = [
        Sampler.of(
            Spec(data=("a",), x="x", validation_split=0.3, subset="training", shard=(i, 3)),
            97, 5, groups,
        ).order(2).tolist()
        for i in range(3)
    ]  # fmt: skip
    everything = sorted(s for shard in shards for s in shard)
    whole = Spec(data=("a",), x="x", validation_split=0.3, subset="training")
    assert everything == sorted(Sampler.of(whole, 97, 5, groups).order(0).tolist())
    assert len(set(everything)) == len(everything) == 97 - sum(
        int(n * 0.3) for n in np.bincount(groups)
    )  # fmt: skip


# -- in a batch ----------------------------------------------------------------------------------


def numbered_files(folder: Path, count: int, broken: set[int]) -> dict[str, Array]:
    """Pictures filled with their own number, some of them no pictures at all."""
    files = []
    for i in range(count):
        path = folder / f"{i:03}.png"
        if i in broken:
            path.write_bytes(b"no picture")
        else:
            Image.fromarray(np.full((6, 6, 3), i, np.uint8)).save(path)
        status = path.stat()
        files.append(File(path.name, status.st_size, status.st_mtime_ns))
    return pack(files) | {"label": np.arange(count, dtype=np.int32) % 2}


def recipe(folder: Path, arrays: dict[str, Array], **options: Any) -> Recipe:
    function: Callable[[Array], Array] | None = options.pop("function", None)
    transforms = options.pop("transforms", {})
    if function is not None:
        transforms = transforms | {"function": "some:function"}
    pictures: dict[str, Any] = {"class_names": ("even", "odd")} | options.pop("pictures", {})
    spec = Spec(
        data=(str(folder),), target_size=(6, 6), batch_size=5, shuffle=False,
        pictures=Pictures(**pictures), transforms=Transforms(**transforms), **options,
    )  # fmt: skip
    return Recipe(spec, 3, arrays, function)


def batch(recipe: Recipe, step: int = 0, epoch: int = 0) -> tuple[Made, dict[str, Array]]:
    slot = np.zeros(recipe.layout.slot_bytes, np.uint8)
    out = recipe.layout.arrays(slot, recipe.count(epoch, step))
    made = recipe.fill(epoch, step, out)
    return made, {name: array[: made.samples].copy() for name, array in out.items()}


@pytest.mark.parametrize(
    ("policy", "numbers"), [("skip", [0, 2, 4]), ("substitute", [0, 2, 2, 4, 4])]
)
def test_labels_go_with_the_pictures_that_stand_in_the_batch(
    tmp_path: Path, policy: str, numbers: list[int]
) -> None:
    arrays = numbered_files(tmp_path, 12, broken={1, 3})
    made, got = batch(recipe(tmp_path, arrays, bad_samples=policy))
    assert got["x"][:, 0, 0, 0].tolist() == numbers
    assert got["y"].tolist() == [n % 2 for n in numbers]
    assert [(b.sample, b.path) for b in made.bad] == [
        (1, str(tmp_path / "001.png")), (3, str(tmp_path / "003.png")),
    ]  # fmt: skip
    assert all("UnidentifiedImageError: no picture in these 10 bytes" in b.reason for b in made.bad)


def test_raise_names_the_sample_and_its_file(tmp_path: Path) -> None:
    arrays = numbered_files(tmp_path, 12, broken={1, 3})
    with pytest.raises(SampleError, match=r"sample 1 \(.*001\.png\): Unidentified") as raised:
        batch(recipe(tmp_path, arrays))
    assert (raised.value.sample, raised.value.path) == (1, str(tmp_path / "001.png"))


def test_a_function_that_raises_is_a_bad_sample_too_and_is_named_rightly(tmp_path: Path) -> None:
    def no_sevens(picture: Array) -> Array:
        if picture[0, 0, 0] == 7:
            raise ValueError("seven")
        return picture

    arrays = numbered_files(tmp_path, 12, broken={8})
    made, got = batch(recipe(tmp_path, arrays, bad_samples="substitute", function=no_sevens), 1)
    assert got["x"][:, 0, 0, 0].tolist() == [5, 6, 9, 9, 9]
    reasons = {b.sample: b.reason for b in made.bad}
    assert set(reasons) == {7, 8}
    assert reasons[7] == "function 'some:function' raised ValueError: seven"
    with pytest.raises(SampleError, match=r"sample 7 \(.*007\.png\): function") as raised:
        batch(recipe(tmp_path, numbered_files(tmp_path, 12, set()), function=no_sevens), 1)
    assert raised.value.path.endswith("007.png")


def test_a_row_of_a_resized_array_is_named_by_its_sample() -> None:
    def no_sevens(picture: Array) -> Array:
        if picture[0, 0, 0] == 7:
            raise ValueError("seven")
        return picture

    x = np.repeat(np.arange(12, dtype=np.uint8), 3 * 4).reshape(12, 2, 2, 3)
    spec = Spec(
        data=("a.npz",), x="x", target_size=(4, 4), batch_size=5, shuffle=False,
        bad_samples="skip", transforms=Transforms(function="some:function"),
    )  # fmt: skip
    made, got = batch(Recipe(spec, 0, {"x": x}, no_sevens), 1)
    assert got["x"][:, 0, 0, 0].tolist() == [5, 6, 8, 9]
    assert [b.sample for b in made.bad] == [7]


def test_no_memory_is_no_fault_of_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(picture: Array) -> Array:
        raise MemoryError

    arrays = numbered_files(tmp_path, 5, set())
    with pytest.raises(SampleError, match="MemoryError"):
        batch(recipe(tmp_path, arrays, bad_samples="skip", function=hungry))
    monkeypatch.setattr(Image, "open", lambda *a, **k: hungry(np.zeros(1)))
    with pytest.raises(SampleError, match="out of memory"):
        batch(recipe(tmp_path, arrays, bad_samples="skip"))


def test_a_file_that_changed_is_no_bad_sample_but_another_dataset(tmp_path: Path) -> None:
    arrays = numbered_files(tmp_path, 5, set())
    (tmp_path / "002.png").write_bytes(b"another")
    with pytest.raises(SampleError, match=r"002\.png\): the file has changed: .*open it anew"):
        batch(recipe(tmp_path, arrays, bad_samples="skip"))


def test_no_file_is_read_twice_for_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from augserver.datasets import decoding

    opened: list[str] = []
    read = decoding.read_bytes

    def noting(file: File, most: int, roots: Roots | None) -> bytes:
        opened.append(file.path)
        return read(file, most, roots)

    monkeypatch.setattr(decoding, "read_bytes", noting)
    arrays = numbered_files(tmp_path, 12, broken={1, 3})
    batch(recipe(tmp_path, arrays, bad_samples="substitute"))
    assert len(opened) == len(set(opened)) == 5


def test_who_watches_is_told_each_sample_before_it_is_read(tmp_path: Path) -> None:
    made = recipe(tmp_path, numbered_files(tmp_path, 12, set()))
    slot = np.zeros(made.layout.slot_bytes, np.uint8)
    noted: list[int] = []
    made.fill(0, 1, made.layout.arrays(slot, 5), noted.append)
    assert noted == [5, 6, 7, 8, 9]


# -- labels of every kind ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "dtype", "rows"),
    [
        ("sparse", np.int32, [0, 1, 0, 1, 0]),
        ("binary", np.float32, [0, 1, 0, 1, 0]),
        ("categorical", np.float32, [[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]]),
    ],
)
def test_labels_are_of_the_kind_that_is_asked_for(
    tmp_path: Path, mode: str, dtype: Any, rows: Any
) -> None:
    arrays = numbered_files(tmp_path, 12, set())
    _, got = batch(recipe(tmp_path, arrays, pictures={"label_mode": mode}))
    assert got["y"].dtype == dtype
    assert got["y"].tolist() == rows


def test_the_finished_picture_itself_can_be_the_label(tmp_path: Path) -> None:
    arrays = numbered_files(tmp_path, 12, broken={2})
    _, got = batch(
        recipe(
            tmp_path, arrays, pictures={"label_mode": "input"}, bad_samples="skip",
            transforms={"brightness_range": (0.5, 2), "rescale": 1 / 255},
        )
    )  # fmt: skip
    assert got["y"].shape == (4, 6, 6, 3)
    assert np.array_equal(got["x"], got["y"])
    assert np.ptp(got["x"]) > 0


def test_channels_come_first_where_that_is_the_format(tmp_path: Path) -> None:
    arrays = numbered_files(tmp_path, 12, set())
    pictures = {"color_mode": "rgba"}
    made = recipe(tmp_path, arrays, data_format="channels_first", pictures=pictures)
    _, first = batch(made)
    _, last = batch(recipe(tmp_path, arrays, pictures=pictures))
    assert first["x"].shape == (5, 4, 6, 6)
    assert np.array_equal(np.moveaxis(first["x"], 1, -1), last["x"])


def test_files_without_classes_have_no_class_labels(tmp_path: Path) -> None:
    arrays = numbered_files(tmp_path, 3, set())
    del arrays["label"]
    with pytest.raises(ConfigError, match=r"label_mode: got 'sparse' for files without classes"):
        recipe(tmp_path, arrays)
