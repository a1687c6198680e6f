"""A server's figures, for Prometheus to fetch: what it has done, and what it is behind with.

The loop leaves what it knows a few times a second (`Figures.show`), and a thread of
prometheus_client's answers with the latest of it, so that no scrape, however slow, ever touches the
loop. Whoever reaches the address may read; nothing can be told to the server there.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from augproto.errors import ConfigError
from augproto.messages import Status

#: Seconds for the answering thread to end; it looks twice a second.
_END_SECONDS = 2.0


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
        host, _, port = address.rpartition(":")
        try:
            self._server, self._thread = start_http_server(
                int(port), host.strip("[]"), registry=registry
            )
        except OSError as error:
            raise ConfigError(f"metrics: cannot bind {address}: {error.strerror}") from error
        self.url = f"http://{host}:{self._server.server_port}/metrics"

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

    def waited(self, seconds: float, local: int, remote: int) -> None:
        """So many workers were busy for so long; by the loop, of each of its waits.

        Nothing but a turn of the loop changes what workers hold, so this adds up to all but the
        turns themselves.
        """
        self._busy_seconds["local"] += local * seconds
        self._busy_seconds["remote"] += remote * seconds

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_END_SECONDS)

    def collect(self) -> Iterator[Metric]:
        """The figures under their names; by the answering thread."""
        if self._shown is None:
            return
        status, backlog = self._shown
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
