"""Files become arrays that every process maps, and nothing else: no pickle, no path outside."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import secrets
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from augproto.errors import AugError, ConfigError, NoRoom, NotAllowed
from augproto.fingerprint import fingerprint
from augproto.layout import FIELD_ALIGNMENT
from augproto.messages import ArraySpec
from augproto.segment import PREFIX, Segment
from augproto.spec import HANDED, Spec
from augserver.config import NO_BOUND
from augserver.datasets.arrays import ArrayDataset, attach, load, places, write
from augserver.datasets.roots import check_roots
from augserver.datasets.store import DatasetStore
from augserver.limits import Limit
from augserver.memory import Memory

if TYPE_CHECKING:
    from tests.conftest import WaitUntil

Array = npt.NDArray[Any]

X = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
Y = np.array([7, 8])


MEMORY = Memory(most=NO_BOUND, workers=0, private=False)


class Nameless(Memory):
    """A private server's where /dev/shm is full."""

    def segment(self, size: int) -> Segment:
        name = f"{PREFIX}{os.getuid()}-{os.getpid():x}{secrets.token_hex(3)}-test"
        return Segment(name, size, nameless=True)


@pytest.fixture
def opened() -> Iterator[list[ArrayDataset]]:
    """Datasets to be closed at the end."""
    datasets: list[ArrayDataset] = []
    yield datasets
    for dataset in datasets:
        dataset.close()


def loaded(opened: list[ArrayDataset], *paths: Path) -> ArrayDataset:
    opened.append(load([str(path) for path in paths], MEMORY))
    return opened[-1]


def arrays_of(opened: list[ArrayDataset], *paths: Path) -> dict[str, Array]:
    return attach(loaded(opened, *paths).sources)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def npy(path: Path, array: Any, *, allow_pickle: bool = False) -> Path:
    np.save(path, array, allow_pickle=allow_pickle)
    return path


# -- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_arrays_of_an_npz_are_unpacked_into_shared_memory(
    tmp_path: Path, opened: list[ArrayDataset], save: Any
) -> None:
    save(tmp_path / "a.npz", x=X, y=Y)
    dataset = loaded(opened, tmp_path / "a.npz")
    assert dataset.segment is not None
    arrays = attach(dataset.sources)
    assert list(arrays) == ["x", "y"]
    assert np.array_equal(arrays["x"], X)
    assert np.array_equal(arrays["y"], Y)
    assert {source.path for source in dataset.sources} == {f"/dev/shm/{dataset.segment.name}"}
    assert all(source.offset % FIELD_ALIGNMENT == 0 for source in dataset.sources)
    for array in arrays.values():
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_an_npy_is_mapped_where_it_lies(tmp_path: Path, opened: list[ArrayDataset]) -> None:
    path = npy(tmp_path / "train.npy", X)
    dataset = loaded(opened, path)
    assert dataset.segment is None, "no copy of it"
    (source,) = dataset.sources
    assert (source.name, source.path) == ("train", str(path))
    train = attach(dataset.sources)["train"]
    assert np.array_equal(train, X)
    assert not train.flags.writeable
    assert str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    "array", [np.asfortranarray(X), X.T, np.zeros((0, 3))], ids=["F", "T", "0"]
)
def test_an_npy_that_cannot_be_mapped_as_it_is_is_copied(
    tmp_path: Path, opened: list[ArrayDataset], array: Array
) -> None:
    got = arrays_of(opened, npy(tmp_path / "train.npy", array))["train"]
    assert np.array_equal(got, array)
    assert got.flags.c_contiguous


def test_several_files_are_one_dataset(tmp_path: Path, opened: list[ArrayDataset]) -> None:
    files = [npz(tmp_path / "a.npz", x=X), npy(tmp_path / "y.npy", Y), npz(tmp_path / "b.npz", w=Y)]
    arrays = arrays_of(opened, *files)
    assert sorted(arrays) == ["w", "x", "y"]
    assert np.array_equal(arrays["x"], X)
    assert np.array_equal(arrays["y"], arrays["w"])


def test_arrays_of_any_number_dtype_and_order_are_read(
    tmp_path: Path, opened: list[ArrayDataset]
) -> None:
    many = {
        dtype: np.ones((3, 5), dtype) for dtype in ("?", "i1", "u2", "f2", "f4", "f8", "c8", ">i4")
    }
    many |= {"slice": np.arange(20)[::3], "F": np.asfortranarray(X), "empty": np.zeros((0, 2))}
    arrays = arrays_of(opened, npz(tmp_path / "a.npz", **{f"k{k}": v for k, v in many.items()}))
    for key, array in many.items():
        assert np.array_equal(arrays[f"k{key}"], array)
        assert arrays[f"k{key}"].dtype.isnative


def test_text_beside_the_pictures_is_left_out(tmp_path: Path, opened: list[ArrayDataset]) -> None:
    names = np.array(["cat", "dog"])
    assert list(arrays_of(opened, npz(tmp_path / "a.npz", x=X, names=names))) == ["x"]


# -- what is refused -----------------------------------------------------------------------------


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_objects_are_refused_and_never_opened(
    tmp_path: Path, opened: list[ArrayDataset], suffix: str
) -> None:
    bomb = np.array([Bomb()], dtype=object)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        npz(path, x=X, bomb=bomb)
    else:
        npy(path, bomb, allow_pickle=True)
    with pytest.raises(ConfigError, match=r"cannot be read: .*([Pp]ickle|Python objects)"):
        loaded(opened, path)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_bare_pickle_is_refused_and_never_opened(
    tmp_path: Path, opened: list[ArrayDataset], suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConfigError, match="cannot be read"):
        loaded(opened, path)


@pytest.mark.parametrize("dtype", ["M8[D]", "m8[s]", "V3", "f4,i4"])
def test_records_and_dates_are_refused(
    tmp_path: Path, opened: list[ArrayDataset], dtype: str
) -> None:
    with pytest.raises(ConfigError, match=r"array 'x': got dtype .*; wanted numbers"):
        loaded(opened, npz(tmp_path / "a.npz", x=np.zeros(3, dtype)))


@pytest.mark.parametrize("name", ["a.pkl", "a", "a.NPZ", "a.npz.txt", "a.csv"])
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, opened: list[ArrayDataset], name: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"wanted the path of a \.npz or \.npy file"):
        loaded(opened, tmp_path / name)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_file_that_is_missing_or_a_folder_or_empty_is_refused(
    tmp_path: Path, opened: list[ArrayDataset], suffix: str
) -> None:
    folder, empty = tmp_path / f"folder.{suffix}", tmp_path / f"empty.{suffix}"
    folder.mkdir()
    empty.touch()
    for path in (folder, empty, tmp_path / f"none.{suffix}"):
        with pytest.raises(ConfigError, match=rf"{path.name}' cannot be read"):
            loaded(opened, path)


def test_a_truncated_npy_is_refused(tmp_path: Path, opened: list[ArrayDataset]) -> None:
    path = npy(tmp_path / "a.npy", X)
    raw = path.read_bytes()
    for size in (5, 20, 100, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(ConfigError, match="cannot be read"):
            loaded(opened, path)


def damaged(kind: str) -> bytes:
    """An archive that is none, or not what it says."""
    held = io.BytesIO()
    np.savez_compressed(held, x=np.arange(10_000) ** 2)
    whole = held.getvalue()
    match kind:
        case "truncated":
            return whole[: len(whole) // 2]
        case "corrupt":
            return whole[:200] + b"\xff" * 60 + whole[260:]
        case "wrong checksum":
            at = whole.rindex(b"PK\x01\x02")
            return whole[: at + 16] + b"\0\0\0\0" + whole[at + 20 :]
        case "an npy":
            array = io.BytesIO()
            np.save(array, X)
            return array.getvalue()
        case "no array inside":
            other = io.BytesIO()
            with zipfile.ZipFile(other, "w") as archive:
                archive.writestr("x.npy", b"no array")
            return other.getvalue()
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind", ["truncated", "corrupt", "wrong checksum", "an npy", "no array inside"]
)
def test_a_damaged_npz_is_refused(tmp_path: Path, opened: list[ArrayDataset], kind: str) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(damaged(kind))
    with pytest.raises(AugError, match="cannot be read"):
        loaded(opened, path)


def test_an_npz_that_memory_cannot_hold_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(8 << 20, np.uint8))
    cgroup = Limit("the cgroup", 100 << 20, 15 << 20, "give it more")
    memory = Memory(most=NO_BOUND, workers=0, private=False, limits=lambda: [cgroup])
    memory._reserve = 0
    with pytest.raises(NoRoom, match=r"16\.0 MiB are needed to unpack .*\.npy files.*give it more"):
        load([str(path)], memory)
    memory._memory_limits = lambda: [dataclasses.replace(cgroup, free=90 << 20)]
    load([str(path)], memory).close()


def test_two_arrays_of_one_name_are_refused(tmp_path: Path, opened: list[ArrayDataset]) -> None:
    first, second = npz(tmp_path / "a.npz", x=X), npz(tmp_path / "b.npz", x=Y)
    third = npy(tmp_path / "x.npy", Y)
    for files in ([first, second], [first, third], [third, first]):
        with pytest.raises(ConfigError, match="brings a second array named 'x'; rename one"):
            loaded(opened, *files)


def test_what_does_not_fit_into_shared_memory_leaves_nothing() -> None:
    store = DatasetStore(MEMORY, lambda: None)
    with pytest.raises(NoRoom, match="do not fit"):
        store.offer("huge", [ArraySpec("x", "f8", (1 << 42,))])
    store.close()


# -- who it is -----------------------------------------------------------------------------------


def test_an_npz_is_known_by_what_it_holds(tmp_path: Path, opened: list[ArrayDataset]) -> None:
    first = loaded(opened, npz(tmp_path / "a.npz", x=X, y=Y)).fingerprint
    assert loaded(opened, npz(tmp_path / "elsewhere.npz", x=X, y=Y)).fingerprint == first
    for other in ({"x": X + 1, "y": Y}, {"x": X}, {"z": X, "y": Y}, {"x": X.astype("f8"), "y": Y}):
        assert loaded(opened, npz(tmp_path / "b.npz", **other)).fingerprint != first


def test_an_npy_is_known_by_path_size_and_time(tmp_path: Path, opened: list[ArrayDataset]) -> None:
    path = npy(tmp_path / "x.npy", X)
    first = loaded(opened, path).fingerprint
    assert loaded(opened, path).fingerprint == first
    os.utime(path, (1, 1))
    assert loaded(opened, path).fingerprint != first


def test_a_fingerprint_tells_names_dtypes_shapes_and_bytes_apart() -> None:
    variants: list[dict[str, Array]] = [
        {"x": X}, {"y": X}, {"x": X + 1}, {"x": X.reshape(4, 3, 2)}, {"x": X.view(np.int32)},
        {"x": X, "y": X}, {"x": np.zeros(0)}, {"x": np.zeros((0, 2))}, {},
    ]  # fmt: skip
    assert len({fingerprint(variant) for variant in variants}) == len(variants)
    assert fingerprint({"x": X}) == fingerprint({"x": X.copy()})


# -- where it lies -------------------------------------------------------------------------------


def test_arrays_are_laid_out_apart_and_aligned() -> None:
    specs = [ArraySpec("a", "f4", (3, 5)), ArraySpec("b", "u1", ()), ArraySpec("c", "f8", (0, 3)),
             ArraySpec("d", "c16", (7,))]  # fmt: skip
    sources, size = places(specs, "/dev/shm/x")
    assert [source.offset for source in sources] == [0, 64, 128, 128]
    assert size == 256
    assert places([ArraySpec("a", "f4", (0,))], "x")[1] == FIELD_ALIGNMENT, "never nothing at all"


@pytest.mark.parametrize("dtype", ["O", "M8", "U3", "nonsense", "f4,f4", ""])
def test_an_offer_of_what_is_no_number_is_refused(dtype: str) -> None:
    with pytest.raises(ConfigError, match="array 'a'"):
        places([ArraySpec("a", dtype, (3,))], "x")


@pytest.mark.parametrize("kind", [Memory, Nameless])
def test_what_is_written_is_what_is_attached(kind: type[Memory]) -> None:
    store = DatasetStore(kind(most=NO_BOUND, workers=0, private=False), lambda: None)
    room = store.offer("mark", [ArraySpec("x", X.dtype.str, X.shape), ArraySpec("y", "<i8", (2,))])
    assert room is not None
    write(room.sources, {"x": X, "y": Y})
    again = attach(room.sources)
    assert np.array_equal(again["x"], X)
    assert np.array_equal(again["y"], Y)
    store.close()


# -- the store -----------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[DatasetStore]:
    made = DatasetStore(MEMORY, lambda: None)
    yield made
    made.close()


def result(future: Future[ArrayDataset]) -> ArrayDataset:
    return future.result(30)


def stream_over(path: str) -> Spec:
    return Spec(data=(path,), x="x")


def segment_exists(dataset: ArrayDataset) -> bool:
    assert dataset.segment is not None
    return Path(f"/dev/shm/{dataset.segment.name}").exists()


def test_streams_of_the_same_files_share_a_dataset_and_the_last_one_closes_it(
    tmp_path: Path, store: DatasetStore
) -> None:
    path = str(npz(tmp_path / "a.npz", x=X))
    first, second = (
        result(store.acquire(stream_over(path))),
        result(store.acquire(stream_over(path))),
    )
    assert first is second
    store.release(first)
    assert segment_exists(second)
    store.release(second)
    assert not segment_exists(second)
    again = result(store.acquire(stream_over(path)))
    assert again is not first
    assert segment_exists(again)


def test_a_file_that_has_changed_is_another_dataset(tmp_path: Path, store: DatasetStore) -> None:
    path = npz(tmp_path / "a.npz", x=X)
    before = result(store.acquire(stream_over(str(path))))
    npz(path, x=X + 1)
    os.utime(path, (1, 1))
    after = result(store.acquire(stream_over(str(path))))
    assert after is not before
    assert attach(after.sources)["x"].flat[0] == 1
    assert attach(before.sources)["x"].flat[0] == 0, "who has the old one keeps it"


def test_a_load_says_when_it_has_ended_and_then_its_result_is_there(
    tmp_path: Path, wait_until: WaitUntil
) -> None:
    futures: list[Future[ArrayDataset]] = []
    done_when_told: list[bool] = []
    asked = threading.Event()

    def told() -> None:
        if threading.current_thread() is threading.main_thread():
            done_when_told.append(True)  # it ended before anybody could wait for it
            return
        asked.wait(10)
        done_when_told.append(futures[-1].done())

    store = DatasetStore(MEMORY, told)
    for path in (npz(tmp_path / "a.npz", x=X), tmp_path / "b.pkl"):
        path.touch()
        asked.clear()
        futures.append(store.acquire(stream_over(str(path))))
        asked.set()
        wait_until(lambda: len(done_when_told) == len(futures), "the end of a load", 10)
    assert done_when_told == [True, True]
    assert isinstance(futures[1].exception(), ConfigError)
    store.close()


def test_files_that_are_missing_and_arrays_nobody_gave_are_refused(store: DatasetStore) -> None:
    with pytest.raises(ConfigError, match=r"data: /none\.npz: No such file"):
        result(store.acquire(stream_over("/none.npz")))
    with pytest.raises(ConfigError, match="no arrays 'handed:unknown' were handed over"):
        result(store.acquire(stream_over(f"{HANDED}unknown")))


def test_handed_arrays_live_as_long_as_their_offers(store: DatasetStore) -> None:
    specs = [ArraySpec("x", X.dtype.str, X.shape)]
    room = store.offer("mark", specs)
    assert room is not None
    write(room.sources, {"x": X})
    store.filled("mark")
    assert store.offer("mark", specs) is None, "they are here already"
    for _ in range(3):  # streams come and go
        dataset = result(store.acquire(stream_over(f"{HANDED}mark")))
        assert np.array_equal(attach(dataset.sources)["x"], X)
        store.release(dataset)
    store.withdraw("mark")
    assert segment_exists(dataset)
    store.withdraw("mark")
    assert not segment_exists(dataset)
    store.withdraw("mark")
    with pytest.raises(ConfigError, match="no arrays"):
        result(store.acquire(stream_over(f"{HANDED}mark")))


def test_the_stores_end_leaves_nothing(tmp_path: Path) -> None:
    store = DatasetStore(MEMORY, lambda: None)
    datasets = [result(store.acquire(stream_over(str(npz(tmp_path / "a.npz", x=X)))))]
    filling = store.offer("mark", [ArraySpec("x", "f4", (3,))])
    assert filling is not None
    store.close()
    assert not any(segment_exists(dataset) for dataset in [*datasets, filling])


# -- where a consumer's files may lie ------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """root/in.npz, root/deep/in.npz and outside/secret.npz, with links both ways."""
    for path in ("root/in.npz", "root/deep/in.npz", "outside/secret.npz", "rootless/in.npz"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        npz(tmp_path / path, x=X)
    (tmp_path / "root/out.npz").symlink_to(tmp_path / "outside/secret.npz")
    (tmp_path / "root/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/back.npz").symlink_to(tmp_path / "root/in.npz")
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    return tmp_path


@pytest.mark.parametrize("path", ["root/in.npz", "root/deep/in.npz", "root/deep/../in.npz",
                                  "root/../root/in.npz", "alias/in.npz", "root/none.npz",
                                  "outside/back.npz", "root"])  # fmt: skip
def test_what_lies_below_a_root_is_allowed_by_any_way(tree: Path, path: str) -> None:
    check_roots([str(tree / path)], [str(tree / "root")])
    check_roots([str(tree / path)], ["/nowhere", str(tree / "alias")])


@pytest.mark.parametrize("path", ["outside/secret.npz", "root/out.npz", "root/folder/secret.npz",
                                  "root/../outside/secret.npz", "alias/../outside/secret.npz",
                                  "alias/out.npz", "rootless/in.npz", "root/folder/../root",
                                  "none.npz"])  # fmt: skip
def test_what_lies_elsewhere_is_refused_by_any_way(tree: Path, path: str) -> None:
    root = str(tree / "root")
    if path == "root/folder/../root":
        # As the kernel reads it: outside/../root.
        check_roots([str(tree / path)], [root])
        return
    with pytest.raises(NotAllowed, match="is not below a folder this server allows"):
        check_roots([str(tree / path)], [root])
    with pytest.raises(NotAllowed):
        check_roots([str(tree / "root/in.npz"), str(tree / path)], [root])


def test_without_roots_nothing_is_allowed(tree: Path) -> None:
    with pytest.raises(NotAllowed, match="none \\(the server's config names no roots\\)"):
        check_roots([str(tree / "root/in.npz")], [])


def test_a_relative_path_is_one_from_the_servers_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree / "root")
    check_roots(["in.npz", "deep/in.npz"], [str(tree / "root")])
    for path in ("../outside/secret.npz", "out.npz", "/etc/passwd", "~/in.npz/../../../x"):
        with pytest.raises(NotAllowed):
            check_roots([path], [str(tree / "root")])


def test_everything_below_the_root_of_all_is_allowed(tree: Path) -> None:
    check_roots([str(tree / "outside/secret.npz")], ["/"])
