"""What reports of one worker process: composed here, and started or left out by the request plane.

The plane is looked at where each job is started, so that a process of another plane has neither its task nor a
connection. No job that cannot be started keeps the worker from serving: it is tried again, and logged at DEBUG.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from prometheus_client import CollectorRegistry

from kvrouter import __version__
from kvrouter.errors import KvrouterError
from kvrouter.events.load import LoadReport
from kvrouter.reporting.handler_counts import HandlerCounts, counted
from kvrouter.reporting.kv_metrics import LOAD_METRICS, KvMetrics
from kvrouter.reporting.service_records import EndpointStats, ServiceIdentity, metrics_subject, service_name
from kvrouter.service.logs import log_event
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_access import NatsAccess
from kvrouter.transport.plane_settings import EventPlane, RequestPlane
from kvrouter.transport.server_stream import Handler

if TYPE_CHECKING:
    from kvrouter.reporting.broker import Broker

__all__ = ["Reporting"]

_RETRY_SECONDS: Final = 2.0
_REFRESH_SECONDS: Final = 1.0
_CANCEL_SECONDS: Final = 0.5

_log = logging.getLogger("kvrouter.reporting")

Refresh: TypeAlias = Callable[[], Awaitable[Sequence[LoadReport]]]
_Job: TypeAlias = tuple[str, Coroutine[Any, Any, None]]


class Reporting:
    """The reports of one worker process.

    Args:
        name: namespace and component, as `serve` has it.
        plane: the process's request plane.
        nats_server: URL of the NATS server; only looked at where the plane is `nats`.
        nats_access: who we are to that server, beyond what its URL says.
        event_plane: where the process sends its cache events; only to say so where that is not silent.
        registry: where gauges are shown; None for none.
        collects: whether this process collects the stats of its service too, as Dynamo's workers do.
        expected: how many instances there are, where the process knows.
        refresh: finds out the load of each rank, where nobody publishes it: called when the endpoint is asked, and
            every second where the plane is `nats`. Whose load it is need not be said.
        worker_id: by which name routers know this worker; None: by its instance id.
    """

    def __init__(
        self,
        name: str,
        *,
        plane: RequestPlane,
        nats_server: str | None = None,
        nats_access: NatsAccess | None = None,
        event_plane: EventPlane = "zmq",
        registry: CollectorRegistry | None = None,
        collects: bool = True,
        expected: Callable[[], int] | None = None,
        refresh: Refresh | None = None,
        worker_id: str | None = None,
    ) -> None:
        self.namespace, _, component = name.partition("/")
        self.service = service_name(self.namespace, component)
        self.metrics = KvMetrics(registry)
        self.tasks: tuple[asyncio.Task[None], ...] = ()
        self._plane, self._event_plane = plane, event_plane
        self._nats_server, self._nats_access = nats_server, nats_access
        self._registry, self._collects, self._refresh = registry, collects, refresh
        self._worker_id, self._expected = worker_id, expected
        self._counts: dict[str, HandlerCounts] = {}

    def handlers(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Count what handlers do, and put the endpoint `load_metrics` beside them."""
        named = {**handlers, LOAD_METRICS: self._load_metrics}
        for name in named:
            self._counts.setdefault(name, HandlerCounts())
        return counted(named, self._counts)

    def publish(self, report: LoadReport) -> None:
        """This is the load of a rank now. Call it on the event loop; it waits for nothing."""
        self.metrics.publish(report)

    @asynccontextmanager
    async def running(self, instance_id: int, addresses: Mapping[str, str] | None = None) -> AsyncIterator[None]:
        """Report until the end of the block.

        Args:
            instance_id: who this is, as discovery knows it.
            addresses: where each transport is reached; `nats` is what the service's records tell.
        """
        self._worker_id = self._worker_id or f"{instance_id:x}"
        subject = (addresses or {}).get("nats", "")
        identity = ServiceIdentity(
            name=self.service,
            id=f"{instance_id:x}",
            version=__version__,
            endpoints=dict.fromkeys(self._counts, subject),
        )
        if self._plane != "nats" and self._event_plane == "nats":
            log_event(_log, logging.WARNING, "events_use_nats", request_plane=self._plane, service=self.service)
        broker = self._broker()
        jobs = (*self._stats_jobs(broker, identity), *self._kv_metrics_jobs(broker, identity))
        self.tasks = tuple(asyncio.create_task(job, name=name) for name, job in jobs)
        try:
            yield
        finally:
            await _end(self.tasks)
            self.tasks = ()
            if broker is not None:
                await broker.close()

    def _broker(self) -> "Broker | None":
        if self._plane != "nats":
            return None
        try:
            from kvrouter.reporting.broker import Broker  # noqa: PLC0415 - its client only where it is needed

            return Broker(self._nats_server or "", self._nats_access)
        except KvrouterError as error:
            log_event(_log, logging.DEBUG, "reporting_not_started", service=self.service, error=str(error))
            return None

    def _stats_jobs(self, broker: "Broker | None", identity: ServiceIdentity) -> list[_Job]:
        if self._plane != "nats" or broker is None:
            log_event(_log, logging.DEBUG, "service_stats_skipped", service=self.service, request_plane=self._plane)
            return []
        from kvrouter.reporting.stats_answers import StatsAnswers  # noqa: PLC0415 - as above
        from kvrouter.reporting.stats_collector import StatsCollector, StatsGauges  # noqa: PLC0415 - as above

        started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        answers = StatsAnswers(broker, identity, started=started, read=lambda: self._endpoint_stats(identity))
        jobs: list[_Job] = [("service stats", self._persistently("service_stats", broker, answers.start))]
        if self._collects:
            collector, gauges = (
                StatsCollector(broker, self.service, expected=self._expected),
                StatsGauges(self._registry or CollectorRegistry()),
            )

            async def collect() -> None:
                await collector.run(lambda collected: gauges.show(self.service, collected))

            jobs.append(("service stats collector", self._persistently("service_stats_collector", broker, collect)))
        return jobs

    def _kv_metrics_jobs(self, broker: "Broker | None", identity: ServiceIdentity) -> list[_Job]:
        if self._plane != "nats" or broker is None:
            log_event(_log, logging.DEBUG, "kv_metrics_skipped", worker=identity.id, request_plane=self._plane)
            return []
        from kvrouter.reporting.kv_metrics_publication import KvMetricsPublication  # noqa: PLC0415 - as above

        subject = metrics_subject(self.namespace)
        log_event(_log, logging.DEBUG, "kv_metrics_published", worker=identity.id, subject=subject)
        publication = KvMetricsPublication(
            broker, self.metrics, subject=subject, registry=self._registry or CollectorRegistry()
        )
        jobs: list[_Job] = [("kv metrics", self._persistently("kv_metrics", broker, publication.run))]
        if self._refresh is not None:
            jobs.append(("load", self._refreshing()))
        return jobs

    async def _load_metrics(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        await self._refreshed()
        async for item in self.metrics.load_metrics(request, context):
            yield item

    async def _refreshing(self) -> None:
        while True:
            try:
                await self._refreshed()
            except Exception as error:  # noqa: BLE001 - supervised edge: as in `_persistently`
                log_event(_log, logging.DEBUG, "load_unknown", service=self.service, error=type(error).__name__)
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _refreshed(self) -> None:
        if self._refresh is not None:
            for report in await self._refresh():
                self.publish(replace(report, worker_id=self._worker_id or report.worker_id))

    async def _persistently(self, job: str, broker: "Broker", work: Callable[[], Awaitable[None]]) -> None:
        """Do something over NATS as soon as that is possible, whatever keeps it from being so."""
        while True:
            try:
                await broker.connect()
                await work()
            except Exception as error:  # noqa: BLE001 - supervised edge: reports must not end what they are about
                fields = {"job": job, "service": self.service, "error": f"{type(error).__name__}: {error}"}
                log_event(_log, logging.DEBUG, "report_not_started", **fields)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    def _endpoint_stats(self, identity: ServiceIdentity) -> list[EndpointStats]:
        records = self.metrics.records()
        load = records[0]["data"] if len(records) == 1 else {"reports": records} if records else None
        return [
            EndpointStats(
                name=name,
                subject=identity.endpoints[name],
                requests=counts.requests,
                errors=counts.errors,
                last_error=counts.last_error,
                processing_ns=counts.processing_ns,
                data=load,
            )
            for name, counts in self._counts.items()
        ]


async def _end(tasks: "tuple[asyncio.Task[None], ...]") -> None:
    """Cancel tasks until they have ended: under Python 3.11 NATS' library may lose a cancellation while it connects."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_SECONDS)
