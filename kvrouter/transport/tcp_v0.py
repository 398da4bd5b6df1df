"""The framing of Dynamo's first TCP request plane: requests in, acknowledgements out, in order. Pure.

    request  u16 length of the path, path, u16 length of the headers, headers (JSON), u32 length of the payload, payload
    reply    u32 length, data: empty is an acknowledgement, text says why not

Big-endian. There are no ids: replies come in the order of requests. Answers go home over connections of their own.
"""

from collections.abc import Mapping
from struct import Struct
from typing import NamedTuple

import msgspec

from kvrouter.errors import WireError

__all__ = ["REPLY_BYTES_MAX", "RequestReader", "V0Request", "encode_v0_reply", "encode_v0_request", "reply_length"]

_u16, _u32 = Struct(">H"), Struct(">I")
_SHORT_MAX = (1 << 16) - 1
REQUEST_BYTES_MAX = 32 << 20
REPLY_BYTES_MAX = 64 << 10


class V0Request(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    payload: bytes


def encode_v0_request(path: str, headers: Mapping[str, str], payload: bytes) -> bytes:
    """Return one request.

    Raises:
        WireError: a part is longer than its length can say, or the payload than 32 MiB (`too_large`).
    """
    name, told = path.encode(), msgspec.json.encode(headers)
    if len(name) > _SHORT_MAX or len(told) > _SHORT_MAX or len(payload) > REQUEST_BYTES_MAX:
        text = f"path {len(name)}, headers {len(told)} or payload {len(payload)} bytes exceed their limits"
        raise WireError(text, reason="too_large")
    return b"".join((_u16.pack(len(name)), name, _u16.pack(len(told)), told, _u32.pack(len(payload)), payload))


def encode_v0_reply(data: bytes) -> bytes:
    """Return one reply; empty data acknowledge."""
    return _u32.pack(len(data)) + data


def reply_length(data: bytes | memoryview, at: int) -> int:
    """The length of the reply that begins at `at`, for a `FrameCutter` with heads of 4 bytes."""
    (length,) = _u32.unpack_from(data, at)
    if length > REPLY_BYTES_MAX:
        raise WireError(f"a reply of {length} bytes exceeds {REPLY_BYTES_MAX}", reason="too_large")
    return 4 + int(length)


class RequestReader:
    """Reads requests from a stream of bytes as they arrive."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[V0Request]:
        """Every request that is whole now.

        Raises:
            WireError: a payload exceeds 32 MiB (`too_large`), or the headers are no JSON; then the stream is lost.
        """
        self._buffer += data
        found = []
        while (request := self._next()) is not None:
            found.append(request)
        return found

    def _next(self) -> V0Request | None:
        buffer = self._buffer
        path_end = self._part_end(0, _u16)
        if path_end is None:
            return None
        headers_end = self._part_end(path_end, _u16)
        if headers_end is None:
            return None
        if len(buffer) < headers_end + 4:
            return None
        (payload_bytes,) = _u32.unpack_from(buffer, headers_end)
        if payload_bytes > REQUEST_BYTES_MAX:
            raise WireError(f"a payload of {payload_bytes} bytes exceeds {REQUEST_BYTES_MAX}", reason="too_large")
        end = headers_end + 4 + payload_bytes
        if len(buffer) < end:
            return None
        path = bytes(buffer[2:path_end]).decode(errors="replace")
        headers = _headers(bytes(buffer[path_end + 2 : headers_end]))
        request = V0Request(path, headers, bytes(buffer[headers_end + 4 : end]))
        del buffer[:end]
        return request

    def _part_end(self, at: int, length: Struct) -> int | None:
        if len(self._buffer) < at + 2:
            return None
        (part_bytes,) = length.unpack_from(self._buffer, at)
        end = at + 2 + int(part_bytes)
        return end if len(self._buffer) >= end else None


def _headers(data: bytes) -> dict[str, str]:
    if not data:
        return {}
    try:
        return msgspec.json.decode(data, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"the headers of a request: {error}") from None
