"""A stream of a service becomes server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Nothing is sent before the first chunk is there, so that a failure until then is an ordinary answer with its status. A
failure after that is an event named `error`, the last one.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal, TypeAlias

import msgspec
from starlette.types import Send

from kvrouter.errors import DeadlineError, GatewayError, TransportError
from kvrouter.gateway.answers import RawHeaders
from kvrouter.gateway.error_table import error_body, gateway_error, service_failure
from kvrouter.gateway.reply_stream import Reply, ReplyStream
from kvrouter.gateway.translation import AnswerReader, Chunk

__all__ = ["SSE_HEADERS", "Ending", "EventStream", "relay"]

Ending: TypeAlias = Literal["final", "error", "slow_client", "disconnected"]

SSE_HEADERS: RawHeaders = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
KEEP_ALIVE = b":keepalive\n\n"
_encode = msgspec.json.Encoder().encode


class EventStream:
    """One stream on its way to one client."""

    def __init__(
        self,
        stream: ReplyStream,
        reader: AnswerReader,
        *,
        idle_seconds: float,
        keep_alive_seconds: float,
        slow_client_seconds: float,
    ) -> None:
        self._stream, self._reader = stream, reader
        self._idle_seconds, self._keep_alive_seconds = idle_seconds, keep_alive_seconds
        self._slow_client_seconds = slow_client_seconds
        self.error: GatewayError | None = None

    async def first(self) -> Chunk:
        """Wait for the first chunk. Raises GatewayError: there is none, or it is an error."""
        try:
            reply = await self._stream.next(timeout_seconds=self._idle_seconds)
        except TransportError as error:
            raise gateway_error(error) from None
        return self._chunk(reply)

    async def send(self, first: Chunk, send: Send, headers: RawHeaders) -> Ending:
        """Send everything from the first chunk on; returns how it ended."""
        writer = ClientWriter(send, self._slow_client_seconds)
        try:
            await writer.start(headers)
            ending = await self._send_chunks(first, writer)
            await writer.end()
        except TimeoutError:
            return "slow_client"
        return ending

    async def _send_chunks(self, chunk: Chunk, writer: "ClientWriter") -> Ending:
        while True:
            await writer.body(b"data: " + _encode(chunk.values) + b"\n\n")
            if chunk.is_final:
                return "final"
            try:
                chunk = await self._next(writer)
            except GatewayError as error:
                self.error = error
                await writer.body(_error_event(error))
                return "error"

    async def _next(self, writer: "ClientWriter") -> Chunk:
        """Wait for a chunk; say from time to time that we still do."""
        silent = 0.0
        while True:
            wait = min(self._keep_alive_seconds, self._idle_seconds - silent)
            try:
                reply = await self._stream.next(timeout_seconds=wait)
            except DeadlineError:
                silent += wait
                if silent >= self._idle_seconds:
                    late = DeadlineError(f"the service sent nothing for {self._idle_seconds:g} s")
                    raise gateway_error(late) from None
                await writer.body(KEEP_ALIVE)
            except TransportError as error:
                raise gateway_error(error) from None
            else:
                return self._chunk(reply)

    def _chunk(self, reply: Reply) -> Chunk:
        """Read one message. Raises GatewayError: it is an error of the service, in its headers or in itself."""
        failure = None if reply.headers is None else service_failure(reply.headers)
        if failure is not None:
            raise failure
        return self._reader.read_chunk(reply.data)


async def relay(
    pieces: AsyncIterator[bytes], send: Send, headers: RawHeaders, *, slow_client_seconds: float
) -> tuple[Ending, GatewayError | None]:
    """Send a stream of events on as it comes; returns how it ended, and why if it broke off."""
    writer = ClientWriter(send, slow_client_seconds)
    error: GatewayError | None = None
    try:
        await writer.start(headers)
        try:
            async for piece in pieces:
                await writer.body(piece)
        except GatewayError as broken:
            error = broken
            await writer.body(b"\n\n" + _error_event(broken))
        await writer.end()
    except TimeoutError:
        return "slow_client", error
    return ("final" if error is None else "error"), error


class ClientWriter:
    """Writes to one client; a TimeoutError says that it takes nothing."""

    def __init__(self, send: Send, slow_client_seconds: float) -> None:
        self._send, self._seconds = send, slow_client_seconds

    async def start(self, headers: RawHeaders) -> None:
        """Send the head of the answer."""
        await self._write({"type": "http.response.start", "status": 200, "headers": list(headers)})

    async def body(self, data: bytes) -> None:
        """Send a part of the answer."""
        await self._write({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Nothing follows."""
        await self._write({"type": "http.response.body", "body": b""})

    async def _write(self, message: dict[str, Any]) -> None:
        async with asyncio.timeout(self._seconds):
            await self._send(message)


def _error_event(error: GatewayError) -> bytes:
    return b"event: error\ndata: " + error_body(error) + b"\n\n"
