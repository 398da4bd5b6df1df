"""Listen to vLLM, SGLang and our own publishers over ZeroMQ.

Here are the sources, the replays and the probes, and nothing about the meaning of events: the sink says when it
needs a replay or a snapshot. Sockets are read by `pump`, one source's live connection is a `link`, one request a
`replay_client` or a `snapshot_client`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Self

import zmq

from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter.events.endpoints import check_endpoint, is_wildcard
from kvrouter.events.load import LoadReport
from kvrouter_subscribers.limits import CurveKeys, ZmqLimits
from kvrouter_subscribers.link import Link, ZmqAddress
from kvrouter_subscribers.pump import Pump
from kvrouter_subscribers.recovery import Recovery, Workplace
from kvrouter_subscribers.subscriber import EventSink, Receipt, TransportStatus

__all__ = ["ZmqEventSubscriber"]

_TICK_SECONDS = 0.5
_SOCKETS_MAX = 32_768


class ZmqEventSubscriber:
    """An `EventSubscriber` over ZeroMQ.

    `run` it in a task, or use it as an asynchronous context manager that owns that task.

    Args:
        sink: takes what arrives, says when it needs a replay.
        clock: gives the `now` that the sink sees, in seconds.
        limits: the bounds on memory, time and concurrency.
        curve: CURVE keys for publishers that require them.
        on_load: takes load reports (`kvrouter.events.load`), which are then subscribed to as well.
        context: needed for `inproc` endpoints, whose both sides share one; by default we own a context.
    """

    def __init__(
        self,
        sink: EventSink,
        *,
        clock: Callable[[], float] = time.monotonic,
        limits: ZmqLimits | None = None,
        curve: CurveKeys | None = None,
        on_load: Callable[[LoadReport], None] | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._sink, self._clock, self._curve, self._on_load = sink, clock, curve, on_load
        self._limits = limits or ZmqLimits()
        self._given_context = context
        self._links: dict[Source, Link] = {}
        self._recoveries: dict[Source, Recovery] = {}
        self._workplace: Workplace | None = None
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def add(
        self,
        source: Source,
        endpoint: str,
        *,
        replay_endpoint: str | None = None,
        topic: str = "",
        bind: bool | None = None,
    ) -> None:
        """Listen to `source`; an earlier address of it is replaced.

        We connect to `endpoint`, unless it is a wildcard: then publishers connect to us. `bind` overrides that.

        Raises:
            SettingsError: an endpoint is malformed. One that merely does not answer is tried again for ever.
        """
        check_endpoint(endpoint)
        if replay_endpoint is not None and is_wildcard(check_endpoint(replay_endpoint)):
            raise SettingsError(f"replay endpoint {replay_endpoint!r} must be an address to connect to")
        self.remove(source)
        binds = is_wildcard(endpoint) if bind is None else bind
        address = ZmqAddress(endpoint=endpoint, replay_endpoint=replay_endpoint, topic=topic, bind=binds)
        link = Link(
            source,
            address,
            sink=self._sink,
            clock=self._clock,
            on_receipt=self._asked,
            on_connected=self._connected,
            on_load=self._on_load,
        )
        self._links[source] = link
        if self._workplace is not None:
            self._start(link, self._workplace)

    def remove(self, source: Source) -> None:
        """Stop listening to `source` at once; unknown sources are ignored."""
        link = self._links.pop(source, None)
        if link is None:
            return
        if self._workplace is not None:
            self._end(link, self._workplace)

    def status(self, source: Source) -> TransportStatus | None:
        """Return the state of one source, or None if it is unknown."""
        link = self._links.get(source)
        return None if link is None else link.status()

    def resync(self, source: Source) -> bool:
        """Get the source's whole state anew, by a snapshot or else a whole replay; False if it cannot be asked."""
        recovery = self._recoveries.get(source)
        return recovery is not None and recovery.resync()

    async def run(self) -> None:
        """Listen until `close` is called or the task is cancelled."""
        context = self._given_context or zmq.Context()
        if self._given_context is None:
            context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX)
        pump = Pump(asyncio.get_running_loop(), turn_seconds=self._limits.turn_seconds)
        try:
            async with asyncio.TaskGroup() as tasks:
                workplace = Workplace(context=context, pump=pump, tasks=tasks, limits=self._limits, curve=self._curve)
                await self._work(workplace)
        finally:
            if self._given_context is None:
                context.destroy(linger=0)

    async def close(self) -> None:
        """Stop listening. Nothing waits for the network: the time is that of cancelling our own tasks."""
        self._stop.set()
        if self._running is not None:
            await self._running

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run(), name="zmq-subscriber")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _work(self, workplace: Workplace) -> None:
        self._workplace = workplace
        try:
            for link in self._links.values():
                self._start(link, workplace)
            while not self._stop.is_set():
                self._tick(workplace)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_SECONDS):
                        await self._stop.wait()
        finally:
            self._workplace = None
            for link in self._links.values():
                self._end(link, workplace)

    def _tick(self, workplace: Workplace) -> None:
        """Open what could not be opened, and ask idle sources whether their last message reached us."""
        now = self._clock()
        for link in self._links.values():
            if link.socket is not None and link.is_abandoned(now):
                workplace.pump.unwatch(link.socket)
                link.abandon(self._limits)
            if link.socket is None:
                self._open(link, workplace)
            else:
                self._recoveries[link.source].tick(now)

    def _start(self, link: Link, workplace: Workplace) -> None:
        self._recoveries[link.source] = Recovery(link, workplace)
        self._open(link, workplace)

    def _open(self, link: Link, workplace: Workplace) -> None:
        link.open(workplace.context, self._limits, self._curve)
        if link.socket is not None and link.monitor is not None:
            workplace.pump.watch(link.socket, link.monitor, drain=link.drain)

    def _end(self, link: Link, workplace: Workplace) -> None:
        self._recoveries.pop(link.source).cancel()
        if link.socket is not None:
            workplace.pump.unwatch(link.socket)
        link.close()

    def _connected(self, link: Link, receipt: Receipt) -> None:
        """Begin again: a request over the old connection may never be answered."""
        recovery = self._recoveries[link.source]
        recovery.expect_silence(self._clock())
        recovery.cancel_snapshot()
        if receipt.replay_from is not None:
            recovery.ask(receipt.replay_from, supersede=True)
        if receipt.snapshot_wanted:
            recovery.ask_snapshot()

    def _asked(self, link: Link, receipt: Receipt) -> None:
        recovery = self._recoveries[link.source]
        restarted = receipt.outcome == "restarted"
        if restarted:
            recovery.cancel_snapshot()
        if receipt.replay_from is not None:
            recovery.ask(receipt.replay_from, supersede=restarted)
        if receipt.snapshot_wanted:
            recovery.ask_snapshot()
