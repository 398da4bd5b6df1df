"""`/metrics`: reads the plain counters of every part when Prometheus asks, and only then.

One collector on a registry of our own. Names are `kvrouter_…_{seconds,bytes,total}`; labels are bounded by the fleet
(workers, ranks), by words of our own (policies, states, reasons) or by HTTP (status). No rates are computed here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from kvrouter import __version__
from kvrouter.events import TIERS
from kvrouter.index import PrefixIndex, implementation
from kvrouter.routing import RankLoad, Router
from kvrouter.routing.replicas import NOTHING
from kvrouter.routing.sessions import SessionTable
from kvrouter.service.admission import Admission
from kvrouter.service.admission_view import admission_metrics
from kvrouter.service.audit_metrics import audit_metrics
from kvrouter.service.configuration.figures import config_metrics
from kvrouter.service.configuration.running import RunningSettings
from kvrouter.service.disaggregation import SplitSender
from kvrouter.service.event_metrics import plane_metrics, source_metrics
from kvrouter.service.load_reports import LoadReports
from kvrouter.service.metric_families import by_label, counter, gauge, histogram
from kvrouter.service.placement_metrics import placement_metrics
from kvrouter.service.proxy import ProxyStatistics
from kvrouter.service.replica_metrics import replica_metrics
from kvrouter.service.replica_state import ReplicaState
from kvrouter.service.sources import SourceReport
from kvrouter.service.state_keeper import StateKeeper
from kvrouter.service.traffic import TrafficCounters
from kvrouter.service.workers import WorkerRegistry

__all__ = ["Metrics", "MetricsSources"]

_HEALTH_STATES = ("starting", "ready", "unhealthy", "ejected")


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
    rate_limited: Callable[[], int]
    loads: LoadReports
    keeper: StateKeeper | None
    admission: Callable[[], Admission | None]
    clock: Callable[[], float]
    policy: Callable[[], str]
    config: RunningSettings
    splits: SplitSender | None
    sessions: SessionTable | None
    replicas: ReplicaState | None


class Metrics:
    """The registry and its text."""

    def __init__(self, sources: MetricsSources) -> None:
        self.registry = CollectorRegistry()
        """For parts that are not always there, and bring families of their own."""
        self.registry.register(_Collector(sources))
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """Return the exposition."""
        return generate_latest(self.registry)


class _Collector(Collector):
    def __init__(self, sources: MetricsSources) -> None:
        self._from = sources

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        labels = {"version": __version__, "index": implementation, "policy": self._from.policy()}
        yield gauge("info", "Version and choices of this process.", tuple(labels), [(tuple(labels.values()), 1)])
        yield from self._requests()
        yield from self._routing()
        yield from admission_metrics(self._from.admission(), now=self._from.clock())
        yield from config_metrics(self._from.config)
        yield from self._workers()
        yield from self._loads()
        yield from audit_metrics(self._from.router, self._from.registry, self._from.traffic)
        yield from source_metrics(self._from.sources.rows())
        yield from plane_metrics(self._from.loads, self._from.keeper)
        yield from placement_metrics(self._from.splits, self._from.sessions)
        yield from self._index()

    def describe(self) -> list[Metric]:
        """Nothing is known before the first scrape; asking would only cost one."""
        return []

    def _requests(self) -> Iterator[Metric]:
        proxy = self._from.proxy()
        yield gauge("client_connections", "Client connections open.", (), [((), proxy.connections_open)])
        yield gauge("active_requests", "Requests being answered.", (), [((), proxy.requests_active)])
        yield gauge("buffered_request_bytes", "Request bodies held in memory.", (), [((), proxy.buffered_bytes)])
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
            ("rate_limited_requests", "Requests of clients that asked too often.", self._from.rate_limited()),
        ):
            yield counter(name, text, (), [((), value)])
        yield counter("refusals", "Requests refused by the data plane.", ("code",), by_label(proxy.refusals))
        yield counter("responses", "Answers of workers.", ("status",), by_label(proxy.responses))
        yield counter("attempt_outcomes", "How attempts ended.", ("outcome",), by_label(proxy.outcomes))

    def _routing(self) -> Iterator[Metric]:
        traffic = self._from.traffic
        yield counter("routed_requests", "Requests routed.", ("policy",), by_label(traffic.by_policy))
        yield counter(
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
            yield counter(name, text, (), [((), value)])
        yield counter("selection_requests", "Selection API calls.", ("route",), by_label(traffic.selections))
        yield gauge("reservations", "Reservations held.", (), [((), self._from.reservations())])
        yield gauge("bookings", "Requests in the load book.", (), [((), len(self._from.router.book))])
        prompts = self._from.prompts()
        yield counter("prompts", "What became of prompts on their way to tokens.", ("event",), by_label(prompts))
        yield histogram("time_to_first_token_seconds", "From request to the first body byte.", traffic.ttft_seconds)
        yield histogram("request_seconds", "From request to the end of its answer.", traffic.request_seconds)

    def _workers(self) -> Iterator[Metric]:
        workers = [(worker.spec.worker_id, worker) for worker in self._from.registry]
        yield gauge(
            "worker_schedulable",
            "1 where new requests may go.",
            ("worker",),
            [((name,), float(not worker.reasons())) for name, worker in workers],
        )
        yield gauge(
            "worker_health",
            "1 for the state that a worker is in.",
            ("worker", "state"),
            [((name, state), float(worker.health == state)) for name, worker in workers for state in _HEALTH_STATES],
        )
        yield gauge(
            "worker_active_requests",
            "Requests being answered by a worker.",
            ("worker",),
            [((name,), worker.active) for name, worker in workers],
        )
        for name_of_counter, text in (
            ("requests", "Attempts sent to a worker."),
            ("checks", "Health checks of a worker."),
            ("checks_failed", "Failed health checks of a worker."),
            ("ejections", "Times a worker was left out because requests failed."),
            ("usage_reports", "Answers of a worker that told their usage."),
            ("usage_prompt_tokens", "Prompt tokens of those answers."),
            ("usage_promised_tokens", "Cached tokens that routing had promised for them."),
            ("usage_cached_tokens", "Cached tokens that the worker reported for them."),
            ("usage_error_tokens", "Differences of both, answer by answer, all taken as positive."),
        ):
            rows = [((name,), float(getattr(worker.counters, name_of_counter))) for name, worker in workers]
            yield counter(f"worker_{name_of_counter}", text, ("worker",), rows)
        yield counter(
            "worker_outcomes",
            "How attempts at a worker ended.",
            ("worker", "outcome"),
            [((name, outcome), n) for name, worker in workers for outcome, n in worker.counters.outcomes.items()],
        )

    def _loads(self) -> Iterator[Metric]:
        book, at = self._from.router.book, self._from.router.fleet.at
        numbers = [
            ((worker.spec.worker_id, str(worker.spec.first_rank + position)), dense_rank)
            for worker in self._from.registry
            for position, dense_rank in enumerate(worker.ranks)
        ]
        loads = [(labels, book.load(number)) for labels, number in numbers]
        replicas = self._from.replicas
        others = [
            (labels, NOTHING if replicas is None else replicas.loads.elsewhere(at(number)))
            for labels, number in numbers
        ]
        for name, share, text in (
            ("active_requests", "requests", "Requests booked on a rank."),
            ("prefill_tokens", "prefill_tokens", "Uncached prompt tokens that a rank still has to compute."),
            ("decode_blocks", "decode_blocks", "KV blocks that running requests occupy on a rank."),
        ):
            rows = [
                (labels, float(getattr(load, name) - getattr(other, share)))  # of this router alone: routers add up
                for (labels, load), (_, other) in zip(loads, others, strict=True)
            ]
            yield gauge(f"rank_{name}", text, ("worker", "rank"), rows)
        yield from replica_metrics(replicas, others)
        yield from self._learnt(loads)

    def _learnt(self, loads: list[tuple[tuple[str, str], RankLoad]]) -> Iterator[Metric]:
        for name, text in (
            ("token_seconds", "Learnt: time of a rank for an uncached prompt token at the beginning of a prompt."),
            ("pair_seconds", "Learnt: and for each pair of such a token and one before it (attention)."),
            ("first_seconds", "Learnt: time to a first token beside its prompt."),
            ("urgency", "Measured: later requests that wait for each second of queue on a rank."),
            ("miss_price", "Measured: what computing evicts, as a share of its own time."),
            ("loss_rate", "Measured: share of what is cached that is lost for each second that a request waits."),
            ("room_tokens", "Measured: tokens that the cache of a rank holds; 0 while nothing was evicted."),
            ("room_loss", "Measured: share of what does not fit into it that is lost."),
        ):
            rows = [(labels, float(getattr(load, name))) for labels, load in loads]
            yield gauge(f"rank_{name}", text, ("worker", "rank"), rows)
        errors = [(labels, self._from.router.learning.speeds.speed(load.rank).error) for labels, load in loads]
        tiers = self._from.router.learning.tiers
        text = "Learnt: time of loading from a tier below the GPU, as a share of computing the same tokens."
        yield gauge("tier_load_cost", text, ("tier",), [((tier,), cost) for tier, cost in tiers.costs().items()])
        told = [((tier,), float(tiers.observed(tier))) for tier in tiers.costs()]
        yield counter("tier_loads_learnt", "First tokens that told what loading from a tier costs.", ("tier",), told)
        text = "Mean error of the last predicted times to first token, relative to the longer of both."
        yield gauge("rank_ttft_error", text, ("worker", "rank"), errors)

    def _index(self) -> Iterator[Metric]:
        index = self._from.index
        yield gauge("index_blocks", "Distinct blocks in the index.", (), [((), len(index))])
        bytes_of = [(("index",), index.nbytes()), (("beside",), index.nbytes_beside())]
        yield gauge("index_bytes", "Memory of the index, and of what is kept beside it.", ("part",), bytes_of)
        yield gauge("index_max_bytes", "The bound on both; 0: none.", (), [((), index.bytes_max() or 0)])
        dropped = by_label(index.dropped())
        yield counter("index_dropped_blocks", "Blocks that the bound has cost, by reason.", ("reason",), dropped)
        rows = [
            ((worker.spec.worker_id, str(worker.spec.first_rank + position), tier), index.blocks(dense_rank, tier))
            for worker in self._from.registry
            for position, dense_rank in enumerate(worker.ranks)
            for tier in TIERS
        ]
        labels = ("worker", "rank", "tier")
        yield gauge("index_rank_blocks", "Blocks that a rank is known to hold, by tier.", labels, rows)
        predicted = len(self._from.router.knowledge)
        yield gauge("predicted_blocks", "Blocks that ranks are predicted to hold soon.", (), [((), predicted)])
