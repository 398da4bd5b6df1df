"""What HTTP requests to workers carry: reads the body of one, its request and the items after it. No sockets here."""

import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

import msgspec

from kvrouter.errors import RefusedError, WireError
from kvrouter.transport.http_answers import HttpAnswer
from kvrouter.transport.http_errors import HttpRefusedError
from kvrouter.transport.messages import DecodedRequest, decode_request
from kvrouter.transport.n_part import CONTENT_TYPE as N_PART_TYPE
from kvrouter.transport.n_part import decode_n_part, to_two_part
from kvrouter.transport.two_part import PREFIX_BYTES, TwoPartReader, decode_two_part, encode_two_part

__all__ = ["Assembling", "ClientGoneError", "RequestBody", "Way", "endpoint_of", "way_of"]

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]

_TWO_PART_TYPE = "application/octet-stream"
_HELD_BYTES_MAX = 256 << 10
_LENGTH_PLAUSIBLE = 1 << 40  # what is more was never a length, but text
_DOTTED = re.compile(r"namespace\.[^.]+\.component\.[^.]+\.endpoint\.([^.]+)(?:\.instance\.[^.]+)?")


class ClientGoneError(Exception):
    """The client has gone before its request was whole."""


class Assembling:
    """How many bytes of requests that are not whole a worker holds, and may."""

    __slots__ = ("_bytes", "_bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self._bytes, self._bytes_max = 0, bytes_max

    def __len__(self) -> int:
        return self._bytes

    def add(self, count: int) -> None:
        """So many came; raises RefusedError (`RESOURCE_EXHAUSTED`) if that is too much."""
        self._bytes += count
        if self._bytes > self._bytes_max:
            message = f"{self._bytes_max} bytes of requests are incomplete"
            raise RefusedError(message, code="RESOURCE_EXHAUSTED", retry_after_seconds=1.0)

    def release(self, count: int) -> None:
        """So many were made use of, or dropped."""
        self._bytes -= count


class Way(msgspec.Struct):
    """How the answer is to go, as `connection_info` of the control header says; `transport` is empty where it does not.

    `subject` is the name that the answer gets, for control and for fetching it.
    """

    transport: str = ""
    subject: str = ""


class _Info(msgspec.Struct):
    subject: str = ""


class _Outer(msgspec.Struct):
    transport: str
    info: str = "{}"


class _Header(msgspec.Struct):
    connection_info: _Outer | None = None


def way_of(message: bytes | memoryview) -> Way:
    """Read how the answer to a request is to go; raises WireError."""
    try:
        outer = msgspec.json.decode(decode_two_part(message).header, type=_Header).connection_info
        if outer is None:
            return Way()
        if outer.transport not in ("inline", "http_response"):
            return Way(transport=outer.transport)
        return Way(transport=outer.transport, subject=msgspec.json.decode(outer.info, type=_Info).subject)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"connection_info: {error}") from None


def endpoint_of(tail: str, known: Collection[str]) -> str:
    """The endpoint that the tail of a path means.

    A name, `{namespace}/{component}/{endpoint}[/{instance}]`, or
    `namespace.<ns>.component.<c>.endpoint.<e>[.instance.<id>]`.
    """
    if tail in known:
        return tail
    dotted = _DOTTED.fullmatch(tail)
    if dotted:
        return dotted[1]
    segments = tail.split("/")
    return segments[2] if len(segments) in (3, 4) else tail


class RequestBody:
    """The body of one request, as ASGI brings it."""

    def __init__(self, receive: Receive, content_type: str, assembling: Assembling, *, bytes_max: int) -> None:
        self._receive, self._bytes_max, self._assembling = receive, bytes_max, assembling
        kind = content_type.partition(";")[0].strip().lower()
        if kind not in ("", _TWO_PART_TYPE, N_PART_TYPE):
            raise HttpRefusedError(415, f"a request is of type {_TWO_PART_TYPE} (two-part codec) or {N_PART_TYPE}")
        self._is_n_part = kind == N_PART_TYPE
        self._buffer = bytearray()
        self._ended = False
        self._rest = b""

    async def request(self) -> tuple[bytes, DecodedRequest]:
        """The request, as a two-part message and read.

        Raises:
            HttpRefusedError: it is too long (413), or none (400).
            RefusedError: too much of other requests is held that are not whole.
            ClientGoneError: the client is.
        """
        try:
            length = await self._whole()
        finally:
            self._assembling.release(len(self._buffer))
        message = bytes(memoryview(self._buffer)[:length])
        self._rest = bytes(memoryview(self._buffer)[length:])
        self._buffer = bytearray()
        try:
            if self._is_n_part:
                header, body = to_two_part(decode_n_part(message, bytes_max=self._bytes_max))
                message = encode_two_part(header, body, bytes_max=self._bytes_max)
            decoded = decode_request(message, bytes_max=self._bytes_max)
        except WireError as error:
            raise _refusal(error) from None
        if self._rest and not decoded.request.many_in:
            raise _refusal(WireError(f"at least {len(self._rest)} bytes follow it"))
        return message, decoded

    async def items(self, answer: HttpAnswer) -> None:
        """Hand every further item to the stream of an answer, as fast as its handler takes them, and the end.

        Returns when the client is gone, which kills the work, or the body has ended.
        """
        reader = TwoPartReader(bytes_max=self._bytes_max)
        data = self._rest
        try:
            while True:
                for message in reader.feed(data):
                    item = bytes(message.body)
                    answer.hold(len(item) + PREFIX_BYTES)
                    answer.stream.on_data(item)
                if self._ended:
                    answer.stream.on_end()
                    return
                await answer.wants_more(_HELD_BYTES_MAX)
                data = await self._more()
        except (ClientGoneError, WireError):
            answer.kill()

    async def until_gone(self) -> None:
        """Wait until the client is gone."""
        while True:
            try:
                await self._more()
            except ClientGoneError:
                return

    async def _whole(self) -> int:
        """Read until the first message is whole; returns its length. More may have come behind it."""
        while not self._ended:
            data = await self._more()
            self._buffer += data
            self._assembling.add(len(data))
            length = self._length()
            if length > _LENGTH_PLAUSIBLE:
                raise _refusal(WireError(f"its prefix tells of {length} bytes"))
            if max(length, len(self._buffer) if self._is_n_part else 0) > self._bytes_max:
                raise HttpRefusedError(413, f"a request exceeds {self._bytes_max} bytes")
            if not self._is_n_part and PREFIX_BYTES <= length <= len(self._buffer):
                return length
        return len(self._buffer)

    def _length(self) -> int:
        """What the prefix says of the whole; 0 where it is not there yet."""
        if self._is_n_part or len(self._buffer) < PREFIX_BYTES:
            return 0
        return PREFIX_BYTES + int.from_bytes(self._buffer[:8], "big") + int.from_bytes(self._buffer[8:16], "big")

    async def _more(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        self._ended = not message.get("more_body", False)
        return bytes(message.get("body", b""))


def _refusal(error: WireError) -> HttpRefusedError:
    status = 413 if error.reason == "too_large" else 400
    return HttpRefusedError(status, f"Invalid message: the body is none of the two-part codec: {error}")
