"""Both ends of the proxy for tests: a raw client, workers that follow a script, and a fleet to route to them.

Nothing here uses the code under test to read or write HTTP.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, cast

from kvrouter.errors import NoWorkerError
from kvrouter.service.proxy import Endpoint, ProxyLimits, ProxyServer, Reply, Request, Route, Usage
from tests.servers import free_port

Script = Callable[["Conversation"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(payload: bytes) -> bytes:
    """Frame one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def post(body: bytes = b"{}", path: str = "/v1/completions", headers: str = "") -> bytes:
    """Write one request."""
    return f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def get(path: str = "/v1/models", headers: str = "") -> bytes:
    """Write one request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode()


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Answer:
    """What a client received."""

    status: int
    headers: dict[str, str]
    body: bytes
    head: bytes
    raw_body: bytes
    """With chunked framing."""
    whole: bool = True
    """It ended where its framing said."""


class RawClient:
    """A client that sends what it is told and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(self, data: bytes, *, method: str = "POST") -> Answer:
        self.send(data)
        return await self.answer(method=method)

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self, *, method: str = "POST") -> Answer:
        head = await self.head()
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        answer = Answer(int(first.split()[1]), headers, b"", head, b"")
        if answer.status < 200 or method == "HEAD" or answer.status in (204, 304):
            return answer
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            answer.whole = False
            if "transfer-encoding" in headers:
                await self._chunks(answer)
            elif "content-length" in headers:
                await self._length(answer, int(headers["content-length"]))
            else:
                answer.body = await self.reader.read()
            answer.whole = True
        answer.raw_body = answer.raw_body or answer.body
        return answer

    async def _length(self, answer: Answer, length: int) -> None:
        try:
            answer.body = await self.reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            answer.body = error.partial
            raise

    async def _chunks(self, answer: Answer) -> None:
        while True:
            line = await self.reader.readuntil(b"\r\n")
            answer.raw_body += line
            size = int(line.split(b";")[0], 16)
            piece = await self.reader.readexactly(size + 2)
            answer.raw_body += piece
            answer.body += piece[:-2]
            if not size:
                return

    async def closed(self) -> bytes:
        """Wait for the end of the connection; return what came before it."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def pause_reading(self) -> None:
        """Leave answers in the kernel's buffers."""
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    def resume_reading(self) -> None:
        cast("asyncio.Transport", self.writer.transport).resume_reading()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connected(
    server: ProxyServer, tls: ssl.SSLContext | None = None, receive_buffer: int = 0
) -> AsyncIterator[RawClient]:
    """Connect to the proxy."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    limit = receive_buffer or 2**16
    name = "localhost" if tls is not None else None
    reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name, limit=limit)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


class Conversation:
    """One connection as a worker sees it."""

    def __init__(self, worker: "Worker", number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.worker, self.number, self.reader, self.writer = worker, number, reader, writer

    async def request(self) -> tuple[bytes, bytes]:
        """Read one request; record it."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = await self.reader.readexactly(length)
        self.worker.requests.append((head, body))
        return head, body

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def flush(self) -> None:
        await self.writer.drain()

    async def closed(self) -> None:
        """Wait until the proxy has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.worker.closed += 1

    def abort(self) -> None:
        self.writer.transport.abort()


@dataclass
class Worker:
    """A scripted worker: `script` runs once per connection."""

    script: Script
    endpoint: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", 0))
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: int = 0
    closed: int = 0
    """Connections that a script saw closed."""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    server: asyncio.Server | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self.script(Conversation(self, self.connections, reader, writer))
        writer.close()

    def stop(self) -> None:
        """Stop listening and reset every connection."""
        if self.server is not None:
            self.server.close()
        for writer in self.writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def worker(
    script: Script,
    *,
    tls: ssl.SSLContext | None = None,
    tls_context: ssl.SSLContext | None = None,
    **endpoint: object,
) -> AsyncIterator[Worker]:
    """Start a scripted worker; `tls` is its own context, `tls_context` that of those who connect."""
    started = Worker(script)
    started.server = await asyncio.start_server(started.serve, "127.0.0.1", 0, ssl=tls, limit=2**26)
    port = started.server.sockets[0].getsockname()[1]
    host = "127.0.0.1" if tls is None else "localhost"
    started.endpoint = Endpoint(host, port, tls=tls_context, **endpoint)  # type: ignore[arg-type]
    try:
        yield started
    finally:
        started.stop()


def answering(*answers: bytes) -> Script:
    """Script: answer every request with all of `answers`, for as long as requests come."""

    async def script(conversation: Conversation) -> None:
        while True:
            await conversation.request()
            for answer in answers:
                conversation.send(answer)
                await conversation.flush()

    return script


def answering_then_closing(*answers: bytes) -> Script:
    """Script: answer one request, then close."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        for answer in answers:
            conversation.send(answer)
            await conversation.flush()

    return script


async def silence(conversation: Conversation) -> None:
    """Script: take a request and never answer."""
    await conversation.request()
    await conversation.closed()


async def unused_endpoint() -> Endpoint:
    """Return an endpoint that refuses connections."""
    return Endpoint("127.0.0.1", free_port())


class Fleet:
    """A dispatcher: the first worker that is not excluded; remembers what it is told."""

    def __init__(self, *endpoints: Endpoint, **route: object) -> None:
        self.endpoints = {f"w{number}": endpoint for number, endpoint in enumerate(endpoints)}
        self.route_options = route
        self.told: list[tuple[str, str]] = []
        self.usages: list[Usage | None] = []
        self.requests: list[Request] = []
        self.statuses: list[int] = []

    def admit(self, request: Request) -> Reply | None:
        return Reply(401, b"no", [(b"content-type", b"text/plain")]) if request.header(b"x-refuse") else None

    def try_local(self, request: Request) -> Reply | None:
        if request.path == "/livez":
            return Reply(200, b"alive", [(b"content-type", b"text/plain")])
        return Reply(200, request.body) if request.path == "/echo" else None

    def route(self, request: Request, excluded: Collection[str]) -> Route | Reply | Awaitable[Route | Reply]:
        self.requests.append(request)
        for worker_id, endpoint in self.endpoints.items():
            if worker_id not in excluded:
                return Route(endpoint, worker_id, 128, **self.route_options)  # type: ignore[arg-type]
        raise NoWorkerError("every worker is excluded", retry_after_seconds=7)

    def first_token(self, route: Route) -> None:
        self.told.append(("first_token", route.worker_id))

    def finished(self, route: Route, outcome: str, usage: Usage | None) -> None:
        self.told.append((outcome, route.worker_id))
        self.usages.append(usage)
        self.statuses.append(route.status)

    @property
    def outcomes(self) -> list[str]:
        """How attempts ended, in order."""
        return [word for word, _ in self.told if not word.startswith("first_")]


@contextlib.asynccontextmanager
async def proxying(
    *endpoints: Endpoint,
    fleet: Fleet | None = None,
    tls: ssl.SSLContext | None = None,
    on_error: Callable[[str, Exception], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **limits: Any,
) -> AsyncIterator[tuple[ProxyServer, Fleet]]:
    """Start a proxy in front of `endpoints`."""
    fleet = fleet or Fleet(*endpoints)
    async with ProxyServer(fleet, ProxyLimits(**limits), on_error=on_error, clock=clock) as server:
        await server.start("127.0.0.1", 0, tls)
        yield server, fleet
