"""The connection to NATS that reporting has of its own, where the request plane is NATS; nowhere else is it imported.

Made when the first job needs it and kept up for ever. What is published while it is lost is dropped: stats and loads
are states, and the next one is newer.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from kvrouter.errors import MissingExtraError
from kvrouter.service.logs import log_event

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.errors import Error as NatsError
except ImportError as error:
    raise MissingExtraError("reporting over NATS", "nats") from error

__all__ = ["Broker", "Msg"]

_CLOSE_SECONDS: Final = 2.0

_log = logging.getLogger("kvrouter.reporting")


class Broker:
    """One connection, for all that reports of a service; lives on one event loop."""

    def __init__(self, server: str, *, service: str) -> None:
        self._server, self._service = server, service
        self._client: Client | None = None
        self._opening = asyncio.Lock()

    @property
    def is_connected(self) -> bool:
        """Whether the server can be reached now."""
        return self._client is not None and self._client.is_connected

    async def connect(self) -> None:
        """Connect, however long that takes.

        Raises:
            ConnectionError: the server refuses us, or is none.
        """
        async with self._opening:
            if self._client is None:
                try:
                    self._client = await self._connected()
                except (NatsError, OSError) as error:
                    raise ConnectionError(f"NATS: {type(error).__name__}: {error}") from None
                except (ValueError, TypeError, LookupError, AttributeError) as error:
                    raise ConnectionError(f"the server does not speak NATS ({type(error).__name__})") from None

    async def listen(self, subject: str, heard: Callable[[Msg], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Call `heard` with each message of a subject; returns what ends that. Needs `connect`."""
        assert self._client is not None, "not connected"
        subscription = await self._client.subscribe(subject, cb=heard)

        async def end() -> None:
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()

        return end

    def new_inbox(self) -> str:
        """A subject that nobody else has."""
        assert self._client is not None, "not connected"
        return self._client.new_inbox()

    async def publish(self, subject: str, payload: bytes, *, reply: str = "") -> bool:
        """Send a message; False where the server cannot be reached. Needs `connect`."""
        assert self._client is not None, "not connected"
        if not self._client.is_connected:
            return False
        try:
            await self._client.publish(subject, payload, reply=reply)
        except (NatsError, OSError):
            return False
        return True

    async def flush(self) -> bool:
        """Wait until the server has what was sent; False where it does not say so."""
        assert self._client is not None, "not connected"
        try:
            await self._client.flush()
        except (NatsError, OSError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Close the connection, if there is one. May be called again."""
        client, self._client = self._client, None
        if client is not None:
            await _end(client)

    async def _connected(self) -> Client:
        async def failed(error: Exception) -> None:
            log_event(_log, logging.DEBUG, "reporting_connection", service=self._service, error=type(error).__name__)

        client = Client()
        try:
            await client.connect(
                self._server,
                name="kvrouter-reporting",
                reconnect_time_wait=1,
                max_reconnect_attempts=-1,
                pending_size=0,  # What is written while the server is away would arrive late.
                error_cb=failed,
            )
        except BaseException:
            await asyncio.shield(_end(client))  # Also when we are cancelled: a socket may be open.
            raise
        return client


async def _end(client: Client) -> None:
    if not client.is_closed:
        with contextlib.suppress(TimeoutError, NatsError, OSError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await client.close()
