"""Publish events by answering polls over HTTP: no broker, no client library, one port; any proxy carries it.

What consumers ask and get is `http_desk` (docs/transport-http.md); the thread with the event loop is `http_host`.
"""

import asyncio
import concurrent.futures
import contextlib
import time
from typing import Any, Final

from kvrouter.errors import SettingsError
from kvrouter.events.encode import Encoding
from kvrouter.events.load import LoadReport
from kvrouter_publishers.core import PublisherCore
from kvrouter_publishers.http_desk import EventStream
from kvrouter_publishers.http_host import HttpEventServer
from kvrouter_publishers.threaded import ThreadedPublisher

__all__ = ["HttpEventPublisher"]

_TURN_FRAMES: Final = 64
"""Frames that are encoded before polls get their turn."""
_IDLE_SECONDS: Final = 10.0


class HttpEventPublisher(ThreadedPublisher):
    """An `EventPublisher` that is polled over HTTP, with snapshots and load reports.

    Args:
        endpoint: `host:port` to listen on, or the `HttpEventServer` that serves this stream beside others.
        worker_id: who publishes; the router's own name for the worker.
        rank: data-parallel rank of this publisher. Ranks in processes of their own need ports of their own.
        api_key: what clients must send as a bearer token.
        insecure: allow an address beyond this machine without a key.
        encoding: how events are written in a batch: `map` or `array`.
        buffer_steps: batches kept for clients that are behind.
        buffer_bytes: bytes kept for them; whichever bound is reached first counts.
        max_queue_size: engine steps that wait for the publisher's thread.
        digest_seconds: how often the stream says what the cache holds; None never.
        snapshots: whether to follow what the cache holds, so that clients that fell behind can be told all of it.
        server_options: further arguments of a server of our own, as `HttpEventServer` takes them.

    Raises:
        SettingsError: the address is malformed, cannot be bound, or is open to others without a key; or another
            setting is out of its bounds.
    """

    def __init__(
        self,
        endpoint: str | HttpEventServer,
        *,
        worker_id: str,
        rank: int = 0,
        api_key: str | None = None,
        insecure: bool = False,
        encoding: Encoding = "map",
        buffer_steps: int = 10_000,
        buffer_bytes: int = 256 << 20,
        max_queue_size: int = 100_000,
        digest_seconds: float | None = 30.0,
        snapshots: bool = True,
        **server_options: Any,
    ) -> None:
        core = PublisherCore(
            worker_id=worker_id,
            rank=rank,
            encoding=encoding,
            buffer_steps=buffer_steps,
            buffer_bytes=buffer_bytes,
            max_queue_size=max_queue_size,
            digest_seconds=digest_seconds,
            snapshots=snapshots,
        )
        if isinstance(endpoint, HttpEventServer) and (api_key is not None or insecure or server_options):
            raise SettingsError("api_key, insecure and other options of a server are given to the HttpEventServer")
        self._owns_server = isinstance(endpoint, str)
        if isinstance(endpoint, str):
            endpoint = HttpEventServer(endpoint, api_key=api_key, insecure=insecure, **server_options)
        self.server = endpoint
        self.endpoint = endpoint.endpoint
        """Where clients find the stream; None where only an application that mounted the server answers."""
        super().__init__(core)
        self._stream = EventStream(core.source, core, self.statistics)
        self._start()

    def publish_load(self, report: LoadReport) -> None:
        """Serve `report` from now on, under our own `worker_id` and `rank`; never waits, never raises.

        Figures that cannot be meant are left out. What is no report at all is counted as refused.
        """
        ours = self._own_load(report)
        if ours is not None:
            self._stream.load = ours

    def statistics(self) -> dict[str, int]:
        """Return counters since the start, and the state now; those of the server are of all its streams."""
        return {**super().statistics(), **self.server.counts()}

    def _run(self) -> None:
        """Wait for what runs on the server's loop, where alone the core is touched."""
        try:
            self.server.submit(self._feed()).result()
        except concurrent.futures.CancelledError:
            return  # The server was closed before us.

    def _release(self) -> None:
        if self._owns_server:
            self.server.close()

    async def _feed(self) -> None:
        """Turn the engine's steps into frames, and tell who waits for them."""
        desk, core, stream = self.server.desk, self._core, self._stream
        desk.open(stream)
        loop, bell = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._bell_descriptor(), bell.set)
        try:
            while not self._is_finished():
                for _ in range(_TURN_FRAMES):
                    if core.take(time.monotonic()) is None:
                        break
                else:
                    stream.wake()
                    await asyncio.sleep(0)
                    continue
                stream.wake()
                await self._sleep_till(bell)
            stream.wake()
            await asyncio.sleep(0)  # Who waits gets the last frames before the stream ends.
        finally:
            loop.remove_reader(self._bell_descriptor())
            desk.close(core.source)

    async def _sleep_till(self, bell: asyncio.Event) -> None:
        """Wait as `_work` does; the bell is listened to all the time, which costs less for each of many small steps."""
        seconds = self._begin_sleep(_IDLE_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await bell.wait()
        bell.clear()
        self._end_sleep()
