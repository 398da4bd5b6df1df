"""Workers that discovery finds: their records become workers of the registry, and leave it with them.

What a worker is besides its address (where its cache events are, its ranks, its labels) stands in its record, as the
fields of `POST /workers`. What it serves and whether it is well is asked of it as of any other worker, over its plane.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from kvrouter.discovery import Discovery, Instance
from kvrouter.discovery.metrics import DiscoveryMetrics
from kvrouter.errors import RequestError, StoreError
from kvrouter.service.logs import log_event
from kvrouter.service.proxy import Endpoint
from kvrouter.service.workers import WorkerRegistry, WorkerSpec, worker_spec_from_fields
from kvrouter.store.key_values import Synced

__all__ = ["DiscoveredWorkers", "spec_of"]

_RETRY_SECONDS: Final = 5.0
_DEGRADED_TAINT: Final = "degraded:PreferNoSchedule"
_ADDRESS_CHARACTERS_MAX: Final = 512
_NOT_TOLD: Final = frozenset({"url", "endpoint", "api_key"})
"""Fields that mean nothing of a worker that is reached over a plane."""

_log = logging.getLogger("kvrouter.discovery")


class DiscoveredWorkers:
    """Follows the records of one endpoint, or of all that a prefix of names covers; the only one to add their workers.

    `endpoint_of` makes what a new instance is reached by; `gone` is told of instances that have left.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        discovery: Discovery,
        names: tuple[str, str, str],
        *,
        endpoint_of: Callable[[str, Instance], Endpoint],
        gone: Callable[[Instance], None],
        metrics: DiscoveryMetrics,
        clock: Callable[[], float],
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self.instances: dict[str, Instance] = {}
        """By their keys."""
        self.worker_ids: dict[str, str] = {}
        """Those whose records could be taken, by the same keys."""
        self.last_error: str | None = None
        """Why records cannot be followed now."""
        self.is_known = False
        """Whether all records were ever told."""
        self._registry, self._discovery, self._names = registry, discovery, names
        self._endpoint_of, self._gone, self._metrics, self._clock = endpoint_of, gone, metrics, clock
        self._retry_seconds = retry_seconds
        self._endpoints: dict[str, Endpoint] = {}

    async def run(self) -> None:
        """Follow for ever. A store that cannot be reached is waited for; one that says no is asked again, loudly."""
        while True:
            try:
                await self._follow()
            except StoreError as error:
                self.last_error = str(error)
                log_event(_log, logging.ERROR, "discovery_failed", error=str(error))
            await asyncio.sleep(self._retry_seconds)

    async def _follow(self) -> None:
        unseen: set[str] | None = set(self.instances)
        async for news in self._discovery.watch(*self._names):
            if isinstance(news, Synced):
                self.last_error, self.is_known = None, True
                self._metrics.discoveries.inc()
                for key in unseen or ():  # they went while nobody followed
                    self._left(key)
                unseen = None
                continue
            key, instance = news
            if unseen:
                unseen.discard(key)
            if instance is None:
                self._left(key)
            elif self.instances.get(key) != instance:
                self._came(key, instance)

    def _came(self, key: str, instance: Instance) -> None:
        """A record is new, or says something else than before."""
        if key not in self.instances:
            self._metrics.registrations.inc()
        self.instances[key] = instance
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            endpoint = self._endpoints[key] = self._endpoint_of(key, instance)
        now = self._clock()
        try:
            spec = spec_of(instance, endpoint)
            if self.worker_ids.get(key, spec.worker_id) != spec.worker_id:
                self._remove(key)
            self._registry.upsert(spec, now=now)
            self.worker_ids[key] = spec.worker_id
            if instance.health == "unhealthy":
                self._registry.set_draining(spec.worker_id, draining=True, now=now)
        except RequestError as error:
            self._metrics.malformed.inc()
            log_event(_log, logging.WARNING, "record_refused", record=key, error=error.message)

    def _left(self, key: str) -> None:
        """A record is gone; requests that its worker is answering go on."""
        instance = self.instances.pop(key, None)
        self._endpoints.pop(key, None)
        if instance is None:
            self._metrics.malformed.inc()  # it was there, and could not be read
            return
        self._metrics.removals.inc()
        self._remove(key)
        self._gone(instance)

    def _remove(self, key: str) -> None:
        worker_id = self.worker_ids.pop(key, None)
        if worker_id is not None and self._registry.get(worker_id) is not None:
            self._registry.remove(worker_id, now=self._clock())


def spec_of(instance: Instance, endpoint: Endpoint) -> WorkerSpec:
    """What a record says of its worker.

    Raises:
        RequestError: a field is unknown or out of its bounds.
    """
    first = instance.transports[0]
    fields: dict[str, object] = {name: value for name, value in instance.worker.items() if name not in _NOT_TOLD}
    if not fields.keys() & {"id", "worker_id"}:
        fields["worker_id"] = f"{instance.instance_id:x}"
    if instance.zone is not None:
        fields.setdefault("zone", instance.zone)
    if instance.health == "degraded":
        given = fields.get("taints")
        fields["taints"] = [*(given if isinstance(given, list) else []), _DEGRADED_TAINT]
    fields["endpoint"] = f"{first.transport_id}:{first.address}"[:_ADDRESS_CHARACTERS_MAX]
    spec = worker_spec_from_fields(fields)
    models = spec.models if "models" in spec.fields else ()
    return replace(spec, reached=endpoint, url=None, trusted=False, models=models)
