"""Connections of HTTP clients to workers, by origin: made when they are needed, shared by many streams, kept.

A second connection to the same origin is made when the first has four fifths of the streams that the peer takes; at
most `connections_max`. What is idle for `idle_seconds` is closed when the next request comes.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from kvrouter.errors import DisconnectedError, TransportError, UnreachableError
from kvrouter.transport.duplex import Wakeups
from kvrouter.transport.http_connection import Header, HttpConnection, HttpExchange
from kvrouter.transport.tcp_connection import Heartbeat
from kvrouter.transport.tls import ClientTls, PlaneTls

__all__ = ["Answer", "HttpOrigins", "Origin", "parse_http_address"]

_BUSY = 0.8
_BODY_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections go to."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_http_address(address: str) -> tuple[Origin, str]:
    """Split a URL into origin and path; raises TransportError that names what is wrong."""
    try:
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise TransportError(f"{address!r} is no address: {error}", code="INVALID_ARGUMENT") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TransportError(
            f"{address!r} is no address; write http://host:port/path or https://…", code="INVALID_ARGUMENT"
        )
    return Origin(parts.scheme, parts.hostname, port), parts.path.rstrip("/")


@dataclass(slots=True)
class Answer:
    """A whole response with a short body."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class _Fetch:
    """Collects a short response."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def on_response(self, status: int, headers: dict[str, str]) -> None:
        self.answer.status, self.answer.headers = status, headers

    def on_bytes(self, data: bytes) -> None:
        self.answer.body = (self.answer.body + data)[:_BODY_BYTES_MAX]

    def on_close(self, reason: str | None) -> None:
        if self.done.done():
            return
        if reason is None:
            self.done.set_result(self.answer)
        else:
            self.done.set_exception(DisconnectedError(reason))


class _Peer:
    """The connections to one origin."""

    def __init__(self) -> None:
        self.connections: list[HttpConnection] = []
        self.connecting: asyncio.Task[HttpConnection] | None = None
        self.freed = Wakeups()


class HttpOrigins:
    """The connections of one client. Lives on one event loop."""

    def __init__(
        self,
        *,
        heartbeat: Heartbeat | None = None,
        connect_seconds: float = 5.0,
        connections_max: int = 50,
        idle_seconds: float = 90.0,
        tls: PlaneTls | None = None,
    ) -> None:
        self._heartbeat = heartbeat if heartbeat is not None else Heartbeat(interval_seconds=30, timeout_seconds=60)
        self._connect_seconds, self._connections_max, self._idle_seconds = (
            connect_seconds,
            connections_max,
            idle_seconds,
        )
        self._tls = None if tls is None else ClientTls(tls, alpn=("h2",))
        self._peers: dict[Origin, _Peer] = {}
        self._closed = False

    def connections(self) -> dict[Origin, list[int]]:
        """The streams of each open connection, by origin."""
        return {origin: [len(each) for each in peer.connections] for origin, peer in self._peers.items()}

    async def acquire(self, origin: Origin) -> HttpConnection:
        """A connection with room for a stream, which the caller opens before it waits for anything.

        Raises:
            UnreachableError: there is none, and none can be made.
            DisconnectedError: the client is closed.
        """
        while True:
            if self._closed:
                raise DisconnectedError("the client is closed", retryable=False)
            peer = self._peers.setdefault(origin, _Peer())
            self._close_idle(peer)
            best = min(peer.connections, key=len, default=None)
            if best is not None and len(best) < _BUSY * best.streams_max:
                return best
            if len(peer.connections) < self._connections_max:
                await self._connected(origin, peer)
            elif best is not None and len(best) < best.streams_max:
                return best
            else:
                await peer.freed.wait()

    async def fetch(self, origin: Origin, method: str, path: str, headers: list[Header], body: bytes = b"") -> Answer:
        """One request with a short answer.

        Raises:
            UnreachableError, DisconnectedError: as `acquire`; or the connection was lost meanwhile.
        """
        connection = await self.acquire(origin)
        fetch = _Fetch()
        exchange: HttpExchange = connection.open(method, path, headers, fetch)
        try:
            if body:
                exchange.write(body, ends=True)
            else:
                exchange.finish()
            return await fetch.done
        finally:
            exchange.reset()

    async def aclose(self) -> None:
        """Close all connections; streams that are open fail. Idempotent."""
        self._closed = True
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            if peer.connecting is not None:
                peer.connecting.cancel()
                await asyncio.gather(peer.connecting, return_exceptions=True)
            for connection in tuple(peer.connections):
                connection.close("the client was closed")
            peer.freed.wake()

    async def _connected(self, origin: Origin, peer: _Peer) -> None:
        """Wait for one more connection; all that need one wait for the same."""
        task = peer.connecting
        if task is None or task.done():
            task = peer.connecting = asyncio.create_task(
                self._connect(origin, peer), name=f"connect {origin.authority}"
            )
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise DisconnectedError("the client is closed", retryable=False) from None
            raise

    async def _connect(self, origin: Origin, peer: _Peer) -> HttpConnection:
        connection: HttpConnection | None = None

        def freed() -> None:
            if connection is not None and connection.close_reason is not None and connection in peer.connections:
                peer.connections.remove(connection)
                if not peer.connections and (peer.connecting is None or peer.connecting.done()):
                    self._peers.pop(origin, None)
            peer.freed.wake()

        def make() -> HttpConnection:
            return HttpConnection(
                authority=origin.authority, scheme=origin.scheme, heartbeat=self._heartbeat, on_freed=freed
            )

        tls = self._tls_options(origin)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(make, origin.host, origin.port, **tls)
                await connection.ready
        except TimeoutError:
            self._give_up(connection)
            raise UnreachableError(
                f"{origin.authority}: no HTTP/2 connection within {self._connect_seconds:g} seconds"
            ) from None
        except OSError as error:  # a ConnectionError of `ready` is one too
            self._give_up(connection)
            raise UnreachableError(f"{origin.authority}: {error}") from None
        except asyncio.CancelledError:
            self._give_up(connection)
            raise
        peer.connections.append(connection)
        return connection

    def _tls_options(self, origin: Origin) -> dict[str, Any]:
        if origin.scheme != "https":
            return {}
        if self._tls is None:
            self._tls = ClientTls(PlaneTls(), alpn=("h2",))
        return self._tls.options(origin.host)

    def _give_up(self, connection: HttpConnection | None) -> None:
        if connection is not None:
            connection.abort("no handshake")

    def _close_idle(self, peer: _Peer) -> None:
        for connection in tuple(peer.connections):
            if connection.idle_seconds() > self._idle_seconds:
                connection.close("idle")
