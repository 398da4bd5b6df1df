"""Tells the log when a worker that answers cannot be heard: the commonest mistake in a deployment, and a silent one.

A port that is closed, or an engine that binds its events to its own loopback, fails nothing: requests go on, routed by
load and by memory. What the events then say is `ingest`; how the connections are is `GET /sources`.
"""

import logging
from collections.abc import Mapping

from kvrouter.events import Source
from kvrouter.events.endpoints import without_password
from kvrouter.service.logs import log_event
from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["UNHEARD_SECONDS", "EventWatch"]

UNHEARD_SECONDS = 10.0
"""How long a worker may be ready before its events count as missing; engines open both at about the same time."""

_log = logging.getLogger("kvrouter.events")


class EventWatch:
    """Says once for each source that it is missing, and once that it is there after all."""

    def __init__(self, registry: WorkerRegistry) -> None:
        self._registry = registry
        self._missing: set[Source] = set()

    def look(self, connected: Mapping[Source, bool], *, now: float) -> None:
        """Compare what should be heard with what is; called every now and then."""
        known: set[Source] = set()
        for worker in self._registry:
            for rank, endpoint in worker.spec.events.items():
                source = Source(worker.spec.worker_id, rank)
                known.add(source)
                self._judge(worker, source, endpoint, connected=connected.get(source, False), now=now)
        self._missing &= known

    def _judge(self, worker: Worker, source: Source, endpoint: str, *, connected: bool, now: float) -> None:
        if connected and source in self._missing:
            self._missing.discard(source)
            log_event(_log, logging.INFO, "events_connected", worker=source.worker_id, rank=source.rank)
        elif not connected and worker.health == "ready" and source not in self._missing:
            if now - worker.since < UNHEARD_SECONDS:
                return
            self._missing.add(source)
            log_event(
                _log,
                logging.WARNING,
                "events_not_connected",
                worker=source.worker_id,
                rank=source.rank,
                endpoint=without_password(endpoint),
                hint="the worker answers, but its event endpoint does not; routing goes by load and memory",
            )
