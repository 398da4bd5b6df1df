"""What the request and response planes tell Prometheus, under the names that dashboards of Dynamo know.

By decoration: whoever composes a process wraps its clients, handlers and pools with what is here, and those know
nothing of it. The registry is the caller's. `asgi_metrics.py` has the figures of HTTP requests.

A request counts on the plane `request` until the worker has taken it, its answer on the plane `response` until both
directions have ended; with call-home these are two transports. Refusals and failures of handlers are no errors of a
transport.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvrouter.errors import (
    DeadlineError,
    DisconnectedError,
    NoInstancesError,
    ProtocolError,
    TransportError,
    UnreachableError,
    WireError,
)
from kvrouter.transport.callhome_socket import CallHomeSocket
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import EndpointCounters, Endpoints
from kvrouter.transport.messages import Request
from kvrouter.transport.planes import RequestClient
from kvrouter.transport.pool import ConnectionPool, PoolCounters
from kvrouter.transport.server_stream import Handler, answering

__all__ = ["InstrumentedClient", "PlaneMetrics", "PoolMetrics", "WorkHandlerMetrics"]

_SHORT_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_LONG_BUCKETS = (*_SHORT_BUCKETS, 15.0, 60.0, 180.0, 600.0)
_ERROR_TYPES: tuple[tuple[str, tuple[type[Exception], ...]], ...] = (
    ("timeout", (DeadlineError,)),
    ("connection", (UnreachableError, DisconnectedError, NoInstancesError)),
    ("protocol", (ProtocolError, WireError)),
)


class PlaneMetrics:
    """What clients see of requests and answers, by transport and plane."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("transport", "plane")
        self._requests = Counter("transport_requests", "Requests and answers begun.", labels, registry=registry)
        self._latency = Histogram(
            "transport_request_latency_seconds", "Until a request was taken, and until its answer had ended.", labels,
            buckets=_LONG_BUCKETS, registry=registry,
        )  # fmt: skip
        self._active = Gauge(
            "transport_active_streams", "Requests and answers that are open.", labels, registry=registry
        )
        self._errors = Counter(
            "transport_errors", "Failures of transports.", ("transport", "error_type"), registry=registry
        )
        self._known: dict[tuple[str, str], tuple[Counter, Gauge, Histogram]] = {}

    def client(self, client: RequestClient, transport: str, *, response: str | None = None) -> "InstrumentedClient":
        """Wrap a client; `response` is the transport of its answers where they have one of their own."""
        return InstrumentedClient(client, self, transport, response or transport)

    def begin(self, transport: str, plane: str) -> Callable[[], float]:
        """Something has begun; call what is returned when it is over, for the seconds that it took."""
        requests, active, _ = self._of(transport, plane)
        began = perf_counter()
        requests.inc()
        active.inc()

        def over() -> float:
            active.dec()
            return perf_counter() - began

        return over

    def succeeded(self, transport: str, plane: str, seconds: float) -> None:
        """It took so long."""
        self._of(transport, plane)[2].observe(seconds)

    def failed(self, transport: str, error: Exception) -> None:
        """It has failed; counted where that is an error of the transport."""
        for error_type, classes in _ERROR_TYPES:
            if isinstance(error, classes):
                self._errors.labels(transport, error_type).inc()

    def _of(self, transport: str, plane: str) -> tuple[Counter, Gauge, Histogram]:
        """Looked up once: there are few transports, and many requests."""
        known = self._known.get((transport, plane))
        if known is None:
            known = self._known[transport, plane] = (
                self._requests.labels(transport, plane),
                self._active.labels(transport, plane),
                self._latency.labels(transport, plane),
            )
        return known


class InstrumentedClient:
    """A `RequestClient` that counts what another one does."""

    def __init__(self, client: RequestClient, metrics: PlaneMetrics, transport: str, response: str) -> None:
        self._client, self._metrics, self._transport, self._response = client, metrics, transport, response

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`."""
        metrics = self._metrics
        over = metrics.begin(self._transport, "request")
        try:
            stream = await self._client.request(address, request, context)
        except BaseException as error:
            over()
            if isinstance(error, TransportError | WireError):
                metrics.failed(self._transport, error)
            raise
        metrics.succeeded(self._transport, "request", over())
        answered = metrics.begin(self._response, "response")

        def ended() -> None:
            seconds = answered()
            if stream.error is None:
                metrics.succeeded(self._response, "response", seconds)
            else:
                metrics.failed(self._response, stream.error)

        stream.when_closed(ended)
        return stream

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self._client.aclose()


class WorkHandlerMetrics:
    """What a worker's handlers do, by endpoint, and what failed, by kind.

    `errors_total` has `generate` for handlers that raised; `invalid_message`, `lost_message`, `response_stream` and
    others are read at a scrape from those who count them (`refusals`, `call_home`, `count_errors`).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        labels, prefix = ("endpoint",), "work_handler_"
        self._requests = Counter(f"{prefix}requests", "Requests begun.", labels, registry=registry)
        self._duration = Histogram(
            f"{prefix}request_duration_seconds", "Time that handlers took.", labels,
            buckets=_LONG_BUCKETS, registry=registry,
        )  # fmt: skip
        self._inflight = Gauge(f"{prefix}inflight_requests", "Requests in work.", labels, registry=registry)
        self._bytes_in = Counter(f"{prefix}request_bytes", "Bytes of requests' bodies.", labels, registry=registry)
        self._bytes_out = Counter(f"{prefix}response_bytes", "Bytes of answers' items.", labels, registry=registry)
        self._errors = _ReadErrors(f"{prefix}errors")
        self._refused = _ReadRefusals(f"{prefix}refused")
        registry.register(self._errors)
        registry.register(self._refused)

    def handlers(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Wrap every handler, by the name of its endpoint."""
        return {name: self.handler(name, handler) for name, handler in handlers.items()}

    def handler(self, endpoint: str, handler: Handler) -> Handler:
        """Wrap a handler."""
        requests, duration = self._requests.labels(endpoint), self._duration.labels(endpoint)
        inflight, bytes_out = self._inflight.labels(endpoint), self._bytes_out.labels(endpoint)
        bytes_in, errors = self._bytes_in.labels(endpoint), self._errors

        async def counted(request: Request, context: Context) -> AsyncIterator[bytes]:
            requests.inc()
            bytes_in.inc(len(request.body))
            with inflight.track_inprogress(), duration.time():
                try:
                    async with answering(handler, request, context) as items:
                        async for item in items:
                            bytes_out.inc(len(item))
                            yield item
                except Exception:
                    errors.generate += 1
                    raise

        return counted

    def count_errors(self, error_type: str, count: Callable[[], int]) -> None:
        """Read further errors of a kind at each scrape."""
        self._errors.sources.append((error_type, count))

    def refusals(self, endpoints: Endpoints) -> None:
        """Read at each scrape whom a worker did not let in, and what of its transports could not be read."""
        counters = endpoints.counters
        self._refused.counters.append(counters)
        self.count_errors("invalid_message", lambda: counters.malformed)
        self.count_errors("lost_message", lambda: counters.gaps)

    def call_home(self, worker: CallHomeWorker) -> None:
        """Read the errors of a worker that calls home; its pool is `PoolMetrics`'."""
        self.count_errors("invalid_message", lambda: worker.counters.malformed)
        self.count_errors("response_stream", lambda: worker.counters.failed_dials)


class PoolMetrics(Collector):
    """What pools of connections do, by target."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pools: list[ConnectionPool[CallHomeSocket]] = []
        self._latency = Histogram(
            "tcp_pool_acquisition_latency_seconds", "Time to get a connection.", ("target",),
            buckets=_SHORT_BUCKETS, registry=registry,
        )  # fmt: skip
        registry.register(self)

    def pool(self, pool: ConnectionPool[CallHomeSocket]) -> None:
        """Watch a pool."""
        self._pools.append(pool)
        pool.observe = lambda target, seconds: self._latency.labels(target).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Read the pools."""
        counters = [(target, counted) for pool in self._pools for target, counted in pool.counters().items()]
        for name, text, read in _POOL_COUNTERS:
            counter = CounterMetricFamily(f"tcp_pool_{name}", text, labels=("target",))
            for target, number in _summed((target, read(counted)) for target, counted in counters).items():
                counter.add_metric((target,), number)
            yield counter
        for name, text, measure in _POOL_GAUGES:
            gauge = GaugeMetricFamily(f"tcp_pool_{name}", text, labels=("target",))
            rows = ((target, measure(pool, target)) for pool in self._pools for target in pool.counters())
            for target, number in _summed(rows).items():
                gauge.add_metric((target,), number)
            yield gauge

    def describe(self) -> list[Metric]:
        """Targets are not known before a scrape."""
        return []


class _ReadErrors(Collector):
    """Errors by kind: what handlers raised, and what others have counted."""

    def __init__(self, name: str) -> None:
        self.generate = 0
        self.sources: list[tuple[str, Callable[[], int]]] = []
        self._name = name

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, "Requests that failed at this worker.", labels=("error_type",))
        rows = [("generate", self.generate), *((error_type, count()) for error_type, count in self.sources)]
        for error_type, number in _summed(rows).items():
            family.add_metric((error_type,), number)
        yield family

    def describe(self) -> list[Metric]:
        return []


class _ReadRefusals(Collector):
    """Requests that were not let in, by reason."""

    def __init__(self, name: str) -> None:
        self.counters: list[EndpointCounters] = []
        self._name = name

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, "Requests that were not let in.", labels=("reason",))
        counters = self.counters
        family.add_metric(("unauthenticated",), sum(each.refused_unauthenticated for each in counters))
        family.add_metric(("permission_denied",), sum(each.refused_denied for each in counters))
        family.add_metric(("rate_limited",), sum(each.refused_rate for each in counters))
        family.add_metric(("unknown_key",), sum(each.refused_keys for each in counters))
        yield family

    def describe(self) -> list[Metric]:
        return []


_POOL_COUNTERS: tuple[tuple[str, str, Callable[[PoolCounters], int]], ...] = (
    ("connections_created", "Connections made.", lambda counted: counted.created),
    ("connections_reused", "Connections used again.", lambda counted: counted.reused),
    (
        "validation_failures",
        "Idle connections that could not be used again.",
        lambda counted: counted.validation_failures,
    ),
)
_POOL_GAUGES: tuple[tuple[str, str, Callable[[ConnectionPool[CallHomeSocket], str], int]], ...] = (
    ("active_connections", "Connections in use.", lambda pool, target: pool.active(target)),
    ("idle_connections", "Connections that wait to be used again.", lambda pool, target: pool.idle(target)),
)


def _summed(rows: "Iterator[tuple[str, int]] | list[tuple[str, int]]") -> dict[str, int]:
    totals: dict[str, int] = {}
    for label, number in rows:
        totals[label] = totals.get(label, 0) + number
    return totals
