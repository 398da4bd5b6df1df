"""Listen to publishers that are polled over HTTP: no broker, no open port at the router, through any proxy.

Here are the sources and their tasks; one source's loop is `http_link`.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from typing import Self

from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter.events.endpoints import check_source, transport_of
from kvrouter.events.load import LoadReport
from kvrouter_subscribers.http_limits import HttpLimits
from kvrouter_subscribers.http_link import HttpLink
from kvrouter_subscribers.subscriber import EventSink, TransportStatus

__all__ = ["HttpEventSubscriber"]


class HttpEventSubscriber:
    """An `EventSubscriber` over HTTP long polls.

    `run` it in a task, or use it as an asynchronous context manager that owns that task.

    Args:
        sink: takes what arrives, says when it needs a replay or a snapshot.
        clock: gives the `now` that the sink sees, in seconds.
        limits: the bounds on memory and time.
        token_of: gives a source's bearer token, where `add` is not told one; asked with each `add`.
        tls: how `https` publishers are verified; by default as the system does.
        on_load: takes load reports, which are then asked for as well (`kvrouter.events.load`).
        jitter: the randomness of pauses.
    """

    def __init__(
        self,
        sink: EventSink,
        *,
        clock: Callable[[], float] = time.monotonic,
        limits: HttpLimits | None = None,
        token_of: Callable[[Source], str | None] | None = None,
        tls: ssl.SSLContext | None = None,
        on_load: Callable[[LoadReport], None] | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._sink, self._clock, self._tls, self._on_load = sink, clock, tls, on_load
        self._limits = limits or HttpLimits()
        self._token_of = token_of
        self._jitter = jitter or random.Random()
        self._links: dict[Source, HttpLink] = {}
        self._following: dict[Source, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def add(
        self,
        source: Source,
        endpoint: str,
        *,
        replay_endpoint: str | None = None,  # noqa: ARG002 - of transports that need another address for replays
        topic: str = "",  # noqa: ARG002 - of transports that have topics
        token: str | None = None,
    ) -> None:
        """Listen to `source`; an earlier address of it is replaced. Several sources may share an address.

        Raises:
            SettingsError: the address or the token is malformed. One that merely does not answer is tried for ever.
        """
        if transport_of(check_source(endpoint)) != "http":
            raise SettingsError(f"event endpoint {endpoint!r} is not polled over HTTP")
        if not (endpoint.isascii() and endpoint.isprintable()):
            raise SettingsError(f"event endpoint {endpoint!r} is not printable ASCII")
        if token is None and self._token_of is not None:
            token = self._token_of(source)
        if token is not None and not (token.isascii() and token.isprintable()):
            raise SettingsError(f"the token of {source.worker_id} is not printable ASCII")
        if endpoint.startswith("https://") and self._tls is None:
            self._tls = ssl.create_default_context()
        self.remove(source)
        link = HttpLink(
            source,
            endpoint,
            token=token,
            sink=self._sink,
            clock=self._clock,
            limits=self._limits,
            tls=self._tls,
            jitter=self._jitter,
            on_load=self._on_load,
        )
        self._links[source] = link
        if self._tasks is not None:
            self._start(link, self._tasks)

    def remove(self, source: Source) -> None:
        """Stop listening to `source` at once; unknown sources are ignored."""
        link = self._links.pop(source, None)
        if link is None:
            return
        link.end()
        task = self._following.pop(source, None)
        if task is not None:
            task.cancel()

    def resync(self, source: Source) -> bool:
        """Get a snapshot of `source` now; where it has none, all that it keeps. False if it is unknown."""
        link = self._links.get(source)
        if link is None:
            return False
        link.resync()
        return True

    def status(self, source: Source) -> TransportStatus | None:
        """Return the state of one source, or None if it is unknown."""
        link = self._links.get(source)
        return None if link is None else link.status()

    async def run(self) -> None:
        """Listen until `close` is called or the task is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                for link in self._links.values():
                    self._start(link, tasks)
                await self._stop.wait()
            finally:
                self._tasks = None
                for link in self._links.values():
                    link.end()
                for task in self._following.values():
                    task.cancel()
                self._following.clear()

    async def close(self) -> None:
        """Stop listening. Nothing waits for the network: the time is that of cancelling our own tasks."""
        self._stop.set()
        if self._running is not None:
            await self._running

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run(), name="http-subscriber")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _start(self, link: HttpLink, tasks: asyncio.TaskGroup) -> None:
        name = f"http-source {link.source.worker_id}/{link.source.rank}"
        self._following[link.source] = tasks.create_task(link.run(), name=name)
