"""Requests over UCX: one endpoint per worker, each request a stream of envelopes. Experimental."""

import asyncio

from kvrouter.errors import DisconnectedError, UnreachableError
from kvrouter.transport.access import Token
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.requesting import connected, encode_now
from kvrouter.transport.tcp_client import parse_tcp_address
from kvrouter.transport.ucx_channel import UcxChannel, UCXError, UcxUse, ucxx

__all__ = ["UcxRequestClient"]


class UcxRequestClient:
    """The client of the request plane over UCX. Addresses are `host:port`."""

    def __init__(
        self, *, heartbeat_seconds: float = 5.0, connect_seconds: float = 5.0, token: Token | None = None
    ) -> None:
        self._heartbeat_seconds, self._connect_seconds, self._token = heartbeat_seconds, connect_seconds, token
        self._channels: dict[str, asyncio.Task[UcxChannel]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._use = UcxUse()
        self._closed = False

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`."""
        channel = await connected(self._channel, address, context)
        encoded = encode_now(request, context, token=self._token)
        return await channel.mux.open(encoded, context, many_in=request.many_in).taken(request)

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        channels, self._channels = self._channels, {}
        for connecting in channels.values():
            connecting.cancel()
        found = await asyncio.gather(*channels.values(), return_exceptions=True)
        for channel in found:
            if isinstance(channel, UcxChannel):
                await channel.flush(1.0)
                channel.close("the client was closed")
        del found
        await asyncio.gather(*self._running, return_exceptions=True)
        channels.clear()
        self._use.end()

    async def _channel(self, address: str) -> UcxChannel:
        if self._closed:
            raise DisconnectedError("the client is closed", retryable=False)
        connecting = self._channels.get(address)
        if connecting is None or (connecting.done() and not _usable(connecting)):
            connecting = asyncio.create_task(self._connect(address), name=f"connect {address}")
            self._channels[address] = connecting
        return await asyncio.shield(connecting)

    async def _connect(self, address: str) -> UcxChannel:
        host, port = parse_tcp_address(address)
        self._use.begin()
        channel = None
        try:
            async with asyncio.timeout(self._connect_seconds):
                endpoint = await ucxx.create_endpoint(host, port)
                channel = UcxChannel(endpoint, heartbeat_seconds=self._heartbeat_seconds)
                running = asyncio.create_task(channel.run(), name=f"ucx {address}")
                self._running.add(running)
                running.add_done_callback(self._running.discard)
                channel.greet()
                await channel.greeted
        except TimeoutError:
            if channel is not None:
                channel.close("no handshake")
            raise UnreachableError(f"{address}: no connection within {self._connect_seconds:g} seconds") from None
        except (UCXError, OSError) as error:
            raise UnreachableError(f"{address}: {type(error).__name__}: {error}") from None
        return channel


def _usable(connecting: "asyncio.Task[UcxChannel]") -> bool:
    return not connecting.cancelled() and connecting.exception() is None and connecting.result().reason is None
