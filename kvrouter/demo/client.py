"""A small streaming HTTP client that measures the time to the first token. Made for load, not for generality.

The measuring must not take the machine from what is measured: one protocol object per connection, no per-chunk
parsing. What an answer says is read once, after its end.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

import httptools
import msgspec

from kvrouter.errors import KvrouterError

__all__ = ["Answer", "AnswerError", "StreamingClient"]


class AnswerError(KvrouterError):
    """A request was not answered as it should have been."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One completed stream."""

    first_token_seconds: float
    seconds: float
    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int
    worker: str


class StreamingClient:
    """Sends completions to one address, over as many kept-alive connections as requests overlap."""

    def __init__(self, host: str, port: int, *, timeout_seconds: float) -> None:
        self._host, self._port, self._timeout_seconds = host, port, timeout_seconds
        self._idle: list[_Connection] = []

    async def complete(self, prompt: Sequence[int], *, model: str, answer_tokens: int, session: str) -> Answer:
        """Send one prompt of token ids and return its whole answer.

        Raises:
            AnswerError: it is refused, cut short, or not what was asked for.
        """
        body = msgspec.json.encode(
            {
                "model": model,
                "prompt": prompt,
                "max_tokens": answer_tokens,
                "ignore_eos": True,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                "return_token_ids": True,
            }
        )
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}:{self._port}\r\ncontent-type: application/json\r\n"
            f"x-session-id: {session}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await connection.exchange(head.encode() + body)
        except TimeoutError as error:
            raise AnswerError(f"no complete answer within {self._timeout_seconds:g} seconds") from error
        finally:
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.close()
        return answer

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        except OSError as error:
            raise AnswerError(f"cannot connect to {self._host}:{self._port}: {error}") from error
        return connection


class _Connection(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.reusable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exception: Exception | None) -> None:
        self._transport = None
        self.reusable = False
        self._fail(f"the connection was closed before the end of the answer ({exception or 'by the other side'})")

    async def exchange(self, request: bytes) -> Answer:
        """Send a request and wait for its answer."""
        self._parser = httptools.HttpResponseParser(self)
        self._body, self._worker = bytearray(), ""
        self._first = 0.0
        self._waiter = asyncio.get_running_loop().create_future()
        self.reusable = False
        if self._transport is None:
            raise AnswerError("the connection is closed")
        self._began = time.perf_counter()
        self._transport.write(request)
        try:
            await self._waiter
        finally:
            self._waiter = None
        return self._answer(time.perf_counter())

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-kvrouter-worker":
            self._worker = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if not self._first:
            self._first = time.perf_counter()
        self._body += body

    def on_message_complete(self) -> None:
        self.reusable = self._parser.should_keep_alive()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, reason: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(AnswerError(reason))

    def _answer(self, ended: float) -> Answer:
        status = self._parser.get_status_code()
        if status != 200:
            raise AnswerError(f"HTTP {status}: {self._body[:300].decode('utf-8', 'replace')}")
        tokens: list[int] = []
        usage: Any = None
        events = self._body.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                chunk = msgspec.json.decode(event[len(b"data: ") :])
                if "error" in chunk:
                    raise AnswerError(f"the stream ended with an error: {chunk['error']}")
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    tokens += choice["token_ids"]
        if b"data: [DONE]" not in events[-2:] or usage is None:
            raise AnswerError("the stream ended without usage and [DONE]")
        return Answer(
            first_token_seconds=self._first - self._began,
            seconds=ended - self._began,
            tokens=tokens,
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            worker=self._worker,
        )
