"""What programs hand over: shared by one program's consumers, bounded, and given back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augproto.errors import AugError, ConfigError, NotAllowed, RemoteProtocolError
from augproto.files import ENDS, PATHS, SIZES, TIMES, File, pack, pack_paths
from augproto.fingerprint import fingerprint
from augproto.messages import (
    DOOR_KEY_BYTES,
    MAX_PART_BYTES,
    ArraySpec,
    Filled,
    Offer,
    Room,
    Taken,
    Upload,
)
from augproto.segment import attach as attach_segment
from augserver.config import NO_BOUND, Config
from augserver.datasets.arrays import ArrayDataset, attach
from augserver.datasets.handed import MIN_OWNER, HandedStore
from augserver.datasets.paths import MAX_PATH, is_list, list_paths
from augserver.memory import Memory

ME, OTHER = "m" * MIN_OWNER, "o" * MIN_OWNER
X = np.arange(100, dtype=np.uint8)
Y = np.arange(3.0)
ARRAYS = (ArraySpec("x", "|u1", (100,)), ArraySpec("y", "<f8", (3,)))
#: 100 bytes and 24, each up to the next multiple of 64.
SIZE = 192
LAID_OUT = X.tobytes().ljust(128, b"\0") + Y.tobytes().ljust(64, b"\0")
FIRST, SECOND, THIRD = b"1", b"2", b"3"


class Bench:
    """A store whose threads work when they are told to."""

    def __init__(self, **settings: Any) -> None:
        self.memory = Memory(most=NO_BOUND, workers=0, private=False)
        self._waiting: list[tuple[Future[ArrayDataset], Callable[[], ArrayDataset]]] = []
        self.store = HandedStore(self.memory, self.submit, Config(workers=0, **settings))

    def submit(self, load: Callable[[], ArrayDataset]) -> Future[ArrayDataset]:
        future: Future[ArrayDataset] = Future()
        self._waiting.append((future, load))
        return future

    def work(self) -> list[tuple[bytes, Any]]:
        """Have the threads finish; returns who is told what."""
        waiting, self._waiting = self._waiting, []
        for future, load in waiting:
            try:
                future.set_result(load())
            except AugError as error:
                future.set_exception(error)
        return self.store.answers()

    def says(self, who: bytes, message: Offer | Upload | Filled) -> list[tuple[bytes, Any]]:
        """One says it; returns who is told what after that."""
        self.store.take(who, message)
        return self.work()

    def room(self, who: bytes, offer: Offer) -> Room:
        ((told, room),) = self.says(who, offer)
        assert told == who
        assert isinstance(room, Room)
        return room

    def segments(self) -> int:
        """How many there are now, but for the one at the door."""
        self.memory._limits()
        return len(self.memory._segments) - bool(self.store._door._segment)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(max_upload_bytes=1 << 20)
    yield made
    made.memory.close()


def offer(owner: str = ME, arrays: tuple[ArraySpec, ...] = ARRAYS, key: str = "") -> Offer:
    return Offer("f", arrays, owner, key)


def uploaded(bench: Bench, who: bytes) -> None:
    bench.room(who, offer())
    bench.says(who, Upload("f", 0, LAID_OUT))
    bench.says(who, Filled("f"))


# -- arrays -------------------------------------------------------------------------------------


def test_who_has_the_key_writes_into_the_room_itself(bench: Bench) -> None:
    key = attach_segment(bench.store.door)[:DOOR_KEY_BYTES].tobytes().hex()
    room = bench.room(FIRST, offer(key=key))
    memory = attach_segment(room.sources[0].path, writable=True)
    for source, array in zip(room.sources, (X, Y), strict=True):
        flat = array.view(np.uint8)
        memory[source.offset : source.offset + flat.nbytes] = flat
    assert bench.store.of(FIRST) is None, "not yet whole"
    assert bench.says(FIRST, Filled("f")) == [(FIRST, Room("f", ()))]
    name, dataset = bench.store.of(FIRST) or ("", None)
    assert name == "f"
    assert dataset is not None
    found = attach(dataset.sources)
    assert np.array_equal(found["x"], X)
    assert np.array_equal(found["y"], Y)
    with pytest.raises(RemoteProtocolError, match="no room"):
        bench.store.take(FIRST, Upload("f", 0, b"x"))


@pytest.mark.parametrize("key", ["", "00" * DOOR_KEY_BYTES, "\u00e9"])
def test_who_has_it_not_uploads(bench: Bench, key: str) -> None:
    assert bench.store.door
    room = bench.room(FIRST, offer(key=key))
    assert {source.path for source in room.sources} == {""}
    assert [source.offset for source in room.sources] == [0, 128]
    assert bench.says(FIRST, Upload("f", 0, LAID_OUT[:70])) == [(FIRST, Taken("f", 70))]
    assert bench.says(FIRST, Upload("f", 70, LAID_OUT[70:])) == [(FIRST, Taken("f", SIZE))]
    assert bench.says(FIRST, Filled("f")) == [(FIRST, Room("f", ()))]
    held = bench.store.of(FIRST)
    assert held is not None
    assert np.array_equal(attach(held[1].sources)["y"], Y)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (Upload("f", 1, b"x"), "from 0 on"),
        (Upload("f", 0, bytes(SIZE + 1)), f"up to {SIZE}"),
        (Upload("f", 2**64 - 1, b"x"), "from 0 on"),
        (Upload("f", 0, bytes(MAX_PART_BYTES + 1)), f"at most {MAX_PART_BYTES}"),
        (Upload("g", 0, b"x"), "not offered"),
        (Filled("f"), f"got 0 bytes; wanted {SIZE}"),
        (Filled("g"), "not offered"),
    ],
)
def test_what_is_not_the_next_part_is_refused_and_the_next_part_is_not(
    bench: Bench, said: Upload | Filled, complaint: str
) -> None:
    bench.room(FIRST, offer())
    with pytest.raises(RemoteProtocolError, match=complaint):
        bench.store.take(FIRST, said)
    with pytest.raises(RemoteProtocolError, match="not offered"):
        bench.store.take(SECOND, said)
    assert bench.says(FIRST, Upload("f", 0, LAID_OUT)) == [(FIRST, Taken("f", SIZE))]


def test_nothing_may_be_sent_before_there_is_room(bench: Bench) -> None:
    bench.store.take(FIRST, offer())
    for said in (Upload("f", 0, b"x"), Filled("f")):
        with pytest.raises(RemoteProtocolError, match="room not awaited"):
            bench.store.take(FIRST, said)


def test_consumers_of_one_program_share_and_the_last_one_takes_them_along(bench: Bench) -> None:
    uploaded(bench, FIRST)
    assert bench.says(SECOND, offer()) == [(SECOND, Room("f", ()))]
    first, second = bench.store.of(FIRST), bench.store.of(SECOND)
    assert first is not None
    assert second is not None
    assert first[1] is second[1]
    bench.store.leave(FIRST)
    assert bench.segments() == 1
    assert np.array_equal(attach(second[1].sources)["x"], X)
    bench.store.leave(SECOND)
    assert bench.segments() == 0


def test_another_program_cannot_name_them(bench: Bench) -> None:
    uploaded(bench, FIRST)
    room = bench.room(SECOND, offer(OTHER))
    assert room.sources, "it has to bring its own"
    assert bench.store.of(SECOND) is None


def test_others_of_the_same_owner_and_name_are_refused(bench: Bench) -> None:
    bench.room(FIRST, offer())
    large = (ArraySpec("x", "|u1", (1 << 40,)),)
    with pytest.raises(ConfigError, match="have that name already"):
        bench.store.take(SECOND, offer(arrays=large))


def test_who_offers_what_is_on_its_way_waits_for_it(bench: Bench) -> None:
    bench.room(FIRST, offer())
    assert bench.says(SECOND, offer()) == []
    bench.says(FIRST, Upload("f", 0, LAID_OUT))
    assert bench.says(FIRST, Filled("f")) == [(FIRST, Room("f", ())), (SECOND, Room("f", ()))]


@pytest.mark.parametrize("when", ["before there is room", "half done"])
def test_when_the_one_who_fills_leaves_the_next_one_does(bench: Bench, when: str) -> None:
    if when == "half done":
        bench.room(FIRST, offer())
        bench.says(FIRST, Upload("f", 0, LAID_OUT[:70]))
    else:
        bench.store.take(FIRST, offer())
    bench.store.take(SECOND, offer())
    bench.store.leave(FIRST)
    ((told, room),) = bench.work()
    assert (told, bool(room.sources)) == (SECOND, True)
    assert bench.says(SECOND, Upload("f", 0, LAID_OUT)) == [(SECOND, Taken("f", SIZE))]
    bench.says(SECOND, Filled("f"))
    assert bench.segments() == 1
    bench.store.leave(SECOND)
    assert bench.segments() == 0


def test_who_offers_again_begins_again(bench: Bench) -> None:
    bench.room(FIRST, offer())
    bench.says(FIRST, Upload("f", 0, LAID_OUT[:70]))
    bench.room(FIRST, offer())
    assert bench.segments() == 1
    assert bench.says(FIRST, Upload("f", 0, LAID_OUT)) == [(FIRST, Taken("f", SIZE))]


def test_uploads_have_a_bound_together_and_what_is_over_counts_no_more(bench: Bench) -> None:
    half = (ArraySpec("x", "|u1", (1 << 19,)),)
    bench.room(FIRST, offer(arrays=half))
    bench.room(SECOND, offer(OTHER, half))
    with pytest.raises(NotAllowed, match=r"1\.0 MiB in all \(max_upload_bytes\), of which 1\.0"):
        bench.store.take(THIRD, offer("t" * MIN_OWNER))
    assert not bench.store.knows(THIRD)
    key = attach_segment(bench.store.door)[:DOOR_KEY_BYTES].tobytes().hex()
    assert bench.room(THIRD, offer("t" * MIN_OWNER, key=key)).sources[0].path, "the key is enough"
    bench.store.leave(FIRST)
    bench.room(FIRST, offer("u" * MIN_OWNER))


def test_what_was_uploaded_counts_as_such_whoever_uses_it(bench: Bench) -> None:
    uploaded(bench, FIRST)
    key = attach_segment(bench.store.door)[:DOOR_KEY_BYTES].tobytes().hex()
    bench.says(SECOND, offer(key=key))
    bench.store.leave(FIRST)
    rest = (ArraySpec("x", "|u1", ((1 << 20) - SIZE + 64,)),)
    with pytest.raises(NotAllowed, match="max_upload_bytes"):
        bench.store.take(THIRD, offer(OTHER, rest))
    bench.store.leave(SECOND)
    bench.room(THIRD, offer(OTHER, rest))


def test_a_bound_of_nothing_lets_nobody_upload() -> None:
    bench = Bench(max_upload_bytes=0)
    try:
        with pytest.raises(NotAllowed, match=r"takes 0\.0 MiB in all \(max_upload_bytes\)"):
            bench.store.take(FIRST, offer())
    finally:
        bench.memory.close()


@pytest.mark.parametrize(
    "arrays",
    [
        (ArraySpec("x", "|O", (1,)),),
        (ArraySpec("x", "nonsense", (1,)),),
        (ArraySpec("x", "(", (1,)),),
        (ArraySpec("x", "|u1", (2**32, 2**32)),),
        (ArraySpec("x", "|u1", (2**63,)),),
        (ArraySpec("x", "|u1", (1,) * 100),),
        (ArraySpec("x", "|u1", (1,)),) * 2,
        tuple(ArraySpec(str(i), "|u1", (1,)) for i in range(1000)),
        (ArraySpec("files.paths", "|u1", (1,)),),
        (ArraySpec("files.paths", "<f4", (1,)), ArraySpec("files.ends", "<i8", (1,))),
        (*(ArraySpec(n, "<i8", (1,)) for n in (PATHS, ENDS, SIZES, TIMES)),),
    ],
    ids=lambda arrays: f"{arrays[0].name} {arrays[0].dtype} {len(arrays)}",
)
def test_what_can_be_in_no_batch_is_refused_before_any_room_is_made(
    bench: Bench, arrays: tuple[ArraySpec, ...]
) -> None:
    with pytest.raises(ConfigError):
        bench.store.take(FIRST, offer(arrays=arrays))
    assert not bench.store.knows(FIRST)
    assert bench.work() == []


def test_an_owner_that_can_be_guessed_and_a_private_server_are_refused(bench: Bench) -> None:
    with pytest.raises(RemoteProtocolError, match=r"Offer\.owner: got 3 characters"):
        bench.store.take(FIRST, offer("abc"))
    private = Bench(private=True)
    assert private.store.door == ""
    with pytest.raises(NotAllowed, match="its own pipe"):
        private.store.take(FIRST, offer())


# -- lists of files -----------------------------------------------------------------------------


def listed(folder: Path, *names: str) -> dict[str, Any]:
    return pack_paths(str(folder / name) for name in names)


def files(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).write_bytes(os.fsencode(name))
    return [str(folder / name) for name in names]


def test_a_list_gets_sizes_and_times_and_is_the_same_dataset_as_if_it_was_made_here(
    tmp_path: Path,
) -> None:
    paths = files(tmp_path, "a.png", "bb.png", os.fsdecode(b"\xff.png"))
    labels = {"y": np.arange(3)}
    mark, arrays = list_paths(pack_paths(paths) | labels, [str(tmp_path)])
    here = pack([File.of(path, os.stat(path)) for path in paths]) | labels
    assert mark == fingerprint(here)
    assert list(arrays) == list(here)
    assert all(np.array_equal(arrays[name], here[name]) for name in here)


def test_what_lies_outside_or_nowhere_or_is_relative_is_refused_by_name(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    files(inside, "a.png")
    files(tmp_path, "secret.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    roots = [str(inside)]
    for name in ("../secret.png", "link.png"):
        with pytest.raises(NotAllowed, match=rf"{name}.* is not below a folder"):
            list_paths(listed(inside, "a.png", name), roots)
    with pytest.raises(ConfigError, match=r"missing\.png.*No such file.*the server's machine"):
        list_paths(listed(inside, "a.png", "missing.png"), roots)
    with pytest.raises(ConfigError, match=r"got 'a\.png'; wanted a path from the root"):
        list_paths(pack_paths(["a.png"]), roots)
    with pytest.raises(NotAllowed, match="names no roots"):
        list_paths(listed(inside, "a.png"), [])


@pytest.mark.parametrize(
    "ends", [[], [0], [-1], [5, 5], [6, 5], [5, 2**62], [5], [MAX_PATH * 2]], ids=str
)
def test_ends_that_do_not_fit_the_paths_are_refused(ends: list[int], tmp_path: Path) -> None:
    paths = np.frombuffer(b"/" * (2 * MAX_PATH), np.uint8)
    with pytest.raises(ConfigError, match="files:"):
        list_paths({PATHS: paths, ENDS: np.array(ends, np.int64)}, ["/"])


def test_a_list_is_told_by_its_arrays() -> None:
    assert not is_list(ARRAYS)
    assert is_list([ArraySpec(PATHS, "|u1", (9,)), ArraySpec(ENDS, "<i8", (1,)), *ARRAYS])


def test_a_list_that_is_handed_over_becomes_the_server_s_own_copy(tmp_path: Path) -> None:
    bench = Bench(roots=(str(tmp_path),))
    try:
        arrays = pack_paths(files(tmp_path, "a.png", "b.png"))
        specs = tuple(ArraySpec(n, a.dtype.str, a.shape) for n, a in arrays.items())
        bench.room(FIRST, offer(arrays=specs))
        laid_out = b"".join(
            a.tobytes().ljust(-(-a.nbytes // 64) * 64, b"\0") for a in arrays.values()
        )
        bench.says(FIRST, Upload("f", 0, laid_out))
        assert bench.says(FIRST, Filled("f")) == [(FIRST, Room("f", ()))]
        held = bench.store.of(FIRST)
        assert held is not None
        assert set(attach(held[1].sources)) == {PATHS, ENDS, SIZES, TIMES}
        assert bench.segments() == 1, "what the program had written is gone"
        (tmp_path / "b.png").unlink()
        bench.says(SECOND, offer(OTHER, specs))
        bench.says(SECOND, Upload("f", 0, laid_out))
        ((told, error),) = bench.says(SECOND, Filled("f"))
        assert told == SECOND
        assert isinstance(error, ConfigError)
        assert "b.png" in str(error)
        assert bench.segments() == 1
    finally:
        bench.memory.close()
