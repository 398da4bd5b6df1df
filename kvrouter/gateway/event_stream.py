"""A stream of a service becomes server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Nothing is sent before the first chunk is there, so that a failure until then is an ordinary answer with its status. A
failure after that is an event named `error`, the last one.
"""

import asyncio
from typing import Any, Literal, TypeAlias

import msgspec
from starlette.types import Send

from kvrouter.errors import DeadlineError, GatewayError, TransportError
from kvrouter.gateway.answers import RawHeaders
from kvrouter.gateway.error_table import error_body, gateway_error
from kvrouter.gateway.reply_stream import ReplyStream
from kvrouter.gateway.translation import AnswerReader, Chunk

__all__ = ["SSE_HEADERS", "Ending", "EventStream"]

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
            data = await self._stream.next(timeout_seconds=self._idle_seconds)
        except TransportError as error:
            raise gateway_error(error) from None
        return self._reader.read_chunk(data)

    async def send(self, first: Chunk, send: Send, headers: RawHeaders) -> Ending:
        """Send everything from the first chunk on; returns how it ended."""
        ending: Ending = "slow_client"
        try:
            await self._write(send, {"type": "http.response.start", "status": 200, "headers": list(headers)})
            ending = await self._send_chunks(first, send)
            await self._write(send, {"type": "http.response.body", "body": b""})
        except TimeoutError:
            return "slow_client"
        return ending

    async def _send_chunks(self, chunk: Chunk, send: Send) -> Ending:
        while True:
            await self._body(send, b"data: " + _encode(chunk.values) + b"\n\n")
            if chunk.is_final:
                return "final"
            try:
                chunk = await self._next(send)
            except GatewayError as error:
                self.error = error
                await self._body(send, b"event: error\ndata: " + error_body(error) + b"\n\n")
                return "error"

    async def _next(self, send: Send) -> Chunk:
        """Wait for a chunk; say from time to time that we still do."""
        silent = 0.0
        while True:
            wait = min(self._keep_alive_seconds, self._idle_seconds - silent)
            try:
                data = await self._stream.next(timeout_seconds=wait)
            except DeadlineError:
                silent += wait
                if silent >= self._idle_seconds:
                    late = DeadlineError(f"the service sent nothing for {self._idle_seconds:g} s")
                    raise gateway_error(late) from None
                await self._body(send, KEEP_ALIVE)
            except TransportError as error:
                raise gateway_error(error) from None
            else:
                return self._reader.read_chunk(data)

    async def _body(self, send: Send, data: bytes) -> None:
        await self._write(send, {"type": "http.response.body", "body": data, "more_body": True})

    async def _write(self, send: Send, message: dict[str, Any]) -> None:
        """Send, unless the client takes nothing for too long. Raises TimeoutError."""
        async with asyncio.timeout(self._slow_client_seconds):
            await send(message)
