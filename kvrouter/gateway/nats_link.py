"""One connection to NATS for requests and streams of answers. Kept for ever: lost, it is made again.

What waits for an answer fails when the connection is lost, at once and not when its time is over: the answer would be
lost too. Nothing is sent while there is no connection; it would arrive late, and twice where the client tries again.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any

from kvrouter.errors import (
    DeadlineError,
    DisconnectedError,
    MissingExtraError,
    NoInstancesError,
    RefusedError,
    TransportError,
    UnreachableError,
)
from kvrouter.gateway.reply_stream import Reply, ReplyStream, is_no_responders

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.errors import Error as NatsError
    from nats.errors import MaxPayloadError, SlowConsumerError

    from kvrouter.nats_client import LastingClient
except ImportError as error:
    raise MissingExtraError("the gateway", "gateway") from error

__all__ = ["NatsLink"]

RECONNECT_SECONDS = 2
PING_SECONDS = 20
PINGS_OUTSTANDING_MAX = 3
PENDING_MESSAGES_MAX = 256
PENDING_BYTES_MAX = 1 << 20
_CLOSE_SECONDS = 5.0
_FLUSH_SECONDS = 5

_log = logging.getLogger("kvrouter.gateway")


class NatsLink:
    """Requests and streams over one connection. `connect` once, `close` at the end."""

    def __init__(
        self,
        servers: list[str],
        *,
        options: Mapping[str, Any] | None = None,
        tls: ssl.SSLContext | None = None,
        reconnect_seconds: float = RECONNECT_SECONDS,
        told: Callable[[str], None] = lambda _: None,
        failed: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        """`told` hears `connected`, `disconnected` and `reconnected`; `failed` what the client library complains of."""
        self._servers, self._options, self._tls = servers, dict(options or {}), tls
        self._reconnect_seconds, self._told, self._failed = reconnect_seconds, told, failed
        self._client: Client | None = None
        self._prefix = ""
        self._numbers = count()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._streams: dict[int, ReplyStream] = {}
        self.reconnects = 0

    @property
    def is_connected(self) -> bool:
        """Whether a server can be reached now."""
        return self._client is not None and self._client.is_connected

    async def connect(self, *, seconds: float) -> None:
        """Connect, trying again for `seconds`. Raises UnreachableError, which says why the last attempt failed."""
        reasons: list[Exception] = []

        async def failed(error: Exception) -> None:
            if isinstance(error, SlowConsumerError):
                self._overrun(error.sub)
            elif self._client is None:
                reasons[:] = [error]
            else:
                self._failed(error)

        options: dict[str, Any] = self._options | {"reconnect_time_wait": self._reconnect_seconds}
        if self._tls is not None:
            options["tls"] = self._tls
        client = LastingClient()
        try:
            async with asyncio.timeout(seconds):
                await client.connect(
                    self._servers,
                    name="kvrouter-gateway",
                    max_reconnect_attempts=-1,
                    ping_interval=PING_SECONDS,
                    max_outstanding_pings=PINGS_OUTSTANDING_MAX,
                    pending_size=0,
                    disconnected_cb=self._disconnected,
                    reconnected_cb=self._reconnected,
                    error_cb=failed,
                    **options,
                )
        except (NatsError, OSError, TimeoutError, ValueError) as error:
            reason = reasons[0] if reasons and isinstance(error, TimeoutError) else error
            raise UnreachableError(f"{type(reason).__name__}: {reason}".strip().removesuffix(":")) from None
        self._client = client
        self._prefix = f"{client.new_inbox()}."
        await client.subscribe(f"{self._prefix}*", cb=self._heard, pending_msgs_limit=0, pending_bytes_limit=0)
        self._told("connected")

    async def request(
        self, subject: str, data: bytes, *, headers: dict[str, str] | None, timeout_seconds: float
    ) -> Reply:
        """Send a request and return the first answer.

        Raises:
            NoInstancesError: nobody listens on the subject.
            DeadlineError: there was no answer in time.
            UnreachableError: there is no connection now, so nothing was sent.
            DisconnectedError: the connection was lost while the request was under way; it may have been done.
            RefusedError: the request is larger than the server takes.
        """
        client = self._connected()
        number = str(next(self._numbers))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Msg] = loop.create_future()
        self._waiting[number] = future
        timer = loop.call_later(timeout_seconds, _expire, future, timeout_seconds)
        try:
            await self._publish(client, subject, data, f"{self._prefix}{number}", headers)
            message = await future
        finally:
            timer.cancel()
            del self._waiting[number]
        return Reply(message.data, message.headers)

    async def open_stream(
        self, subject: str, data: bytes, *, headers: dict[str, str] | None, queue_messages_max: int
    ) -> ReplyStream:
        """Send a request whose answers come one by one; close the stream in any case. Raises as `request`."""
        client = self._connected()
        inbox = client.new_inbox()
        stream = ReplyStream(queue_messages_max=queue_messages_max)
        try:
            subscription = await client.subscribe(
                inbox,
                cb=stream.heard,
                pending_msgs_limit=PENDING_MESSAGES_MAX,
                pending_bytes_limit=PENDING_BYTES_MAX,
            )
            self._streams[id(subscription)] = stream
            stream.closing = lambda: self._unsubscribe(subscription)
            await client.flush(timeout=_FLUSH_SECONDS)
            await self._publish(client, subject, data, inbox, headers)
        except BaseException as error:
            await stream.aclose()
            if isinstance(error, (NatsError, OSError, TimeoutError)):
                raise DisconnectedError(f"NATS: {type(error).__name__}: {error}") from None
            raise
        return stream

    async def close(self) -> None:
        """Fail what waits, send what was written, and close. Idempotent."""
        client, self._client = self._client, None
        if client is None:
            return
        self._fail("the gateway stops")
        with suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                # Draining while there is no connection is an error of the client library.
                await (client.drain() if client.is_connected else client.close())
        if not client.is_closed:
            with suppress(NatsError, OSError, TimeoutError):
                await client.close()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _connected(self) -> Client:
        client = self._client
        if client is None or not client.is_connected:
            raise UnreachableError("there is no connection to NATS now")
        return client

    async def _publish(
        self, client: Client, subject: str, data: bytes, reply: str, headers: dict[str, str] | None
    ) -> None:
        try:
            await client.publish(subject, data, reply=reply, headers=headers)
        except MaxPayloadError:
            raise RefusedError(
                f"a message of {len(data)} bytes exceeds what the NATS server takes ({client.max_payload})",
                code="PAYLOAD_TOO_LARGE",
            ) from None
        except (NatsError, OSError) as error:
            raise UnreachableError(f"NATS: {type(error).__name__}: {error}") from None

    async def _heard(self, message: Msg) -> None:
        future = self._waiting.get(message.subject[len(self._prefix) :])
        if future is None or future.done():
            return  # Too late, or once more.
        if is_no_responders(message):
            future.set_exception(NoInstancesError("no service listens on the route's subject"))
        else:
            future.set_result(message)

    async def _disconnected(self) -> None:
        if self._client is None:
            return  # We close.
        self._told("disconnected")
        self._fail("the connection to NATS was lost; the request may have been done")

    async def _reconnected(self) -> None:
        self.reconnects += 1
        self._told("reconnected")

    def _fail(self, reason: str) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(DisconnectedError(reason))
        for stream in self._streams.values():
            stream.fail(DisconnectedError(reason))

    def _overrun(self, subscription: object) -> None:
        """The client library has dropped a message, because nobody took those before it."""
        stream = self._streams.get(id(subscription))
        if stream is not None:
            stream.fail(TransportError("the client reads too slowly; chunks were lost", code="RESOURCE_EXHAUSTED"))

    async def _unsubscribe(self, subscription: Subscription) -> None:
        self._streams.pop(id(subscription), None)
        with suppress(NatsError, OSError):
            await subscription.unsubscribe()


def _expire(future: "asyncio.Future[Msg]", seconds: float) -> None:
    if not future.done():
        future.set_exception(DeadlineError(f"the service did not answer within {seconds:g} s"))
