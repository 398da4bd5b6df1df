"""Takes requests over multiplexed TCP."""

import asyncio
import socket

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.tcp_connection import Heartbeat, TcpConnection
from kvrouter.transport.tcp_mux import GOAWAY_DRAINING, GOAWAY_LIMIT, MuxLimits, TcpMux
from kvrouter.transport.tls import PlaneTls, ServerTls

__all__ = ["TcpRequestServer"]


class TcpRequestServer:
    """The server of the request plane over TCP. With `port` 0 the system chooses one.

    The guard of the endpoints is asked about a peer when it says hello, and about each of its requests. `advertise` is
    the host that goes into the address; needed where `host` is a wildcard. With a certificate in `tls` it is TLS.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        connections_max: int = 1000,
        limits: MuxLimits | None = None,
        heartbeat: Heartbeat | None = None,
        handshake_seconds: float = 10.0,
        instance: str = "",
        tls: PlaneTls | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.refused_connections = 0
        self._host, self._port, self._advertise = host, port, advertise
        self._connections_max = connections_max
        self._limits = limits if limits is not None else MuxLimits()
        self._heartbeat = heartbeat if heartbeat is not None else Heartbeat()
        self._handshake_seconds = handshake_seconds
        self._instance = instance
        self._tls = ServerTls(tls) if tls is not None and tls.serves else None
        self._server: asyncio.Server | None = None
        self._connections: set[TcpConnection] = set()

    @property
    def address(self) -> str:
        """Where clients reach it."""
        if self._server is None:
            raise RuntimeError("the server has not started")
        host, port = self._server.sockets[0].getsockname()[:2]
        host = self._advertise or host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Begin to listen. Raises OSError if the address is taken."""
        loop = asyncio.get_running_loop()
        tls = {} if self._tls is None else self._tls.options()
        self._server = await loop.create_server(
            self._accept, self._host, self._port, backlog=1024, family=socket.AF_UNSPEC, **tls
        )

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish, and close. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.mux.say_goodbye(GOAWAY_DRAINING)
        await self.endpoints.drain(drain_seconds)
        for connection in tuple(self._connections):
            connection.close("the worker has stopped")
        await self._server.wait_closed()
        self._server = None

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def _accept(self) -> TcpConnection:
        return _Accepted(self)

    def make_mux(self, connection: TcpConnection) -> TcpMux:
        """The other half of a connection that was accepted."""
        return TcpMux(connection, self._limits, endpoints=self.endpoints, instance=self._instance)

    def took(self, connection: TcpConnection) -> None:
        """A connection is there; one too many is told so and closed."""
        self._connections.add(connection)
        if len(self._connections) > self._connections_max:
            self.refused_connections += 1
            connection.mux.say_goodbye(GOAWAY_LIMIT)
            connection.close("too many connections")
        else:
            asyncio.get_running_loop().call_later(self._handshake_seconds, self._expect_handshake, connection)

    def lost(self, connection: TcpConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)

    @property
    def heartbeat(self) -> Heartbeat:
        """When silent peers are given up."""
        return self._heartbeat

    def _expect_handshake(self, connection: TcpConnection) -> None:
        if connection.is_open and not connection.mux.is_ready:
            connection.abort("no handshake")


class _Accepted(TcpConnection):
    """A connection that a peer has opened."""

    def __init__(self, server: TcpRequestServer) -> None:
        super().__init__(server.make_mux, server.heartbeat, on_lost=server.lost)
        self._owner = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it into the server's books."""
        super().connection_made(transport)
        self._owner.took(self)
