"""A small HTTP/1.1 client for one purpose: bounded answers to GETs over one connection that is kept.

Strict about what decides where an answer ends, because a wrong guess would show one answer's bytes as another's.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from kvrouter.errors import KvrouterError
from kvrouter_subscribers.http_limits import HttpLimits

__all__ = ["HttpAddress", "HttpConnection", "HttpError", "HttpResponse", "StaleConnectionError"]

_STREAM_BYTES: Final = 512 * 1024
_CHUNK_LINE_BYTES: Final = 256
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([2-5][0-9][0-9])( [^\r\n]*)?")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(;[^\r\n]*)?\r\n")
_ONCE: Final = frozenset({"content-length", "transfer-encoding"})


class HttpError(KvrouterError):
    """There is no whole, well-formed answer, or it is not the one that was hoped for."""


class StaleConnectionError(HttpError):
    """A connection that was kept had been closed before it brought a byte of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAddress:
    """Where a publisher is: `prefix` stands before every path."""

    host: str
    port: int
    prefix: str
    secure: bool
    token: str | None

    @classmethod
    def parse(cls, endpoint: str, *, token: str | None) -> "HttpAddress":
        """Take a checked endpoint, `http[s]://host:port[/prefix]`, apart."""
        parts = urlsplit(endpoint)
        assert parts.hostname is not None
        assert parts.port is not None
        secure = parts.scheme == "https"
        return cls(host=parts.hostname, port=parts.port, prefix=parts.path.rstrip("/"), secure=secure, token=token)

    def request(self, target: str) -> bytes:
        """Return the bytes of a GET."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"GET {self.prefix}{target} HTTP/1.1", f"Host: {host}:{self.port}", "Accept: */*"]
        if self.token is not None:
            lines.append(f"Authorization: Bearer {self.token}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """A whole answer; header names are in lower case. `last` says that its connection ends with it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    last: bool


class HttpConnection:
    """One connection; one question at a time. After any error it is good for nothing but `close`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: HttpLimits) -> None:
        self._reader, self._writer, self._limits = reader, writer, limits
        self._used = False

    @classmethod
    async def open(cls, address: HttpAddress, limits: HttpLimits, tls: ssl.SSLContext | None) -> "HttpConnection":
        """Connect.

        Raises:
            HttpError: it cannot be, or not in time.
        """
        where = f"{address.host}:{address.port}"
        try:
            async with asyncio.timeout(limits.connect_seconds):
                reader, writer = await asyncio.open_connection(
                    address.host, address.port, limit=_STREAM_BYTES, ssl=tls if address.secure else None
                )
        except TimeoutError:
            raise HttpError(f"{where}: no connection within {limits.connect_seconds:g} s") from None
        except (OSError, ValueError) as error:  # a name that cannot be encoded is a ValueError
            raise HttpError(f"{where}: {error}") from None
        return cls(reader, writer, limits)

    def close(self) -> None:
        """Give the connection up, whatever is under way on it."""
        self._writer.transport.abort()

    async def closed(self) -> None:
        """Wait until a connection that was given up is gone."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def get(self, request: bytes, *, begin_seconds: float, bytes_max: int) -> HttpResponse:
        """Send `request` and read the answer, which must begin within `begin_seconds` and go on without long pauses.

        Raises:
            StaleConnectionError: it was closed before the answer; only where it was used before.
            HttpError: there is no whole answer, or it is malformed or too long.
        """
        try:
            self._writer.write(request)
            return await self._answer(begin_seconds, bytes_max)
        except asyncio.IncompleteReadError as error:
            if self._used and not error.partial:
                raise StaleConnectionError("the connection was closed") from None
            raise HttpError("the connection was closed before the answer was whole") from None
        except asyncio.LimitOverrunError:
            raise HttpError("a line of the answer is too long") from None
        except TimeoutError:
            raise HttpError("no answer in time: the peer is stopped, or the connection half open") from None
        except OSError as error:
            if self._used:
                raise StaleConnectionError(str(error)) from None
            raise HttpError(str(error)) from None

    async def _answer(self, begin_seconds: float, bytes_max: int) -> HttpResponse:
        async with asyncio.timeout(begin_seconds):
            head = await self._reader.readuntil(b"\r\n\r\n")
        self._used = False  # From here on a closed connection has cut an answer short.
        if len(head) > self._limits.head_bytes_max:
            raise HttpError(f"the answer's head exceeds {self._limits.head_bytes_max} bytes")
        status, minor, headers = _parse_head(head)
        body = await self._body(status, headers, bytes_max)
        options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
        self._used = True
        last = "close" in options or (minor == b"0" and "keep-alive" not in options)
        return HttpResponse(status=status, headers=headers, body=body, last=last)

    async def _body(self, status: int, headers: Mapping[str, str], bytes_max: int) -> bytes:
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if status in {204, 304}:
            return b""
        if coding is not None and (coding.lower() != "chunked" or length is not None):
            raise HttpError("the answer does not say in one way where it ends")
        if coding is not None:
            return await self._chunks(bytes_max)
        if length is None or not _NUMBER.fullmatch(length):
            raise HttpError("the answer does not say how long it is")
        return await self._exactly(int(length), bytes_max)

    async def _chunks(self, bytes_max: int) -> bytes:
        """Read a body whose pieces come with their lengths, as proxies send it."""
        chunks: list[bytes] = []
        left = bytes_max
        while True:
            line = await self._line()
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise HttpError("a chunk of the answer has no length")
            size = int(match.group(1), 16)
            if not size:
                break
            chunks.append(await self._exactly(size, left))
            left -= size
            if await self._line() != b"\r\n":
                raise HttpError("a chunk of the answer is longer than it says")
        for _ in range(16):
            if await self._line() == b"\r\n":
                return b"".join(chunks)
        raise HttpError("the answer has too many trailers")

    async def _line(self) -> bytes:
        async with asyncio.timeout(self._limits.grace_seconds):
            line = await self._reader.readuntil(b"\r\n")
        if len(line) > _CHUNK_LINE_BYTES:
            raise HttpError("a line of the answer is too long")
        return line

    async def _exactly(self, size: int, bytes_max: int) -> bytes:
        if size > bytes_max:
            raise HttpError(f"an answer of {size} bytes exceeds {bytes_max}")
        pieces: list[bytes] = []
        while size:
            async with asyncio.timeout(self._limits.grace_seconds):
                piece = await self._reader.read(min(size, _STREAM_BYTES))
            if not piece:
                raise HttpError("the connection was closed before the answer was whole")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def _parse_head(head: bytes) -> tuple[int, bytes, dict[str, str]]:
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise HttpError("the answer is not HTTP/1")
    headers: dict[str, str] = {}
    for line in lines:
        parts = _HEADER.fullmatch(line)
        if parts is None:
            raise HttpError("a header of the answer is malformed")
        name, value = parts.group(1).decode("ascii").lower(), parts.group(2).decode("latin-1")
        if name in _ONCE and name in headers:
            raise HttpError(f"the answer has {name} twice")
        headers[name] = value
    return int(match.group(2)), match.group(1), headers
