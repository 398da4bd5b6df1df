"""A lean HTTP/1.1 server for the simulated engine: httptools over asyncio, nothing between it and the socket.

An engine must be able to misbehave (garbage instead of HTTP, half an answer, a closed door), and a fleet of them
must leave most of a small machine to what is being tested; a web framework stands in the way of both. This is not
the router's server: it trusts its clients and serves one request at a time on each connection.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import cast
from urllib.parse import parse_qs, urlsplit

import httptools
import msgspec

__all__ = ["Exchange", "Handler", "HttpServer"]

BODY_BYTES_MAX = 256 * 1024 * 1024


class Exchange:
    """One request and the way to answer it."""

    def __init__(self, connection: "_Connection", method: str, target: str) -> None:
        parts = urlsplit(target)
        self.method, self.path = method, parts.path
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.keep_alive = True
        self.chunks = 0
        """Body chunks written so far, of a streamed answer."""
        self._connection = connection

    async def reply(
        self, status: int, body: object = b"", *, content_type: str = "application/json", headers: str = ""
    ) -> None:
        """Answer at once; a `body` that is not bytes is sent as JSON."""
        payload = body if isinstance(body, bytes) else msgspec.json.encode(body)
        head = self._head(status, content_type, f"content-length: {len(payload)}\r\n{headers}")
        await self._send(head if self.method == "HEAD" else head + payload)

    async def start_stream(self) -> None:
        """Begin a stream of server-sent events."""
        await self._send(self._head(200, "text/event-stream; charset=utf-8", "transfer-encoding: chunked\r\n"))

    async def write(self, data: bytes) -> None:
        """Send one chunk of a stream; waits while the client reads slowly."""
        self.chunks += 1
        await self._send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        """End a stream properly."""
        await self._send(b"0\r\n\r\n")

    async def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be HTTP, and close."""
        await self._send(data)
        self._connection.close()

    def cut(self) -> None:
        """Close the connection at once, whatever has been sent."""
        self._connection.abort()

    async def _send(self, data: bytes) -> None:
        await self._connection.send(data)

    def _head(self, status: int, content_type: str, more: str) -> bytes:
        phrase = HTTPStatus(status).phrase
        connection = "keep-alive" if self.keep_alive else "close"
        request_id = self.headers.get("x-request-id", "")
        echo = f"x-request-id: {request_id}\r\n" if request_id else ""
        return (
            f"HTTP/1.1 {status} {phrase}\r\nserver: kvrouter-simulated-engine\r\ncontent-type: {content_type}\r\n"
            f"connection: {connection}\r\n{echo}{more}\r\n"
        ).encode("latin-1")


Handler = Callable[[Exchange], Awaitable[None]]


class HttpServer:
    """Listens, and calls `handler` in a task of its own for each request; a client that leaves cancels it."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; 0 lets the system choose."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self._handler, self._connections), host, port)
        return cast("int", self._server.sockets[0].getsockname()[1])

    @property
    def listening(self) -> bool:
        """Whether new connections are accepted."""
        return self._server is not None

    def stop_listening(self) -> None:
        """Close the door: new connections are refused, open ones live on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self.stop_listening()
        for connection in list(self._connections):
            connection.abort()


class _Connection(asyncio.Protocol):
    """One client connection; requests that arrive early wait their turn."""

    def __init__(self, handler: Handler, connections: "set[_Connection]") -> None:
        self._handler, self._connections = handler, connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._target = b""
        self._exchange: Exchange | None = None
        self._headers: dict[str, str] = {}
        self._ready: deque[Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exception: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        self._connections.discard(self)
        self._transport = None
        self._writable.set()
        self._ready.clear()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.close()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def on_message_begin(self) -> None:
        self._target, self._headers = b"", {}

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        self._exchange = Exchange(self, method, self._target.decode("latin-1"))
        self._exchange.headers = self._headers
        self._exchange.keep_alive = self._parser.should_keep_alive()
        if self._headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.body += body
            if len(self._exchange.body) > BODY_BYTES_MAX:
                self.abort()

    def on_message_complete(self) -> None:
        if self._exchange is not None:
            self._ready.append(self._exchange)
        self._exchange = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve(), name="exchange")

    async def send(self, data: bytes) -> None:
        """Write, then wait until the client keeps up.

        Raises:
            ConnectionResetError: the client has gone.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()

    def close(self) -> None:
        """Send what is buffered, then close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def _serve(self) -> None:
        try:
            while self._ready:
                exchange = self._ready.popleft()
                await self._handler(exchange)
                if not exchange.keep_alive:
                    self.close()
        except ConnectionError:
            self.abort()
        finally:
            self._task = None
