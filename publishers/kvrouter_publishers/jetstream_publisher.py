"""Publish events into NATS JetStream, where every router reads them at its own pace, also after an outage.

docs/transport-nats.md is the page of this wire. The client library is needed only where a publisher is built.
"""

import asyncio
import contextlib
import os
import ssl
import time
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.events.nats_names import NatsCredentials, parse_nats_endpoint
from kvrouter_publishers.core import PublisherCore
from kvrouter_publishers.jetstream_counters import JetStreamCounters
from kvrouter_publishers.jetstream_settings import Delivery, SessionSettings, StreamSettings
from kvrouter_publishers.jetstream_window import Window
from kvrouter_publishers.threaded import ThreadedPublisher

if TYPE_CHECKING:
    from kvrouter_publishers.jetstream_session import Session

__all__ = ["JetStreamEventPublisher"]

_IDLE_SECONDS = 1.0
_OVERHEAD_BYTES = 5 * 1024  # The header of an envelope, and those of NATS.


class JetStreamEventPublisher(ThreadedPublisher):
    """An `EventPublisher` over NATS JetStream.

    A server that is not there, or goes away, is tried again for ever; what was not acknowledged is kept meanwhile.

    Args:
        endpoint: `nats://[user:password@]host[:port]/stream`, or `tls://...`.
        worker_id: who publishes; a worker's id at the router.
        rank: data-parallel rank of this publisher. All ranks of all workers may share a stream.
        delivery: `at-least-once` waits for the server to have stored each batch, `at-most-once` does not.
        snapshots: whether to answer routers that ask for the whole state; it costs about 300 bytes a block.
        digest_seconds: how often the stream says what the cache holds; None never.
        stream_max_age_seconds: how long a stream that we make keeps its messages; 0 is for ever.
        stream_bytes_max: how much it keeps at most; None sets no bound.
        stream_replicas: on how many servers of a cluster it is kept.
        payload_bytes_max: of one message; batches are divided to fit, and more if the server's `max_payload` is less.
        outstanding_max: batches on their way, sent and not acknowledged.
        outstanding_bytes_max: bytes of them.
        buffer_steps, buffer_bytes: batches kept to be sent again to a server that lost its data.
        max_queue_size: engine steps that wait while the server cannot be reached; beyond it, see `PublisherCore`.
        request_seconds: how long an answer of the server may take.
        credentials: where `endpoint` has none.
        tls: for a `tls://` server that needs more than the system's certificates.

    After `fork` the child has neither our thread nor our connection: its `publish` drops and counts.

    Raises:
        SettingsError: a setting is malformed.
        MissingExtraError: the client library is not installed.
    """

    last_error: str | None = None
    """What went wrong last, without secrets; None as long as nothing did."""
    _created: object = None
    _connected = False
    _loop: asyncio.AbstractEventLoop | None = None
    _task: asyncio.Task[None] | None = None

    def __init__(
        self,
        endpoint: str,
        *,
        worker_id: str,
        rank: int = 0,
        delivery: Delivery = "at-least-once",
        snapshots: bool = True,
        digest_seconds: float | None = 30.0,
        stream_max_age_seconds: float = 600.0,
        stream_bytes_max: int | None = None,
        stream_replicas: int = 1,
        payload_bytes_max: int = 1 << 20,
        outstanding_max: int = 256,
        outstanding_bytes_max: int = 8 << 20,
        buffer_steps: int = 10_000,
        buffer_bytes: int = 256 << 20,
        max_queue_size: int = 100_000,
        request_seconds: float = 5.0,
        credentials: NatsCredentials | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if delivery not in ("at-least-once", "at-most-once"):
            raise SettingsError(f"delivery {delivery!r} must be at-least-once or at-most-once")
        if stream_max_age_seconds < 0 or outstanding_max < 1 or request_seconds <= 0:
            raise SettingsError("stream_max_age_seconds, outstanding_max and request_seconds must not be negative")
        address = parse_nats_endpoint(endpoint)
        core = PublisherCore(
            worker_id=worker_id,
            rank=rank,
            buffer_steps=buffer_steps,
            buffer_bytes=buffer_bytes,
            max_queue_size=max_queue_size,
            batch_bytes_max=max(1024, payload_bytes_max - _OVERHEAD_BYTES),
            digest_seconds=digest_seconds,
            snapshots=snapshots,
        )
        self._sessions = _sessions()
        super().__init__(core)
        self._settings = SessionSettings(
            endpoint=address,
            stream=StreamSettings(
                name=address.stream,
                max_age_seconds=stream_max_age_seconds,
                bytes_max=stream_bytes_max,
                replicas=stream_replicas,
            ),
            delivery=delivery,
            snapshots=snapshots,
            request_seconds=request_seconds,
            credentials=credentials,
            tls=tls,
        )
        self.endpoint = str(address)
        self._extra = JetStreamCounters()
        self._window = Window(
            core, frames_max=outstanding_max, bytes_max=outstanding_bytes_max, stored_max=buffer_steps
        )
        self._start()

    def statistics(self) -> dict[str, int]:
        """Return counters since the start, and the state now, as plain integers."""
        window = {"unacknowledged_frames": len(self._window), "connected": int(self._connected)}
        return {**super().statistics(), **asdict(self._extra), **window}

    def close(self, *, timeout_seconds: float = 2.0) -> None:
        """Send what waits, for at most `timeout_seconds`, then stop. May be called again."""
        if os.getpid() == self._process and self._stop_deadline is None:
            self._stop_deadline = time.monotonic() + timeout_seconds
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):  # It has ended already.
                    self._loop.call_soon_threadsafe(self._limit_the_rest)
        super().close(timeout_seconds=timeout_seconds)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._publish_until_over())

    def _limit_the_rest(self) -> None:
        """End what waits for a server that does not answer when the time to close is over."""
        if self._stop_deadline is not None and self._loop is not None and self._task is not None:
            self._loop.call_later(self._stop_deadline - time.monotonic(), self._task.cancel)

    async def _publish_until_over(self) -> None:
        """Publish over one connection after the other."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._limit_the_rest()
        settings = self._settings
        pause = settings.retry_seconds
        while not self._is_over():
            connects = self._extra.connects
            try:
                await self._publish_over_one_connection()
            except self._sessions.NETWORK_ERRORS as error:
                self.last_error = f"{self.endpoint}: {type(error).__name__}: {error}".rstrip(": ")
            if self._connected:
                self._connected = False
                self._extra.disconnects += 1
            if self._is_over():
                return
            pause = settings.retry_seconds if self._extra.connects > connects else pause
            await self._rest(pause)
            pause = min(2 * pause, settings.retry_seconds_max)

    async def _publish_over_one_connection(self) -> None:
        source = self._core.source
        name = f"kvrouter {source.worker_id} {source.rank}"
        async with self._sessions.connection(self._settings, name=name) as client:
            session = self._sessions.Session(
                client,
                self._core,
                self._window,
                settings=self._settings,
                counters=self._extra,
                wake=self._ring_bell,
                take_load=self._take_load,
            )
            self._created = await session.open(self._created)
            self._connected = True
            self._extra.connects += 1
            while not self._is_over():
                if await session.turn():
                    await asyncio.sleep(0)
                else:
                    await self._idle(session)
            self.last_error = session.last_error or self.last_error

    async def _idle(self, session: "Session") -> None:
        """Wait for events to send, for the server's acknowledgements, or for the time to try again."""
        due = session.idle_seconds()
        seconds = _IDLE_SECONDS if due is None else min(due, _IDLE_SECONDS)
        if session.blocked or self._stop_deadline is not None:
            await self._rest(seconds)
        else:
            await self._work(seconds)

    def _is_over(self) -> bool:
        """Whether we were asked to stop, and the server has everything or the time is over."""
        if self._stop_deadline is None or time.monotonic() >= self._stop_deadline:
            return self._stop_deadline is not None
        return not self._core.has_batches() and not len(self._window)


def _sessions() -> ModuleType:
    """Load what needs the client library, in the caller's thread: two that load it at once would block each other."""
    try:
        from kvrouter_publishers import jetstream_session  # noqa: PLC0415 - the names of this package load without it
    except ModuleNotFoundError as error:
        raise MissingExtraError("publishing into JetStream", "nats") from error
    return jetstream_session
