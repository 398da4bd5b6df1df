"""Requests over gRPC: one bidirectional call of envelopes for each; HTTP/2, keep-alive and TLS are gRPC's."""

import asyncio
from typing import Any

from kvrouter.errors import (
    DisconnectedError,
    MissingExtraError,
    ProtocolError,
    TransportError,
    UnreachableError,
    WireError,
)
from kvrouter.transport.access import Token, with_token
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.envelope_mux import new_stream_id
from kvrouter.transport.grpc_exchange import GrpcExchange, channel_options, flushed
from kvrouter.transport.grpc_messages import METHOD, SERVICE
from kvrouter.transport.grpc_tls import channel_credentials, channel_name_options
from kvrouter.transport.messages import Request, refusal
from kvrouter.transport.requesting import encode_now
from kvrouter.transport.tls import PlaneTls

try:
    import grpc
    import grpc.aio
except ImportError as error:
    raise MissingExtraError("the request plane over gRPC", "grpc") from error

__all__ = ["GrpcRequestClient"]

_PATH = f"/{SERVICE}/{METHOD}"


class GrpcRequestClient:
    """The client of the request plane over gRPC. Addresses are targets: `host:port`, `dns:///name:port`.

    `token` goes as metadata of every call. `tls` turns TLS on; its files are read when a channel is made.
    """

    def __init__(
        self, *, keepalive_seconds: float = 30.0, token: Token | None = None, tls: PlaneTls | None = None
    ) -> None:
        # Channels are shared by the whole process otherwise, with their back-off after a failure.
        self._options: list[tuple[str, int | str]] = [
            *channel_options(keepalive_seconds),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._token, self._tls, self._keepalive_seconds = token, tls, keepalive_seconds
        if tls is not None:
            self._options += channel_name_options(tls)
            channel_credentials(tls)  # what cannot be read is told now
        self._channels: dict[str, Any] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._closed = False

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`."""
        if self._closed:
            raise DisconnectedError("the client is closed", retryable=False)
        encoded = encode_now(request, context)
        exchange, stream_id = GrpcExchange(), new_stream_id()
        stream = exchange.mux.open(encoded, context, many_in=request.many_in, stream_id=stream_id)
        shown = tuple(with_token({}, self._token).items())
        call = asyncio.create_task(self._call(address, exchange, stream_id, shown), name=f"grpc {address}")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await stream.taken(request)

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def _channel(self, address: str) -> Any:
        channel = self._channels.get(address)
        if channel is None:
            if self._tls is None:
                channel = grpc.aio.insecure_channel(address, options=self._options)
            else:
                channel = grpc.aio.secure_channel(address, channel_credentials(self._tls), options=self._options)
            self._channels[address] = channel
        return channel

    async def _call(
        self, address: str, exchange: GrpcExchange, stream_id: bytes, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        """The life of one call, from its request to its last envelope."""
        call = self._channel(address).stream_stream(_PATH)(metadata=metadata)
        writing = asyncio.create_task(exchange.write_all(call.write), name="grpc out")
        reading = asyncio.create_task(_read(call, exchange), name="grpc in")
        over = asyncio.create_task(exchange.over.wait(), name="grpc over")
        try:
            if not await exchange.until_ended(reading, over, keepalive_seconds=self._keepalive_seconds, peer="worker"):
                await self._abandon(address)
            if not exchange.over.is_set():
                self._failed(address, exchange, stream_id, reading)
            await flushed(writing)
        finally:
            exchange.mux.lost("the client was closed")
            for task in (writing, reading, over):
                task.cancel()
            await asyncio.gather(writing, reading, over, return_exceptions=True)
            call.cancel()

    async def _abandon(self, address: str) -> None:
        """Let the next call have a connection of its own; gRPC would believe in this one for a minute more."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()

    def _failed(self, address: str, exchange: GrpcExchange, stream_id: bytes, reading: "asyncio.Task[None]") -> None:
        """The call has ended before its stream did."""
        failure = reading.exception() if reading.done() and not reading.cancelled() else None
        if isinstance(failure, WireError):
            exchange.mux.fail(stream_id, ProtocolError(str(failure)))
        elif isinstance(failure, grpc.aio.AioRpcError) and not exchange.received:
            exchange.mux.fail(stream_id, _refusal(address, failure))
        else:
            exchange.mux.lost(f"{address}: {_text(failure) if failure else 'the call ended before the stream did'}")


async def _read(call: Any, exchange: GrpcExchange) -> None:
    async for message in call:
        exchange.read(message)


def _refusal(address: str, failure: "grpc.aio.AioRpcError") -> TransportError:
    if failure.code() is grpc.StatusCode.UNAVAILABLE:
        return UnreachableError(f"{address}: {_text(failure)}")
    if failure.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return refusal(f"{address}: {_text(failure)}", code=failure.code().name)
    return TransportError(f"{address}: {_text(failure)}", code=failure.code().name)


def _text(failure: BaseException) -> str:
    return str(failure.details()) if isinstance(failure, grpc.aio.AioRpcError) else type(failure).__name__
