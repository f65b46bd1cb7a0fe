"""Metrics for Prometheus: what a daemon counts, and the kernel's own counters, over HTTP.

In threads of their own. They see a snapshot of the daemon and read the kernel through a netlink
socket of their own, so no scrape touches what the event loop is working on. No identity, key or
address is among the metrics: whoever may connect to the port may read them. docs/metrics.md lists
them.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from socketserver import TCPServer, ThreadingMixIn
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from keys.trouble import Trouble
from spa_server.audit.record import Event
from spa_server.firewall.kernel import FirewallError, Gate
from spa_server.listen import ListenAddress
from spa_server.meter import BOUNDS_S, Histogram
from spa_server.snapshot import Snapshot

_AT_ONCE: Final = 8
_PATIENCE_S: Final = 5.0
_CONNECTIONS: Final = {
    "permitted": Event.CONNECTION_PERMITTED,
    "ended": Event.CONNECTION_ENDED,
    "severed": Event.CONNECTION_SEVERED,
}
_HOLES: Final = {
    "opened": Event.HOLE_OPENED,
    "renewed": Event.HOLE_RENEWED,
    "closed": Event.HOLE_CLOSED,
    "expired": Event.HOLE_EXPIRED,
    "failed": Event.HOLE_FAILED,
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel says: whether the gate stands, and its counters in packets."""

    is_loaded: bool = False
    packets: dict[str, int] | None = None


def read_kernel() -> Kernel:
    """By a netlink socket that lives as long as this call. A kernel that refuses says nothing."""
    try:
        with Gate() as gate:
            if not gate.is_loaded():
                return Kernel()
            return Kernel(True, {name: count.packets for name, count in gate.counters().items()})
    except FirewallError:
        return Kernel()


class DaemonCollector(Collector):
    """The metrics of one daemon."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], kernel: Callable[[], Kernel] = read_kernel
    ) -> None:
        self._snapshot = snapshot
        self._kernel = kernel

    def collect(self) -> Iterator[Metric]:
        """Every metric, from one snapshot."""
        now = self._snapshot()
        yield from _of_the_daemon(now)
        yield from _of_what_happened(now)
        yield from _of_the_kernel(self._kernel())


def _of_the_daemon(now: Snapshot) -> Iterator[Metric]:
    about = {"version": now.version, "capture": now.capture, "mode": now.mode}
    yield InfoMetricFamily("spa", "The daemon and how it runs", about)
    gauges: list[tuple[str, str, float]] = [
        ("start_time_seconds", "When the daemon began, since the epoch", now.started_at_us / 1e6),
        ("snapshot_age_seconds", "How old these figures are", time.monotonic() - now.taken_s),
        ("grants", "Grants in force", now.grants),
        ("holes_open", "Holes that grants hold open", now.holes),
        ("keys", "Keys whose knocks are heard", now.keys),
        ("tags", "Tags by which knocks are told, over all epochs", now.tags),
        ("roles", "Roles of the policy in force", now.roles),
        ("requests_remembered", "Requests that would count as replayed", now.requests_remembered),
        ("gate_wanted", "1: the operator put the gate in force", now.gate_wanted),
        ("gate_in_doubt", "1: the kernel refused something; it is tried again", now.gate_in_doubt),
        ("policy_current", "0: the latest policy is not sound, an older is in force",
         now.policy_is_current),
        ("ledger_behind", "1: records wait that could not be written", now.ledger_behind),
        ("ledger_last_event_id", "The number of the record's latest line", now.last_event_id),
    ]  # fmt: skip
    for name, what, value in gauges:
        yield GaugeMetricFamily(f"spa_{name}", what, float(value))
    drift = GaugeMetricFamily("spa_drift_findings", "What does not fit", labels=["severity"])
    for severity, count in now.drift.items():
        drift.add_metric([severity], count)
    yield drift
    yield from _of_the_outputs(now)


def _of_the_outputs(now: Snapshot) -> Iterator[Metric]:
    sent = _counter("output_records", "Records sent to a live output", "output")
    dropped = _counter("output_dropped", "Records a live output did not take", "output")
    for name, (taken, lost) in now.outputs.items():
        sent.add_metric([name], taken)
        dropped.add_metric([name], lost)
    yield sent
    yield dropped


def _of_what_happened(now: Snapshot) -> Iterator[Metric]:
    meter = now.meter
    knocks = _counter("knocks", "Knocks, and accesses refused, by reason", "result", "reason")
    knocks.add_metric(["accepted", ""], meter.events.get(Event.KNOCK_ACCEPTED, 0))
    for reason, count in meter.refused.items():
        knocks.add_metric(["refused", reason], count)
    yield knocks
    connections = _counter("connections", "Connections, and packets denied", "what")
    for what, event in _CONNECTIONS.items():
        connections.add_metric([what], meter.events.get(event, 0))
    for what, event in (
        ("denied", Event.CONNECTION_DENIED),
        ("would-deny", Event.CONNECTION_WOULD_DENY),
    ):
        connections.add_metric([what], meter.denied.get(event, 0))
    yield connections
    holes = _counter("holes", "Holes by what became of them", "what")
    for what, event in _HOLES.items():
        holes.add_metric([what], meter.events.get(event, 0))
    yield holes
    for name, what, label, counts in (
        ("events", "Lines written, to the record or the denials", "event", meter.events),
        ("records_lost", "What could not be recorded", "of", meter.lost),
        ("anomalies", "What was out of the ordinary", "kind", meter.anomalies),
    ):
        family = _counter(name, what, label)
        for value, count in counts.items():
            family.add_metric([str(value)], count)
        yield family
    yield _histogram("decision", "From reading a knock to the ruling on it", meter.decision)
    yield _histogram("open", "From reading a knock to its holes being open", meter.opening)


def _of_the_kernel(kernel: Kernel) -> Iterator[Metric]:
    yield GaugeMetricFamily("spa_gate_loaded", "1: the gate stands", float(kernel.is_loaded))
    packets = _counter("gate_packets", "The gate's own counters since it was made", "counter")
    for name, count in (kernel.packets or {}).items():
        packets.add_metric([name], count)
    yield packets


def _counter(name: str, what: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"spa_{name}", what, labels=labels)


def _histogram(name: str, what: str, histogram: Histogram) -> HistogramMetricFamily:
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(
        f"spa_{name}_seconds", what, buckets=buckets, sum_value=histogram.sum_s
    )


def registry_of(collector: Collector) -> CollectorRegistry:
    """A registry with this one collector, and nothing about Python or the process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


class _Handler(WSGIRequestHandler):
    """Says nothing, and gives up on who says nothing."""

    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a line each."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, listen: ListenAddress) -> None:
        self.address_family = socket.AF_INET6 if listen.address.version == 6 else socket.AF_INET
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__((str(listen.address), listen.port), _Handler)

    def server_bind(self) -> None:
        """Without the name of the address: to ask for it would wait for a name server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: object, client_address: object) -> None:
        """More at once than there are slots are hung up on."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[arg-type]  # a socket, as it came
            return
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]  # as it came
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        """One request, in its thread."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]  # as it came
        finally:
            self._slots.release()

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Who hangs up in the middle is not worth a traceback."""


class MetricsServer:
    """Answers scrapes at an address until it is closed. Making one raises Trouble."""

    def __init__(
        self,
        listen: ListenAddress,
        snapshot: Callable[[], Snapshot],
        kernel: Callable[[], Kernel] = read_kernel,
    ) -> None:
        try:
            self._server = _Server(listen)
        except OSError as error:
            what = (error.strerror or str(error)).lower()
            raise Trouble(
                f"no metrics at {listen}: {what}", "set `metrics` in server.toml to another port"
            ) from None
        self._server.set_app(make_wsgi_app(registry_of(DaemonCollector(snapshot, kernel))))
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Hangs up."""
        self._server.shutdown()
        with suppress(OSError):
            self._server.server_close()
        self._thread.join(_PATIENCE_S)
