"""Asks all instances of a service what they have done, and collects the answers of a window of time.

Nobody can know that all have answered. So a result says how many did, beside how many discovery knows.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from kvrouter.errors import WireError
from kvrouter.reporting.broker import Broker, Msg
from kvrouter.reporting.service_records import ServiceStats, decode_stats
from kvrouter.service.logs import log_event

__all__ = ["Collected", "StatsCollector", "StatsGauges"]

WINDOW_SECONDS: Final = 0.5
INTERVAL_SECONDS: Final = 9.8
INSTANCES_MAX: Final = 10_000

_log = logging.getLogger("kvrouter.reporting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What came within the window, an instance once; `expected` instances are known otherwise, None: nobody counts."""

    services: tuple[ServiceStats, ...]
    expected: int | None = None
    repeated: int = 0
    malformed: int = 0


class StatsCollector:
    """Asks one service. `collect` may be called at any time; `run` does, for ever."""

    def __init__(
        self,
        broker: Broker,
        service: str,
        *,
        window_seconds: float = WINDOW_SECONDS,
        interval_seconds: float = INTERVAL_SECONDS,
        expected: Callable[[], int] | None = None,
    ) -> None:
        self.service = service
        self._broker = broker
        self._window, self._interval, self._expected = window_seconds, interval_seconds, expected

    async def collect(self) -> Collected:
        """Ask, and return what has come when the window closes: earlier where all that are expected have answered.

        Raises:
            ConnectionError: the server cannot be reached.
        """
        window = _Window(None if self._expected is None else self._expected())
        inbox = self._broker.new_inbox()
        end = await self._broker.listen(inbox, window.heard)
        try:
            if not await self._broker.publish(f"$SRV.STATS.{self.service}", b"", reply=inbox):
                raise ConnectionError("the NATS server cannot be reached")
            try:
                async with asyncio.timeout(self._window):
                    await window.full.wait()
            except TimeoutError:
                pass
        finally:
            await end()
        return window.collected()

    async def run(self, take: Callable[[Collected | None], None]) -> None:
        """Collect again and again, at once for the first time; `take` is called with None where that failed."""
        while True:
            try:
                take(await self.collect())
            except OSError as error:
                log_event(_log, logging.DEBUG, "service_stats_failed", service=self.service, error=str(error))
                take(None)
            await asyncio.sleep(self._interval)


class _Window:
    """The answers to one question."""

    def __init__(self, expected: int | None) -> None:
        self.full = asyncio.Event()
        self._expected = expected
        self._services: dict[str, ServiceStats] = {}
        self._repeated = self._malformed = 0

    async def heard(self, message: Msg) -> None:
        if message.headers and message.headers.get("Status") == "503":
            return  # Nobody listens, and nobody will.
        try:
            stats = decode_stats(message.data)
        except WireError:
            self._malformed += 1
            return
        if stats.id in self._services:
            self._repeated += 1
        elif len(self._services) < INSTANCES_MAX:
            self._services[stats.id] = stats
        if self._expected is not None and len(self._services) >= self._expected:
            self.full.set()

    def collected(self) -> Collected:
        services = tuple(self._services[key] for key in sorted(self._services))
        return Collected(services=services, expected=self._expected, repeated=self._repeated, malformed=self._malformed)


class StatsGauges:
    """The sums over all instances, for dashboards that know Dynamo's; zero where nobody could be asked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"nats_service_{name}", text, ("service",), registry=registry)

        self._services = gauge("active_services", "Instances that answered.")
        self._expected = gauge("expected_services", "Instances that discovery knows.")
        self._endpoints = gauge("active_endpoints", "Endpoints of the instances that answered.")
        self._requests = gauge("requests_total", "Requests that they have taken.")
        self._errors = gauge("errors_total", "Requests that failed there.")
        self._processing = gauge("processing_ms_total", "Time that requests took, in milliseconds.")
        self._average = gauge("processing_ms_avg", "The same, per request.")

    def show(self, service: str, collected: Collected | None) -> None:
        """Show what was collected."""
        services = () if collected is None else collected.services
        endpoints = [endpoint for each in services for endpoint in each.endpoints]
        requests = sum(each.requests for each in endpoints)
        milliseconds = sum(each.processing_ns for each in endpoints) / 1e6
        self._services.labels(service).set(len(services))
        self._expected.labels(service).set((collected.expected if collected else None) or 0)
        self._endpoints.labels(service).set(len(endpoints))
        self._requests.labels(service).set(requests)
        self._errors.labels(service).set(sum(each.errors for each in endpoints))
        self._processing.labels(service).set(milliseconds)
        self._average.labels(service).set(milliseconds / requests if requests else 0.0)
