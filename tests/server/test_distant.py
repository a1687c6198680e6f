"""A distant worker by itself: what it does between its line and its recipes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from foreman import Foreman, foreman

from augproto.errors import ConfigError, VersionMismatch
from augproto.messages import (
    VERSION,
    Assign,
    Define,
    Done,
    Failed,
    Fault,
    Forget,
    Inputs,
    Lack,
    Load,
    Message,
    Place,
    Resign,
    Source,
)
from augproto.spec import Spec
from augserver import dial, distant
from augserver.distant import DistantWorker
from augserver.inline import Inline
from augserver.intake import Arrived
from augserver.keeping import Event, Fresh

Array = np.ndarray[Any, Any]
X = np.arange(40 * 3, dtype=np.int32).reshape(40, 3)
SPEC = Spec(data=("a",), x="x", batch_size=4, shuffle=False)


class Wire:
    """What a test says, in order, and what the worker says."""

    def __init__(self) -> None:
        self.begun = 0
        self.stale = False
        self.coming: deque[Event | None] = deque()
        self.said: list[Message] = []
        self.batches: list[tuple[Place, bytes]] = []

    def receive(self, seconds: float) -> Event | None:
        event = self.coming.popleft() if self.coming else None
        self.stale = self.stale and not isinstance(event, Fresh)
        return event

    def send(self, message: Message) -> None:
        if not self.stale:
            self.said.append(message)

    def send_batch(self, stream: int, place: Place, slot: memoryview) -> None:
        if not self.stale:
            self.batches.append((place, bytes(slot)))


def place(step: int) -> Place:
    return Place(0, step, 3, step + 1)


def arrived(where: Place, *samples: int) -> Arrived:
    data = bytearray(X[list(samples)].tobytes())
    inputs = Inputs(1, where, np.array(samples, "<i8").tobytes(), (Load("x", len(data)),))
    return Arrived(inputs, {"x": data})


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def worker(wire: Wire) -> DistantWorker:
    made = DistantWorker(wire, ())
    made.take(Define(1, SPEC.to_wire(), 0, (Source("x", "<i4", X.shape, "", 0),), "", 0))
    return made


def test_each_batch_of_an_assignment_is_told_by_itself(wire: Wire, worker: DistantWorker) -> None:
    worker.take(arrived(place(0), 0, 1, 2, 3))
    worker.take(arrived(place(1), 4, 5, 6, 7))
    worker.take(Assign(1, (place(0), place(1))))
    assert [message.entries for message in wire.said if isinstance(message, Done)] == [
        ((0, 0, 3, 1, 4),),
        ((0, 1, 3, 2, 4),),
    ]
    for step, (where, slot) in enumerate(wire.batches):
        assert where == place(step)
        assert slot[:8] == b"augbatch"
        assert X[4 * step : 4 * step + 4].tobytes() in slot
    assert wire.begun >= 2


def test_what_comes_while_inputs_are_awaited_is_taken_afterwards(
    wire: Wire, worker: DistantWorker
) -> None:
    wire.coming += [arrived(place(1), 4, 5, 6, 7), None, Assign(1, (place(1),))]
    wire.coming += [arrived(place(0), 1), arrived(place(0), 0, 2, 3)]
    worker.take(Assign(1, (place(0),)))
    lack, done = wire.said
    assert lack == Lack(1, place(0), np.arange(4).astype("<i8").tobytes())
    assert isinstance(done, Done)
    while (event := worker.next(0)) is not None:
        worker.take(event)
    assert len(wire.batches) == 2


def test_inputs_that_never_come_end_the_batch_alone(
    wire: Wire, worker: DistantWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distant, "LACK_SECONDS", 0.0)
    worker.take(Assign(1, (place(0),)))
    _, failed = wire.said
    assert isinstance(failed, Failed)
    assert "has not sent samples [0, 1, 2, 3] within 0 s of being asked" in failed.message
    worker.take(arrived(place(1), 4, 5, 6, 7))
    worker.take(Assign(1, (place(1),)))
    assert isinstance(wire.said[-1], Done)


def test_a_server_that_forgets_the_worker_meanwhile_hears_nothing_of_it(
    wire: Wire, worker: DistantWorker
) -> None:
    wire.coming += [Assign(1, (place(2),)), Fresh(), Forget(9)]
    worker.take(Assign(1, (place(0), place(1))))
    assert [type(message) for message in wire.said] == [Lack], "and the next is not begun"
    wire.said.clear()
    while (event := worker.next(0)) is not None:
        worker.take(event)
    assert (wire.said, wire.batches) == ([], [])
    worker.take(Assign(1, (place(3),)))
    (failed,) = wire.said
    assert isinstance(failed, Failed)
    assert "was never defined here" in failed.message


def test_a_batch_that_is_not_wanted_any_more_is_not_begun(
    wire: Wire, worker: DistantWorker
) -> None:
    worker.take(arrived(place(0), 0, 1, 2, 3))
    wire.stale = True
    worker.take(Assign(1, (place(0),)))
    assert wire.begun == 0


def test_inputs_that_do_not_fit_end_their_batch_with_words(
    wire: Wire, worker: DistantWorker
) -> None:
    worker.take(arrived(place(0), 0, 1, 2, 3))
    odd = arrived(place(1), 4, 5, 6, 7)
    odd.loads["x"].pop()
    worker.take(odd)
    worker.take(Assign(1, (place(1), place(0))))
    failed, done = wire.said
    assert isinstance(failed, Failed)
    assert "got 47 bytes of 'x'; wanted 48" in failed.message
    assert isinstance(done, Done)


def test_whole_arrays_that_were_not_sent_are_named(wire: Wire) -> None:
    worker = DistantWorker(wire, ())
    spec = Spec(data=("a",), x="x", batch_size=4, whitening="w")
    sources = (Source("x", "|u1", (9, 2, 2, 1), "", 0), Source("w", "<f4", (4, 4), "", 0))
    worker.take(Define(1, spec.to_wire(), 0, sources, "", 0))
    worker.take(Assign(1, (place(0),)))
    (failed,) = wire.said
    assert isinstance(failed, Failed)
    assert "the arrays w are needed as a whole" in failed.message


def test_a_short_batch_is_sent_up_to_its_end(wire: Wire) -> None:
    worker = DistantWorker(wire, ())
    spec = Spec(data=("a",), x="x", batch_size=4000, shuffle=False)
    rows = 5000
    x = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    worker.take(Define(1, spec.to_wire(), 0, (Source("x", "<i4", x.shape, "", 0),), "", 0))
    for step, samples in enumerate((range(4000), range(4000, 5000))):
        data = bytearray(x[list(samples)].tobytes())
        indexes = np.array(samples, "<i8").tobytes()
        inputs = Inputs(1, place(step), indexes, (Load("x", len(data)),))
        worker.take(Arrived(inputs, {"x": data}))
        worker.take(Assign(1, (place(step),)))
    whole, short = (slot for _, slot in wire.batches)
    assert len(whole) % 4096 == 0
    assert len(short) == 64 + 1000 * 12
    assert short[64:] == x[4000:].tobytes()


# -- in the calling process ------------------------------------------------------------------------


class Serving(threading.Thread):
    """`serve` in a thread of the test's."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.stopping = threading.Event()
        self.raised: BaseException | None = None

    def run(self) -> None:
        try:
            dial.serve(self.address, should_stop=self.stopping.is_set)
        except BaseException as error:
            self.raised = error


@pytest.fixture
def server() -> Iterator[Foreman]:
    with foreman() as made:
        yield made


def test_one_worker_serves_in_the_calling_process_until_it_is_told_to_stop(
    server: Foreman,
) -> None:
    serving = Serving(server.address)
    serving.start()
    try:
        server.enlisted()
        spec = Spec(data=("a",), x="x", batch_size=4, seed=1)
        server.define(1, spec, 1, {"x": X})
        own = Inline(spec, {"x": X}, None, "")
        for step, result in enumerate(server.epoch(1, 0)):
            assert result.fields is not None, result.failed
            assert np.array_equal(result.fields["x"], own.fetch((0, step), 1.0)["x"])
    finally:
        serving.stopping.set()
        server.until(lambda: not serving.is_alive(), "its end")
    server.until(lambda: not server.guests, "a word at the end")
    assert serving.raised is None
    assert isinstance(server.said[-1][1], Resign)


def test_serve_raises_what_no_dialling_mends(server: Foreman) -> None:
    with pytest.raises(ConfigError, match=r"connect: got 'no/address' .* wanted tcp://HOST:PORT"):
        dial.serve("no/address")
    server.version = (VERSION[0] + 1, 0)
    serving = Serving(server.address)
    serving.start()
    server.until(lambda: not serving.is_alive(), "its end")
    assert isinstance(serving.raised, VersionMismatch)


def test_a_refusal_that_may_end_is_told_and_asked_again(
    server: Foreman, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = False
    serving = Serving(server.address)
    serving.start()
    try:
        for _ in range(2):
            before = len(server.said)
            server.until(lambda: len(server.said) > before, "it to ask")  # noqa: B023
            server.refuse(Fault("ConfigError", "max_workers: 1 are here already"))
        server.answers = True
        server.enlisted()
    finally:
        serving.stopping.set()
        server.until(lambda: not serving.is_alive(), "its end")
    assert caplog.text.count("max_workers: 1 are here already") == 1
