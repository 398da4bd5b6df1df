"""What `GET /sources` and the event metrics tell: the meaning and the transport of every event source, side by side."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from kvrouter.events import Source
from kvrouter.events.endpoints import without_password
from kvrouter.ingest import Ingest, SourceStatus
from kvrouter.service.workers import WorkerRegistry
from kvrouter_subscribers import TransportStatus

__all__ = ["SourceReport", "TransportView"]


class TransportView(Protocol):
    """The part of a subscriber that tells how its connections are."""

    def status(self, source: Source) -> TransportStatus | None:
        """Return the transport's side of a source, or None where it has none."""
        ...


class SourceReport:
    """Joins ingest and subscriber by (worker, rank)."""

    def __init__(
        self, *, registry: WorkerRegistry, ingest: Ingest, transport: TransportView, clock: Callable[[], float]
    ) -> None:
        self._registry, self._ingest, self._transport, self._clock = registry, ingest, transport, clock

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON-ready row per rank of every worker; ranks without events are there too."""
        return [self._row(status) for status in self._ingest.status(now=self._clock())]

    def connected(self) -> dict[Source, bool]:
        """Return which sources have a live connection."""
        states = {}
        for worker in self._registry:
            for rank in worker.spec.events:
                source = Source(worker.spec.worker_id, rank)
                status = self._transport.status(source)
                states[source] = status is not None and status.connected
        return states

    def _row(self, status: SourceStatus) -> dict[str, Any]:
        worker = self._registry.get(status.worker_id)
        transport = self._transport.status(Source(status.worker_id, status.rank))
        row = dataclasses.asdict(status)
        row["worker_id"] = status.worker_id if worker is None else worker.spec.public_id
        if worker is not None and worker.spec.ranks > 1 and status.announced_rank not in {None, status.rank}:
            # Requests name the rank that they are for, so another one's cache attracts them in vain. A worker of one
            # rank may well be a slice of an engine that counts more.
            row["last_error"] = (
                f"batches say that they are of data-parallel rank {status.announced_rank}: "
                "are the event endpoints in the order of the ranks?"
            )
        if transport is None:
            row.update(transport=None, endpoint=None, connected=False)
            return row
        carried = dataclasses.asdict(transport)
        transport_error = carried.pop("last_error")
        row.update(carried, endpoint=without_password(transport.endpoint))
        row["last_error"] = row["last_error"] or transport_error
        return row
