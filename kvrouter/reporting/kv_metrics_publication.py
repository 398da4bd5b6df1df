"""Publishes a worker's load on `namespace.NAMESPACE.kv_metrics`, in JSON, for those who follow it there.

A change is published a millisecond after the figures last changed; see `LoadOutbox` for the bounds.
"""

import asyncio
import contextlib

from prometheus_client import CollectorRegistry, Counter

from kvrouter.errors import WireError
from kvrouter.events.load import LoadOutbox, LoadReport, encode_load
from kvrouter.reporting.broker import Broker
from kvrouter.reporting.kv_metrics import KvMetrics

__all__ = ["KvMetricsPublication"]

_AWAY_SECONDS = 0.5
_IDLE_SECONDS_MAX = 5.0


class KvMetricsPublication:
    """Follows `metrics`, and sends each rank's newest report."""

    def __init__(self, broker: Broker, metrics: KvMetrics, *, subject: str, registry: CollectorRegistry) -> None:
        self._published = Counter("kv_metrics_published", "Loads that were published on NATS.", registry=registry)
        self._refused = Counter("kv_metrics_refused", "Loads that cannot be written down.", registry=registry)
        self._broker, self._metrics, self._subject = broker, metrics, subject
        self._outboxes: dict[int, LoadOutbox] = {}
        self._offered = asyncio.Event()

    async def run(self) -> None:
        """Publish for ever."""
        forget = self._metrics.listen(self._offer)
        clock = asyncio.get_running_loop().time
        try:
            while True:
                self._offered.clear()
                seconds = _AWAY_SECONDS
                if self._broker.is_connected:
                    await self._publish_due(clock())
                    idle = (outbox.idle_seconds(clock()) for outbox in self._outboxes.values())
                    seconds = min([*idle, _IDLE_SECONDS_MAX])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._offered.wait()
        finally:
            forget()

    def _offer(self, report: LoadReport) -> None:
        self._outboxes.setdefault(report.rank, LoadOutbox()).offer(report)
        self._offered.set()

    async def _publish_due(self, now: float) -> None:
        for outbox in self._outboxes.values():
            report = outbox.take(now)
            if report is None:
                continue
            try:
                payload = encode_load(report, encoding="json")
            except WireError:
                self._refused.inc()
                continue
            self._published.inc(await self._broker.publish(self._subject, payload))
