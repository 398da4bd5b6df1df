"""The request planes of the router process: who is there, how each one is reached, and what is under way."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry

from kvrouter.discovery import Discovery, Instance
from kvrouter.service.planes.connection import PlaneConnection
from kvrouter.service.planes.discovered import DiscoveredWorkers
from kvrouter.service.planes.figures import PlaneFigures
from kvrouter.service.planes.switching import PlaneSwitch
from kvrouter.service.planes.ways import PlaneChoices, Ways
from kvrouter.service.proxy import Endpoint
from kvrouter.service.workers import WorkerRegistry
from kvrouter.store import open_key_value_store
from kvrouter.store.addresses import NO_OPTIONS
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request

__all__ = ["RequestPlanes"]

_GONE_SECONDS: Final = 60.0
"""A worker that has left finishes what runs, 30 s by default. What it has not answered by then will not be answered."""

_log = logging.getLogger("kvrouter.planes")


class RequestPlanes:
    """Built by the composition root; `run` follows discovery, `close` ends everything."""

    def __init__(
        self,
        choices: PlaneChoices,
        *,
        store: str,
        nats_options: Mapping[str, Any] = NO_OPTIONS,
        names: tuple[str, str, str],
        overload_status: int,
        authorization: bytes | None,
        workers: WorkerRegistry,
        figures: CollectorRegistry,
        clock: Callable[[], float],
    ) -> None:
        self.overload_status, self._authorization = overload_status, authorization
        self.figures = PlaneFigures(figures)
        self.ways = Ways(choices, self.figures.transports)
        kept = self.store = self.figures.discovery.store(open_key_value_store(store, nats_options=nats_options))
        """Of the records, and of what else the routers of this fleet agree on."""
        self.discovery = Discovery(kept)
        self.discovered = DiscoveredWorkers(
            workers,
            self.discovery,
            names,
            endpoint_of=self._endpoint_of,
            gone=self._gone,
            metrics=self.figures.discovery,
            clock=clock,
        )
        self.switch = PlaneSwitch(kept, names, self.ways, self.figures)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    def trouble(self, *, store_answers: bool) -> str | None:
        """Why workers that come and go are not noticed now; None: they are."""
        if self.discovered.last_error is not None:
            return self.discovered.last_error
        if store_answers and self.discovered.is_known:
            return None
        return "the store of the records does not answer"

    async def run(self) -> None:
        """Follow discovery and the switch, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.discovered.run(), name="discovery")
            tasks.create_task(self.switch.run(), name="request-plane")

    async def close(self) -> None:
        """End what is under way, then close every connection."""
        for timer in self._timers:
            timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.ways.close()
        await self.discovery.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run one exchange."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def find(self, key: str) -> Instance | None:
        """The record of an instance as it is now, None once it has left."""
        found = self.discovered.instances.get(key)
        (self.figures.discovery.misses if found is None else self.figures.discovery.hits).inc()
        return found

    def _endpoint_of(self, key: str, instance: Instance) -> Endpoint:
        worker = _Worker(self, key, instance)
        return Endpoint(
            "", 0, host_header=b"worker", authorization=self._authorization, open=lambda: PlaneConnection(worker)
        )

    def _gone(self, instance: Instance) -> None:
        timer: asyncio.TimerHandle

        def lose() -> None:
            self._timers.discard(timer)
            self.ways.lose(instance)

        timer = asyncio.get_running_loop().call_later(_GONE_SECONDS, lose)
        self._timers.add(timer)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("internal_error", exc_info=error, extra={"fields": {"where": "request plane"}})


class _Worker:
    """One instance, as its connections know it (`Caller`).

    One that has left while a request was on its way is asked where it was: if it still drains, it says no.
    """

    __slots__ = ("_instance", "_key", "_planes", "endpoint", "figures", "overload_status", "spawn")

    def __init__(self, planes: RequestPlanes, key: str, instance: Instance) -> None:
        self._planes, self._key, self._instance = planes, key, instance
        self.endpoint, self.overload_status = instance.endpoint, planes.overload_status
        self.figures, self.spawn = planes.figures, planes.spawn

    async def call(self, request: Request, context: Context) -> ClientStream:
        """Send a call."""
        self._instance = self._planes.find(self._key) or self._instance
        return await self._planes.ways.instances.request(self._instance, request, context)
