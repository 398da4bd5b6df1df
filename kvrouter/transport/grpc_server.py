"""Takes requests over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

from kvrouter.errors import (
    MissingExtraError,
    PermissionDeniedError,
    RateLimitedError,
    RefusedError,
    UnauthenticatedError,
    WireError,
)
from kvrouter.transport.access import HEADER, Peer
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.grpc_exchange import GrpcExchange, channel_options, flushed
from kvrouter.transport.grpc_messages import METHOD, SERVICE
from kvrouter.transport.grpc_tls import server_credentials
from kvrouter.transport.tls import PlaneTls

try:
    import grpc
    import grpc.aio
except ImportError as error:
    raise MissingExtraError("the request plane over gRPC", "grpc") from error

__all__ = ["GrpcRequestServer"]

_CLOSE_SECONDS = 1.0
_REST_SECONDS = 60.0
"""How long what waits to be written may take, once all is said; a client that is gone ends it at once."""


class GrpcRequestServer:
    """The server of the request plane over gRPC. With `port` 0 the system chooses one; with a certificate it is TLS."""

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        keepalive_seconds: float = 30.0,
        tls: PlaneTls | None = None,
    ) -> None:
        self.endpoints = endpoints
        self._host, self._port, self._advertise = host, port, advertise
        self._keepalive_seconds = keepalive_seconds
        self._credentials = server_credentials(tls) if tls is not None and tls.serves else None
        self._server: Any = None

    @property
    def address(self) -> str:
        """Where clients reach it."""
        if self._server is None:
            raise RuntimeError("the server has not started")
        return f"{self._advertise or self._host}:{self._port}"

    async def start(self) -> None:
        """Begin to listen. Raises OSError if the address is taken."""
        options = [*channel_options(self._keepalive_seconds), ("grpc.so_reuseport", 0)]
        server = grpc.aio.server(options=options)
        exchange = grpc.stream_stream_rpc_method_handler(self._exchange)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: exchange}),))
        address = f"{self._host}:{self._port}"
        try:
            if self._credentials is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise OSError(f"{address} cannot be listened on: {error}") from None
        await server.start()
        self._server = server

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish, and close. Idempotent."""
        if self._server is None:
            return
        await self.endpoints.drain(drain_seconds)
        server, self._server = self._server, None
        await server.stop(_CLOSE_SECONDS)

    async def _exchange(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """One call."""
        exchange = GrpcExchange(endpoints=self.endpoints, peer=_peer(context))
        writing = asyncio.create_task(exchange.write_all(context.write), name="grpc out")
        reading = asyncio.create_task(self._read(requests, exchange), name="grpc in")
        over = asyncio.create_task(exchange.over.wait(), name="grpc over")
        try:
            heard = await exchange.until_ended(reading, over, keepalive_seconds=self._keepalive_seconds, peer="client")
            if not exchange.over.is_set():
                exchange.mux.lost("the client has ended its call")
                exchange.finish()
            await flushed(writing, seconds=_REST_SECONDS if heard else 0.0)
            _tell_refusal(exchange.mux.refusal, context)
        finally:
            exchange.mux.lost("the call was cancelled")
            for task in (writing, reading, over):
                task.cancel()
            await asyncio.gather(writing, reading, over, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[bytes], exchange: GrpcExchange) -> None:
        async for message in requests:
            try:
                exchange.read(message)
            except WireError:
                self.endpoints.counters.malformed += 1
                return
            if exchange.mux.is_idle and not exchange.over.is_set():
                exchange.finish()  # the request was refused
                return


def _peer(context: Any) -> Peer:
    """Who calls: gRPC writes `ipv4:127.0.0.1:1234`, and `ipv6:%5B::1%5D:1234`."""
    address = unquote(str(context.peer())).partition(":")[2].rpartition(":")[0]
    shown = next((value for name, value in context.invocation_metadata() or () if name == HEADER), None)
    return Peer(address.removeprefix("[").removesuffix("]"), shown)


def _tell_refusal(refusal: RefusedError | None, context: Any) -> None:
    """Who may not ask is told by the call's status too, for what stands on the way and looks at that."""
    if isinstance(refusal, UnauthenticatedError | PermissionDeniedError | RateLimitedError):
        context.set_code(grpc.StatusCode[refusal.code])
        context.set_details(str(refusal))
