"""How busy the engine behind a worker is, as its own Prometheus page says."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from kvrouter.events.load import LoadReport
from kvrouter.service.load_reports import PAGE_BYTES_MAX, report_of
from kvrouter.service.logs import log_event
from kvrouter.service.prometheus_load import RankCounters, read_page
from kvrouter.service.proxy import Endpoint, ProxyLimits, UpstreamError, UpstreamPool, fetch
from kvrouter.service.worker_spec import worker_spec_from_fields
from kvrouter.service.worker_state import endpoint_of

__all__ = ["EngineLoad", "engine_load"]

_TIMEOUT_SECONDS: Final = 5.0
_PATHS: Final = ("/metrics", "/prometheus/metrics")

_log = logging.getLogger("kvrouter.worker")


class EngineLoad:
    """Asks an engine when it is told to; keeps nothing running meanwhile."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pool = UpstreamPool(ProxyLimits())
        self._counters: dict[int, RankCounters] = {}

    async def reports(self) -> list[LoadReport]:
        """Ask, and return a report of each rank; none where the engine does not tell. They name no worker."""
        for path in _PATHS:
            try:
                answer = await fetch(
                    self._pool, self._endpoint, "GET", path, timeout_seconds=_TIMEOUT_SECONDS, max_bytes=PAGE_BYTES_MAX
                )
            except UpstreamError as error:
                log_event(_log, logging.DEBUG, "engine_load_unknown", error=str(error))
                return []
            if answer.status == 200 and (found := self._read(answer.body)):
                return found
        return []

    def close(self) -> None:
        """Close the connections to the engine."""
        self._pool.close()

    def _read(self, page: bytes) -> list[LoadReport]:
        now = time.time()
        found = (report_of("", rank, figures, self._counters, now) for rank, figures in read_page(page).items())
        return [report for report in found if report.says_anything]


@asynccontextmanager
async def engine_load(url: str, *, api_key: str | None = None) -> AsyncIterator[EngineLoad]:
    """The load of the engine at `url`, until the end of the block.

    Raises:
        RequestError: the URL is none.
    """
    load = EngineLoad(endpoint_of(worker_spec_from_fields({"url": url, "api_key": api_key}), None))
    try:
        yield load
    finally:
        load.close()
