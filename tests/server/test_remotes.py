"""Who has dialled in, by a clock of the test's: leases, deadlines, heirs, and what each is sent."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import wait_until

from augproto.codec import decode, encode
from augproto.messages import (
    VERSION,
    Announce,
    Assign,
    Bad,
    Bye,
    Define,
    Dismiss,
    Done,
    Enlist,
    Enlisted,
    Entry,
    Failed,
    Fault,
    Forget,
    Hello,
    Inputs,
    Lack,
    Message,
    Open,
    Piece,
    Place,
    Probe,
    Probed,
    Resign,
    Run,
)
from augproto.spec import Spec
from augserver import feeder
from augserver.afar import FIRST_REMOTE
from augserver.config import NO_BOUND, Config
from augserver.conversation import Ringed, open_stream
from augserver.datasets.arrays import hold
from augserver.dispatcher import MAX_ATTEMPTS, Dispatcher
from augserver.memory import Memory
from augserver.remotes import FIRST_TIMES, REMEMBERED, Remotes
from augserver.standing import MAX_ASKED

NAME = "0" * 31
SAMPLES, BATCH = 40, 8


class House:
    """A server without sockets and processes: remote workers are lists of what they were told."""

    def __init__(self, **keys: Any) -> None:
        self.config = Config(workers=0, listen_workers=("tcp://127.0.0.1:1",), **keys)
        self.dispatcher = Dispatcher()
        self.sent: dict[bytes, list[Message]] = {}
        self.unreachable: set[bytes] = set()
        self.told: list[tuple[int, Message]] = []
        self.asked: list[tuple[int, int]] = []
        self.bad: list[Bad] = []
        self.now = 100.0
        self.remotes = Remotes(
            self.config,
            self.dispatcher,
            self.send,
            wake=lambda: None,
            ask=lambda worker, stream: self.asked.append((worker, stream)),
            tell=lambda of, message: self.told.append((of, message)) if message else None,
            note_bad=lambda _, bad: self.bad.extend(bad),
        )
        self.memory = Memory(most=NO_BOUND, workers=0, private=False)
        self.opened: list[Ringed] = []

    def send(self, identity: bytes, *frames: Any) -> bool:
        if identity in self.unreachable:
            return False
        self.sent.setdefault(identity, []).append(decode(bytes(frames[0])))
        return True

    def open(self, stream: int = 1, **options: Any) -> Ringed:
        rng = np.random.default_rng(stream)
        x = rng.integers(0, 256, (SAMPLES, 12, 12, 3)).astype(np.uint8)
        dataset = hold(f"d{stream}", {"x": x, "y": rng.random((SAMPLES, 2))}, self.memory)
        spec = Spec.from_wire(
            {"data": ["d.npz"], "x": "x", "y": "y", "batch_size": BATCH, "seed": 1} | options
        )
        wish = Open(None, spec.to_wire(), 4)
        ringed = open_stream(stream, wish, spec, dataset, self.config, self.memory)
        self.opened.append(ringed)
        self.dispatcher.open(stream, slots=4, steps=ringed.opened.steps)
        self.remotes.open(ringed, self.now)
        return ringed

    def close(self) -> None:
        self.remotes.close("the test is over")
        for ringed in self.opened:
            ringed.segment.close()
            ringed.dataset.close()
        self.memory.close()

    def say(self, identity: bytes, message: Message, *payload: bytes) -> None:
        self.remotes.take(identity, [encode(message), *payload], self.now)

    def enlist(self, identity: bytes, name: str, **more: Any) -> None:
        fields: dict[str, Any] = {"begun": 0, "version": VERSION} | more
        begun, version = fields.pop("begun"), fields.pop("version")
        self.say(identity, Enlist(version, name, "far", 7, "a machine", begun, **fields))

    def heard(self, identity: bytes, kind: type) -> list[Any]:
        return [m for m in self.sent.get(identity, []) if isinstance(m, kind)]

    def wait_for(self, identity: bytes, kind: type, count: int = 1) -> list[Any]:
        """Until it was told so many of that kind: inputs are read by threads."""

        def there() -> bool:
            self.remotes.send_ready()
            return len(self.heard(identity, kind)) >= count

        wait_until(there, f"{count} {kind.__name__}")
        return self.heard(identity, kind)

    def admitted(self, identity: bytes, name: str, stream: int = 1) -> int:
        """A worker that has dialled in, and whose probe is right; returns its number."""
        self.dispatcher.join(0)
        self.enlist(identity, name)
        self.wait_for(identity, Probe, len(self.heard(identity, Probe)) or 1)
        self.say(identity, Probed(stream, "d", "there"))
        self.remotes.look(self.now)
        for worker, of in self.asked:
            self.remotes.referred(worker, Probed(of, "d", "here"))
        self.dispatcher.leave(0)
        return next(n for n in self.dispatcher._afar if stream in self.dispatcher._afar[n].streams)

    def assign(self, *steps: int) -> None:
        self.dispatcher.want(1, [Run(0, step, 1) for step in steps], 10**6)
        for assignment in self.dispatcher.assign(self.now):
            self.remotes.assign(assignment, self.now)

    def states(self) -> list[str]:
        return [row.state for row in self.remotes.working]

    def pass_by(self, seconds: float, *alive: tuple[bytes, str]) -> None:
        """Let time pass in ticks, in which some workers are heard."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            for identity, name in alive:
                self.enlist(identity, name)
            self.remotes.look(self.now)


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


def name() -> str:
    return uuid.uuid4().hex


def slot_of(ringed: Ringed) -> bytes:
    return bytes(range(256)) * (ringed.ring.layout.slot_bytes // 256)


def give(house: House, identity: bytes, ringed: Ringed, place: Place) -> None:
    """Send a batch, whole."""
    data = slot_of(ringed)
    house.say(identity, Piece(1, place, "", 0, len(data)), data)
    house.say(
        identity,
        Done(1, (Entry(place.epoch, place.step, place.slot, place.sequence, BATCH),), 0.01),
    )


# -- dialling in --------------------------------------------------------------------------------


def test_a_worker_is_told_of_a_stream_then_sent_inputs_then_asked_to_probe(house: House) -> None:
    house.open()
    house.enlist(b"a", name())
    house.wait_for(b"a", Probe)
    kinds = [type(message) for message in house.sent[b"a"]]
    assert kinds == [Enlisted, Define, Inputs, Piece, Piece, Probe]
    (inputs,) = house.heard(b"a", Inputs)
    assert inputs.place == Place(0, 0, 0, 0)
    assert [load.name for load in inputs.loads] == ["x", "y"]
    assert len(inputs.samples) == 8 * BATCH
    assert house.states() == ["starting"]


def test_batches_are_given_when_the_probe_is_that_of_a_local_worker(house: House) -> None:
    ringed = house.open()
    house.admitted(b"a", name())
    assert house.states() == ["ready"]
    house.assign(0, 1)
    house.wait_for(b"a", Assign, 2)
    told = house.sent[b"a"]
    first = told.index(house.heard(b"a", Assign)[0])
    place = house.heard(b"a", Assign)[0].places[0]
    sent = [m for m in told[:first] if isinstance(m, Inputs) and m.place == place]
    assert len(sent) == 1, "its inputs come first"
    give(house, b"a", ringed, place)
    ((stream, announce),) = house.told
    assert stream == 1
    assert isinstance(announce, Announce)
    assert ringed.ring.carries(place.slot, 1, announce.entries[0])
    assert house.remotes.working[0].batches == 1
    layout = ringed.ring.layout
    assert ringed.ring.slot(place.slot)[64:].tobytes() == slot_of(ringed)[64 : layout.slot_bytes]


def test_another_digest_is_refused_and_named(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.open()
    house.dispatcher.join(0)
    house.enlist(b"a", name())
    house.remotes.look(house.now)
    house.remotes.referred(0, Probed(1, "here's", "this machine"))
    house.wait_for(b"a", Probe)
    house.say(b"a", Probed(1, "another", "it says so"))
    assert house.states() == ["refused"]
    assert "another on a machine, but here's here, on this machine" in caplog.text
    house.dispatcher.leave(0)
    house.assign(0)
    assert house.heard(b"a", Assign) == []


def test_a_stream_whose_first_batch_ends_local_workers_is_left_to_them(house: House) -> None:
    house.open()
    for worker in range(MAX_ASKED + 3):
        house.dispatcher.join(worker)
        house.enlist(b"a", NAME + "a")
        house.remotes.look(house.now)
        house.remotes.local_left(worker)
        house.dispatcher.leave(worker)
    assert len(house.asked) == MAX_ASKED
    house.wait_for(b"a", Probe)
    house.say(b"a", Probed(1, "d", "there"))
    house.assign(0)
    assert house.heard(b"a", Assign) == []


def test_what_needs_too_much_at_once_is_not_sent(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "MAX_INPUT_BYTES", BATCH * 12 * 12 * 3)
    ringed = house.open()  # x would fit, but not with y
    house.enlist(b"a", name())
    house.remotes.send_ready()
    assert house.heard(b"a", Define) == []
    assert "Make batch_size smaller" in str(feeder.unsuited(ringed.recipe))
    monkeypatch.setattr(feeder, "MAX_INPUT_BYTES", BATCH * (12 * 12 * 3 + 16))
    assert feeder.unsuited(ringed.recipe) is None


@pytest.mark.parametrize(
    ("enlist", "kind"),
    [
        ({"version": (VERSION[0] + 1, 0)}, "VersionMismatch"),
        ({"version": ()}, "VersionMismatch"),
        ({"name": "x" * 32}, "RemoteProtocolError"),
        ({"name": "a" * 31}, "RemoteProtocolError"),
    ],
)
def test_who_cannot_be_taken_is_told_why_and_complained_of_once(
    house: House, caplog: pytest.LogCaptureFixture, enlist: dict[str, Any], kind: str
) -> None:
    for _ in range(5):
        house.enlist(b"a", **({"name": name()} | enlist))
    assert {fault.kind for fault in house.heard(b"a", Fault)} == {kind}
    assert caplog.text.count("refused") == 1
    assert house.states() == []


def test_no_more_are_taken_than_the_config_says() -> None:
    house = House(max_workers=2)
    for number in range(3):
        house.enlist(b"%d" % number, NAME + str(number))
    assert [fault.kind for fault in house.heard(b"2", Fault)] == ["ConfigError"]
    house.say(b"0", Resign("goes"))
    house.enlist(b"2", NAME + "2")
    assert len(house.states()) == 2
    house.close()


def test_who_says_nothing_that_can_be_understood_is_told_so_and_others_go_on(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.enlist(b"a", NAME + "a")
    for frames in ([b""], [b"\xff"], [b"x", b"y"], [encode(Bye("x"))], [encode(Resign("x")), b""]):
        house.remotes.take(b"b", frames, house.now)
    house.say(b"a", Forget(1))
    assert len(house.heard(b"b", Fault)) == 4
    assert [f.kind for f in house.heard(b"a", Fault)] == ["RemoteProtocolError"]
    assert caplog.text.count("a stranger at the door for workers: refused") == 1
    assert house.states() == ["ready"]


# -- leaving and coming back --------------------------------------------------------------------


def test_silence_gives_its_work_to_others_and_an_enlist_brings_it_back(house: House) -> None:
    house.open()
    who = name()
    number = house.admitted(b"a", who)
    house.assign(0)
    house.pass_by(house.config.worker_lease - 0.5)
    assert house.dispatcher.load(number) == 1
    house.pass_by(1.0)
    assert house.states() == ["silent"]
    assert house.dispatcher.table(1).free == 4
    house.enlist(b"a", who)
    assert [said.fresh for said in house.heard(b"a", Enlisted)].count(True) == 2
    assert house.remotes.working[0].number == number - FIRST_REMOTE
    house.wait_for(b"a", Probe, 2)
    house.say(b"a", Probed(1, "d", "there"))
    assert house.states() == ["ready"]
    house.assign(0)
    assert house.dispatcher.load(number) == 1


def test_what_comes_late_from_before_it_was_given_up_changes_nothing(house: House) -> None:
    ringed = house.open()
    who = name()
    house.admitted(b"a", who)
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    house.pass_by(house.config.worker_lease + 1)
    before = ringed.ring.memory.copy()
    give(house, b"a", ringed, place)
    house.enlist(b"a", who)
    give(house, b"a", ringed, place)
    assert house.told == []
    assert house.heard(b"a", Fault) == []
    assert np.array_equal(ringed.ring.memory, before)


def test_when_the_loop_itself_was_away_nobody_was_silent(house: House) -> None:
    house.enlist(b"a", name())
    house.remotes.look(house.now)
    house.now += 60.0
    house.remotes.look(house.now)
    assert house.states() == ["ready"]
    house.pass_by(house.config.worker_lease + 0.5)
    assert house.states() == ["silent"]


def test_one_that_cannot_be_reached_has_left_with_the_next_look(house: House) -> None:
    house.open()
    number = house.admitted(b"a", name())
    house.assign(0)
    house.unreachable.add(b"a")
    house.pass_by(0.25)
    assert house.states() == []
    assert house.dispatcher.held(number) == []
    assert house.dispatcher.table(1).free == 4


def test_by_another_connection_or_name_it_begins_anew(house: House) -> None:
    who = name()
    house.enlist(b"a", who)
    house.enlist(b"b", who)
    assert house.heard(b"b", Enlisted)[0].fresh
    assert len(house.states()) == 1
    house.enlist(b"b", name())
    assert len(house.states()) == 1, "one connection, one worker"


def test_a_stuck_one_is_dismissed_and_stays_so(house: House) -> None:
    house.open()
    who = name()
    number = house.admitted(b"a", who)
    house.assign(0)
    house.pass_by(house.config.worker_deadline - 1, (b"a", who))
    assert house.states() == ["ready"]
    house.pass_by(2, (b"a", who))
    assert house.states() == []
    assert "got on with nothing" in house.heard(b"a", Dismiss)[0].reason
    assert house.dispatcher.held(number) == []
    house.enlist(b"a", who)
    assert len(house.heard(b"a", Dismiss)) > 1
    assert house.states() == []


@pytest.mark.parametrize("sign", ["a sample", "a piece"])
def test_whoever_gets_on_with_something_is_not_stuck(house: House, sign: str) -> None:
    ringed = house.open()
    who = name()
    house.admitted(b"a", who)
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    for begun in range(1, 4):
        house.pass_by(house.config.worker_deadline - 1, (b"a", who))
        if sign == "a sample":
            house.enlist(b"a", who, begun=begun)
        else:
            size = ringed.ring.layout.slot_bytes
            house.say(b"a", Piece(1, place, "", 1024 * begun, size), b"x" * 1024)
    assert house.states() == ["ready"]


def test_an_idle_one_is_never_stuck_and_the_first_batch_has_longer(house: House) -> None:
    who = name()
    house.enlist(b"a", who)
    house.pass_by(100, (b"a", who))
    assert house.states() == ["ready"]
    house.open()  # and it never probes
    house.pass_by(FIRST_TIMES * house.config.worker_deadline - 1, (b"a", who))
    assert house.states() == ["starting"]
    house.pass_by(3, (b"a", who))
    assert house.states() == []


def test_who_left_long_ago_is_forgotten(house: House) -> None:
    who = name()
    house.enlist(b"a", who)
    house.pass_by(house.config.worker_lease + 0.5)
    house.pass_by(REMEMBERED + 1)
    assert house.states() == []
    assert not house.remotes._by_name
    assert not house.remotes._by_identity


def test_the_end_is_said_to_all(house: House) -> None:
    house.enlist(b"a", name())
    house.enlist(b"b", name())
    house.remotes.close("enough")
    assert [house.heard(who, Bye)[0].reason for who in (b"a", b"b")] == ["enough"] * 2


# -- heirs --------------------------------------------------------------------------------------


def test_three_heirs_give_up_the_batch_over_which_their_ancestors_died(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.open()
    heir = ""
    for number in range(MAX_ATTEMPTS + 1):
        identity, who = b"%d" % number, NAME + str(number)
        house.enlist(identity, who, heir=heir, cause="was killed by SIGSEGV", traceback="lines")
        house.enlist(identity, who, heir=heir, cause="was killed by SIGSEGV", traceback="lines")
        if number == MAX_ATTEMPTS:
            break
        house.admitted(identity, who)
        house.assign(0, 1)
        heir = who
    ((stream, fault),) = house.told
    assert isinstance(fault, Fault)
    assert (stream, fault.epoch, fault.step, fault.traceback) == (1, 0, 0, "lines")
    assert "3 times: on far was killed by SIGSEGV" in fault.message
    assert caplog.text.count("is suspected") == MAX_ATTEMPTS, "each death is told once"


def test_an_heir_that_comes_too_late_or_of_nobody_blames_nothing(house: House) -> None:
    house.open()
    who = name()
    house.admitted(b"a", who)
    house.assign(0)
    house.unreachable.add(b"a")
    house.pass_by(REMEMBERED - 5)
    house.now += 10.0
    house.enlist(b"b", name(), heir=who, cause="was killed")
    house.enlist(b"c", name(), heir=name(), cause="was killed")
    assert not house.dispatcher._streams[1].losses


# -- what they ask for --------------------------------------------------------------------------


def samples(*numbers: int) -> bytes:
    return np.array(numbers, "<i8").tobytes()


def test_what_a_batch_lacks_is_sent_for_its_place_while_it_is_its_own(house: House) -> None:
    house.open()
    number = house.admitted(b"a", name())
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    sent = len(house.heard(b"a", Inputs))
    house.say(b"a", Lack(1, place, samples(3, 39)))
    answer = house.wait_for(b"a", Inputs, sent + 1)[-1]
    assert (answer.place, answer.samples) == (place, samples(3, 39))
    house.say(b"a", Lack(1, place._replace(slot=3), samples(3)))
    house.dispatcher.leave(number, guess=False)
    house.say(b"a", Lack(1, place, samples(3)))
    house.say(b"a", Lack(2, place, samples(3)))
    house.remotes.send_ready()
    assert len(house.heard(b"a", Inputs)) == sent + 1
    assert house.heard(b"a", Fault) == []


@pytest.mark.parametrize("wanted", [b"", b"123", samples(40), samples(-1), samples(*range(9))])
def test_a_lack_of_nothing_or_of_what_there_is_not_is_refused(house: House, wanted: bytes) -> None:
    house.open()
    house.admitted(b"a", name())
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    house.say(b"a", Lack(1, place, wanted))
    assert [fault.kind for fault in house.heard(b"a", Fault)] == ["RemoteProtocolError"]


def test_a_failure_is_told_with_the_path_that_this_machine_knows(house: House) -> None:
    house.open()
    house.admitted(b"a", name())
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    house.say(b"a", Failed(1, place, "no", 2**63, "tb", "/a/path/of/its/own"))
    ((_, fault),) = house.told
    assert isinstance(fault, Fault)
    assert (fault.message, fault.path) == ("no", "")


def test_places_that_others_have_by_the_time_are_not_sent(house: House) -> None:
    house.open()
    number = house.admitted(b"a", name())
    house.dispatcher.want(1, [Run(0, 0, 2)], 10**6)
    assignments = house.dispatcher.assign(house.now)
    for assignment in assignments:  # given to somebody else before anything was read
        for place in assignment.places:
            house.dispatcher.give_back(number, 1, place)
        house.remotes.assign(assignment, house.now)
    house.assign(3)
    told = house.wait_for(b"a", Assign)
    taken = {place for assignment in assignments for place in assignment.places}
    assert taken.isdisjoint(p for assign in told for p in assign.places)
    assert taken.isdisjoint(inputs.place for inputs in house.heard(b"a", Inputs))


# -- what comes ---------------------------------------------------------------------------------


def pieces(size: int, *spans: tuple[int, int]) -> Iterable[tuple[int, bytes]]:
    for start, end in spans:
        yield start, b"x" * (min(end, size) - start)


@pytest.mark.parametrize(
    "order", [[(0, 4096), (4096, 1 << 20)], [(4096, 1 << 20), (0, 5000)], [(64, 1 << 20)]]
)
def test_a_batch_is_whole_in_any_order_of_its_pieces(
    house: House, order: list[tuple[int, int]]
) -> None:
    ringed = house.open()
    house.admitted(b"a", name())
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    size = ringed.ring.layout.slot_bytes
    for start, data in pieces(size, *order):
        house.say(b"a", Piece(1, place, "", start, size), data)
    house.say(
        b"a", Done(1, (Entry(place.epoch, place.step, place.slot, place.sequence, BATCH),), 0.01)
    )
    assert [type(message) for _, message in house.told] == [Announce]


def test_nothing_is_written_by_whom_a_place_was_taken_from(house: House) -> None:
    ringed = house.open()
    house.admitted(b"a", name())
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    house.dispatcher.join(0)
    (stolen,) = house.dispatcher.assign(house.now + 60)  # by a local one, which writes the slot
    assert (stolen.worker, stolen.places) == (0, (place,))
    before = ringed.ring.memory.copy()
    give(house, b"a", ringed, place)
    assert np.array_equal(ringed.ring.memory, before)
    assert house.told == []
    assert house.heard(b"a", Fault) == []
    assert house.dispatcher.owns(0, 1, place)


def test_a_slot_s_header_is_not_the_sender_s_to_write(house: House) -> None:
    ringed = house.open()
    house.admitted(b"a", name())
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    before = ringed.ring.read(place.slot)
    data = slot_of(ringed)
    house.say(b"a", Piece(1, place, "", 0, len(data)), data)
    assert ringed.ring.slot(place.slot)[64:].tobytes() == data[64:]
    assert ringed.ring.read(place.slot) == before


@pytest.mark.parametrize("count", [0, BATCH - 1, BATCH + 1, 2**63])
def test_a_batch_of_another_number_of_samples_is_none(house: House, count: int) -> None:
    ringed = house.open()
    number = house.admitted(b"a", name())
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    data = slot_of(ringed)
    house.say(b"a", Piece(1, place, "", 0, len(data)), data)
    house.say(
        b"a", Done(1, (Entry(place.epoch, place.step, place.slot, place.sequence, count),), 0.01)
    )
    assert f"got a batch of {count} samples" in house.heard(b"a", Fault)[0].message
    assert house.told == []
    assert house.dispatcher.load(number) == 0
    assert list(house.dispatcher._streams[1].wishes.wanted) == [(0, 0)]
    assert house.states() == ["refused"]


@pytest.mark.parametrize(
    ("offset", "length", "size"),
    [(0, 0, 0), (0, 0, 4096), (2**63, 10, 2**64 - 1), (0, 5000, 4096), (0, 10, 1 << 40)],
)
def test_a_piece_that_lies_outside_is_refused_and_nothing_written(
    house: House, offset: int, length: int, size: int
) -> None:
    ringed = house.open()
    house.admitted(b"a", name())
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    before = ringed.ring.memory.copy()
    house.say(b"a", Piece(1, place, "", offset, size), b"x" * length)
    assert "within the" in house.heard(b"a", Fault)[0].message
    assert np.array_equal(ringed.ring.memory, before)


def test_crumbs_without_end_are_refused(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    ringed = house.open(batch_size=40, target_size=[64, 64])
    house.admitted(b"a", name())
    house.assign(0)
    place = house.wait_for(b"a", Assign)[0].places[0]
    size = ringed.ring.layout.slot_bytes
    for offset in range(64, size, 2):
        house.say(b"a", Piece(1, place, "", offset, size), b"x")
        if house.heard(b"a", Fault):
            break
    assert "stretches" in house.heard(b"a", Fault)[0].message
    assert caplog.text.count("stretches") <= 2


# -- files --------------------------------------------------------------------------------------


def test_files_are_read_by_the_rules_of_a_local_worker(tmp_path: Path) -> None:
    from augserver.datasets.listing import list_files
    from augserver.desk import recipe_of
    from augserver.transforms import SampleError

    (tmp_path / "cat").mkdir()
    for i in range(4):
        (tmp_path / "cat" / f"{i}.png").write_bytes(bytes([i]) * (10 + i))

    def portion(policy: str, most: int = 1000) -> feeder.Portion:
        spec = Spec.from_wire(
            {
                "data": [str(tmp_path)], "target_size": [8, 8], "batch_size": 4, "seed": 1,
                "bad_samples": policy, "pictures": {"label_mode": "sparse", "max_bytes": most},
            }
        )  # fmt: skip
        assert spec.pictures is not None
        listing = list_files(spec.data[0], spec.pictures)
        recipe = recipe_of(
            spec.with_classes(listing.class_names), 1, listing.arrays, describes=True
        )
        order = np.array([2, 0, 3], np.int64)
        return feeder.Portion(recipe, 1, Place(0, 0, 0, 1), recipe.inputs, order)

    fed = feeder.read(portion("raise"))
    inputs = decode(bytes(fed.messages[0][0]))
    assert isinstance(inputs, Inputs)
    assert [load.name for load in inputs.loads] == ["label", "files"]
    assert np.frombuffer(inputs.ends, "<i8").tolist() == [12, 22, 35]
    assert bytes(fed.messages[-1][1]) == bytes([2]) * 12 + bytes([0]) * 10 + bytes([3]) * 13
    assert portion("raise").nbytes == sum(load.size for load in inputs.loads)

    with pytest.raises(SampleError, match="wanted at most 12") as caught:
        feeder.read(portion("raise", most=12))
    assert (caught.value.sample, caught.value.final) == (3, False)
    spared = feeder.read(portion("skip", most=12))
    assert list(spared.reasons) == [3]
    assert "wanted at most 12" in spared.reasons[3]
    gone = portion("skip")
    (tmp_path / "cat" / "0.png").unlink()
    with pytest.raises(SampleError, match="gone") as caught:
        feeder.read(gone)
    assert (caught.value.sample, caught.value.final) == (0, True), "no property of the dataset"


def test_a_consumer_at_the_workers_door_is_told_which_one_is_its_own(house: House) -> None:
    house.say(b"c", Hello(VERSION, "program", 1))
    (fault,) = house.heard(b"c", Fault)
    assert fault.kind == "NotAllowed"
    assert "consumers connect to one of the server's `listen`" in fault.message
