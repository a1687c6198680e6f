"""A server's figures, for Prometheus to fetch: what it has done, and what it is behind with.

The loop leaves what it knows a few times a second (`Figures.show`), and a few threads answer with
the latest of it, so that no scrape, however slow, ever touches the loop. Whoever reaches the
address may read; nothing can be told to the server there. Connections are few: for each that comes
beyond them the oldest is ended, so that who holds many open keeps nobody else out, and no
descriptors of the server's.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import HTTPServer
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from augproto.errors import ConfigError
from augproto.messages import Status

#: Connections at once, and seconds that one may be silent.
MOST_CONNECTIONS, SILENCE_SECONDS = 8, 5.0
#: Seconds for the listening thread to end; it looks twice a second.
_END_SECONDS = 2.0


class _FewConnections(ThreadingMixIn, HTTPServer):
    """An HTTP server with a thread for each of a few connections."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], handler: Any):
        self.address_family = family
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._counted = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """As TCPServer: HTTPServer would ask for the host's name, which can take long."""
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; end the oldest connection where there are too many."""
        with self._counted:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > MOST_CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection is over."""
        with self._counted:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up in the middle of an answer is nobody's affair."""


class Figures(Collector):
    """The latest snapshot, served over HTTP; a context manager around the port.

    Args:
        address: HOST:PORT to listen at; an IPv6 host in brackets; port 0 takes any that is free.

    Attributes:
        url: Where the figures are.

    Raises:
        ConfigError: The address cannot be bound.
    """

    def __init__(self, address: str) -> None:
        self._shown: tuple[Status, int] | None = None
        self._busy_seconds = {"local": 0.0, "remote": 0.0}
        registry = CollectorRegistry()
        registry.register(self)
        handler = MetricsHandler.factory(registry)
        handler.timeout = SILENCE_SECONDS  # type: ignore[attr-defined]
        host, _, port = address.rpartition(":")
        try:
            ((family, _, _, _, found), *_) = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            self._server = _FewConnections(family, found[:2], handler)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"metrics: cannot bind {address}: {why}") from error
        self.url = f"http://{host}:{self._server.server_port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="augserver-metrics", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Figures:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def show(self, status: Status, backlog: int) -> None:
        """What is answered from now on; by the loop.

        Args:
            status: What the server says of itself to whoever asks.
            backlog: Batches that are wanted, have a slot, and are not finished.
        """
        self._shown = (status, backlog)

    def turned(self, seconds: float, local: float, remote: float) -> None:
        """So many workers were busy for so long; by the loop, of all its waits and turns."""
        self._busy_seconds["local"] += local * seconds
        self._busy_seconds["remote"] += remote * seconds

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_END_SECONDS)

    def collect(self) -> Iterator[Metric]:
        """The figures under their names; by the answering thread."""
        if self._shown is not None:
            yield from self._figures(*self._shown)

    def describe(self) -> Iterator[Metric]:
        """Their names, for whoever asks for some of them only."""
        yield from self._figures(Status((), 0, 0, 0, 0, 0), 0)

    def _figures(self, status: Status, backlog: int) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "augserver_backlog_batches",
            "Batches that are wanted, have a slot, and are not finished: more workers would help.",
            value=backlog,
        )
        yield CounterMetricFamily("augserver_batches", "Batches made.", value=status.batches)
        consumers = GaugeMetricFamily(
            "augserver_consumers", "Consumers with an open stream.", labels=("memory",)
        )
        consumers.add_metric(("shared",), status.consumers - status.by_frames)
        consumers.add_metric(("frames",), status.by_frames)
        yield consumers
        workers = GaugeMetricFamily(
            "augserver_workers", "Workers that can be given work.", labels=("where",)
        )
        workers.add_metric(("local",), status.workers_alive)
        workers.add_metric(("remote",), sum(row.state == "ready" for row in status.remote))
        yield workers
        busy = CounterMetricFamily(
            "augserver_worker_busy_seconds",
            "Seconds that workers held something to make; its rate is how many are busy.",
            labels=("where",),
        )
        for where, seconds in self._busy_seconds.items():
            busy.add_metric((where,), seconds)
        yield busy
        yield GaugeMetricFamily(
            "augserver_workers_wanted", "Local workers asked for.", value=status.workers_wanted
        )
        yield CounterMetricFamily(
            "augserver_worker_ends", "Local workers that have ended.", value=status.restarts
        )
        yield CounterMetricFamily(
            "augserver_bad_samples", "Samples that could not be made.", value=status.bad_samples
        )
        yield GaugeMetricFamily(
            "augserver_cached_samples", "Decoded pictures kept.", value=status.cached_samples
        )
        yield GaugeMetricFamily(
            "augserver_cache_bytes", "Memory of the caches of them.", value=status.cache_bytes
        )
