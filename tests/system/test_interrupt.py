"""Ctrl-C at every place where Python can raise it, and where it cannot: nothing is left half done.

CPython handles a signal where it enters a function, after it has called one, and where it jumps
back. So the first test does not send signals at random and hope; it goes through all these places.
"""

from __future__ import annotations

import dis
import functools
import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from processes import python, wait_until

import augclient
from augclient import Consumer, interrupt

CLIENT = str(Path(augclient.__file__).parent)
PLACES = ("CALL", "RESUME", "JUMP_BACKWARD", "SEND")


@functools.cache
def _after_a_check(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions before which CPython may have run a signal's handler."""
    instructions = list(dis.get_instructions(code))
    return frozenset(
        after.offset
        for before, after in itertools.pairwise(instructions)
        if before.opname.startswith(PLACES)
    )


class CtrlC:
    """Raises KeyboardInterrupt at the n-th place of the client's code where a signal could."""

    def __init__(self, place: int) -> None:
        self._left = place
        self.raised = False

    def __enter__(self) -> CtrlC:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(CLIENT):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode" and frame.f_lasti in _after_a_check(frame.f_code) and not self.raised:
            self._left -= 1
            if self._left < 0:
                self.raised = True
                raise KeyboardInterrupt
        return self._step


def _checked(consumer: Consumer, epoch: int, step: int) -> None:
    x = consumer.get(epoch, step).x
    assert isinstance(x, np.ndarray)
    assert (x[:, 0] == np.arange(step * 4, step * 4 + 4)).all(), "the batch that was asked for"


@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger or a coverage tool traces")
# Python itself prints and forgets what is raised in a finalizer; the slot must be released even so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("keeps", [0, 7], ids=["leases", "copies"])
def test_ctrl_c_at_any_place_of_a_fetch_loses_no_slot_and_no_lock(keeps: int) -> None:
    x = np.arange(400.0)[:, None]
    with Consumer(x, batch_size=4, shuffle=False, slots=8, workers=1) as consumer:
        kept = [consumer.get(0, step) for step in range(keeps)]
        link: Any = consumer._source
        place = quiet = 0
        while quiet < 3:  # a fetch of a batch that is not there yet has more places
            epoch, step = divmod(keeps + place, 100)
            with CtrlC(place) as ctrl_c:
                try:
                    _checked(consumer, epoch, step)
                except KeyboardInterrupt:
                    assert ctrl_c.raised
            quiet = 0 if ctrl_c.raised else quiet + 1
            place += 1
            assert not link._turn._is_owned()
            assert not link._lock._is_owned()
            assert consumer.leased == min(keeps, 7)
        assert place > 50
        for step in range(100):
            _checked(consumer, 50, step)  # with all slots that are not kept
        assert consumer.leased == len({id(batch) for batch in kept})
        kept.clear()
        wait_until(lambda: consumer.leased == 0, "all slots to be released")
        copies = consumer.copies
        for step in range(100):
            _checked(consumer, 60, step)
        assert consumer.copies == copies


def test_signals_go_on_to_whoever_heard_of_them_before_and_it_is_put_back() -> None:
    # In a program of its own: here other links may be open, such as a desk's.
    ran = python(
        """
import os, select, signal
import numpy as np
from augclient import Consumer
reader, writer = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
signal.signal(signal.SIGUSR1, lambda number, frame: None)
with Consumer(np.zeros((8, 1)), batch_size=4, workers=1):
    os.kill(os.getpid(), signal.SIGUSR1)
    assert select.select([reader], [], [], 10.0)[0]
    assert os.read(reader, 10) == bytes([signal.SIGUSR1])
assert signal.set_wakeup_fd(writer, warn_on_full_buffer=False) == writer
"""
    )
    assert ran.returncode == 0, ran.stderr


class _Waits:
    """Something that others wait in."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.interrupted = threading.Event()

    def interrupt(self, until: float) -> None:
        if self.began <= until:
            self.interrupted.set()


def test_only_pythons_own_handler_of_ctrl_c_ends_a_wait() -> None:
    ours = _Waits()
    handler = signal.signal(signal.SIGINT, lambda number, frame: None)
    interrupt.attend(ours)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        # Whoever has a handler of his own has his own idea of what Ctrl-C is.
        assert not ours.interrupted.wait(3 * interrupt.GRACE)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert ours.interrupted.wait(10.0), "this waits, as TensorFlow does for its threads"
    finally:
        signal.signal(signal.SIGINT, handler)
        interrupt.leave(ours)


def test_what_begins_after_ctrl_c_was_heard_is_left_alone() -> None:
    before = _Waits()
    interrupt.attend(before)
    try:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        end = time.monotonic() + 2 * interrupt.GRACE
        while time.monotonic() < end:
            pass  # the main thread goes on: it has heard
        after = _Waits()
        interrupt.attend(after)
        assert before.interrupted.wait(10.0), "the main thread stands still again"
        assert not after.interrupted.wait(2 * interrupt.GRACE)
    finally:
        interrupt.leave(before)
        interrupt.leave(after)


FORKED = """
import os, signal, sys, threading, warnings
import numpy as np
from augclient import Consumer, interrupt
warnings.simplefilter("ignore")  # a fork beside threads
class Waits:
    interrupted = threading.Event()
    def interrupt(self, until):
        self.interrupted.set()
waits = Waits()
interrupt.attend(waits)
child = os.fork()
if child == 0:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 3)
assert os.waitpid(child, 0)[1] == 0
assert not waits.interrupted.wait(1.0)
print("right")
"""


def test_ctrl_c_in_a_forked_child_is_none_of_its_parents() -> None:
    done = python(FORKED, timeout=60)
    assert (done.stdout, done.returncode) == ("right\n", 0), done.stderr


AT_RANDOM = """
import os, random, signal, sys
import numpy as np
from augclient import Consumer, local
from augserver import health

rng = random.Random(int(sys.argv[1]))
big = np.arange(4 << 20, dtype=np.uint8).reshape(-1, 64, 64, 1)
small = np.arange(400.0)[:, None]
ended = set()

def twice(picture):
    return picture + picture

def starts():
    local.shut_down()
    Consumer(small, batch_size=4, workers=1)

def connects():
    Consumer(stream="none", address="ipc:///nobody/is/here")

def hands_over():
    with Consumer(big + rng.randrange(256), batch_size=4, workers=1, function=twice) as consumer:
        consumer.get(0, 0)

def closes():
    Consumer(small, batch_size=4, workers=1).close()

# An alarm that is taken for Ctrl-C: a thread that presses it could itself be cut at its start.
signal.signal(signal.SIGALRM, signal.default_int_handler)

def several(what, most, times):
    for _ in range(times):
        try:
            # Once more after a second: Python loses one that hits a finalizer.
            signal.setitimer(signal.ITIMER_REAL, 0.001 + rng.random() * most, 1.0)
            what()
            signal.pause()
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            ended.add(what.__name__)

several(starts, 1.5, 2)
local.shut_down()
with Consumer(small, batch_size=4, shuffle=False, workers=1) as consumer:
    several(connects, 0.3, 3)
    several(hands_over, 0.1, 12)
    several(closes, 0.05, 12)
    for step in range(100):
        assert consumer.get(0, step).x[0, 0] == 4 * step
    _, status = health.ask(local._server.address, 30)
    segments = [name for name in os.listdir("/dev/shm") if f"-{local._server.pid:x}" in name]
    print(sorted(ended), status.consumers, len(segments))
"""


def test_ctrl_c_while_something_starts_connects_or_closes_leaves_nothing_behind() -> None:
    done = python(AT_RANDOM, "1", timeout=200)
    # The one that was open all the time, with its arrays and its ring.
    assert done.stdout == "['closes', 'connects', 'hands_over', 'starts'] 1 2\n", done.stderr
