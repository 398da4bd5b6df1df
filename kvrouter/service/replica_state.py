"""Routers of one fleet tell each other what they have booked, through a watched key-value store.

Each has one key, `NAMESPACE/ROUTER` in the bucket `router_loads`, which dies with it. What is told and what is made of
it is `kvrouter.routing.replicas`; here is only how it travels. No request waits for it: a store that does not answer
costs what others have booked, once it is too old, and is logged, counted and shown.
"""

import asyncio
import logging
import random
import re
import secrets
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

from kvrouter.errors import StoreError, WireError
from kvrouter.routing import Router
from kvrouter.routing.replica_pace import ReplicaPace
from kvrouter.routing.replicas import ReplicaLoads
from kvrouter.service.event_transports import nats_options
from kvrouter.service.logs import log_event
from kvrouter.settings import Settings
from kvrouter.store import KeyValueStore, open_key_value_store
from kvrouter.store.key_values import Synced

__all__ = ["BUCKET", "ReplicaState", "ReplicaStatistics", "open_replica_state"]

BUCKET: Final = "router_loads"

_SETTLE_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 2.0
_REFUSALS_LOGGED_MAX: Final = 64

_log = logging.getLogger("kvrouter.replicas")


@dataclass(slots=True)
class ReplicaStatistics:
    """Counts since the start; `ReplicaCounts` has those of the records that came."""

    told: int = 0
    failed: int = 0
    last_error: str | None = None
    synced: bool = False


class ReplicaState:
    """Tells and listens. Lives on the event loop.

    Args:
        loads: what is told, and where it is taken in.
        pace: when.
        store: the keys; closed by `close`.
        address: of the store, for whoever looks; without password.
        namespace: routers of one namespace share a fleet.
        clock: steady seconds.
    """

    def __init__(
        self,
        loads: ReplicaLoads,
        pace: ReplicaPace,
        store: KeyValueStore,
        *,
        address: str,
        namespace: str,
        clock: Callable[[], float],
    ) -> None:
        self.loads, self.address, self.namespace = loads, address, namespace
        self.statistics = ReplicaStatistics()
        self._pace, self._store, self._clock = pace, store, clock
        self._bucket = store.bucket(BUCKET)
        self._prefix = f"{namespace}/"
        self._refusals_logged: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Tell and listen, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell(), name="replica-tell")
            tasks.create_task(self._listen(), name="replica-listen")
            tasks.create_task(self._settle(), name="replica-settle")

    async def close(self) -> None:
        """Take our record away and close the store; what cannot be removed now ends with its lease."""
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                if self.statistics.told:
                    await self._bucket.delete(self._prefix + self.loads.replica_id)
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._store.close()

    # -- ours ----------------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        while True:
            try:
                pause = await self._write() if self._pace.is_due(self._clock()) else self._pace.look_seconds
            except Exception as error:  # noqa: BLE001 - supervised edge: a bug here must not end the service
                _report_bug(error)
                pause = _RETRY_SECONDS
            await asyncio.sleep(pause)

    async def _write(self) -> float:
        """Tell; returns how long to wait then."""
        self._pace.telling(self._clock())
        record, lease = self.loads.record(), self.loads.lease_seconds
        try:
            async with asyncio.timeout(lease):
                await self._bucket.put(self._prefix + self.loads.replica_id, record, ttl_seconds=lease)
        except (StoreError, TimeoutError) as error:
            self._not_told(str(error) or "the store did not answer in time")
            return min(_RETRY_SECONDS, lease / 3)
        self.statistics.told += 1
        if self.statistics.last_error is not None:
            self.statistics.last_error = None
            log_event(_log, logging.INFO, "replica_state_told_again", store=self.address)
        return self._pace.look_seconds

    def _not_told(self, error: str) -> None:
        self.statistics.failed += 1
        if self.statistics.last_error is None:
            log_event(
                _log,
                logging.WARNING,
                "replica_state_not_told",
                store=self.address,
                error=error,
                hint="other routers do not know what this one has booked; it is tried again",
            )
        self.statistics.last_error = error

    async def _settle(self) -> None:
        """Keep up with the time, also while the store keeps everybody waiting."""
        while True:
            try:
                for name in self.loads.settle(self._clock()):
                    hint = "what it had booked is forgotten"
                    log_event(_log, logging.WARNING, "replica_silent", replica=name, hint=hint)
            except Exception as error:  # noqa: BLE001 - supervised edge, as above
                _report_bug(error)
            await asyncio.sleep(_SETTLE_SECONDS)

    # -- theirs --------------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                await self._follow()
            except StoreError as error:
                log_event(_log, logging.ERROR, "replicas_not_followed", store=self.address, error=str(error))
            except Exception as error:  # noqa: BLE001 - supervised edge, as above
                _report_bug(error)
            self.statistics.synced = False
            await asyncio.sleep(_RETRY_SECONDS)

    async def _follow(self) -> None:
        async with aclosing(self._bucket.watch(self._prefix)) as changes:  # type: ignore[type-var] # a generator
            async for news in changes:
                if isinstance(news, Synced):
                    self.statistics.synced = True
                    continue
                replica_id = news.key.removeprefix(self._prefix)
                if news.entry is None:
                    self._left(replica_id)
                else:
                    self._came(replica_id, news.entry.value)

    def _came(self, replica_id: str, data: bytes) -> None:
        met = self.loads.met
        try:
            self.loads.take(replica_id, data, now=self._clock())
        except WireError as error:
            refusal = replica_id, error.reason
            if refusal not in self._refusals_logged and len(self._refusals_logged) < _REFUSALS_LOGGED_MAX:
                self._refusals_logged.add(refusal)
                log_event(
                    _log,
                    logging.WARNING,
                    "replica_record_refused",
                    replica=replica_id,
                    field=error.reason,
                    error=str(error),
                    hint="said once; kvrouter_replica_records_refused_total counts all",
                )
        if self.loads.met != met:
            log_event(_log, logging.INFO, "replica_found", replica=replica_id, replicas=len(self.loads))

    def _left(self, replica_id: str) -> None:
        self._refusals_logged -= {each for each in self._refusals_logged if each[0] == replica_id}
        if self.loads.forget(replica_id, now=self._clock()):
            log_event(_log, logging.INFO, "replica_left", replica=replica_id, replicas=len(self.loads))

    # -- looking -------------------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """What is known of the other routers, and how the store does."""
        statistics, now = self.statistics, self._clock()
        return {
            "enabled": True,
            "replica_id": self.loads.replica_id,
            "namespace": self.namespace,
            "store": self.address,
            "store_state": "failing" if statistics.last_error else "following" if statistics.synced else "connecting",
            "last_error": statistics.last_error,
            "lease_seconds": self.loads.lease_seconds,
            "replicas": [
                {
                    "replica_id": each.replica_id,
                    "number": each.number,
                    "age_seconds": round(each.age_seconds, 3),
                    "lease_seconds": each.lease_seconds,
                    "ranks": each.ranks,
                    "unknown_ranks": each.unknown_ranks,
                    "active_requests": each.requests,
                    "prefill_tokens": each.prefill_tokens,
                }
                for each in self.loads.replicas(now)
            ],
        }


def open_replica_state(settings: Settings, router: Router, *, clock: Callable[[], float]) -> ReplicaState | None:
    """Return what the settings ask for; None where routers do not know of each other. Nothing is connected yet.

    Raises:
        SettingsError: the address is malformed, or keeps no small values.
        MissingExtraError: the store's client is not installed.
    """
    ours = settings.replicas
    address = ours.store or settings.planes.discovery
    if not address or address == "off":
        return None
    replica_id = f"{settings.events.router_id or 'router'}-{secrets.token_hex(8)}"  # of this life alone
    loads = ReplicaLoads(router.fleet, replica_id, lease_seconds=ours.lease_seconds, random=random.Random())
    pace = ReplicaPace(loads, lambda: router.decisions, interval_seconds=ours.interval_seconds, random=random.Random())
    return ReplicaState(
        loads,
        pace,
        open_key_value_store(address, nats_options=nats_options(settings.events)),
        address=re.sub(r"//[^/@]*@", "//***@", address),
        namespace=settings.planes.namespace,
        clock=clock,
    )


def _report_bug(error: Exception) -> None:
    _log.error("internal_error", exc_info=error, extra={"fields": {"where": "replicas"}})
