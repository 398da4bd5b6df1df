"""Listen to vLLM, SGLang and our own publishers over ZeroMQ.

Here are the sources, the replays and the probes, and nothing about the meaning of events: the sink says when it
needs a replay or a snapshot. Sockets get their turns from `pump`; a `link` is one source, read by a `live_stream` where
that can be and else by a `live_socket`; one request is a `replay_client` or a `snapshot_client`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Self

import zmq

from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter.events.endpoints import check_endpoint, is_wildcard
from kvrouter.events.load import LoadReport
from kvrouter_subscribers.limits import CurveKeys, ZmqLimits
from kvrouter_subscribers.link import Link, ZmqAddress
from kvrouter_subscribers.live_socket import LiveSocket
from kvrouter_subscribers.live_stream import LiveStream
from kvrouter_subscribers.pump import Pump
from kvrouter_subscribers.recovery import Recovery
from kvrouter_subscribers.subscriber import EventSink, Receipt, TransportStatus
from kvrouter_subscribers.workplace import Live, Workplace

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
        direct: read plain TCP connections with the native core, where it is present; False leaves all to libzmq.
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
        direct: bool = True,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._direct = direct
        self._sink, self._clock, self._curve, self._on_load = sink, clock, curve, on_load
        self._limits = limits or ZmqLimits()
        self._given_context = context
        self._links: dict[Source, Link] = {}
        self._lives: dict[Source, Live] = {}
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
            self._end(link)

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
                try:
                    await self._work(workplace)
                finally:
                    workplace.ahead.close()
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
                self._tick()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_SECONDS):
                        await self._stop.wait()
        finally:
            self._workplace = None
            for link in self._links.values():
                self._end(link)

    def _tick(self) -> None:
        """Open what could not be opened, and ask idle sources whether their last message reached us."""
        now = self._clock()
        for source, live in list(self._lives.items()):
            live.tick(now)
            if source in self._recoveries:
                self._recoveries[source].tick(now)

    def _start(self, link: Link, workplace: Workplace) -> None:
        self._recoveries[link.source] = Recovery(link, workplace)
        live: Live
        if self._direct and LiveStream.can_read(link, workplace):
            live = LiveStream(link, workplace, leave=partial(self._fall_back, workplace))
        else:
            live = LiveSocket(link, workplace)
        self._lives[link.source] = live
        live.open()

    def _fall_back(self, workplace: Workplace, link: Link) -> None:
        """Leave a source to libzmq, which speaks what our own reading does not."""
        link.fallbacks += 1
        live = self._lives[link.source] = LiveSocket(link, workplace)
        live.open()

    def _end(self, link: Link) -> None:
        self._recoveries.pop(link.source).cancel()
        self._lives.pop(link.source).close()

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
