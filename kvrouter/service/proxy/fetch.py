"""A small client on the data plane's connection pool, for questions of our own: health, /v1/models, /tokenize."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from kvrouter.errors import WireError

from .chunked import ChunkedBody
from .messages import Endpoint
from .pool import UpstreamPool
from .replies import UpstreamError
from .response_head import LengthBody, ResponseHead, ResponseHeads, UntilCloseBody
from .upstream import Upstream

__all__ = ["Response", "fetch"]

_HEAD_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


async def fetch(
    pool: UpstreamPool,
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    timeout_seconds: float = 5.0,
    max_bytes: int = 16 * 1024 * 1024,
    reserved: bool = True,
) -> Response:
    """Ask an endpoint one question. It is asked twice if a kept-alive connection turns out to be closed.

    A `reserved` one does not wait where all connections to the endpoint are in use.

    Raises:
        UpstreamError: no connection, no whole answer in time, or one that is malformed or too long.
    """
    head = _render(endpoint, method, path, headers, body)
    try:
        async with asyncio.timeout(timeout_seconds):
            kept = pool.take(endpoint)
            if kept is not None:
                try:
                    return await _ask(kept, method, head, body, max_bytes)
                except UpstreamError as error:
                    if error.outcome != "upstream_lost":
                        raise
            upstream = await pool.connect(endpoint, reserved=reserved)
            return await _ask(upstream, method, head, body, max_bytes)
    except TimeoutError as error:
        raise UpstreamError(f"no whole answer within {timeout_seconds:g} s", outcome="timeout") from error


async def _ask(upstream: Upstream, method: str, head: bytes, body: bytes, max_bytes: int) -> Response:
    question = _Question(upstream, method, max_bytes)
    upstream.consumer = question
    upstream.send(head + body)
    try:
        return await question.answer
    finally:
        if not question.complete:
            upstream.abort()


def _render(endpoint: Endpoint, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [
        b"%b %b%b HTTP/1.1" % (method.encode(), endpoint.path_prefix, path.encode()),
        b"host: " + endpoint.host_header,
        *[b"%b: %b" % header for header in headers],
    ]
    if endpoint.authorization:
        lines.append(b"authorization: " + endpoint.authorization)
    if body or method == "POST":
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n"


class _Question:
    """Collects one answer."""

    def __init__(self, upstream: Upstream, method: str, max_bytes: int) -> None:
        self._upstream, self._method, self._max_bytes = upstream, method, max_bytes
        self._buffer = b""
        self._pieces: list[bytes] = []
        self._size = 0
        self._head: ResponseHead | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._framing: LengthBody | ChunkedBody | UntilCloseBody | None = None
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.complete = False

    def response_data(self, data: bytes) -> None:
        try:
            self._read(data)
        except WireError as error:
            self._fail(UpstreamError(f"malformed answer: {error}", outcome="bad_response"))

    def response_ended(self, error: Exception | None) -> None:
        if isinstance(self._framing, UntilCloseBody) and error is None:
            self._finish(reusable=False)
        elif isinstance(error, UpstreamError):
            self._fail(error)
        else:
            self._fail(UpstreamError("the connection was closed before the answer ended", outcome="upstream_lost"))

    def _read(self, data: bytes) -> None:
        while self._framing is None:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _HEAD_BYTES_MAX:
                    raise WireError("the head is too long", reason="head_bytes")
                return
            heads, block = ResponseHeads(), self._buffer[:end]
            head, length = heads.parse(block)
            self._buffer, data = b"", self._buffer[end + 4 :]
            if head.status >= 200:
                self._head, self._framing = head, head.body(self._method, length, self._pieces)
                self._headers = heads.pairs(block)
        self._read_body(self._framing, data)

    def _read_body(self, framing: LengthBody | ChunkedBody | UntilCloseBody, data: bytes) -> None:
        end = framing.feed(data)
        self._size += end
        if self._size > self._max_bytes:
            raise WireError(f"more than {self._max_bytes} bytes", reason="body_bytes")
        if not isinstance(framing, ChunkedBody):
            self._pieces.append(data[:end])
        if framing.done:
            self._finish(reusable=self._head is not None and self._head.keep_alive and end == len(data))

    def _finish(self, *, reusable: bool) -> None:
        self.complete = True
        self._upstream.release(reusable=reusable)
        if self._head is not None and not self.answer.done():
            self.answer.set_result(Response(self._head.status, self._headers, b"".join(self._pieces)))

    def _fail(self, error: UpstreamError) -> None:
        self._upstream.abort()
        if not self.answer.done():
            self.answer.set_exception(error)
