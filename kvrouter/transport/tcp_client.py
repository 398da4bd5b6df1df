"""Requests over multiplexed TCP: a few connections per worker, made when needed, each with many streams."""

import asyncio
import os
from itertools import count

from kvrouter.errors import (
    DisconnectedError,
    PermissionDeniedError,
    TransportError,
    UnauthenticatedError,
    UnreachableError,
)
from kvrouter.transport.access import Token, token_of
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.requesting import connected, encode_now
from kvrouter.transport.tcp_connection import Heartbeat, TcpConnection
from kvrouter.transport.tcp_mux import MuxLimits, TcpMux
from kvrouter.transport.tls import ClientTls, PlaneTls

__all__ = ["TcpRequestClient", "parse_tcp_address"]


class TcpRequestClient:
    """The client of the request plane over TCP. Addresses are `host:port`, or `[address]:port` for IPv6.

    `token` is said once per connection, and with requests from when on it is another one. `tls` turns TLS on.
    """

    def __init__(
        self,
        *,
        limits: MuxLimits | None = None,
        heartbeat: Heartbeat | None = None,
        connect_seconds: float = 5.0,
        instance: str = "",
        token: Token | None = None,
        tls: PlaneTls | None = None,
    ) -> None:
        self._limits = limits if limits is not None else MuxLimits()
        self._heartbeat = heartbeat if heartbeat is not None else Heartbeat()
        self._connect_seconds = connect_seconds
        self._instance, self._token = instance, token
        self._tls = None if tls is None else ClientTls(tls)
        self._connections: dict[str, asyncio.Task[TcpConnection]] = {}
        self._open: set[TcpConnection] = set()
        self._prefix, self._numbers = os.urandom(8), count(1)
        self._closed = False

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`."""
        connection = await connected(self._connection, address, context)
        shown = token_of(self._token)
        token = None if shown == connection.mux.token else shown
        encoded = encode_now(request, context, token=token, bytes_max=self._limits.message_bytes_max)
        stream_id = self._prefix + next(self._numbers).to_bytes(8, "big")
        stream = connection.mux.open(stream_id, encoded, context, many_in=request.many_in)
        return await stream.taken(request)

    def connections(self) -> dict[str, int]:
        """Open connections, by address, with the number of their streams."""
        return {
            address: len(task.result().mux.streams)
            for address, task in self._connections.items()
            if task.done() and not task.cancelled() and task.exception() is None
        }

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        connecting = list(self._connections.values())
        self._connections.clear()
        for task in connecting:
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)
        for connection in tuple(self._open):
            connection.close("the client was closed")
            connection.mux.lost("the client was closed")

    async def _connection(self, address: str) -> TcpConnection:
        if self._closed:
            raise DisconnectedError("the client is closed", retryable=False)
        task = self._connections.get(address)
        if task is None or (task.done() and not _usable(task)):
            task = asyncio.create_task(self._connect(address), name=f"connect {address}")
            self._connections[address] = task
        # Shielded: others wait for the same connection.
        return await asyncio.shield(task)

    async def _connect(self, address: str) -> TcpConnection:
        host, port = parse_tcp_address(address)
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def on_ready(_: TcpConnection) -> None:
            if not ready.done():
                ready.set_result(None)

        def on_lost(connection: TcpConnection) -> None:
            self._open.discard(connection)
            if not ready.done():
                ready.set_exception(_failure(address, connection))

        def make() -> TcpConnection:
            return TcpConnection(self._make_mux, self._heartbeat, on_ready=on_ready, on_lost=on_lost)

        connection = None
        try:
            async with asyncio.timeout(self._connect_seconds):
                tls = {} if self._tls is None else self._tls.options(host)
                _, connection = await loop.create_connection(make, host, port, **tls)
                self._open.add(connection)
                connection.mux.greet()
                await ready
        except TimeoutError:
            if connection is not None:
                connection.abort("no handshake")
            raise UnreachableError(f"{address}: no connection within {self._connect_seconds:g} seconds") from None
        except OSError as error:
            raise UnreachableError(f"{address}: {error}") from None
        return connection

    def _make_mux(self, connection: TcpConnection) -> TcpMux:
        return TcpMux(connection, self._limits, instance=self._instance, token=token_of(self._token))


def _failure(address: str, connection: TcpConnection) -> TransportError:
    """Why there was no handshake: who may not ask here is told so, and need not try again."""
    refusal = connection.mux.refusal
    if isinstance(refusal, UnauthenticatedError | PermissionDeniedError):
        return refusal
    return UnreachableError(f"{address}: {connection.close_reason}")


def _usable(task: "asyncio.Task[TcpConnection]") -> bool:
    if task.cancelled() or task.exception() is not None:
        return False
    connection = task.result()
    return connection.is_open and connection.close_reason is None and connection.mux.goaway is None


def parse_tcp_address(address: str) -> tuple[str, int]:
    """Split `host:port`; raises TransportError that names what is wrong."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise TransportError(f"{address!r} is no address; write host:port", code="INVALID_ARGUMENT")
    return host, int(port)
