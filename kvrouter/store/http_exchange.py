"""One HTTP/1.1 request and its answer, both of any length, over a connection of its own.

For whole objects, which are few and large: a connection for each costs nothing beside them, and one that fails takes
nothing else with it.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from kvrouter.errors import MissingExtraError, StoreError

try:
    from httptools import HttpParserError, HttpResponseParser
except ImportError as error:
    raise MissingExtraError("a store over HTTP", "router") from error

__all__ = ["HttpAnswer", "HttpPlace"]

_CONNECT_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 60.0
"""How long the other side may neither send nor take anything. A server may have a slow disk to wait for."""
_READ_BYTES: Final = 256 << 10
_HEAD_BYTES_MAX: Final = 128 << 10
_CONTINUE: Final = 100


class HttpPlace:
    """A server by its URL, `http[s]://[:KEY@]host[:port]`. `tls` replaces the context of a secure one."""

    def __init__(self, server: str, *, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(server)
        secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port or (443 if secure else 80)
        self._key = unquote(parts.password) if parts.password else None
        self._tls = (tls or ssl.create_default_context()) if secure else None

    @contextlib.asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator["HttpAnswer"]:
        """Send a request; gives its answer when its head is there. What `body` raises ends the request in its middle.

        Raises:
            StoreError: there is no answer, or not in time (`unavailable`).
        """
        with _errors():
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(self._host, self._port, limit=_READ_BYTES, ssl=self._tls)
        answer = HttpAnswer(reader, headless=method == "HEAD")
        try:
            writer.write(self._head(method, path, headers or {}, with_body=body is not None))
            if body is not None:
                await _send(body, answer, writer)
            await answer.begin()
            yield answer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _head(self, method: str, path: str, headers: Mapping[str, str], *, with_body: bool) -> bytes:
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{self._port}", "Connection: close"]
        if self._key is not None:
            lines.append(f"Authorization: Bearer {self._key}")
        if with_body:
            lines += ["Transfer-Encoding: chunked", "Expect: 100-continue"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


class HttpAnswer:
    """An answer as it arrives; header names are in lower case."""

    def __init__(self, reader: asyncio.StreamReader, *, headless: bool) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._reader, self._parser = reader, HttpResponseParser(self)
        self._ends_with_head = headless
        self._head_bytes = 0
        self._begun = self._ended = False
        self._pieces: deque[bytes] = deque()

    async def begin(self) -> None:
        """Wait for the head of the answer proper."""
        while not self._begun or self.status == _CONTINUE:
            await self._read()

    async def may_send(self) -> bool:
        """Wait until the server says whether it wants the body: not where it has answered already."""
        while not self._begun:
            await self._read()
        return self.status == _CONTINUE

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body; raises StoreError where it does not reach its end."""
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if self._ended or self._ends_with_head:
                return
            await self._read()

    async def text(self, *, bytes_max: int) -> str:
        """The whole body of an answer that is not long."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > bytes_max:
                raise StoreError(f"the server's answer exceeds {bytes_max} bytes", reason="unavailable")
        return body.decode("utf-8", "replace")

    async def _read(self) -> None:
        with _errors():
            async with asyncio.timeout(_SILENCE_SECONDS):
                data = await self._reader.read(_READ_BYTES)
            if not data:
                raise ConnectionError("the connection was closed before the answer was whole")
            self._head_bytes += 0 if self._begun and self.status != _CONTINUE else len(data)
            self._parser.feed_data(data)
            if not (self._begun and self.status != _CONTINUE) and self._head_bytes > _HEAD_BYTES_MAX:
                raise ConnectionError(f"the head of the answer exceeds {_HEAD_BYTES_MAX} bytes")

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A head begins; the one before it, if there was one, only said that we may go on."""
        self.headers, self._begun, self._ended = {}, False, False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self.status, self._begun = self._parser.get_status_code(), True

    def on_body(self, piece: bytes) -> None:
        """Some of the body."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._ended = True


async def _send(body: AsyncIterator[bytes], answer: HttpAnswer, writer: asyncio.StreamWriter) -> None:
    """Send the body in chunks, unless and until the server has answered without it."""
    if not await answer.may_send():
        return
    async for piece in body:
        if piece and not await _written(writer, b"%x\r\n%b\r\n" % (len(piece), piece)):
            return
    await _written(writer, b"0\r\n\r\n")


async def _written(writer: asyncio.StreamWriter, data: bytes) -> bool:
    """Write; False where the server takes no more, because it has answered."""
    try:
        async with asyncio.timeout(_SILENCE_SECONDS):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return False
    except TimeoutError as error:
        raise StoreError("HTTP: the server takes nothing any more", reason="unavailable") from error
    return True


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise StoreError("HTTP: no answer in time", reason="unavailable") from error
    except (OSError, HttpParserError) as error:
        raise StoreError(f"HTTP: {type(error).__name__}: {error}", reason="unavailable") from error
