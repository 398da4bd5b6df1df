"""Publish events into a Redis stream, where every router reads them at its own pace, also after an outage.

docs/transport-redis.md is the page of this wire. The client library is needed only where a publisher is built.
"""

import asyncio
import contextlib
import os
import time
from dataclasses import asdict
from importlib.util import find_spec

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.events.redis_names import RedisTls, parse_redis_endpoint
from kvrouter_publishers.core import PublisherCore
from kvrouter_publishers.redis_counters import RedisCounters
from kvrouter_publishers.redis_outgoing import Outgoing
from kvrouter_publishers.threaded import ThreadedPublisher

__all__ = ["RedisEventPublisher"]

_IDLE_SECONDS = 1.0
_RETRY_SECONDS = 0.1
_RETRY_SECONDS_MAX = 2.0


class RedisEventPublisher(ThreadedPublisher):
    """An `EventPublisher` over Redis Streams.

    A server that is not there, goes away or refuses is tried again for ever; what it has not acknowledged is kept
    meanwhile. A server that comes back without its newest data gets them again, as far as `buffer_steps` reaches.

    Args:
        endpoint: `redis://[[user]:password@]host[:port]/database/stream`, or `rediss://...` for TLS.
        worker_id: who publishes; a worker's id at the router.
        rank: data-parallel rank of this publisher. All ranks of all workers may share a stream.
        maxlen: about how many entries the stream keeps, of all its publishers together.
        snapshots: whether to answer routers that ask for the whole state; it costs about 300 bytes a block.
        digest_seconds: how often the stream says what the cache holds; None never.
        batch_bytes_max: no entry is larger, but for 4096 bytes: steps are divided if they must be.
        buffer_steps, buffer_bytes: batches kept to be sent again to a server that lost its data.
        max_queue_size: engine steps that wait while the server cannot be reached; beyond it, see `PublisherCore`.
        request_seconds: how long an answer of the server may take.
        tls: for a `rediss://` server that needs more than the system's certificates.

    After `fork` the child has neither our thread nor our connection: its `publish` drops and counts.

    Raises:
        SettingsError: a setting is malformed.
        MissingExtraError: the client library is not installed.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        worker_id: str,
        rank: int = 0,
        maxlen: int = 100_000,
        snapshots: bool = True,
        digest_seconds: float | None = 30.0,
        batch_bytes_max: int = 1 << 20,
        buffer_steps: int = 10_000,
        buffer_bytes: int = 256 << 20,
        max_queue_size: int = 100_000,
        request_seconds: float = 5.0,
        tls: RedisTls | None = None,
    ) -> None:
        if maxlen < 1:
            raise SettingsError(f"maxlen is {maxlen}; it must be at least 1")
        if not request_seconds > 0:
            raise SettingsError(f"request_seconds is {request_seconds}; it must be above 0")
        self._address, self._tls, self._maxlen = parse_redis_endpoint(endpoint), tls, maxlen
        self._snapshots, self._request_seconds = snapshots, request_seconds
        core = PublisherCore(
            worker_id=worker_id,
            rank=rank,
            buffer_steps=buffer_steps,
            buffer_bytes=buffer_bytes,
            max_queue_size=max_queue_size,
            batch_bytes_max=batch_bytes_max,
            digest_seconds=digest_seconds,
            snapshots=snapshots,
        )
        if find_spec("redis") is None:
            raise MissingExtraError("publishing into Redis Streams", "redis")
        super().__init__(core)
        self.endpoint = str(self._address)
        self.last_error: str | None = None
        """What went wrong last, without secrets; None as long as nothing did."""
        self._extra = RedisCounters()
        self._outgoing = Outgoing(core, self._extra, stored_max=buffer_steps)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._connected = False
        self._start()

    def close(self, *, timeout_seconds: float = 2.0) -> None:
        """Send what waits, for at most `timeout_seconds`, then stop. May be called again."""
        if os.getpid() == self._process:
            if self._stop_deadline is None:
                self._stop_deadline = time.monotonic() + timeout_seconds  # Before looking for the loop: see `_main`.
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):  # It is closed: the thread has ended.
                    self._loop.call_soon_threadsafe(self._end_in_time)
        super().close(timeout_seconds=timeout_seconds)

    def statistics(self) -> dict[str, int]:
        """Return counters since the start, and the state now, as plain integers."""
        state = {"unacknowledged_frames": len(self._outgoing), "connected": int(self._connected)}
        return {**super().statistics(), **asdict(self._extra), **state}

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._main())

    async def _main(self) -> None:
        """Publish; whichever is first, this or `close`, the other sees that the time is bounded."""
        self._loop, self._publishing = asyncio.get_running_loop(), asyncio.current_task()
        if self._stop_deadline is not None:
            self._end_in_time()
        await self._publish_until_over()

    def _end_in_time(self) -> None:
        """Cancel what waits for a server that does not answer, when the time of `close` is over."""
        if self._loop is not None and self._publishing is not None and self._stop_deadline is not None:
            seconds = max(0.0, self._stop_deadline - time.monotonic())
            self._loop.call_later(seconds, self._publishing.cancel)

    async def _publish_until_over(self) -> None:
        """Publish over one connection after the other."""
        from kvrouter.redis_client import RedisError  # noqa: PLC0415 - in our thread: the engine need not wait for it

        pause = _RETRY_SECONDS
        while not self._is_over():
            connects = self._extra.connects
            try:
                await self._publish_over_one_connection()
            except (RedisError, OSError, TimeoutError) as error:
                self.last_error = f"{self.endpoint}: {type(error).__name__}: {error}"
            if self._connected:
                self._connected = False
                self._extra.disconnects += 1
            if self._is_over():
                return
            pause = _RETRY_SECONDS if self._extra.connects > connects else pause
            await self._rest(pause)
            pause = min(2 * pause, _RETRY_SECONDS_MAX)

    async def _publish_over_one_connection(self) -> None:
        from kvrouter.redis_client import RedisClient  # noqa: PLC0415 - as above
        from kvrouter_publishers.redis_session import Session, SnapshotDesk  # noqa: PLC0415 - as above

        stream, options = self._address.stream, self._address.client_options(self._tls)
        async with RedisClient(options, answer_seconds=self._request_seconds) as client:
            session = Session(
                client,
                self._outgoing,
                self._extra,
                stream=stream,
                maxlen=self._maxlen,
                take_load=self._take_load,
            )
            await session.open()
            self._connected = True
            self._extra.connects += 1
            desk = SnapshotDesk(client, self._core, self._extra, stream=stream, offered=self._snapshots)
            answering = asyncio.create_task(desk.serve(), name="redis-snapshots")
            answering.add_done_callback(lambda _: self._ring_bell())
            try:
                while not self._is_over() and not answering.done():
                    if not await session.turn():
                        await self._work(_IDLE_SECONDS)
            finally:
                await _ended(answering)

    def _is_over(self) -> bool:
        """Whether we were asked to stop, and the stream has everything or the time is over."""
        if self._stop_deadline is None or time.monotonic() >= self._stop_deadline:
            return self._stop_deadline is not None
        return not self._core.has_batches() and not len(self._outgoing)


async def _ended(task: asyncio.Task[None]) -> None:
    """End a task; what it failed with is raised."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
