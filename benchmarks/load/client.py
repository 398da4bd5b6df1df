"""One keep-alive HTTP connection of a load generator: sends ready bytes, tells when the answer began and ended."""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import cast

import httptools

__all__ = ["Answer", "Connection", "connect"]


class Answer:
    """What came back for one request; times are `time.perf_counter`'s: an event loop's clock may step by 1 ms."""

    __slots__ = ("ended", "first_byte", "sent", "status")

    def __init__(self, sent: float) -> None:
        self.sent, self.first_byte, self.ended, self.status = sent, 0.0, 0.0, 0


class Connection(asyncio.Protocol):
    """Sends one request at a time; calls `on_answer(connection, answer)`, with status 0 if the connection broke."""

    def __init__(self, on_answer: Callable[["Connection", Answer], None]) -> None:
        self._on_answer = on_answer
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self.bytes_received = 0

    def send(self, request: bytes) -> None:
        """Send one request; the answer is timed from here."""
        if self._transport is None or self._transport.is_closing():
            self._on_answer(self, Answer(0.0))
            return
        self._answer = Answer(perf_counter())
        self._transport.write(request)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the loop's signature
        self._finish(0)

    def on_body(self, body: bytes) -> None:  # noqa: ARG002 - the parser's signature
        """Note the first body byte."""
        if self._answer is not None and not self._answer.first_byte:
            self._answer.first_byte = perf_counter()

    def on_message_complete(self) -> None:
        """Hand the finished answer over."""
        self._finish(int(self._parser.get_status_code()))

    def _finish(self, status: int) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.ended, answer.status = perf_counter(), status
            self._on_answer(self, answer)


async def connect(host: str, port: int, on_answer: Callable[[Connection, Answer], None]) -> Connection:
    """Open a connection."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(on_answer), host, port)
    return connection
