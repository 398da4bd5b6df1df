"""Requests out of a byte stream: any split of the same bytes gives the same requests. Sans I/O.

Read a head, decide, then read its body; then the next head. What is not yet used stays buffered, at most what the
caller fed; the caller stops feeding while `buffered` is too large.
"""

import re
from io import BytesIO

from kvrouter.errors import RequestError, WireError

from .chunked import ChunkedBody
from .limits import ProxyLimits
from .request_head import RequestHead, RequestHeads

__all__ = ["RequestParser"]

_METHOD_BYTES_MAX = 64
_EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")


class RequestParser:
    """The requests of one connection, one after the other."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_head",
        "_heads",
        "_limits",
        "_memory",
        "_payload",
        "_pieces",
        "_unchecked",
        "length",
    )

    def __init__(self, limits: ProxyLimits, heads: RequestHeads) -> None:
        self.set_limits(limits)
        self._heads, self._memory = heads, heads.memory
        self._buffer = b""
        self._head: RequestHead | None = None
        self.length = -1
        """Content-Length of the head last read; -1: it had none."""
        self._payload: BytesIO | None = None
        self._chunked: ChunkedBody | None = None
        self._pieces: list[bytes] = []

    def set_limits(self, limits: ProxyLimits) -> None:
        """Read by these limits from the next bytes on."""
        self._limits = limits
        self._unchecked = min(limits.target_bytes_max, limits.header_bytes_max)

    @property
    def buffered(self) -> int:
        """Bytes that were fed and not used yet."""
        return len(self._buffer)

    @property
    def body_bytes(self) -> int:
        """Bytes of the current body received so far."""
        return 0 if self._payload is None else self._payload.tell()

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection."""
        self._buffer = self._buffer + data if self._buffer else data

    def read_head(self) -> RequestHead | None:
        """Return the next head, or None until it is whole.

        Raises:
            RequestError: the head is malformed or too long, also when that shows before its end.
        """
        buffer = self._buffer
        if buffer.startswith(b"\r\n"):
            # What a careless client sends after a body (RFC 9112 section 2.2).
            buffer = self._buffer = _EMPTY_LINES.sub(b"", buffer, count=1)
        found = self._memory.find(buffer, len(buffer))
        if found is None or found[2] - 4 > self._unchecked:
            found = self._read_head(buffer)
            if found is None:
                return None
        head, self.length, end = found
        if self.length > self._limits.body_bytes_max:
            raise self._body_too_large()
        self._buffer = buffer[end:]
        self._head = head
        return head

    def read_body(self) -> bytes | None:
        """Return the body of the head last read, or None until it is whole.

        Raises:
            RequestError: broken chunked coding, or a body that is too large.
        """
        head, buffer = self._head, self._buffer
        assert head is not None
        if head.chunked:
            return self._read_chunked()
        length = max(self.length, 0)
        if self._payload is None and len(buffer) >= length:
            self._buffer = buffer[length:]
            return buffer[:length]
        return self._read_in_pieces(length)

    def take_whole(self, data: memoryview, size: int) -> tuple[RequestHead, bytes] | None:
        """Return a request that is all of `data[:size]` and has a remembered head; None: it has to be fed and read.

        What most requests are, without a copy more than the body itself.
        """
        memory = self._memory
        found = None if self._buffer else memory.recall_whole(data, size, memory.plain)
        if found is None:
            return None
        head, length, body = found
        if size - length > self._unchecked or length > self._limits.body_bytes_max:
            return None
        self.length = length
        return head, body

    def _read_head(self, buffer: bytes) -> tuple[RequestHead, int, int] | None:
        """Find the end of a head that is not remembered, and parse it."""
        end = buffer.find(b"\r\n\r\n")
        if end < 0 or end > self._unchecked:
            self._check_size(buffer, end)
            if end < 0:
                return None
        head, length = self._heads.parse(buffer[:end])
        return head, length, end + 4

    def _read_in_pieces(self, length: int) -> bytes | None:
        payload = self._payload = self._payload or BytesIO()
        missing = length - payload.tell()
        payload.write(self._buffer[:missing])
        self._buffer = self._buffer[missing:]
        return self._whole_payload() if payload.tell() == length else None

    def _read_chunked(self) -> bytes | None:
        if self._chunked is None:
            self._payload, self._chunked = BytesIO(), ChunkedBody(self._pieces)
        assert self._payload is not None
        try:
            used = self._chunked.feed(self._buffer)
        except WireError as error:
            raise RequestError(f"malformed request body: {error}", code="malformed_request") from error
        self._buffer = self._buffer[used:]
        self._payload.writelines(self._pieces)
        self._pieces.clear()
        if self._payload.tell() > self._limits.body_bytes_max:
            raise self._body_too_large()
        return self._whole_payload() if self._chunked.done else None

    def _whole_payload(self) -> bytes:
        assert self._payload is not None
        body = self._payload.getvalue()
        self._payload = self._chunked = None
        return body

    def _check_size(self, buffer: bytes, end: int) -> None:
        """Refuse a head that is too long, or whose first line cannot become one."""
        line_end = buffer.find(b"\n")
        if (line_end if line_end >= 0 else len(buffer)) > self._limits.target_bytes_max + _METHOD_BYTES_MAX:
            raise RequestError(
                f"the request target exceeds {self._limits.target_bytes_max} bytes", status=414, code="uri_too_long"
            )
        if line_end == 0 or (line_end > 0 and buffer[line_end - 1] != 0x0D):
            raise RequestError("a line ends without CR", code="malformed_request")
        if (end if end >= 0 else len(buffer) - 3) > self._limits.header_bytes_max:
            raise RequestError(
                f"the request head exceeds {self._limits.header_bytes_max} bytes", status=431, code="headers_too_large"
            )

    def _body_too_large(self) -> RequestError:
        return RequestError(
            f"the request body exceeds {self._limits.body_bytes_max} bytes", status=413, code="body_too_large"
        )
