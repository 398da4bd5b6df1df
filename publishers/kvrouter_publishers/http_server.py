"""A small HTTP/1.1 server for one purpose: bounded answers to GETs, on an event loop, out of the standard library.

Everything is bounded: connections, heads, idle time, what waits to be written to a slow client, and how long. What is
answered is the desk's; whose key is good is decided here, before anything else is looked at.
"""

import asyncio
import hmac
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from kvrouter_publishers.http_request import HEAD_BYTES_MAX, Answer, Refusal, Request, parse_head

__all__ = ["HttpServer", "ServerLimits"]

_log = logging.getLogger("kvrouter_publishers")

PIECE_BYTES: Final = 256 * 1024
"""Bytes that are handed to a connection before it must have taken most of those before."""
_TICKS_TO_ACCEPT: Final = 8
_END_OF_HEAD: Final = b"\r\n\r\n"
_UNAUTHORIZED: Final = Refusal(
    401,
    "a key is needed: Authorization: Bearer KEY",
    code="unauthorized",
    param="authorization",
    headers={"WWW-Authenticate": "Bearer"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """The bounds of a publisher's HTTP server."""

    connections_max: int = 512
    """Each rank that a router follows is one. Further connections are answered with 503 and closed."""
    head_seconds: float = 10.0
    """A request's head must be complete so soon after its first byte, or after the connection was made."""
    idle_seconds: float = 75.0
    """A connection without a request is closed after so long."""
    stalled_seconds: float = 30.0
    """A client that takes no more bytes for so long is cut off."""


class HttpServer:
    """Serves on a listening socket between `start` and `close`, both on the loop that runs it."""

    def __init__(
        self, answer: Callable[[Request], Awaitable[Answer]], *, api_key: str | None, limits: ServerLimits
    ) -> None:
        self.limits = limits
        self._answer = answer
        self._key = None if api_key is None else api_key.encode()
        self._server: asyncio.Server | None = None
        self._socket: socket.socket | None = None
        self.connections: set[Connection] = set()
        self.leaving: set[Connection] = set()
        """Those that were refused and are not closed yet."""
        self.connections_refused = self.unauthorized = self.stalled = self.errors = 0

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serve whoever connects to `sock`, a bound socket."""
        loop, self._socket = asyncio.get_running_loop(), sock
        self._server = await loop.create_server(lambda: Connection(self), sock=sock, ssl=tls)

    async def close(self, *, grace_seconds: float = 0.0) -> None:
        """Stop listening, let answers that are under way end, and cut off whoever is left after that."""
        if self._server is not None and self._socket is not None:
            # asyncio trips over a connection that it has accepted and not made when its server is closed.
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            for _ in range(_TICKS_TO_ACCEPT):
                await asyncio.sleep(0)
            self._server.close()
        answering = [each.task for each in self.connections if each.task is not None]
        if answering and grace_seconds > 0:
            await asyncio.wait(answering, timeout=grace_seconds)
        left = self.connections | self.leaving
        for connection in left:
            connection.cut()
        if left:
            await asyncio.wait([each.lost for each in left], timeout=1.0)

    def counts(self) -> dict[str, int]:
        """Return the server's own counters, and the connections that are open now."""
        return {
            "connections": len(self.connections),
            "connections_refused": self.connections_refused,
            "clients_stalled": self.stalled,
            "unauthorized": self.unauthorized,
            "http_errors": self.errors,
        }

    async def respond(self, head: bytes) -> tuple[Answer, bool]:
        """Answer a request's head; returns also whether the connection may be used again."""
        try:
            request = parse_head(head)
        except Refusal as refusal:
            return refusal.answer(), False  # What follows may be a body: nobody knows where the next request begins.
        answer = await self.respond_to(request)
        return answer, request.keep_alive and answer.status != 500

    async def respond_to(self, request: Request) -> Answer:
        """Answer a request, if its key is good; never raises."""
        if not self._is_allowed(request):
            self.unauthorized += 1
            return _UNAUTHORIZED.answer()
        try:
            return await self._answer(request)
        except Exception:  # noqa: BLE001 - the supervised edge: one bad answer must not end the others
            self.errors += 1
            if self.errors == 1:
                _log.exception("kvrouter_publisher_http_error")
            return Refusal(500, "the publisher could not answer", code="internal_error").answer()

    def _is_allowed(self, request: Request) -> bool:
        if self._key is None or request.path == "/health":  # A kubelet has no key.
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        good = hmac.compare_digest(token.strip().encode("latin-1"), self._key)
        return good and scheme.lower() == "bearer"


class Connection(asyncio.Protocol):
    """One client: reads heads, answers one at a time, and never holds more than a piece for it."""

    def __init__(self, server: HttpServer) -> None:
        self._server, self._limits = server, server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = self._deaf = False
        self.task: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()
        """Done when the connection is gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the client in, or tell it that we are full."""
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=PIECE_BYTES)
        if len(self._server.connections) >= self._limits.connections_max:
            self._server.connections_refused += 1
            self._server.leaving.add(self)
            self._refuse(Refusal(503, "too many connections", code="too_many_connections"))
            return
        self._server.connections.add(self)
        self._set_timer(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        """Stop answering: nobody reads it."""
        self._server.connections.discard(self)
        self._server.leaving.discard(self)
        self._set_timer(None)
        self._transport = None
        self.resume_writing()
        if self.task is not None:
            self.task.cancel()
        self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Take what came; during an answer no more than one further head is read."""
        if self._transport is None or self._transport.is_closing():
            return
        if not self._buffer and self.task is None:
            self._set_timer(self._limits.head_seconds)
        self._buffer += data
        if self.task is None:
            self._read_head()
        elif len(self._buffer) > HEAD_BYTES_MAX and not self._deaf:
            self._deaf = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The client takes bytes more slowly than we write."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has taken most of them."""
        self._paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def cut(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        if self.task is not None:
            self.task.cancel()

    def _read_head(self) -> None:
        end = self._buffer.find(_END_OF_HEAD, 0, HEAD_BYTES_MAX)
        if end < 0:
            if len(self._buffer) >= HEAD_BYTES_MAX:
                text = f"the request's head exceeds {HEAD_BYTES_MAX} bytes"
                self._refuse(Refusal(431, text, code="head_too_large"))
            return
        head = bytes(self._buffer[: end + len(_END_OF_HEAD)])
        del self._buffer[: len(head)]
        self._set_timer(None)
        self.task = self._loop.create_task(self._respond(head), name="kvrouter-http-answer")

    async def _respond(self, head: bytes) -> None:
        answer, keep_alive = await self._server.respond(head)
        transport = self._transport
        if transport is None:
            return
        for piece in _pieces([answer.head(keep_alive=keep_alive), *answer.body]):
            transport.write(piece)
            if self._paused and not await self._drained():
                return
        self.task = None
        if not keep_alive:
            transport.close()
            self._set_timer(self._limits.stalled_seconds)  # Closing waits for what is not written yet.
            return
        self._set_timer(self._limits.head_seconds if self._buffer else self._limits.idle_seconds)
        if self._deaf:
            self._deaf = False
            transport.resume_reading()
        self._read_head()

    async def _drained(self) -> bool:
        """Wait until the client has taken most of what was written; returns False when it was cut off."""
        self._writable = self._loop.create_future()
        try:
            async with asyncio.timeout(self._limits.stalled_seconds):
                await self._writable
        except TimeoutError:
            self._server.stalled += 1
            self.cut()
            return False
        finally:
            self._writable = None
        return self._transport is not None

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and close, with nothing more to come."""
        transport = self._transport
        if transport is None:
            return
        answer = refusal.answer()
        transport.write(answer.head(keep_alive=False) + b"".join(answer.body))
        transport.close()
        self._set_timer(self._limits.stalled_seconds)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        transport = self._transport
        if transport is None:
            return
        if self._buffer and not transport.is_closing():
            self._refuse(Refusal(408, "the request's head did not come", code="head_timeout"))
        else:
            transport.abort()


def _pieces(chunks: Sequence[bytes]) -> Iterator[bytes | memoryview]:
    """Join what is small and cut what is large, so that each piece is a sensible write."""
    small: list[bytes] = []
    size = 0
    for chunk in chunks:
        if len(chunk) > PIECE_BYTES:
            if small:
                yield b"".join(small)
                small, size = [], 0
            view = memoryview(chunk)
            for start in range(0, len(chunk), PIECE_BYTES):
                yield view[start : start + PIECE_BYTES]
            continue
        small.append(chunk)
        size += len(chunk)
        if size >= PIECE_BYTES:
            yield b"".join(small)
            small, size = [], 0
    if small:
        yield b"".join(small)
