"""Requests over core NATS. Addresses are subjects: of one worker, or of a group of which one member answers."""

import asyncio
from typing import Any

from kvrouter.errors import DisconnectedError, UnreachableError
from kvrouter.transport.access import Token
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_access import NatsAccess
from kvrouter.transport.nats_channel import NatsChannel
from kvrouter.transport.requesting import encode_now

__all__ = ["NatsRequestClient"]


class NatsRequestClient:
    """The client of the request plane over NATS.

    `access` says who we are to the server, `token` to workers; `options` are further ones of the client library.
    """

    def __init__(
        self,
        server: str,
        *,
        heartbeat_seconds: float = 5.0,
        acknowledge_seconds: float = 15.0,
        token: Token | None = None,
        access: NatsAccess | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._server, self._heartbeat_seconds, self._token = server, heartbeat_seconds, token
        self._acknowledge_seconds = acknowledge_seconds
        self._access, self._options = access, options
        self._channel: NatsChannel | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`. Raises NoInstancesError where nobody listens."""
        channel = await self._connected()
        encoded = encode_now(request, context, token=self._token)
        stream = channel.open(address, encoded, context, many_in=request.many_in)
        try:
            async with asyncio.timeout(self._acknowledge_seconds):
                return await stream.taken(request)
        except TimeoutError:
            message = f"nobody on {address} has taken the request within {self._acknowledge_seconds:g} seconds"
            raise UnreachableError(message) from None

    async def aclose(self) -> None:
        """Close the connection; streams that have not ended fail. Idempotent."""
        self._closed = True
        async with self._connecting:
            channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close("the client was closed")

    async def _connected(self) -> NatsChannel:
        async with self._connecting:
            if self._closed:
                raise DisconnectedError("the client is closed", retryable=False)
            if self._channel is None:
                channel = NatsChannel(
                    self._server,
                    heartbeat_seconds=self._heartbeat_seconds,
                    access=self._access,
                    options=self._options,
                )
                try:
                    await channel.connect()
                except BaseException:
                    await channel.close("the client has given up")  # It would keep itself connected for ever.
                    raise
                self._channel = channel
            elif not self._channel.is_connected:
                raise DisconnectedError("the NATS server cannot be reached now")
            return self._channel
