"""Requests to an endpoint by name: chooses an instance, a transport that both sides have, and tries again where it may.

Each instance's record says how it is reached, so one fleet may mix transports and change them while it runs: streams
that are open go on, new ones take what the record says then.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from kvrouter.discovery import Directory, Instance
from kvrouter.discovery.choosing import InstanceChooser, make_chooser
from kvrouter.errors import NoInstancesError, TransportError
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.instance_client import InstanceClient
from kvrouter.transport.messages import Request
from kvrouter.transport.registry import TransportRegistry

__all__ = ["PlaneClient", "PlaneClientCounters"]

_BACK_OFF_SECONDS = 0.02


@dataclass(slots=True)
class PlaneClientCounters:
    """What happened since the start."""

    requests: int = 0
    retries: int = 0
    failures: int = 0


class PlaneClient:
    """Sends requests to whoever serves an endpoint. Lives on one event loop.

    A request is tried on up to `attempts_max` instances as long as nothing of an answer was seen; it keeps its id, and
    a worker takes an id once, so that no work is done twice.
    """

    def __init__(
        self,
        directory: Directory,
        registry: TransportRegistry,
        *,
        mode: str = "round-robin",
        attempts_max: int = 3,
        wait_seconds: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.counters = PlaneClientCounters()
        self.directory, self._instances = directory, InstanceClient(registry)
        self._chooser: InstanceChooser = make_chooser(mode, seed=seed)
        self._attempts_max, self._wait_seconds = attempts_max, wait_seconds
        directory.listen(self._instance_changed)

    @property
    def fallbacks(self) -> int:
        """Times another transport was taken because one had no connection."""
        return self._instances.fallbacks

    async def request(
        self, request: Request, context: Context | None = None, *, instance_id: int | None = None
    ) -> ClientStream:
        """Send a request and return its answer as soon as a worker has taken it.

        Args:
            request: what; its endpoint is the name within the worker.
            context: None for a new one.
            instance_id: the only instance that may be asked (`direct`).

        Raises:
            NoInstancesError: nobody serves the endpoint, or none that does is left to try.
            TransportError: the last attempt's error.
        """
        self.counters.requests += 1
        return await self._begin(request, context if context is not None else Context(), instance_id, _Attempts())

    async def items(
        self, request: Request, context: Context | None = None, *, instance_id: int | None = None
    ) -> AsyncIterator[bytes]:
        """The items of an answer; a worker that is lost before its first item is replaced by another one.

        Raises as `request`, and what ends the answer early.
        """
        self.counters.requests += 1
        context, attempts, seen = context if context is not None else Context(), _Attempts(), False
        while True:
            async with await self._begin(request, context, instance_id, attempts) as stream:
                try:
                    async for item in stream:
                        seen = True
                        yield item
                except TransportError as error:
                    if seen or not self._may_repeat(error, request, context, attempts):
                        self.counters.failures += 1
                        raise
                    attempts.last = error
                else:
                    return

    async def _begin(
        self, request: Request, context: Context, instance_id: int | None, attempts: "_Attempts"
    ) -> ClientStream:
        while True:
            try:
                instance = await self._choose(attempts, instance_id)
                return await self._ask(instance, request, context)
            except TransportError as error:
                if isinstance(error, NoInstancesError) or not self._may_repeat(error, request, context, attempts):
                    self.counters.failures += 1
                    raise (attempts.last if isinstance(error, NoInstancesError) else None) or error from None
                attempts.last = error
            await asyncio.sleep(_BACK_OFF_SECONDS * attempts.count)

    def _may_repeat(self, error: TransportError, request: Request, context: Context, attempts: "_Attempts") -> bool:
        """Whether another instance may be asked: nothing was seen, and what the caller sends is still there."""
        may = error.retryable and not request.many_in and not context.stopped and attempts.count < self._attempts_max
        self.counters.retries += may
        return may

    async def _choose(self, attempts: "_Attempts", instance_id: int | None) -> Instance:
        if self._wait_seconds:
            await self.directory.wait(seconds=self._wait_seconds)
        instances = self.directory.instances()
        if instance_id is not None:
            instances = tuple(each for each in instances if each.instance_id == instance_id)
        if not instances:
            raise NoInstancesError("No instances found: nobody serves the endpoint now")
        chosen = self._chooser.choose(instances, exclude=frozenset(attempts.tried))
        attempts.tried.add(chosen.instance_id)
        attempts.count += 1
        return chosen

    async def _ask(self, instance: Instance, request: Request, context: Context) -> ClientStream:
        self._chooser.begin(instance)
        try:
            stream = await self._instances.request(instance, request, context)
        except BaseException:
            self._chooser.end(instance)
            raise
        stream.when_closed(lambda: self._chooser.end(instance))
        return stream

    def _instance_changed(self, key: str, instance: Instance | None) -> None:
        if instance is None:
            self._chooser.forget(int(key.rpartition("/")[2], 16))


@dataclass(slots=True)
class _Attempts:
    """What was tried for one request."""

    count: int = 0
    tried: set[int] = field(default_factory=set)
    last: TransportError | None = None
