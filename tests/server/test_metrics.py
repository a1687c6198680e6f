"""Prometheus gets the figures that a server's status has, and how far its workers are behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import struct
import urllib.request
from pathlib import Path

import pytest
from processes import wait_until
from prometheus_client.parser import text_string_to_metric_families

from augproto.errors import ConfigError
from augproto.messages import Entry, Run, Status, Working
from augserver.config import Config
from augserver.dispatcher import Dispatcher
from augserver.observe.metrics import MOST_CONNECTIONS, Figures

STATUS = Status(
    streams=("pets",), consumers=3, workers_alive=2, workers_wanted=4, batches=17, restarts=5,
    bad_samples=6, cached_samples=7, cache_places=8, cache_bytes=9, by_frames=1,
    remote=(
        Working(65537, "far", 12, "ready", 4, "", "a cluster"),
        Working(65538, "farther", 13, "starting", 0, "", ""),
    ),
)  # fmt: skip


def fetched(url: str) -> dict[str, float]:
    """What is answered: the value of each figure, by its name and labels."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sample.labels.items()):
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }  # fmt: skip


def test_every_figure_of_a_status_has_a_name() -> None:
    with Figures("127.0.0.1:0") as figures:
        figures.show(STATUS, 11)
        figures.turned(0.5, 2, 1)
        figures.turned(0.25, 0, 3)
        assert fetched(figures.url) == {
            "augserver_backlog_batches": 11,
            "augserver_batches_total": 17,
            "augserver_consumers{memory=shared}": 2,
            "augserver_consumers{memory=frames}": 1,
            "augserver_workers{where=local}": 2,
            "augserver_workers{where=remote}": 1,
            "augserver_worker_busy_seconds_total{where=local}": 1.0,
            "augserver_worker_busy_seconds_total{where=remote}": 1.25,
            "augserver_workers_wanted": 4,
            "augserver_worker_ends_total": 5,
            "augserver_bad_samples_total": 6,
            "augserver_cached_samples": 7,
            "augserver_cache_bytes": 9,
        }


def test_some_of_them_may_be_asked_for_by_name() -> None:
    with Figures("127.0.0.1:0") as figures:
        figures.show(STATUS, 11)
        some = fetched(f"{figures.url}?name[]=augserver_batches_total")
        assert some == {"augserver_batches_total": 17}


def test_nothing_is_answered_before_there_is_something_and_after_the_end() -> None:
    with Figures("127.0.0.1:0") as figures:
        assert fetched(figures.url) == {}
        figures.show(STATUS, 0)
        figures.show(STATUS, 1)
        assert fetched(figures.url)["augserver_backlog_batches"] == 1
    host = figures.url.removeprefix("http://").partition("/")[0]
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(host, timeout=5).request("GET", "/metrics")


def test_a_name_that_is_none_is_an_error() -> None:
    for name in ("a..b", f"{'x' * 70}.b"):
        with pytest.raises(ConfigError, match="metrics: cannot bind"):
            Figures(f"{name}:9464")


def test_an_address_that_is_taken_is_an_error_that_names_it() -> None:
    with Figures("127.0.0.1:0") as figures:
        taken = figures.url.removeprefix("http://").partition("/")[0]
        with pytest.raises(ConfigError, match=f"metrics: cannot bind {taken}: Address already"):
            Figures(taken)


def _at(figures: Figures) -> tuple[str, int]:
    host, _, port = figures.url.removeprefix("http://").partition("/")[0].rpartition(":")
    return host, int(port)


def test_who_holds_many_connections_open_keeps_nobody_out_and_no_descriptors() -> None:
    with Figures("127.0.0.1:0") as figures, contextlib.ExitStack() as held:
        figures.show(STATUS, 3)
        before = len(os.listdir("/proc/self/fd"))
        theirs = [
            held.enter_context(socket.create_connection(_at(figures), timeout=10))
            for _ in range(5 * MOST_CONNECTIONS)
        ]
        for each in theirs[::3]:
            each.sendall(b"GET /metrics HTTP/1.0\r\nHost: ")  # and no more
        assert fetched(figures.url)["augserver_backlog_batches"] == 3
        ended = theirs[: -MOST_CONNECTIONS - 1]
        wait_until(
            lambda: len(os.listdir("/proc/self/fd")) <= before + len(theirs) + MOST_CONNECTIONS + 1,
            "their descriptors to be given back",
        )
        assert all(each.recv(1) == b"" for each in ended), "they were ended"
        assert fetched(figures.url)["augserver_backlog_batches"] == 3


def test_who_hangs_up_in_an_answer_says_nothing_in_the_log(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Figures("127.0.0.1:0") as figures:
        figures.show(STATUS, 3)
        for _ in range(5):
            with socket.create_connection(_at(figures), timeout=10) as rude:
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                rude.sendall(b"GET /" + 60_000 * b"x" + b" HTTP/1.0\r\n\r\n")
        assert fetched(figures.url)["augserver_backlog_batches"] == 3
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("address", ["127.0.0.1:9464", "[::1]:9464", "0.0.0.0:0", "monitor:80"])
def test_a_host_and_a_port_are_where_figures_may_be(address: str) -> None:
    assert Config(metrics=address).metrics == address


@pytest.mark.parametrize(
    "address",
    ["9464", ":9464", "tcp://127.0.0.1:9464", "127.0.0.1:65536", "::1:9464", "h:x", "*:9464", 9464],
)
def test_what_is_no_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.metrics: got .*; wanted HOST:PORT"):
        Config(metrics=address)


def test_the_backlog_is_what_workers_are_at_and_what_has_a_slot() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(1, slots=4, steps=100)
    dispatcher.join(1)
    assert dispatcher.backlog == 0
    dispatcher.want(1, [Run(0, 0, 2)], 0)
    assert dispatcher.backlog == 2
    dispatcher.want(1, [Run(0, 0, 50)], 0)
    assert dispatcher.backlog == 4, "more than there are slots is not the workers' affair"
    assignments = dispatcher.assign()
    assert dispatcher.backlog == 4, "it is assigned, and not made"
    made = [Entry(*place, 8) for a in assignments for place in a.places]
    dispatcher.done(1, 1, made, 1.0)
    assert dispatcher.backlog == 4 - len(made), "its slots are with the consumer now"


def test_a_span_counts_as_the_batches_that_lie_in_it() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(1, slots=4, steps=100, span=8)
    dispatcher.want(1, [Run(0, 0, 3)], 0)
    assert dispatcher.backlog == 24


def test_workers_are_busy_while_they_hold_something() -> None:
    dispatcher = Dispatcher()
    dispatcher.open(1, slots=8, steps=100)
    dispatcher.join(1)
    dispatcher.join(2)
    dispatcher.join(70_000, remote=True)
    dispatcher.admit(70_000, 1)
    assert dispatcher.busy == (0, 0)
    dispatcher.want(1, [Run(0, 0, 1)], 0)
    (assignment,) = dispatcher.assign()
    assert sum(dispatcher.busy) == 1
    made = [Entry(*place, 8) for place in assignment.places]
    dispatcher.done(assignment.worker, 1, made, 1.0)
    assert dispatcher.busy == (0, 0)
    dispatcher.want(1, [Run(0, 1, 7)], 1)
    dispatcher.assign()
    assert dispatcher.busy == (2, 1)


def test_every_figure_has_its_row_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
    rows = re.findall(r"^\| (`augserver_.+?) \|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(augserver_\w+)", row)}
    with Figures("127.0.0.1:0") as figures:
        figures.show(STATUS, 0)
        assert named == {name.partition("{")[0] for name in fetched(figures.url)}
