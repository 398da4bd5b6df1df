"""One connection of a JetStream publisher, from its making to its loss: frames out, acknowledgements in.

The client's own reconnection stays off: it would send again what it had buffered, behind our back and out of order.
What was not acknowledged over one connection is sent again over the next, in order; the server knows by its
`Nats-Msg-Id` what it has already.
"""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, NoServersError
from nats.js.api import StreamInfo

from kvrouter.events.load import LoadReport, encode_load
from kvrouter.events.nats_names import events_subject, load_subject, message_id, state_subject
from kvrouter_publishers.core import Frame, PublisherCore
from kvrouter_publishers.jetstream_counters import JetStreamCounters
from kvrouter_publishers.jetstream_settings import SessionSettings
from kvrouter_publishers.jetstream_state import StateDesk
from kvrouter_publishers.jetstream_stream import ensure_stream
from kvrouter_publishers.jetstream_window import Window

__all__ = ["NETWORK_ERRORS", "Session", "connection"]

NETWORK_ERRORS: Final = (Error, OSError, TimeoutError)
"""What a connection may end with, at any moment."""

_TURN_FRAMES: Final = 64
_PING_SECONDS: Final = 10
_PINGS_OUTSTANDING_MAX: Final = 2
_CLOSE_SECONDS: Final = 0.5
_MESSAGE_HEADER_BYTES: Final = 1024
_HEADERS_BYTES: Final = 4096 + _MESSAGE_HEADER_BYTES
"""Room for the header of an envelope and those of NATS, beside a batch."""


class Session:
    """Sends what a window gives it, over one connection.

    `wake` is called when something happened for which `turn` should be called again; `take_load` gives the load report
    that is to be sent now, if any.
    """

    def __init__(
        self,
        client: Client,
        core: PublisherCore,
        window: Window,
        *,
        settings: SessionSettings,
        counters: JetStreamCounters,
        wake: Callable[[], None],
        take_load: Callable[[float], LoadReport | None],
    ) -> None:
        self._client, self._core, self._window, self._settings = client, core, window, settings
        self._counters, self._wake, self._take_load = counters, wake, take_load
        self._load_subject = load_subject(settings.endpoint.stream, core.source)
        self._subject = events_subject(settings.endpoint.stream)
        self._inbox = client.new_inbox()
        self._desk = StateDesk(core, part_bytes_max=client.max_payload - _HEADERS_BYTES, offered=settings.snapshots)
        self._acked_at = time.monotonic()
        self._parts_before, self._refused_before = counters.snapshot_parts_served, counters.snapshot_requests_refused
        self._held_until: float | None = None
        self._retry_seconds = settings.retry_seconds
        self.last_error: str | None = None

    async def open(self, created: object) -> object:
        """Prepare the stream, and send again what it does not have; `created` is when it was made, as seen before.

        Returns when it was made. Raises what `ensure_stream` raises.
        """
        self._core.limit_batches(self._client.max_payload - _HEADERS_BYTES)
        info = await self._ensure_stream()
        window, counters = self._window, self._counters
        if created not in (None, info.created) or info.state.last_seq < window.highest_place:
            counters.streams_lost += 1
            renewed = created not in (None, info.created)
            counters.frames_resent += window.lost_behind(0 if renewed else info.state.last_seq)
        counters.frames_resent += window.send_again()
        if self._settings.delivery == "at-least-once":
            await self._client.subscribe(f"{self._inbox}.*", cb=self._answered)
        await self._client.subscribe(
            state_subject(self._settings.endpoint.stream, self._core.source), cb=self._asked_for_state
        )
        return info.created

    async def turn(self) -> bool:
        """Send a few frames, our load, a part of our state to who asked; returns whether there may be more at once."""
        now = time.monotonic()
        report = self._take_load(now)
        if report is not None:  # Beside the stream: nobody needs it later.
            await self._client.publish(self._load_subject, encode_load(report, encoding="json"))
        await self._answer_for_state(now)
        return await self._send_some(now) or self._desk.busy

    async def _send_some(self, now: float) -> bool:
        if self._held_until is not None:
            if now < self._held_until:
                return False
            await self._ensure_stream()
            self._held_until = None
        if self._window.outstanding and now - self._acked_at > self._settings.request_seconds:
            self._hold(now, "acknowledgements are overdue")
            return False
        for _ in range(_TURN_FRAMES):
            if not self._window.outstanding:
                self._acked_at = now
            frame = self._window.next(now)
            if frame is None:
                return False
            await self._send(frame)
        return True

    def idle_seconds(self) -> float | None:
        """Return after how long `turn` must be called whatever happens; None if only work can want that."""
        if self._held_until is not None:
            return max(0.0, self._held_until - time.monotonic())
        return self._settings.request_seconds if self._window.outstanding else None

    @property
    def blocked(self) -> bool:
        """Whether nothing can be sent now, however much there is."""
        return self._held_until is not None or self._window.full

    async def _send(self, frame: Frame) -> None:
        """Hand one frame to the client; one that is too large for this server is a gap that a snapshot closes."""
        sequence, client = frame.sequence, self._client
        if len(frame.payload) + _MESSAGE_HEADER_BYTES > client.max_payload:
            self._window.forget(sequence)
            self._counters.frames_too_large += 1
            self.last_error = f"batch {sequence} of {len(frame.payload)} bytes exceeds the server's max_payload"
        elif self._settings.delivery == "at-most-once":
            await client.publish(self._subject, frame.payload)
            self._window.forget(sequence)
        else:
            identity = message_id(self._core.source, self._core.incarnation, sequence)
            reply = f"{self._inbox}.{sequence}"
            await client.publish(self._subject, frame.payload, reply=reply, headers={"Nats-Msg-Id": identity})

    async def _ensure_stream(self) -> StreamInfo:
        jetstream = self._client.jetstream(timeout=self._settings.request_seconds)
        return await ensure_stream(jetstream, self._settings.stream)

    async def _answered(self, message: Msg) -> None:
        """Read the server's answer to one frame."""
        now = time.monotonic()
        sequence = int(message.subject.rpartition(".")[2])
        answer = _read_answer(message)
        if isinstance(answer, str):
            self._counters.frames_refused += 1
            if self._held_until is None:
                self._hold(now, answer)
        else:
            place, duplicate = answer
            self._acked_at = now
            self._retry_seconds = self._settings.retry_seconds
            if self._window.acknowledge(sequence, place):
                self._counters.frames_acknowledged += 1
                self._counters.duplicates_refused += duplicate
        self._wake()

    def _hold(self, now: float, reason: str) -> None:
        """Send nothing for a while, then everything again that was not acknowledged, in order."""
        self.last_error = reason
        self._counters.frames_resent += self._window.send_again()
        self._held_until = now + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, self._settings.retry_seconds_max)

    async def _asked_for_state(self, message: Msg) -> None:
        if message.reply:
            self._desk.ask(message.reply, message.data)
            self._wake()

    async def _answer_for_state(self, now: float) -> None:
        for reply, answer in self._desk.advance(now):
            await self._client.publish(reply, answer)
        self._counters.snapshot_parts_served = self._parts_before + self._desk.parts_served
        self._counters.snapshot_requests_refused = self._refused_before + self._desk.requests_refused


@contextlib.asynccontextmanager
async def connection(settings: SessionSettings, *, name: str) -> AsyncIterator[Client]:
    """Connect, and disconnect at the end. When the connection is lost, whatever waits within is ended.

    Raises:
        nats.errors.Error: the server refuses us.
        OSError: nobody answers there, or the connection was lost. TimeoutError: not in time.
    """
    client, endpoint = Client(), settings.endpoint
    credentials = endpoint.credentials or settings.credentials
    tls = ssl.create_default_context() if settings.tls is None and endpoint.secure else settings.tls
    reasons: list[Exception] = []
    life = asyncio.timeout(settings.request_seconds)

    async def closed() -> None:
        with contextlib.suppress(RuntimeError):  # We closed it ourselves.
            life.reschedule(asyncio.get_running_loop().time())

    async def failed(error: Exception) -> None:
        reasons[:] = [error]

    try:
        async with life:
            await _connect(
                client,
                servers=endpoint.server,
                name=name,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # Of the first connection; 0 would try for ever.
                reconnect_time_wait=0,
                connect_timeout=max(1, round(settings.request_seconds)),
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=_PINGS_OUTSTANDING_MAX,
                closed_cb=closed,
                error_cb=failed,
                tls=tls,
                **(credentials.connect_options() if credentials else {}),
            )
            life.reschedule(None)
            reasons.clear()
            yield client
    except (NoServersError, TimeoutError):
        if reasons:
            raise reasons[0] from None
        if client.is_closed:
            raise ConnectionError("the connection was lost") from None
        raise
    finally:
        await _close(client)


async def _connect(client: Client, **options: Any) -> None:
    """Connect. Who is cancelled meanwhile waits a moment: the client would leak the socket that it is just opening."""
    connecting = asyncio.ensure_future(client.connect(**options))
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await asyncio.wait({connecting}, timeout=_CLOSE_SECONDS)
        if not connecting.cancel() and not connecting.cancelled():
            connecting.exception()
        raise
    except OSError:  # A certificate that is not trusted is a `ValueError` as well.
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of the client's parser
        raise ConnectionError(f"the server does not speak NATS ({type(error).__name__})") from error


async def _close(client: Client) -> None:
    """Close it, in a moment, and whatever happens meanwhile."""
    try:
        with contextlib.suppress(Error, OSError, TimeoutError):  # It was lost already, or does not answer.
            async with asyncio.timeout(_CLOSE_SECONDS):
                await client.close()
    finally:  # `close` leaves it open if it is cancelled, or if what it still wants to write fails.
        transport = client._transport  # noqa: SLF001
        if transport is not None:
            transport.close()  # type: ignore[no-untyped-call]


def _read_answer(message: Msg) -> tuple[int, bool] | str:
    """Return the place of the frame in the stream and whether it was there already, or why it is not kept."""
    status = (message.headers or {}).get("Status")
    if status is not None:
        return "no stream takes our messages" if status == "503" else f"the server says {status}"
    try:
        match json.loads(message.data):
            case {"error": {"description": str(description)}}:
                return description
            case {"seq": int(place), **rest}:
                return place, rest.get("duplicate") is True
    except ValueError:
        pass
    return "an answer that is none"
