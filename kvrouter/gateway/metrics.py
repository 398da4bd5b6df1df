"""`/metrics` of the gateway: its own names, without the router's prefix, as its dashboards know them.

Everything is read from plain counters when Prometheus asks. No rates are computed here.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvrouter import __version__
from kvrouter.gateway.counters import SECONDS_BOUNDS, GatewayCounters, LatencyCounts
from kvrouter.gateway.cutover import Shares

__all__ = ["exposition"]

_TOTALS = (
    ("errors", "Answers with a status from 400 on, and streams that broke off.", ("route", "code")),
    ("disconnects", "Clients that left within the body of a request.", ("route",)),
    ("refused", "Requests refused for their key or their origin.", ("code",)),
    ("streams_ended", "Streams, by how they ended.", ("ending",)),
    ("connections_cut", "Connections cut, by what was too large or took too long.", ("reason",)),
    ("idempotency", "What became of requests with a key, and of kept answers.", ("event",)),
    ("shadow", "Copies of requests, by what came of them.", ("route", "result")),
    ("nats_events", "Changes of the connection to NATS.", ("event",)),
)


def exposition(
    counters: GatewayCounters, shares: Mapping[str, Shares], *, processes: int, processes_read: int
) -> bytes:
    """Return the text of a scrape; `counters` are those of all processes that could be read."""
    registry = CollectorRegistry()
    registry.register(_Collector(counters, shares, processes, processes_read))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(
        self, counters: GatewayCounters, shares: Mapping[str, Shares], processes: int, processes_read: int
    ) -> None:
        self._counters, self._shares = counters, shares
        self._processes, self._processes_read = processes, processes_read

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        counters = self._counters
        yield _gauge("info", "Version of the gateway.", ("version",), [((__version__,), 1)])
        yield _latency(counters.latency)
        yield _gauge("nats_connected", "1 if every process is connected to NATS.", (), [((), counters.connected)])
        yield _gauge("sse_active", "Streams open.", (), [((), counters.streams_active)])
        for name, text, labels in _TOTALS:
            family = CounterMetricFamily(f"gateway_{name}", text, labels=labels)
            for key, number in counters.totals.items():
                if key[0] == name:
                    family.add_metric(key[1:], number)
            yield family
        for name, text in (
            ("idempotency_answers", "Answers kept by their keys."),
            ("idempotency_bytes", "Memory of these answers, about."),
            ("cutover_refused", "Shares found in the store that cannot be any."),
        ):
            yield _gauge(name, text, (), [((), counters.gauges.get(name, 0))])
        nats = [((name,), shares.nats) for name, shares in self._shares.items()]
        yield _gauge("cutover_ratio", "Share of requests that NATS answers.", ("route",), nats)
        copied = [((name,), shares.shadow) for name, shares in self._shares.items()]
        yield _gauge("shadow_ratio", "Share of requests of which the other side gets a copy.", ("route",), copied)
        yield _gauge("processes", "Processes that there should be.", (), [((), self._processes)])
        yield _gauge("processes_read", "Processes whose figures are in this scrape.", (), [((), self._processes_read)])


def _latency(latency: Mapping[tuple[str, str], LatencyCounts]) -> Metric:
    text = "From a request's head to the end of its answer."
    family = HistogramMetricFamily("gateway_request_latency_seconds", text, labels=("route", "code"))
    for key, counts in latency.items():
        family.add_metric(key, list(_cumulative(counts)), counts.total)
    return family


def _cumulative(counts: LatencyCounts) -> Iterator[tuple[str, float]]:
    """The buckets as Prometheus wants them: upper bound, and how many are not above it."""
    so_far = 0
    for bound, count in zip((*map(str, SECONDS_BOUNDS), "+Inf"), counts.counts, strict=True):
        so_far += count
        yield bound, float(so_far)


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(f"gateway_{name}", text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family
