"""A server that does not answer, by a clock of the test's own."""

from __future__ import annotations

import logging

import pytest

from augclient.away import AFTER_BYE, NOTICE, Parted, Patience

LIMIT = 10.0


def patience() -> Patience:
    return Patience("ipc:///s")


def greets_until(watched: Patience, start: float) -> float:
    """When a greeting that was said at that time is given up."""
    now = start
    while True:
        now += 0.25
        try:
            watched.look(now - start, now, LIMIT, greeting=True)
        except Parted:
            return now


def test_a_silence_is_noticed_after_two_heartbeats_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    watched = patience()
    watched.look(1.9, 101.9, LIMIT, greeting=False)
    assert not watched.away
    for silent in (2.5, 3.5, 9.0):
        watched.look(silent, 100 + silent, LIMIT, greeting=False)
        assert watched.away
    assert [r.getMessage() for r in caplog.records] == [
        "the server at ipc:///s has not answered for 2 s; waits for it"
    ]
    watched.heard()
    assert not watched.away
    assert caplog.records[-1].getMessage() == "the server at ipc:///s answers again"


def test_a_conversation_is_kept_as_long_as_its_server_may_be_busy() -> None:
    watched = patience()
    for silent in (1.0, 3.0, 9.9):
        watched.look(silent, 100 + silent, LIMIT, greeting=False)
    with pytest.raises(Parted):
        watched.look(10.1, 110.1, LIMIT, greeting=False)


def test_a_greeting_is_repeated_sooner_and_then_ever_later_but_not_later_than_a_conversation() -> (
    None
):
    watched, now, waits = patience(), 0.0, []
    for _ in range(6):
        given_up = greets_until(watched, now)
        waits.append(given_up - now)
        now = given_up
    assert waits == pytest.approx([2.25, 4.25, 8.25, 10.25, 10.25, 10.25])
    watched.welcomed()
    watched.heard()
    assert greets_until(watched, now) - now == pytest.approx(NOTICE + 0.25)


def test_after_a_goodbye_the_next_server_is_greeted_again_at_once() -> None:
    watched = patience()
    watched.ended("SIGTERM was received", 50.0)
    assert watched.away
    assert greets_until(watched, 50.0) == pytest.approx(50 + AFTER_BYE + 0.25)


def test_who_has_waited_long_enough_is_told_what_the_server_was_heard_of_last() -> None:
    watched = patience()
    assert watched.lost(0.0, "waited") is None
    watched.look(1.0, 101.0, LIMIT, greeting=False)
    assert watched.lost(101.0, "waited") is None, "one heartbeat is late: it may be slow"
    watched.look(5.0, 105.0, LIMIT, greeting=False)
    greets_until(watched, 111.0)  # a new conversation does not begin the count anew
    assert "has not answered for 60 s: it was killed" in str(watched.lost(160.0, "waited"))
    watched.ended("SIGTERM was received", 170.0)
    said = str(watched.lost(180.0, "a batch was waited for"))
    assert "has ended: SIGTERM was received. None has come in its place for 10 s; a batch" in said
    watched.heard()
    assert watched.lost(190.0, "waited") is None
