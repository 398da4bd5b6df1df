"""The connection to NATS that reporting has of its own, where the request plane is NATS; nowhere else is it imported.

Made when the first job needs it and kept up for ever. What is published while it is lost is dropped: stats and loads
are states, and the next one is newer.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from kvrouter.errors import MissingExtraError
from kvrouter.transport.nats_access import NatsAccess

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.errors import Error as NatsError

    from kvrouter.transport.nats_connecting import connect_nats
except ImportError as error:
    raise MissingExtraError("reporting over NATS", "nats") from error

__all__ = ["Broker", "Msg"]

_CLOSE_SECONDS: Final = 2.0


class Broker:
    """One connection, for all that reports; lives on one event loop."""

    def __init__(self, server: str, access: NatsAccess | None = None) -> None:
        self._server, self._access = server, access
        self._client: Client | None = None
        self._opening = asyncio.Lock()

    @property
    def is_connected(self) -> bool:
        """Whether the server can be reached now."""
        return self._client is not None and self._client.is_connected

    async def connect(self) -> None:
        """Connect, unless that was done.

        Raises:
            TransportError: the server cannot be reached, or refuses us.
        """
        async with self._opening:
            if self._client is None:
                # What is written while the server is away would arrive late.
                self._client = await connect_nats(self._server, self._access, pending_size=0)

    async def listen(self, subject: str, heard: Callable[[Msg], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Call `heard` with each message of a subject; returns what ends that. Needs `connect`.

        Raises:
            ConnectionError: the server cannot be reached.
        """
        assert self._client is not None, "not connected"
        try:
            subscription = await self._client.subscribe(subject, cb=heard)
        except NatsError as error:
            raise ConnectionError(f"NATS: {type(error).__name__}: {error}") from None

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
        if client is not None and not client.is_closed:
            with contextlib.suppress(TimeoutError, NatsError, OSError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await client.close()
