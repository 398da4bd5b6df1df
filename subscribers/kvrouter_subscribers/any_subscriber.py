"""Follow sources over whatever transport each one's endpoint names, behind the interface of a single subscriber.

A transport's client is loaded and started when the first source needs it, and lives until `close`: a router whose
workers publish over ZeroMQ opens no connection to any broker. A source changes its transport by being added again.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import NamedTuple, Protocol

from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter.events.endpoints import Transport, check_source, transport_of, without_password
from kvrouter.events.nats_names import parse_nats_endpoint
from kvrouter.events.redis_names import parse_redis_endpoint
from kvrouter_subscribers.subscriber import TransportStatus

__all__ = ["AddableSubscriber", "AnyEventSubscriber", "missing_extra"]

_NEEDS: dict[Transport, tuple[str, str]] = {"jetstream": ("nats", "nats"), "redis": ("redis", "redis")}
"""The module that carries a transport, and the extra that brings it."""

_PARSERS: dict[Transport, Callable[[str], object]] = {"jetstream": parse_nats_endpoint, "redis": parse_redis_endpoint}

_REPLACE_SECONDS = 1.0

_log = logging.getLogger("kvrouter.subscribers")


class AddableSubscriber(Protocol):
    """An `EventSubscriber` whose sources are named by an endpoint."""

    def add(self, source: Source, endpoint: str, *, replay_endpoint: str | None = None, topic: str = "") -> None:
        """Begin to follow a source."""
        ...

    def remove(self, source: Source) -> None:
        """Stop following a source."""
        ...

    def resync(self, source: Source) -> bool:
        """Ask for the whole state of a source."""
        ...

    async def run(self) -> None:
        """Work until `close`."""
        ...

    async def close(self) -> None:
        """Stop."""
        ...

    def status(self, source: Source) -> TransportStatus | None:
        """Return the state of one source."""
        ...


def missing_extra(transport: Transport) -> str | None:
    """Return the sentence that says what to install for a transport, or None if all it needs is here."""
    module, extra = _NEEDS.get(transport, ("", ""))
    if not module or find_spec(module) is not None:
        return None
    return f"this transport needs the package {module}: pip install 'kvrouter[{extra}]'"


class _Home(NamedTuple):
    transport: Transport
    endpoint: str
    replay_endpoint: str | None
    topic: str


class AnyEventSubscriber:
    """An `EventSubscriber` over all transports; `makers` build one subscriber per transport, all for the same sink."""

    def __init__(self, makers: Mapping[Transport, Callable[[], AddableSubscriber]]) -> None:
        self._makers = makers
        self._subscribers: dict[Transport, AddableSubscriber] = {}
        self._homes: dict[Source, _Home] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()

    def add(self, source: Source, endpoint: str, *, replay_endpoint: str | None = None, topic: str = "") -> None:
        """Listen to `source`; an earlier address of it is replaced, whatever transport that was.

        Raises:
            SettingsError: the endpoint is malformed, or its transport's client is not installed.
        """
        transport = transport_of(check_source(endpoint))
        subscriber = self._subscribers.get(transport) or self._open(transport, endpoint)
        if self._transport(source) != transport:
            self.remove(source)
        subscriber.add(source, endpoint, replay_endpoint=replay_endpoint, topic=topic)
        self._homes[source] = _Home(transport, endpoint, replay_endpoint, topic)

    def remove(self, source: Source) -> None:
        """Stop listening to `source` at once; unknown sources are ignored."""
        home = self._homes.pop(source, None)
        if home is not None:
            self._subscribers[home.transport].remove(source)

    def resync(self, source: Source) -> bool:
        """Ask for the whole state of `source` now; False if its transport cannot."""
        transport = self._transport(source)
        return transport is not None and self._subscribers[transport].resync(source)

    def refusal(self, endpoint: str) -> str | None:
        """Say why an endpoint cannot be followed here, or return None."""
        transport = transport_of(endpoint)
        if transport not in self._makers:
            return f"{transport} is not offered here"
        try:
            if transport in _PARSERS:
                _PARSERS[transport](endpoint)
        except SettingsError as error:  # What the form of an address does not show, such as a stream's name.
            return str(error)
        return missing_extra(transport)

    def status(self, source: Source) -> TransportStatus | None:
        """Return the state of one source, or None if it is unknown."""
        transport = self._transport(source)
        return None if transport is None else self._subscribers[transport].status(source)

    def subscriber(self, transport: Transport) -> AddableSubscriber | None:
        """Return the subscriber of a transport, if any source ever needed it."""
        return self._subscribers.get(transport)

    async def run(self) -> None:
        """Listen until `close` is called or the task is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for transport in self._subscribers:
                    tasks.create_task(self._keep(transport), name=f"{transport}-subscriber")
                await self._stop.wait()
                for subscriber in self._subscribers.values():
                    await subscriber.close()
        finally:
            self._tasks = None

    async def close(self) -> None:
        """Stop listening on every transport. May be called again."""
        self._stop.set()

    def _transport(self, source: Source) -> Transport | None:
        home = self._homes.get(source)
        return None if home is None else home.transport

    def _open(self, transport: Transport, endpoint: str) -> AddableSubscriber:
        reason = self.refusal(endpoint)
        if reason is not None:
            raise SettingsError(f"event endpoint {without_password(endpoint)}: {reason}")
        subscriber = self._subscribers[transport] = self._makers[transport]()
        if self._tasks is not None:
            self._tasks.create_task(self._keep(transport), name=f"{transport}-subscriber")
        return subscriber

    async def _keep(self, transport: Transport) -> None:
        """Run a transport's subscriber; one that breaks is made anew, and must not take the others along."""
        while True:
            try:
                await self._subscribers[transport].run()
            except Exception:  # noqa: BLE001 - supervised edge: it is logged, and its sources begin anew
                _log.exception("internal_error", extra={"fields": {"where": f"{transport}-subscriber"}})
            else:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_REPLACE_SECONDS):
                    await self._stop.wait()
                return
            subscriber = self._subscribers[transport] = self._makers[transport]()
            for source, (home, endpoint, replay_endpoint, topic) in self._homes.items():
                if home == transport:
                    subscriber.add(source, endpoint, replay_endpoint=replay_endpoint, topic=topic)
