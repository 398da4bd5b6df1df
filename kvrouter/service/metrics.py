"""`/metrics`: reads the plain counters of every part when Prometheus asks, and only then.

One collector on a registry of our own. Names are `kvrouter_…_{seconds,bytes,total}`; labels are bounded by the fleet
(workers, ranks), by words of our own (policies, states, reasons) or by HTTP (status). No rates are computed here.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvrouter import __version__
from kvrouter.events import TIERS
from kvrouter.index import PrefixIndex, implementation
from kvrouter.routing import Router
from kvrouter.service.proxy import ProxyStatistics
from kvrouter.service.sources import SourceReport
from kvrouter.service.traffic import Histogram, TrafficCounters
from kvrouter.service.workers import WorkerRegistry

__all__ = ["Metrics", "MetricsSources"]

_HEALTH_STATES = ("starting", "ready", "unhealthy", "ejected")
_SOURCE_STATES = ("live", "replaying", "suspect", "predicted")
_SOURCE_COUNTERS = {
    "applied_batches": "Event batches applied.",
    "gaps": "Gaps found in the numbers of event batches.",
    "gaps_lost": "Gaps that no replay filled, so that the rank's blocks were forgotten.",
    "duplicates": "Event batches that had been applied before.",
    "restarts": "Engine restarts seen in the events.",
    "quarantined": "Event batches that could not be read.",
    "orphans_dropped": "Blocks given up because their parent was never announced.",
    "unresolved_dropped": "Blocks given up because their tokens were never announced.",
}
_SOURCE_GAUGES = {
    "lag": "Event batches known to exist beyond the applied ones.",
    "orphans": "Blocks that wait for their parent.",
    "unresolved": "Blocks that wait for their tokens.",
    "buffered_batches": "Event batches that wait for a replay.",
    "last_event_age": "Time since the last event.",
}
_TRANSPORT_COUNTERS = {
    "messages": "Event messages received.",
    "bytes": "Bytes of event messages received.",
    "malformed": "Event messages that are not of the wire.",
    "connects": "Event connections made.",
    "disconnects": "Event connections lost.",
    "replays": "Replays asked for.",
    "replays_failed": "Replays that failed.",
    "tail_losses": "Lost last messages found by asking.",
}
_Rows = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSources:
    """Everything that is read at a scrape."""

    registry: WorkerRegistry
    router: Router
    index: PrefixIndex
    traffic: TrafficCounters
    sources: SourceReport
    proxy: Callable[[], ProxyStatistics]
    prompts: Callable[[], Mapping[str, int]]
    reservations: Callable[[], int]
    auth_refused: Callable[[], int]
    policy: str


class Metrics:
    """The registry and its text."""

    def __init__(self, sources: MetricsSources) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(sources))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return the exposition."""
        return generate_latest(self._registry)


class _Collector(Collector):
    def __init__(self, sources: MetricsSources) -> None:
        self._from = sources

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        labels = {"version": __version__, "index": implementation, "policy": self._from.policy}
        yield _gauge("info", "Version and choices of this process.", tuple(labels), [(tuple(labels.values()), 1)])
        yield from self._requests()
        yield from self._routing()
        yield from self._workers()
        yield from self._loads()
        yield from self._events()
        yield from self._index()

    def describe(self) -> list[Metric]:
        """Nothing is known before the first scrape; asking would only cost one."""
        return []

    def _requests(self) -> Iterator[Metric]:
        proxy = self._from.proxy()
        yield _gauge("client_connections", "Client connections open.", (), [((), proxy.connections_open)])
        yield _gauge("active_requests", "Requests being answered.", (), [((), proxy.requests_active)])
        yield _gauge("buffered_request_bytes", "Request bodies held in memory.", (), [((), proxy.buffered_bytes)])
        for name, text, value in (
            ("accepted_connections", "Client connections accepted.", proxy.connections_accepted),
            ("refused_connections", "Client connections refused at the bound.", proxy.connections_refused),
            ("requests", "Requests read.", proxy.requests),
            ("local_replies", "Requests answered without a worker.", proxy.replies_local),
            ("attempts", "Attempts at a worker.", proxy.attempts),
            ("retries", "Attempts after one that failed, on another worker.", proxy.retries),
            ("stale_retries", "Requests sent again because a kept connection was closed.", proxy.stale_retries),
            ("truncated_responses", "Answers cut short after their first byte.", proxy.truncated),
            ("internal_errors", "Errors that are bugs of the router.", proxy.internal_errors),
            ("unauthorized_requests", "Requests refused for their API key.", self._from.auth_refused()),
        ):
            yield _counter(name, text, (), [((), value)])
        yield _counter("refusals", "Requests refused by the data plane.", ("code",), _by_label(proxy.refusals))
        yield _counter("responses", "Answers of workers.", ("status",), _by_label(proxy.responses))
        yield _counter("attempt_outcomes", "How attempts ended.", ("outcome",), _by_label(proxy.outcomes))

    def _routing(self) -> Iterator[Metric]:
        traffic = self._from.traffic
        yield _counter("routed_requests", "Requests routed.", ("policy",), _by_label(traffic.by_policy))
        yield _counter(
            "unroutable_requests",
            "Requests for which no worker was chosen.",
            ("reason",),
            [(("unknown_model",), traffic.refused_unknown_model), (("no_worker",), traffic.refused_no_worker)],
        )
        for name, text, value in (
            ("passed_through_requests", "Requests of other /v1 paths.", traffic.other_requests),
            ("prompt_tokens", "Prompt tokens of routed requests.", traffic.prompt_tokens),
            ("overlap_tokens", "Prompt tokens that the chosen rank was known to have cached.", traffic.overlap_tokens),
            ("expired_reservations", "Reservations whose lease ended.", traffic.reservations_expired),
        ):
            yield _counter(name, text, (), [((), value)])
        yield _counter("selection_requests", "Selection API calls.", ("route",), _by_label(traffic.selections))
        yield _gauge("reservations", "Reservations held.", (), [((), self._from.reservations())])
        yield _gauge("bookings", "Requests in the load book.", (), [((), len(self._from.router.book))])
        prompts = self._from.prompts()
        yield _counter("prompts", "What became of prompts on their way to tokens.", ("event",), _by_label(prompts))
        yield _histogram("time_to_first_token_seconds", "From request to the first body byte.", traffic.ttft_seconds)
        yield _histogram("request_seconds", "From request to the end of its answer.", traffic.request_seconds)

    def _workers(self) -> Iterator[Metric]:
        workers = [(worker.spec.worker_id, worker) for worker in self._from.registry]
        yield _gauge(
            "worker_schedulable",
            "1 where new requests may go.",
            ("worker",),
            [((name,), float(not worker.reasons())) for name, worker in workers],
        )
        yield _gauge(
            "worker_health",
            "1 for the state that a worker is in.",
            ("worker", "state"),
            [((name, state), float(worker.health == state)) for name, worker in workers for state in _HEALTH_STATES],
        )
        yield _gauge(
            "worker_active_requests",
            "Requests being answered by a worker.",
            ("worker",),
            [((name,), worker.active) for name, worker in workers],
        )
        for counter, text in (
            ("requests", "Attempts sent to a worker."),
            ("checks", "Health checks of a worker."),
            ("checks_failed", "Failed health checks of a worker."),
            ("ejections", "Times a worker was left out because requests failed."),
            ("usage_reports", "Answers of a worker that told their usage."),
            ("usage_prompt_tokens", "Prompt tokens of those answers."),
            ("usage_promised_tokens", "Cached tokens that routing had promised for them."),
            ("usage_cached_tokens", "Cached tokens that the worker reported for them."),
        ):
            rows = [((name,), float(getattr(worker.counters, counter))) for name, worker in workers]
            yield _counter(f"worker_{counter}", text, ("worker",), rows)
        yield _counter(
            "worker_outcomes",
            "How attempts at a worker ended.",
            ("worker", "outcome"),
            [((name, outcome), n) for name, worker in workers for outcome, n in worker.counters.outcomes.items()],
        )

    def _loads(self) -> Iterator[Metric]:
        book = self._from.router.book
        loads = [
            ((worker.spec.worker_id, str(worker.spec.first_rank + position)), book.load(dense_rank))
            for worker in self._from.registry
            for position, dense_rank in enumerate(worker.ranks)
        ]
        for name, text in (
            ("active_requests", "Requests booked on a rank."),
            ("prefill_tokens", "Uncached prompt tokens that a rank still has to compute."),
            ("decode_blocks", "KV blocks that running requests occupy on a rank."),
        ):
            rows = [(labels, float(getattr(load, name))) for labels, load in loads]
            yield _gauge(f"rank_{name}", text, ("worker", "rank"), rows)

    def _events(self) -> Iterator[Metric]:
        labels = ("worker", "rank")
        sources = [((row["worker_id"], str(row["rank"])), row) for row in self._from.sources.rows()]
        yield _gauge(
            "source_state",
            "1 for the state that an event source is in.",
            (*labels, "state"),
            [((*name, state), float(row["state"] == state)) for name, row in sources for state in _SOURCE_STATES],
        )
        for field, text in _SOURCE_GAUGES.items():
            suffix = "_seconds" if field == "last_event_age" else ""
            rows = [(name, float(row[field])) for name, row in sources if row.get(field) is not None]
            yield _gauge(f"source_{field}{suffix}", text, labels, rows)
        for counters in (_SOURCE_COUNTERS, _TRANSPORT_COUNTERS):
            for field, text in counters.items():
                rows = [(name, float(row[field])) for name, row in sources if row.get(field) is not None]
                yield _counter(f"source_{field}", text, labels, rows)
        for field, text in (
            ("skipped", "Events that could not be read, by what was wrong."),
            ("ignored", "Events that mean nothing to routing, by what they were."),
        ):
            totals: Counter[str] = Counter()
            for _, row in sources:
                totals.update(row[field])
            yield _counter(f"{field}_events", text, ("reason",), _by_label(totals))

    def _index(self) -> Iterator[Metric]:
        index = self._from.index
        yield _gauge("index_blocks", "Distinct blocks in the index.", (), [((), len(index))])
        rows = [
            ((worker.spec.worker_id, str(worker.spec.first_rank + position), tier), index.blocks(dense_rank, tier))
            for worker in self._from.registry
            for position, dense_rank in enumerate(worker.ranks)
            for tier in TIERS
        ]
        labels = ("worker", "rank", "tier")
        yield _gauge("index_rank_blocks", "Blocks that a rank is known to hold, by tier.", labels, rows)
        predicted = len(self._from.router.knowledge)
        yield _gauge("predicted_blocks", "Blocks that ranks are predicted to hold soon.", (), [((), predicted)])


def _by_label(counts: Mapping[Any, int]) -> _Rows:
    return [((str(label),), float(number)) for label, number in counts.items()]


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: _Rows) -> Metric:
    return _filled(GaugeMetricFamily(f"kvrouter_{name}", text, labels=labels), rows)


def _counter(name: str, text: str, labels: tuple[str, ...], rows: _Rows) -> Metric:
    return _filled(CounterMetricFamily(f"kvrouter_{name}", text, labels=labels), rows)


def _filled(family: Any, rows: _Rows) -> Metric:
    for labels, value in rows:
        family.add_metric(labels, value)
    metric: Metric = family
    return metric


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(f"kvrouter_{name}", text)
    family.add_metric([], histogram.cumulative(), histogram.total)
    return family
