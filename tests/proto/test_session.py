"""Both ends agree on what was said, refuse what the table forbids, and know who is silent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from augproto.codec import encode
from augproto.errors import LocalProtocolError, RemoteProtocolError, VersionMismatch
from augproto.messages import (
    CODES,
    VERSION,
    Announce,
    AreFiles,
    ArraySpec,
    AskStatus,
    Bye,
    Close,
    Entry,
    Fault,
    FilesAre,
    Filled,
    Folder,
    Heartbeat,
    Hello,
    Message,
    Offer,
    Open,
    Opened,
    Piece,
    Place,
    Release,
    Room,
    Run,
    Source,
    Status,
    Taken,
    Upload,
    Walk,
    Walked,
    Want,
    Welcome,
)
from augproto.session import TRANSITIONS, Role, Session, State

if TYPE_CHECKING:
    from tests.conftest import Clock, SessionPair

OPENED = Opened(1, "augserver-1", 4, 8, (), {"x": "x"}, 10, 80, True, 7, "f")
#: One of each message of a conversation.
SAID: tuple[Message, ...] = (
    Hello(VERSION, "test", 1),
    Welcome(VERSION, 2, 30.0),
    Open("cifar", None, None),
    OPENED,
    Want((Run(0, 0, 4),), 0, (Release(1, 2),)),
    Announce(1, (Entry(0, 0, 0, 1, 8),)),
    Fault("NoRoom", "full"),
    Heartbeat(),
    Close(),
    Bye("the server ends"),
    AskStatus(),
    Status(("cifar",), 1, 2, 2, 0, 0),
    Offer("f", (ArraySpec("x", "|u1", (4,)),), "o" * 16),
    Room("f", (Source("x", "|u1", (4,), "", 0),)),
    Upload("f", 0, b"1234"),
    Taken("f", 4),
    Filled("f"),
    Walk(b"/data"),
    Walked((Folder(b"/data", (b"cat",), (b"a.png",)),), False),
    AreFiles((b"/data/a.png",)),
    FilesAre((True,)),
    Piece(1, Place(0, 0, 1, 2), "", 0, 4),
)
OURS = re.escape(".".join(map(str, VERSION)))
ONE = {type(message): message for message in SAID}

#: What leads from nothing to each state.
WAYS: dict[State, list[tuple[Role, Message]]] = {
    State.IDLE: [],
    State.GREETING: [(Role.CONSUMER, ONE[Hello])],
    State.READY: [(Role.SERVER, ONE[Welcome])],
    State.OFFERING: [(Role.CONSUMER, ONE[Offer])],
    State.LOOKING: [(Role.SERVER, ONE[Room]), (Role.CONSUMER, ONE[Walk])],
    State.OPENING: [(Role.SERVER, ONE[Walked]), (Role.CONSUMER, ONE[Open])],
    State.OPEN: [(Role.SERVER, OPENED)],
    State.CLOSED: [(Role.CONSUMER, ONE[Close])],
}


def brought_to(pair: SessionPair, state: State) -> None:
    """Say what leads there, at both ends."""
    for step, said in WAYS.items():
        for role, message in said:
            pair.says(role, message)
        if step is state:
            break
    assert pair.consumer.state is pair.server.state is state


def test_every_message_of_a_conversation_is_tried_here() -> None:
    either = {Offer, Room, Filled}  # are said in a private server's pipe as well
    conversation = {cls for code, cls in CODES.items() if code < 32} | either
    assert {type(message) for message in SAID} == conversation


def test_a_conversation_from_greeting_to_end(pair: SessionPair) -> None:
    pair.opened(OPENED)
    pair.says(Role.CONSUMER, Want((Run(0, 0, 2),), 0, ()))
    pair.says(Role.SERVER, Announce(1, (Entry(0, 0, 0, 1, 8), Entry(0, 1, 1, 2, 8))))
    pair.says(Role.SERVER, Fault("WorkerError", "broken", 2, 0, 2))
    pair.says(Role.CONSUMER, Want((Run(0, 3, 1),), 2, (Release(0, 1),)))
    pair.says(Role.CONSUMER, Heartbeat())
    pair.says(Role.SERVER, Heartbeat())
    pair.says(Role.CONSUMER, Close())
    assert pair.consumer.state is State.CLOSED


def test_a_refused_wish_may_be_followed_by_another(pair: SessionPair) -> None:
    brought_to(pair, State.OPENING)
    states = []
    for role, message in (
        (Role.SERVER, Fault("UnknownStream", "no such stream")),
        (Role.CONSUMER, Open("mnist", None, None)),
        (Role.SERVER, OPENED),
    ):
        pair.says(role, message)
        states.append(pair.consumer.state)
    assert states == [State.READY, State.OPENING, State.OPEN]


def test_arrays_are_handed_over_before_a_stream_is_opened(pair: SessionPair) -> None:
    brought_to(pair, State.READY)
    states = []
    for role, message in (
        (Role.CONSUMER, ONE[Offer]),
        (Role.SERVER, ONE[Room]),
        (Role.CONSUMER, ONE[Upload]),
        (Role.SERVER, ONE[Taken]),
        (Role.CONSUMER, ONE[Filled]),
        (Role.CONSUMER, ONE[Heartbeat]),
        (Role.SERVER, ONE[Heartbeat]),
        (Role.SERVER, Room("f", ())),
        (Role.CONSUMER, ONE[Open]),
    ):
        pair.says(role, message)
        states.append(pair.consumer.state)
    offering, ready = State.OFFERING, State.READY
    assert states == [
        offering, ready, ready, ready, offering, offering, offering, ready, State.OPENING,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ONE)
@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("role", list(Role))
def test_the_table_decides_what_is_sent_and_what_is_taken(
    pair: SessionPair, role: Role, state: State, kind: type
) -> None:
    brought_to(pair, state)
    speaker, listener = pair.consumer, pair.server
    if role is Role.SERVER:
        speaker, listener = listener, speaker
    then = TRANSITIONS[role][state].get(kind)
    if then is not None:
        pair.says(role, ONE[kind])
        assert speaker.state is then
        return
    with pytest.raises(
        LocalProtocolError, match=f"cannot send {kind.__name__} while {state.value}"
    ):
        speaker.send(ONE[kind], 0.0)
    with pytest.raises(RemoteProtocolError, match=f"got {kind.__name__} while {state.value}"):
        listener.receive(encode(ONE[kind]), 0.0)
    assert speaker.state is listener.state is state, "a refused message changes nothing"


def test_every_transition_leads_to_a_state_that_has_a_row() -> None:
    for role in Role:
        assert set(TRANSITIONS[role]) == set(State)


def test_an_end_is_never_refused_its_last_word() -> None:
    for state in set(State) - {State.CLOSED, State.IDLE}:
        assert TRANSITIONS[Role.CONSUMER][state][Close] is State.CLOSED
        assert TRANSITIONS[Role.SERVER][state][Bye] is State.CLOSED


def test_answers_that_crossed_a_question_are_taken(pair: SessionPair) -> None:
    """A heartbeat's answer may come when a stream was asked for, a status when it is open."""
    brought_to(pair, State.READY)
    consumer, server = pair.consumer, pair.server
    beat, ask = consumer.send(Heartbeat(), 1.0), consumer.send(AskStatus(), 1.0)
    wish = consumer.send(ONE[Open], 1.0)
    answers = []
    for frame, answer in ((beat, Heartbeat()), (ask, ONE[Status]), (wish, OPENED)):
        server.receive(frame, 2.0)
        answers.append(server.send(answer, 2.0))
    assert [type(consumer.receive(frame, 3.0)) for frame in answers] == [Heartbeat, Status, Opened]
    assert consumer.state is State.OPEN


@pytest.mark.parametrize("version", [(2, 0), (0, 9), (), (2**64 - 1,)])
def test_another_version_is_refused_with_both_named(
    pair: SessionPair, version: tuple[int, ...]
) -> None:
    hello = encode(Hello(version, "test", 1))
    with pytest.raises(VersionMismatch, match=f"consumer speaks protocol .*, this end {OURS}"):
        pair.server.receive(hello, 0.0)
    assert pair.server.state is State.IDLE, "the next one may say hello"
    pair.consumer.send(ONE[Hello], 0.0)
    with pytest.raises(VersionMismatch, match=f"server speaks protocol .*, this end {OURS}"):
        pair.consumer.receive(encode(Welcome(version, 2, 30.0)), 0.0)


def test_a_later_minor_version_is_welcome(pair: SessionPair) -> None:
    pair.says(Role.CONSUMER, Hello((VERSION[0], VERSION[1] + 1, 7), "test", 1))
    pair.says(Role.SERVER, ONE[Welcome])
    assert pair.consumer.state is State.READY


def test_garbage_changes_nothing(pair: SessionPair, clock: Clock) -> None:
    pair.opened(OPENED)
    clock.pass_(5)
    with pytest.raises(RemoteProtocolError):
        pair.server.receive(b"\xc1", clock.now)
    assert pair.server.state is State.OPEN
    assert pair.server.heard_at == 0.0, "garbage is no sign of life"
    pair.says(Role.CONSUMER, Want((), 0, ()))


def test_a_heartbeat_is_due_one_beat_after_the_last_word(pair: SessionPair, clock: Clock) -> None:
    pair.opened(OPENED)
    assert pair.consumer.due(clock.now) == 1.0
    clock.pass_(0.75)
    assert pair.consumer.due(clock.now) == 0.25
    pair.says(Role.CONSUMER, Want((), 0, ()))
    assert pair.consumer.due(clock.now) == 1.0, "anything said is a sign of life"
    clock.pass_(2)
    assert pair.consumer.due(clock.now) == -1.0
    pair.says(Role.SERVER, Heartbeat())
    assert pair.consumer.due(clock.now) == -1.0, "the peer's word is not one's own"


def test_the_beat_is_what_was_asked_for() -> None:
    assert Session(Role.CONSUMER, 10.0, beat=3.0).due(11.0) == 2.0


@pytest.mark.parametrize(
    ("state", "question", "answer"),
    [
        (State.IDLE, Hello, Welcome),
        (State.READY, Open, Opened),
        (State.OPEN, AskStatus, Status),
        (State.OPEN, Heartbeat, Heartbeat),
    ],
)
def test_silence_lasts_from_the_first_question_to_any_word(
    pair: SessionPair, clock: Clock, state: State, question: type, answer: type
) -> None:
    brought_to(pair, state)
    clock.pass_(100 if state is not State.IDLE else 0)
    assert pair.consumer.silence(clock.now) == 0.0
    frame = pair.consumer.send(ONE[question], clock.now)
    clock.pass_(4)
    assert pair.consumer.silence(clock.now) == 4.0
    if Heartbeat in TRANSITIONS[Role.CONSUMER][pair.consumer.state]:
        pair.consumer.send(Heartbeat(), clock.now)
        clock.pass_(2)
        assert pair.consumer.silence(clock.now) == 6.0, "asking again does not start it anew"
    pair.server.receive(frame, clock.now)
    pair.consumer.receive(pair.server.send(ONE[answer], clock.now), clock.now)
    assert pair.consumer.silence(clock.now) == 0.0
    clock.pass_(1000)
    assert pair.consumer.silence(clock.now) == 0.0, "nothing is owed"


def test_a_want_is_no_question_since_its_batches_take_their_time(
    pair: SessionPair, clock: Clock
) -> None:
    pair.opened(OPENED)
    pair.says(Role.CONSUMER, Want((Run(0, 0, 4),), 0, ()))
    clock.pass_(60)
    assert pair.consumer.silence(clock.now) == 0.0


def test_who_was_stopped_for_an_hour_does_not_take_its_sleep_for_the_peers(
    pair: SessionPair, clock: Clock
) -> None:
    pair.opened(OPENED)
    clock.pass_(1)
    beat = pair.consumer.send(Heartbeat(), clock.now)
    clock.pass_(0.01)
    pair.server.receive(beat, clock.now)
    answer = pair.server.send(Heartbeat(), clock.now)
    clock.pass_(3600)  # SIGSTOP, a debugger, a closed lid: the answer waits in the socket
    pair.consumer.receive(answer, clock.now)
    assert pair.consumer.silence(clock.now) == 0.0
    assert pair.consumer.due(clock.now) < 0, "the first thing to do is to say so"
    pair.consumer.send(Heartbeat(), clock.now)
    assert pair.consumer.silence(clock.now) == 0.0
    clock.pass_(2)
    assert pair.consumer.silence(clock.now) == 2.0


def test_who_was_stopped_before_it_could_ask_counts_from_its_question(
    pair: SessionPair, clock: Clock
) -> None:
    pair.opened(OPENED)
    clock.pass_(3600)
    assert pair.consumer.silence(clock.now) == 0.0
    pair.consumer.send(Heartbeat(), clock.now)
    clock.pass_(0.5)
    assert pair.consumer.silence(clock.now) == 0.5


def test_a_server_knows_when_it_last_heard_of_a_consumer(pair: SessionPair, clock: Clock) -> None:
    pair.opened(OPENED)
    clock.pass_(7)
    assert pair.server.heard_at == 0.0
    pair.says(Role.CONSUMER, Heartbeat())
    assert pair.server.heard_at == 7.0
