"""Response heads: from a worker's bytes to what is passed on, and where the body will end (RFC 9112 sections 4, 6).

As strict as the request side: an answer whose end is ambiguous is an error, never a guess.
"""

import re
from typing import Final

from kvrouter.errors import WireError

from .chunked import ChunkedBody
from .head_memory import HeadMemory, split_length
from .header_lines import (
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    PLAIN,
    TRANSFER_ENCODING,
    HeaderLines,
    connection_options,
    without_names,
)

__all__ = ["LengthBody", "ResponseHead", "ResponseHeads", "UntilCloseBody"]

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_STATUS_LINES_KEPT: Final = 256
_HEADERS_MAX: Final = 256


class LengthBody:
    """A body of known length."""

    __slots__ = ("done", "remaining")

    def __init__(self, length: int) -> None:
        self.remaining, self.done = length, length == 0

    def feed(self, data: bytes, start: int = 0) -> int:
        """Consume `data` from `start`; return where the body ends in it, or its length."""
        stop = min(len(data), start + self.remaining)
        self.remaining -= stop - start
        self.done = not self.remaining
        return stop

    def interruption(self, text: bytes) -> bytes | None:
        """Nothing can be added to an announced length."""
        del text
        return None


class UntilCloseBody:
    """A body that ends when the connection does."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes, start: int = 0) -> int:
        """Consume everything."""
        del start
        return len(data)

    def interruption(self, text: bytes) -> bytes | None:
        """Anything may be added before the connection closes."""
        return text


class ResponseHead:
    """An answer without its body. Never changed once parsed: answers with equal heads share one.

    A plain Content-Length is no part of it: it is what differs between answers that are otherwise alike.
    """

    __slots__ = (
        "bodiless",
        "chunked",
        "event_stream",
        "forward",
        "framed",
        "http10",
        "keep_alive",
        "odd_length",
        "status",
        "status_line",
    )

    def __init__(self, status: int, status_line: bytes, *, http10: bool) -> None:
        self.status, self.status_line, self.http10 = status, status_line, http10
        self.bodiless = status in (204, 304)
        self.forward = b""
        """Header lines for the client as the worker wrote them, each with a CRLF before it.

        Without hop-by-hop ones, X-Request-Id, Content-Length, and those that only this process writes.
        """
        self.chunked = False
        self.odd_length = -1
        """Content-Length in an unusual spelling."""
        self.framed = False
        """Chunked or of an odd length."""
        self.keep_alive = not http10
        self.event_stream = False

    def body(
        self, method: str, length: int, sink: list[bytes] | None = None
    ) -> LengthBody | ChunkedBody | UntilCloseBody:
        """Return the framing of the body that follows, given the request's method and the Content-Length or -1."""
        if method == "HEAD" or self.bodiless:
            return LengthBody(0)
        if self.chunked:
            return ChunkedBody(sink)
        return LengthBody(length) if length >= 0 else UntilCloseBody()


class ResponseHeads:
    """Parses response heads; remembers heads, status lines and header lines that it has seen."""

    __slots__ = ("_header_lines", "_status_lines", "memory")

    def __init__(self) -> None:
        self._header_lines = HeaderLines()
        self._status_lines: dict[bytes, tuple[int, bytes, bool]] = {}
        self.memory: HeadMemory[ResponseHead] = HeadMemory()

    def parse(self, block: bytes) -> tuple[ResponseHead, int]:
        """Parse a head, given without the empty line that ends it; return it and its Content-Length, or -1.

        Raises:
            WireError: anything malformed or ambiguous.
        """
        rest, length = split_length(block)
        head = self._head(rest)
        if length >= 0 and head.framed:
            raise WireError("Content-Length beside another one or Transfer-Encoding", reason="content_length")
        self.memory.keep(rest, head)
        return head, head.odd_length if head.framed else length

    def read(self, data: bytes) -> tuple[ResponseHead, int, int] | None:
        """Return the head that `data` begins with, its Content-Length or -1, and its end; None until it is whole.

        For heads that are not among the `plain` ones of `memory`.

        Raises:
            WireError: anything malformed or ambiguous.
        """
        found = self.memory.find_framed(data, len(data))
        if found is not None:
            return found
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        head, length = self.parse(data[:end])
        return head, length, end + 4

    def pairs(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Return the (lower-case name, value) pairs of a head."""
        return [self._header_lines.parse(line)[0] for line in block.split(b"\r\n")[1:]]

    def _head(self, block: bytes) -> ResponseHead:
        first, *lines = block.split(b"\r\n")
        status, status_line, http10 = self._status_lines.get(first) or self._status_line(first)
        head = ResponseHead(status, status_line, http10=http10)
        if len(lines) > _HEADERS_MAX:
            raise WireError(f"more than {_HEADERS_MAX} header lines", reason="too_many_headers")
        self._read_lines(head, lines)
        head.framed = head.chunked or head.odd_length >= 0
        return head

    def _read_lines(self, head: ResponseHead, lines: list[bytes]) -> None:
        known, forward = self._header_lines.known, [b""]
        rare = []
        for line in lines:
            try:
                pair, kind, number = known[line]
            except KeyError:
                pair, kind, number = self._header_lines.parse(line)
            if kind == PLAIN:
                forward.append(line)
            elif kind == CONTENT_LENGTH:
                if head.odd_length >= 0:
                    raise WireError("more than one Content-Length", reason="content_length")
                head.odd_length = number
            elif kind == CONTENT_TYPE:
                head.event_stream = pair[1][:17].lower() == b"text/event-stream"
                forward.append(line)
            else:
                rare.append((kind, pair[1], line))
        head.forward = b"\r\n".join(forward)
        if rare:
            _read_rare(head, rare)

    def _status_line(self, line: bytes) -> tuple[int, bytes, bool]:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise WireError("malformed status line", reason="status_line")
        parsed = int(match[2]), b"HTTP/1.1 %b %b" % (match[2], match[3] or b""), match[1] == b"0"
        if len(self._status_lines) >= _STATUS_LINES_KEPT:
            self._status_lines.clear()
        self._status_lines[line] = parsed
        return parsed


def _read_rare(head: ResponseHead, lines: list[tuple[int, bytes, bytes]]) -> None:
    """Act on lines that not every answer has."""
    nominated: set[bytes] = set()
    for kind, value, line in lines:
        if kind == TRANSFER_ENCODING:
            if head.odd_length >= 0:
                raise WireError("both Content-Length and Transfer-Encoding", reason="content_length")
            if head.chunked or head.http10 or value.lower() != b"chunked":
                raise WireError("Transfer-Encoding is not chunked", reason="transfer_encoding")
            head.chunked = True
            head.forward += b"\r\n" + line
        elif kind == CONNECTION:
            nominated |= connection_options(value)
        elif kind in (HOST, AUTHORIZATION, EXPECT):
            head.forward += b"\r\n" + line  # they mean nothing in an answer
    if nominated:
        head.keep_alive = b"close" not in nominated and (not head.http10 or b"keep-alive" in nominated)
        dropped = nominated - {b"close", b"keep-alive", b"content-length", b"transfer-encoding"}
        if dropped:
            head.forward = without_names(head.forward, dropped)
