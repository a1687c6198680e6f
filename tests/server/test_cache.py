"""A cache of decoded pictures changes no byte of any batch, whatever is in it and whoever fills it.

Streams over it are recipes here, as workers have them; the store is the server's.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from augproto.errors import ConfigError
from augproto.spec import Spec
from augserver.config import NO_BOUND
from augserver.datasets import cache, decoding
from augserver.datasets.arrays import ArrayDataset, attach
from augserver.datasets.cache import DecodedCache
from augserver.datasets.listing import list_files
from augserver.datasets.reading import AHEAD, PictureFiles, Reading
from augserver.datasets.store import DatasetStore
from augserver.limits import Limit
from augserver.memory import Memory
from augserver.recipe import Recipe
from augserver.transforms import SampleError

Array = npt.NDArray[Any]

COUNT = 23
TRANSFORMS: dict[str, Any] = {"rotation_range": 30, "horizontal_flip": True, "rescale": 1 / 255}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of many sizes, JPEGs and PNGs."""
    rng = np.random.default_rng(4)
    for i in range(COUNT):
        path = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i:02}.{('jpg', 'png')[i % 3 == 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12 + i, 30 - i, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pets"


def spec_of(folder: Path, **fields: Any) -> Spec:
    wire = {"data": str(folder), "pictures": {}, "target_size": (10, 14), "batch_size": 5}
    return Spec.from_wire(wire | {"transforms": TRANSFORMS, "cache": "decoded"} | fields)


def recipe(folder: Path, kept: DecodedCache | None, **fields: Any) -> Recipe:
    spec = spec_of(folder, **fields)
    assert spec.pictures is not None
    listing = list_files(spec.data[0], spec.pictures)
    return Recipe(spec.with_classes(listing.class_names), 7, listing.arrays, cache=kept)


def cache_of(folder: Path, places: int = COUNT, **fields: Any) -> DecodedCache:
    """A cache full of something else, and nothing of it whole."""
    marks, pictures = cache.arrays_of(spec_of(folder, **fields), places)
    return DecodedCache(
        np.zeros(marks.shape, marks.dtype), np.full(pictures.shape, 0xA5, pictures.dtype)
    )


def filled(r: Recipe, epoch: int, step: int) -> dict[str, bytes]:
    slot = np.full(r.layout.slot_bytes, 0x5A, np.uint8)
    arrays = r.layout.arrays(slot, r.count(epoch, step))
    made = r.fill(epoch, step, arrays)
    return {name: array[: made.samples].tobytes() for name, array in arrays.items()}


def epochs(r: Recipe, *numbers: int) -> list[dict[str, bytes]]:
    return [filled(r, number, step) for number in numbers for step in range(r.sampler.steps)]


class Opened(list[str]):
    """The names of files that were opened to be read."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    names = Opened()
    read = decoding.read_bytes

    def noting(file: Any, *arguments: Any) -> bytes:
        names.append(Path(file.path).name)
        return read(file, *arguments)

    monkeypatch.setattr(decoding, "read_bytes", noting)
    return names


# -- the same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [1, 4, 11, COUNT - 1, COUNT])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data_format": "channels_first", "transforms": TRANSFORMS | {"samplewise_center": True}},
        {"pictures": {"color_mode": "grayscale", "wide": "keras"}, "interpolation": "bilinear"},
        {"pictures": {"color_mode": "rgba"}, "validation_split": 0.3, "subset": "training"},
        {"scheme": "keras", "seed": 3},
        {"transforms": {}, "dtype": "uint8", "pictures": {"label_mode": "input"}},
    ],
    ids=["plain", "channels first", "wide gray", "rgba, a subset", "as Keras", "8 bits"],
)
def test_batches_are_the_same_with_and_without_whatever_has_a_place(
    folder: Path, opened: Opened, places: int, fields: dict[str, Any]
) -> None:
    wanted = epochs(recipe(folder, None, **fields), 0, 1, 2)
    kept = cache_of(folder, places, **fields)
    r = recipe(folder, kept, **fields)
    opened.clear()
    assert epochs(r, 0) == wanted[: r.sampler.steps]
    first = len(opened)
    assert epochs(r, 1, 2) == wanted[r.sampler.steps :]
    cached = int(kept.whole(np.arange(COUNT)).sum())
    assert first == r.sampler.samples
    assert len(opened) - first == 2 * (r.sampler.samples - cached)
    if r.sampler.samples == COUNT:  # the validation share, which comes first, has places as well
        assert cached == places


def test_the_first_samples_of_the_dataset_have_a_place(folder: Path, opened: Opened) -> None:
    kept = cache_of(folder, 6)
    r = recipe(folder, kept)
    epochs(r, 0)
    assert kept.whole(np.arange(COUNT)).tolist() == [i < 6 for i in range(COUNT)]
    assert kept.whole(np.array([22, 0, 6, 5])).tolist() == [False, True, False, True]
    opened.clear()
    epochs(r, 1)
    assert sorted(opened) == sorted(Path(r.path(i)).name for i in range(6, COUNT))


def test_a_batch_that_is_all_in_the_cache_is_made_of_the_cache_itself(folder: Path) -> None:
    for first in (False, True):
        order = {"data_format": "channels_first"} if first else {}
        kept = cache_of(folder)
        r = recipe(folder, kept, **order)
        column = r._columns.by_name["picture"]
        assert isinstance(column, PictureFiles)
        samples = np.array([3, 9, 3])
        for time in range(2):
            reading = Reading(column)
            read = list(_read(reading, samples))
            assert read == ([3, 9] if time == 0 else [])
            source, indexes, names = reading.source(samples)
            assert np.shares_memory(source, kept.pictures)
            assert not source.flags.writeable
            assert source.shape == column.shape
            assert indexes is samples
            assert names is None
            reading.close()


def _read(reading: Reading, samples: Array) -> Iterator[int]:
    for sample in reading.missing(samples):
        reading.read(sample)
        yield sample


def test_epochs_from_the_cache_need_no_files(folder: Path) -> None:
    wanted = epochs(recipe(folder, None), 0, 1)
    r = recipe(folder, cache_of(folder))
    assert epochs(r, 0) == wanted[: r.sampler.steps]
    shutil.rmtree(folder)
    assert epochs(r, 1) == wanted[r.sampler.steps :]


def test_a_file_that_has_changed_is_an_error_where_it_is_not_cached(folder: Path) -> None:
    kept = cache_of(folder, 12)
    r = recipe(folder, kept, shuffle=False)
    epochs(r, 0)
    for sample in (0, 20):
        with open(r.path(sample), "ab") as file:
            file.write(b"more")
    filled(r, 1, 0)
    with pytest.raises(SampleError, match="has changed"):
        filled(r, 1, 4)


# -- whoever fills it ----------------------------------------------------------------------------


def test_what_was_written_halfway_is_not_used(folder: Path) -> None:
    wanted = epochs(recipe(folder, None), 0)
    kept = cache_of(folder)
    for sample in range(COUNT):  # a worker was killed before its mark
        kept.place(sample)[: sample % 10] = sample
    assert epochs(recipe(folder, kept), 0) == wanted


def test_several_who_fill_it_at_once_give_the_same_bytes(folder: Path) -> None:
    wanted = epochs(recipe(folder, None), 0, 1)
    kept = cache_of(folder, 15)
    made: list[Any] = [None] * 4

    def fill(i: int) -> None:
        made[i] = epochs(recipe(folder, kept), 0, 1)

    threads = [threading.Thread(target=fill, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert made == [wanted] * 4


def test_streams_with_other_draws_and_labels_share_it(folder: Path, opened: Opened) -> None:
    kept = cache_of(folder)
    epochs(recipe(folder, kept), 0)
    opened.clear()
    other = {"pictures": {"label_mode": "none"}, "batch_size": 7, "transforms": {"rescale": 2}}
    wanted = epochs(recipe(folder, None, **other), 0)
    opened.clear()
    assert epochs(recipe(folder, kept, **other), 0) == wanted
    assert opened == []


# -- bad samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [0, 8, COUNT])
@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_bad_samples_are_not_cached_and_their_batches_stay_as_they_are(
    folder: Path, opened: Opened, policy: str, places: int
) -> None:
    bad = sorted(folder.glob("*/*"))[3:6] + sorted(folder.glob("*/*"))[15:16]
    for path in bad:
        path.write_bytes(b"no picture")
    wanted = epochs(recipe(folder, None, bad_samples=policy), 0, 1)
    kept = cache_of(folder, places) if places else None
    r = recipe(folder, kept, bad_samples=policy)
    opened.clear()
    assert epochs(r, 0, 1) == wanted
    if places == COUNT:
        assert kept is not None
        assert int(kept.whole(np.arange(COUNT)).sum()) == COUNT - len(bad)
        again = sorted(path.name for path in bad)
        opened.clear()
        epochs(r, 2)
        assert sorted(set(opened)) == again


def test_a_bad_sample_is_an_error_each_time(folder: Path) -> None:
    path = sorted(folder.glob("*/*"))[2]
    path.write_bytes(b"no picture")
    r = recipe(folder, cache_of(folder), shuffle=False)
    for epoch in range(3):
        with pytest.raises(SampleError, match="no picture in these 10 bytes") as refused:
            filled(r, epoch, 0)
        assert (refused.value.sample, refused.value.path) == (2, str(path))


@pytest.mark.parametrize("places", [0, 3, COUNT])
def test_a_function_that_fails_over_a_picture_names_its_sample(folder: Path, places: int) -> None:
    noted: list[int] = []
    spec = spec_of(folder, shuffle=True, transforms={"function": "some:where"})
    assert spec.pictures is not None
    listing = list_files(spec.data[0], spec.pictures)

    def fails(picture: Array) -> Array:
        if noted and noted[-1] == victim:
            raise ValueError("not this one")
        return picture

    kept = cache_of(folder, places) if places else None
    r = Recipe(spec.with_classes(listing.class_names), 7, listing.arrays, fails, cache=kept)
    victim = int(r.sampler.batch(0, 1)[3])
    arrays = r.layout.arrays(np.zeros(r.layout.slot_bytes, np.uint8), 5)
    with pytest.raises(SampleError, match="not this one") as refused:
        r.fill(0, 1, arrays, noted.append)
    assert refused.value.sample == victim
    assert refused.value.path == r.path(victim)


# -- reading ahead -------------------------------------------------------------------------------


def test_the_kernel_is_told_of_each_file_once_before_it_is_wanted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augserver.datasets.reading.AHEAD", 4)
    assert AHEAD > 4
    column = recipe(folder, None)._columns.by_name["picture"]
    assert isinstance(column, PictureFiles)
    told: list[int] = []
    monkeypatch.setattr(column, "read_ahead", told.extend)
    reading = Reading(column)
    for read, sample in enumerate(_read(reading, np.arange(11))):
        assert sample == read
        assert told == list(range(min(11, 8 + read // 4 * 4)))
    reading.close()


def test_a_file_that_is_gone_is_told_when_its_turn_comes(folder: Path) -> None:
    r = recipe(folder, None, shuffle=False)
    Path(r.path(4)).unlink()
    with pytest.raises(SampleError, match="is gone") as refused:
        filled(r, 0, 0)
    assert refused.value.sample == 4


# -- the server's --------------------------------------------------------------------------------


class Room:
    """A store, and what it is allowed."""

    def __init__(
        self, most: int | None = None, left: int = NO_BOUND, *, private: bool = False
    ) -> None:
        limit = Limit("the machine", NO_BOUND, left, "use another")
        self.memory = Memory(most=NO_BOUND, workers=0, private=False, limits=lambda: [limit])
        self.store = DatasetStore(self.memory, lambda: None, most, private=private)

    def acquire(self, spec: Spec, roots: tuple[str, ...] | None = None) -> ArrayDataset:
        return self.store.acquire(spec, roots).result(20)

    @property
    def segments(self) -> int:
        return sum(not segment.closed for segment in self.memory._segments)


@pytest.fixture
def rooms() -> Iterator[Any]:
    made: list[Room] = []

    def make(*arguments: Any, **options: Any) -> Room:
        made.append(Room(*arguments, **options))
        return made[-1]

    yield make
    for room in made:
        room.store.close()
        room.memory.close()


def test_streams_that_want_the_same_pictures_share_a_cache(folder: Path, rooms: Any) -> None:
    room = rooms()
    first = room.acquire(spec_of(folder))
    same = room.acquire(
        spec_of(folder, batch_size=3, transforms={}, pictures={"label_mode": "none"})
    )
    assert same is not first, "without labels it is another dataset"
    again = room.acquire(spec_of(folder, batch_size=3, seed=1, transforms={}))
    assert again is first
    assert room.segments == 4
    arrays = attach(first.cache)
    assert arrays[cache.MARKS].shape == (COUNT,)
    assert arrays[cache.PICTURES].shape == (COUNT, 10, 14, 3)
    for other in (
        {"target_size": (10, 15)},
        {"interpolation": "bilinear"},
        {"pictures": {"color_mode": "rgba"}},
        {"pictures": {"keep_aspect_ratio": True}},
        {"pictures": {"max_pixels": 99}},
    ):
        assert room.acquire(spec_of(folder, **other)) is not first
    plain = room.acquire(spec_of(folder, cache=None))
    assert plain.cache == ()
    assert plain.fingerprint == first.fingerprint


def test_a_cache_goes_with_the_last_stream_that_uses_it(folder: Path, rooms: Any) -> None:
    room = rooms()
    used = [room.acquire(spec_of(folder)) for _ in range(2)]
    plain = room.acquire(spec_of(folder, cache=None))
    assert room.segments == 2
    room.store.release(used[0])
    assert room.segments == 2
    room.store.release(used[1])
    assert room.segments == 1, "the list of files has a user still"
    assert room.store.cached().places == 0
    room.store.release(plain)
    assert room.segments == 0


def test_another_folder_of_the_same_names_sizes_and_times_has_a_cache_of_its_own(
    folder: Path, rooms: Any
) -> None:
    room = rooms()
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    assert copy.stat().st_mtime
    first, second = room.acquire(spec_of(folder)), room.acquire(spec_of(copy))
    assert first.fingerprint == second.fingerprint
    assert first is not second
    assert first.cache[0].path != second.cache[0].path
    bounded = room.acquire(spec_of(folder), (str(folder),))
    assert bounded.cache[0].path != first.cache[0].path, "who has bounds reads for himself"


def test_who_has_switched_caches_off_is_not_warned_of_it(
    folder: Path, rooms: Any, caplog: Any
) -> None:
    assert rooms(0).acquire(spec_of(folder)).cache == ()
    assert not caplog.records


def test_a_private_server_s_user_is_told_of_nothing_that_he_cannot_set(
    folder: Path, rooms: Any, caplog: Any
) -> None:
    spec = spec_of(folder)
    (limit,) = rooms().memory._memory_limits_kept()
    left = limit.kept + 4 * cache.size(spec, 15)
    assert rooms(None, left, private=True).acquire(spec).cache
    (said,) = caplog.messages
    assert "a cache takes at most 25% of the memory that is left" in said
    assert "To do: use fewer or smaller pictures (target_size)" in said
    assert "[server]" not in said


def test_a_budget_bounds_all_caches_together(folder: Path, rooms: Any, caplog: Any) -> None:
    spec = spec_of(folder)
    room = rooms(cache.size(spec, 15) + 7)
    whole = room.acquire(spec)
    assert whole.cache[0].shape == (15,)
    assert "has places for 15 of 23" in caplog.text
    none = room.acquire(spec_of(folder, target_size=(100, 100)))
    assert none.cache == ()
    assert "pictures are decoded in every epoch: a cache of them takes" in caplog.text
    assert "raise cache_bytes in [server]" in caplog.text
    assert "/dev/shm" not in caplog.text, "which has room enough"
    assert len(caplog.records) == 2
    room.acquire(spec_of(folder, target_size=(110, 100)))
    assert len(caplog.records) == 2, "said once, and not once for each cache"
    room.store.release(whole)
    smaller = room.acquire(spec_of(folder, target_size=(5, 7)))
    assert smaller.cache[0].shape == (COUNT,)


@pytest.mark.parametrize(("asked", "part"), [(None, 0.25), (NO_BOUND, 0.75)])
def test_a_cache_leaves_memory_to_others(
    folder: Path, rooms: Any, asked: int | None, part: float
) -> None:
    spec = spec_of(folder)
    (limit,) = rooms().memory._memory_limits_kept()  # less what the server itself needs
    room = rooms(asked, left=limit.kept + 10_000)
    assert room.acquire(spec).cache[0].shape == (int((10_000 * part - cache.SLACK) / 421),)


def test_a_budget_of_nothing_allows_none(folder: Path, rooms: Any) -> None:
    assert rooms(0).acquire(spec_of(folder)).cache == ()


def test_it_is_counted_what_is_in_it(folder: Path, rooms: Any) -> None:
    room = rooms()
    dataset = room.acquire(spec_of(folder))
    assert room.store.cached() == (0, COUNT, cache.size(spec_of(folder), COUNT))
    kept = DecodedCache.attach(dataset.cache)
    assert kept is not None
    r = recipe(folder, kept)
    filled(r, 0, 0)
    assert room.store.cached().samples == 5
    epochs(r, 0)
    assert room.store.cached().samples == COUNT


def test_a_loaded_dataset_that_gets_no_cache_by_an_error_is_let_go(
    folder: Path, rooms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = rooms()

    def fails(*arguments: Any) -> int:
        raise ValueError("a hole in the code")

    monkeypatch.setattr(cache, "fitting", fails)
    with pytest.raises(ValueError, match="a hole"):
        room.acquire(spec_of(folder))
    assert room.segments == 0


def test_the_store_answers_at_once_where_no_cache_is_asked_for(folder: Path, rooms: Any) -> None:
    room = rooms()
    dataset = room.acquire(spec_of(folder, cache=None))
    ready: Future[ArrayDataset] = room.store.join(dataset, spec_of(folder, cache=None), None)
    assert ready.done()


def test_a_private_cache_stays_within_the_usual_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(folder)
    kept = DecodedCache.private(spec, COUNT)
    assert kept is not None
    assert len(kept) == COUNT
    assert not kept.whole(np.arange(COUNT)).any()
    limit = Limit("the machine", NO_BOUND, 4 * cache.size(spec, 6) + 3, "use another")
    monkeypatch.setattr(cache, "memory_limits", lambda: [limit])
    kept = DecodedCache.private(spec, COUNT)
    assert kept is not None
    assert len(kept) == 6
    monkeypatch.setattr(cache, "memory_limits", lambda: [Limit("the machine", 9, 9, "")])
    assert DecodedCache.private(spec, COUNT) is None


def test_only_files_are_cached() -> None:
    with pytest.raises(ConfigError, match=r"cache: got 'decoded'; wanted None: arrays"):
        Spec(data=("a.npz",), x="x", cache="decoded")
    with pytest.raises(ConfigError, match=r"cache: got 'encoded'; wanted one of None, 'decoded'"):
        Spec(data=("a",), pictures={}, target_size=(8, 8), cache="encoded")  # type: ignore[arg-type]


def test_a_cache_has_as_many_places_as_its_size_says(folder: Path) -> None:
    spec = spec_of(folder)
    for count in (1, 2, 63, 64, 65, 1000):
        assert cache.fitting(spec, cache.size(spec, count)) == count
        assert cache.fitting(spec, cache.size(spec, count) - 1) == count - 1
        _, pictures = cache.sources_of(spec, count, "here")
        assert pictures.offset % 64 == 0
        assert pictures.offset >= count
        assert pictures.offset + count * 420 + 16 <= cache.size(spec, count)
    assert cache.fitting(spec, 0) == 0
