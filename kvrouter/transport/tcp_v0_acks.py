"""Requests over Dynamo's first TCP request plane: framed, acknowledged in order, answered over calls home."""

import asyncio
import contextlib
from collections import deque
from typing import cast

from kvrouter.errors import DisconnectedError, RefusedError, TransportError, UnreachableError, WireError
from kvrouter.transport.access import HEADER, Peer
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.context import Context
from kvrouter.transport.frame_cutter import FrameCutter
from kvrouter.transport.refusal_texts import refusal_from_text, refusal_text
from kvrouter.transport.tcp_client import parse_tcp_address
from kvrouter.transport.tcp_connection import host_of
from kvrouter.transport.tcp_v0 import RequestReader, V0Request, encode_v0_reply, encode_v0_request, reply_length
from kvrouter.transport.tls import ClientTls, PlaneTls, ServerTls

__all__ = ["TcpV0Sender", "TcpV0Server"]

_CONNECT_SECONDS = 5.0
_ACK_SECONDS = 5.0
_IN_FLIGHT_MAX = 1024


class _Replies(asyncio.Protocol):
    """One connection of a sender: replies come in the order of requests."""

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[bytes]] = deque()
        self.transport: asyncio.Transport | None = None
        self.is_open = False
        self._cutter = FrameCutter(4, reply_length)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self.transport, self.is_open = cast("asyncio.Transport", transport), True

    def data_received(self, data: bytes) -> None:
        """Replies have arrived."""
        assert self.transport is not None
        try:
            for frame in self._cutter.feed(data):
                self._acknowledged(bytes(frame[4:]))
        except WireError:
            self.transport.abort()

    def _acknowledged(self, text: bytes) -> None:
        if not self.waiting:
            raise WireError("a reply that nobody waits for")
        future = self.waiting.popleft()
        if not future.done():
            future.set_result(text)

    def connection_lost(self, exception: Exception | None) -> None:
        """The socket is gone: what was not acknowledged never will be."""
        self.is_open = False
        for future in self.waiting:
            if not future.done():
                future.set_exception(DisconnectedError(f"the connection was lost: {exception or 'closed by the peer'}"))
        self.waiting.clear()


class TcpV0Sender:
    """A `RequestSender`; addresses are `host:port` or `host:port/path`, the path being the endpoint's."""

    def __init__(self, *, ack_seconds: float = _ACK_SECONDS, tls: PlaneTls | None = None) -> None:
        self._ack_seconds = ack_seconds
        self._tls = None if tls is None else ClientTls(tls)
        self._connections: dict[str, asyncio.Task[_Replies]] = {}

    async def send(self, address: str, message: bytes, context: Context) -> None:
        """Send a request and wait for its acknowledgement; see `RequestSender`."""
        target, _, path = address.partition("/")
        frame = encode_v0_request(path, context.headers, message)
        connection = await self._connection(target)
        if len(connection.waiting) >= _IN_FLIGHT_MAX:
            raise RefusedError(f"{_IN_FLIGHT_MAX} requests wait for {target}", code="RESOURCE_EXHAUSTED")
        if connection.transport is None or not connection.is_open:
            raise DisconnectedError(f"the connection to {target} was lost")
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        connection.waiting.append(reply)
        connection.transport.write(frame)
        try:
            async with asyncio.timeout(self._ack_seconds):
                text = await reply
        except TimeoutError:
            connection.transport.abort()  # later replies could not be told apart
            raise DisconnectedError(f"no acknowledgement from {target} within {self._ack_seconds:g} seconds") from None
        if text:
            raise refusal_from_text(text)

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        connections, self._connections = self._connections, {}
        for task in connections.values():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, TransportError):
                connection = await task
                if connection.transport is not None:
                    connection.transport.close()

    async def _connection(self, target: str) -> _Replies:
        task = self._connections.get(target)
        if task is None or (task.done() and not _usable(task)):
            task = self._connections[target] = asyncio.create_task(
                _connect(target, self._tls), name=f"connect {target}"
            )
        return await asyncio.shield(task)


class TcpV0Server:
    """A `RequestServer` whose answers go home. With `port` 0 the system chooses one."""

    def __init__(
        self, worker: CallHomeWorker, *, host: str = "127.0.0.1", port: int = 0, tls: PlaneTls | None = None
    ) -> None:
        self._tls = ServerTls(tls) if tls is not None and tls.serves else None
        self._worker, self._host, self._port = worker, host, port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Transport] = set()

    @property
    def address(self) -> str:
        """Where clients reach it."""
        assert self._server is not None, "the server has not started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def start(self) -> None:
        """Begin to listen. Raises OSError if the address is taken."""
        loop = asyncio.get_running_loop()
        tls = {} if self._tls is None else self._tls.options()
        self._server = await loop.create_server(lambda: _Requests(self), self._host, self._port, backlog=1024, **tls)
        self._worker.start()

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish, and close. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        await self._worker.endpoints.drain(drain_seconds)
        await self._worker.close()
        for transport in tuple(self._open):
            transport.close()
        await server.wait_closed()

    def answer(self, request: V0Request, address: str) -> bytes:
        """What a request from `address` is replied with."""
        peer = Peer(address, request.headers.get(HEADER))
        try:
            self._worker.accept(request.payload, endpoint=request.path, peer=peer)
        except RefusedError as error:
            return refusal_text(error)
        return b""

    def unreadable(self) -> None:
        """A client has sent what is no request."""
        self._worker.endpoints.counters.malformed += 1

    def opened(self, transport: asyncio.Transport) -> None:
        """A connection is there."""
        self._open.add(transport)

    def closed(self, transport: asyncio.Transport) -> None:
        """A connection is gone."""
        self._open.discard(transport)


class _Requests(asyncio.Protocol):
    """One connection of a server."""

    def __init__(self, server: TcpV0Server) -> None:
        self._server = server
        self._reader = RequestReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.opened(self._transport)

    def data_received(self, data: bytes) -> None:
        """Requests have arrived; each is replied to at once."""
        assert self._transport is not None
        try:
            requests = self._reader.feed(data)
        except WireError as error:
            self._server.unreadable()
            self._transport.write(encode_v0_reply(f"Request too large: {error}".encode()))
            self._transport.close()
            return
        for request in requests:
            self._transport.write(encode_v0_reply(self._server.answer(request, host_of(self._transport))))

    def connection_lost(self, exception: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        """The socket is gone; answers go home all the same."""
        if self._transport is not None:
            self._server.closed(self._transport)


def _usable(task: "asyncio.Task[_Replies]") -> bool:
    return not task.cancelled() and task.exception() is None and task.result().is_open


async def _connect(target: str, client_tls: ClientTls | None) -> _Replies:
    host, port = parse_tcp_address(target)
    tls = {} if client_tls is None else client_tls.options(host)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, connection = await asyncio.get_running_loop().create_connection(_Replies, host, port, **tls)
    except TimeoutError:
        raise UnreachableError(f"{target}: no connection within {_CONNECT_SECONDS:g} seconds") from None
    except OSError as error:
        raise UnreachableError(f"{target}: {error}") from None
    return connection
