"""A slot is released when the last view of it is gone: not before, not after, and once."""

from __future__ import annotations

import gc
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from augclient.lease import Returns, Wake, lease
from augproto.layout import FIELD_ALIGNMENT, SLOT_ALIGNMENT, Layout, aligned_empty
from augproto.messages import Release

Array = npt.NDArray[Any]
LAYOUT = Layout.of(4, [("x", "f4", (2, 3)), ("y", "i8", ())])
RELEASE = Release(3, 17)


@pytest.fixture
def wake() -> Wake:
    return Wake()


@pytest.fixture
def returns() -> Returns:
    return Returns()


def woken(wake: Wake) -> bool:
    """Whether a poll on it would end."""
    return bool(select.select([wake.reader], [], [], 0)[0])


def leased(returns: Returns, release: Release = RELEASE) -> dict[str, Array]:
    """A batch's arrays, over a slot of this lease."""
    slot = aligned_empty(LAYOUT.slot_bytes)
    slot[:] = 0
    return LAYOUT.arrays(lease(slot, release, returns), 4)


LAST_VIEWS: dict[str, Callable[[Array], Any]] = {
    "itself": lambda x: x,
    "a slice": lambda x: x[1:3, :, ::2],
    "one element's slice": lambda x: x[0, 0, :1],
    "a reshape": lambda x: x.reshape(-1),
    "a transpose": lambda x: x.T,
    "another dtype": lambda x: x.view(np.uint8),
    "a view of a view of a view": lambda x: x[1:].reshape(-1)[2:].view(np.int32),
    "a broadcast": lambda x: np.broadcast_to(x, (5, *x.shape)),
    "a subclass": lambda x: x.view(np.ma.MaskedArray),
    "a memoryview": lambda x: x.data,
    "an iterator": lambda x: x.flat,
    "a list of rows": lambda x: list(x),
    "an array of its memory": lambda x: np.frombuffer(x.data.cast("B"), np.float32),
}


@pytest.mark.parametrize("last", LAST_VIEWS)
def test_the_slot_is_released_exactly_when_the_last_view_dies(last: str, returns: Returns) -> None:
    arrays = leased(returns)
    y = arrays["y"]
    view = LAST_VIEWS[last](arrays["x"])
    assert returns.leased == 1
    del arrays
    assert returns.pending == 0
    del y
    assert returns.pending == 0, "a view is left"
    del view
    assert (returns.pending, returns.leased) == (1, 0), "without a garbage collection"
    assert returns.take() == (RELEASE,)


def test_a_copy_holds_nothing(returns: Returns) -> None:
    arrays = leased(returns)
    copies = [np.array(arrays["x"]), arrays["x"].copy(), arrays["x"] + 1, arrays["x"].sum()]
    del arrays
    assert returns.pending == 1
    assert len(copies) == 4


def test_a_view_in_a_cycle_is_released_by_the_collector(returns: Returns) -> None:
    cycle: list[Any] = [leased(returns)["x"]]
    cycle.append(cycle)
    del cycle
    assert returns.pending == 0
    gc.collect()
    assert returns.take() == (RELEASE,)


def test_leases_end_apart(returns: Returns) -> None:
    batches = [leased(returns, Release(slot, 100 + slot)) for slot in range(4)]
    assert returns.leased == 4
    for slot in (2, 0, 3, 1):
        batches[slot] = {}
        assert returns.take() == (Release(slot, 100 + slot),)
    assert returns.leased == 0


def test_the_views_see_the_slot_and_not_a_copy(returns: Returns) -> None:
    slot = aligned_empty(LAYOUT.slot_bytes)
    arrays = LAYOUT.arrays(lease(slot, RELEASE, returns), 4)
    slot[:] = 7
    assert arrays["x"].view(np.uint8).min() == 7
    assert arrays["x"].ctypes.data == slot.ctypes.data + LAYOUT.fields[0].offset
    arrays["y"][:] = 9
    assert LAYOUT.arrays(slot, 4)["y"].tolist() == [9] * 4


def test_a_lease_of_read_only_memory_is_read_only_for_good(returns: Returns) -> None:
    slot = aligned_empty(LAYOUT.slot_bytes)
    slot.flags.writeable = False
    x = LAYOUT.arrays(lease(slot, RELEASE, returns), 4)["x"]
    with pytest.raises(ValueError, match="read-only"):
        x += 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        x.flags.writeable = True


def test_the_memory_lives_as_long_as_the_lease(returns: Returns) -> None:
    died = threading.Event()

    class Mapping(np.ndarray[Any, np.dtype[np.uint8]]):
        def __del__(self) -> None:
            if self.base is None:
                died.set()

    slot: Any = np.ndarray.__new__(Mapping, (LAYOUT.slot_bytes,), np.uint8)
    view = lease(slot, RELEASE, returns)[100:]
    del slot
    gc.collect()
    assert not died.is_set()
    del view
    assert died.is_set()


def test_a_last_view_may_die_in_another_thread(returns: Returns) -> None:
    held = [leased(returns)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join(10)
    assert returns.take() == (RELEASE,)


def test_the_end_of_a_lease_runs_no_python(returns: Returns) -> None:
    # What runs Python can be interrupted by Ctrl-C, which a finalizer prints and loses.
    arrays = leased(returns)
    called: list[str] = []
    sys.setprofile(lambda frame, event, argument: called.append(f"{event} {frame.f_code.co_name}"))
    try:
        del arrays
    finally:
        sys.setprofile(None)
    assert [call for call in called if call.startswith("call")] == []
    assert returns.pending == 1


def test_releases_from_many_threads_are_all_there_once(returns: Returns) -> None:
    each, threads = 200, 8
    batches = [
        [leased(returns, Release(thread, n)) for n in range(each)] for thread in range(threads)
    ]
    taken: list[Release] = []
    dropping = [threading.Thread(target=batch.clear) for batch in batches]
    batches.clear()
    for thread in dropping:
        thread.start()
    while any(thread.is_alive() for thread in dropping):
        taken += returns.take()
    for thread in dropping:
        thread.join(10)
    taken += returns.take()
    assert sorted(taken) == [Release(t, n) for t in range(threads) for n in range(each)]
    assert returns.leased == returns.pending == 0


def test_a_slot_that_was_never_leased_is_returned_and_not_counted(returns: Returns) -> None:
    held = leased(returns)
    returns.drop(Release(1, 2))
    assert (returns.leased, returns.pending) == (1, 1)
    assert returns.take() == (Release(1, 2),)
    assert (returns.leased, len(held)) == (1, 2)


def test_what_is_taken_is_taken_once_and_in_order(returns: Returns) -> None:
    for n in range(5):
        returns.drop(Release(n, n))
    assert returns.take() == tuple(Release(n, n) for n in range(5))
    assert returns.take() == ()


FORKED = """
import os
import numpy as np
from augclient.lease import Returns, lease
from augproto.messages import Release

returns = Returns()
view = lease(np.zeros(4096, np.uint8), Release(3, 17), returns)[10:]
child = os.fork()
if child == 0:
    del view
    os._exit(returns.pending)
status = os.waitpid(child, 0)[1]
assert status == 0, status
assert (returns.leased, returns.pending) == (1, 0)
del view
assert returns.take() == (Release(3, 17),)
print("right")
"""


def test_a_forked_child_releases_nothing() -> None:
    # In a process of its own: from Python 3.12 on a fork beside threads is a warning.
    ran = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.stdout, ran.stderr) == ("right\n", "")


AT_EXIT = """
import numpy as np
from augclient.lease import Returns, lease
from augproto.messages import Release
view = lease(np.zeros(64, np.uint8), Release(0, 1), Returns())
"""


def test_a_lease_held_to_the_end_of_the_program_is_silent() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_a_wake_never_blocks_and_is_cleared_whole(wake: Wake) -> None:
    for _ in range(100_000):  # more than a pipe holds
        wake()
    assert woken(wake)
    wake.clear()
    assert not woken(wake)
    wake.clear()
    wake()
    assert woken(wake)


def test_a_wakes_descriptors_close_with_its_last_reference() -> None:
    before = len(os.listdir("/proc/self/fd"))
    wake = Wake()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del wake
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("nbytes", [0, 1, 64, 4096, 4097])
def test_private_memory_is_aligned_like_a_slot(nbytes: int) -> None:
    for _ in range(20):
        memory = aligned_empty(nbytes)
        assert memory.nbytes == nbytes
        assert memory.ctypes.data % SLOT_ALIGNMENT == 0 or nbytes == 0
        assert memory.flags.writeable
    assert SLOT_ALIGNMENT % FIELD_ALIGNMENT == 0


def test_a_ring_while_the_bell_is_being_silenced_does_not_swallow_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The flag that remembers a ring must not outlive the byte that carries it: once it did, and a
    # link slept through every release until its next heartbeat.
    wake = Wake()
    read = os.read

    def ring_then_read(fd: int, count: int) -> bytes:
        wake()
        return read(fd, count)

    wake()
    monkeypatch.setattr(os, "read", ring_then_read)
    wake.clear()
    monkeypatch.undo()
    wake()
    ready, _, _ = select.select([wake.reader], [], [], 0)
    assert ready
