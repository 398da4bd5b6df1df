"""One answer of an engine, read from its HTTP connection as fast as it is passed on, and no faster."""

import asyncio
from collections import deque
from typing import Final

from kvrouter.errors import DisconnectedError, ProtocolError, TransportError, WireError
from kvrouter.service.proxy.chunked import ChunkedBody
from kvrouter.service.proxy.response_head import LengthBody, ResponseHead, ResponseHeads, UntilCloseBody
from kvrouter.service.proxy.upstream import Upstream
from kvrouter.transport.calls import AnswerHead

__all__ = ["EngineAnswer"]

_HEAD_BYTES_MAX: Final = 64 * 1024
_WAITING_BYTES_MAX: Final = 256 * 1024
"""Beyond it the engine's connection is not read until some of it was taken."""
_NOT_TOLD: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server", b"x-request-id"})
"""About the engine's connection, or the router's to say."""


class EngineAnswer:
    """The consumer of a connection (`ResponseConsumer`) on its one side, head and pieces of a body on the other."""

    def __init__(self, upstream: Upstream, method: str) -> None:
        self._upstream, self._method = upstream, method
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._framing: LengthBody | ChunkedBody | UntilCloseBody | None = None
        self._sink: list[bytes] = []
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._error: TransportError | None = None
        self._ended = self._stopped = False
        self._waiter: asyncio.Future[None] | None = None

    # -- what the connection tells -------------------------------------------------------------------------------------

    def response_data(self, data: bytes) -> None:
        """Take the next bytes."""
        try:
            if self._framing is None:
                data = self._read_head(data)
            if self._framing is not None:
                self._read_body(self._framing, data)
        except WireError as error:
            self._upstream.abort()
            self._error = ProtocolError(f"the engine's answer: {error}")
        self._wake()

    def response_ended(self, error: Exception | None) -> None:
        """Learn that the connection is gone."""
        if isinstance(self._framing, UntilCloseBody) and error is None:
            self._ended = True
        else:
            self._error = DisconnectedError("the engine closed the connection before its answer was whole")
        self._wake()

    # -- what the handler does -----------------------------------------------------------------------------------------

    async def begun(self) -> None:
        """Wait for the head; raises TransportError where none comes."""
        while self._framing is None:
            if self._error is not None:
                raise self._error
            await self._changed()

    def head(self) -> AnswerHead:
        """The head, with the headers that mean something beyond the engine's connection."""
        assert self._head is not None
        told = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers if name not in _NOT_TOLD
        }
        return AnswerHead(self._head.status, told)

    async def next(self) -> bytes | None:
        """The next piece of the body, None after the last one; raises TransportError where the rest will not come."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._ended or self._stopped:
                return None
            await self._changed()
        joined = b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
        if not self._ended:
            self._upstream.resume()
        return joined

    def stop(self) -> None:
        """End the body with what has come so far."""
        self._stopped = True
        self._wake()

    def close(self) -> None:
        """Give up what has not ended: the engine sees that its client is gone."""
        if not self._ended:
            self._upstream.abort()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> bytes:
        """Look for the head; returns what came after it."""
        self._buffer += data
        while self._framing is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _HEAD_BYTES_MAX:
                    raise WireError("the head is too long", reason="head_bytes")
                return b""
            heads, block = ResponseHeads(), self._buffer[:end]
            head, length = heads.parse(block)
            self._buffer = self._buffer[end + 4 :]
            if head.status >= 200:
                self._head, self._framing = head, head.body(self._method, length, self._sink)
                self._headers = heads.pairs(block)
        rest, self._buffer = self._buffer, b""
        return rest

    def _read_body(self, framing: LengthBody | ChunkedBody | UntilCloseBody, data: bytes) -> None:
        end = framing.feed(data)
        if isinstance(framing, ChunkedBody):
            self._pieces.extend(self._sink)
            self._waiting_bytes += sum(map(len, self._sink))
            self._sink.clear()
        elif end:
            self._pieces.append(data[:end])
            self._waiting_bytes += end
        if framing.done:
            assert self._head is not None
            self._ended = True
            self._upstream.release(reusable=self._head.keep_alive and end == len(data))
        elif self._waiting_bytes > _WAITING_BYTES_MAX:
            self._upstream.pause()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _changed(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
