"""Request heads: from the bytes before the empty line to what the data plane acts on (RFC 9112 sections 2, 3, 6).

Strict on purpose: every shape that two HTTP implementations could read differently is refused, because this process
and the workers behind it must never disagree about where a request ends.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from kvrouter.errors import RequestError, WireError

from .head_memory import HeadMemory, split_length
from .header_lines import (
    ASKED,
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    PLAIN,
    REQUEST_ID,
    TRANSFER_ENCODING,
    HeaderLines,
    asked_lines,
    connection_options,
    without_names,
)
from .limits import ProxyLimits

__all__ = ["RequestHead", "RequestHeads", "RequestLine"]

_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_AUTHORITY = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]+")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_LINES_KEPT: Final = 1024
_LINE_BYTES_KEPT: Final = 256


class RequestLine(NamedTuple):
    """The first line of a request."""

    method: str
    verb: bytes
    """The method, as it is sent on."""
    target: bytes
    """Origin form, as it is sent on."""
    path: str
    """Percent-decoded, so that what the dispatcher judges is what an application behind it will see."""
    query: str
    http10: bool


class RequestHead:
    """A request without its body. Never changed once parsed: requests with equal heads share one.

    A plain Content-Length is no part of it: it is what differs between requests that are otherwise alike.
    """

    __slots__ = (
        "asked",
        "authorization_line",
        "chunked",
        "expects_continue",
        "forward",
        "framed",
        "headers",
        "keep_alive",
        "line",
        "odd_length",
        "request_id",
    )

    def __init__(self, line: RequestLine) -> None:
        self.line = line
        self.headers: list[tuple[bytes, bytes]] = []
        """All of them but a plain Content-Length."""
        self.asked: tuple[tuple[bytes, bytes], ...] = ()
        """Those of them that ask something of this process about the worker."""
        self.forward = b""
        """Header lines for the worker as the client wrote them, each with a CRLF before it.

        Without Host, Authorization, X-Request-Id, Content-Length, and those that are not for the worker.
        """
        self.authorization_line = b""
        """The client's Authorization line with its CRLF, if there is one."""
        self.chunked = False
        self.odd_length = -1
        """Content-Length in an unusual spelling."""
        self.framed = False
        """Chunked or of an odd length."""
        self.keep_alive = not line.http10
        self.expects_continue = False
        self.request_id: str | None = None
        """The client's X-Request-Id, if it is usable."""


class RequestHeads:
    """Parses request heads within limits; remembers heads, request lines and header lines that it has seen."""

    __slots__ = ("_header_lines", "_limits", "_lines", "memory")

    def __init__(self, limits: ProxyLimits) -> None:
        self._limits = limits
        self._header_lines = HeaderLines()
        self._lines: dict[bytes, RequestLine] = {}
        self.memory: HeadMemory[RequestHead] = HeadMemory()

    def parse(self, block: bytes) -> tuple[RequestHead, int]:
        """Parse a head, given without the empty line that ends it; return it and its Content-Length, or -1.

        Raises:
            RequestError: anything malformed, ambiguous or beyond a limit.
        """
        rest, length = split_length(block)
        head = self._head(rest)
        if length >= 0 and head.framed:
            raise RequestError(
                "malformed request: Content-Length beside another one or Transfer-Encoding", code="malformed_request"
            )
        self.memory.keep(rest, head)
        return head, head.odd_length if head.framed else length

    def _head(self, block: bytes) -> RequestHead:
        first, *lines = block.split(b"\r\n")
        head = RequestHead(self._lines.get(first) or self._request_line(first))
        if len(lines) > self._limits.headers_max:
            raise RequestError(
                f"more than {self._limits.headers_max} header lines", status=431, code="too_many_headers"
            )
        try:
            self._read_lines(head, lines)
        except WireError as error:
            raise RequestError(f"malformed request: {error}", code="malformed_request") from error
        head.framed = head.chunked or head.odd_length >= 0
        return head

    def _read_lines(self, head: RequestHead, lines: list[bytes]) -> None:
        known, headers, forward = self._header_lines.known, head.headers, [b""]
        host, rare = False, []
        for line in lines:
            try:
                pair, kind, number = known[line]
            except KeyError:
                pair, kind, number = self._header_lines.parse(line)
            headers.append(pair)
            if kind in (PLAIN, CONTENT_TYPE):
                forward.append(line)
            elif kind == CONTENT_LENGTH:
                if head.odd_length >= 0:
                    raise WireError("more than one Content-Length", reason="content_length")
                head.odd_length = number
            elif kind == HOST:
                if host:
                    raise WireError("more than one Host", reason="host")
                host = True
            else:
                rare.append((kind, pair[1], line))
        if not host and not head.line.http10:
            raise WireError("the Host header is missing", reason="host")
        head.forward = b"\r\n".join(forward)
        if rare:
            _read_rare(head, rare)

    def _request_line(self, line: bytes) -> RequestLine:
        match = _LINE.fullmatch(line)
        if match is None:
            raise RequestError("malformed request line", code="malformed_request")
        method, target, major, minor = match.groups()
        if major != b"1":
            raise RequestError("only HTTP/1.1 and HTTP/1.0 are spoken here", status=505, code="http_version")
        if method in (b"CONNECT", b"TRACE"):
            raise RequestError(f"method {method.decode()} is not allowed", status=405, code="method_not_allowed")
        target = _origin_form(target)
        path, _, query = target.partition(b"?")
        parsed = RequestLine(method.decode(), method, target, _decoded(path), query.decode(), minor == b"0")
        if len(line) <= _LINE_BYTES_KEPT:
            if len(self._lines) >= _LINES_KEPT:
                self._lines.clear()
            self._lines[line] = parsed
        return parsed


def _read_rare(head: RequestHead, lines: list[tuple[int, bytes, bytes]]) -> None:
    """Act on lines that not every request has."""
    nominated: set[bytes] = set()
    for kind, value, line in lines:
        if kind == AUTHORIZATION:
            if head.authorization_line:
                raise WireError("more than one Authorization", reason="authorization")
            head.authorization_line = line + b"\r\n"
        elif kind == REQUEST_ID:
            head.request_id = value.decode() if _REQUEST_ID.fullmatch(value) else None
        elif kind == CONNECTION:
            nominated |= connection_options(value)
        elif kind == TRANSFER_ENCODING:
            _read_transfer_encoding(head, value)
        elif kind == EXPECT:
            _read_expect(head, value)
        elif kind == ASKED:
            head.asked = asked_lines(head.headers)
    if nominated:
        _read_connection(head, nominated)


def _read_transfer_encoding(head: RequestHead, value: bytes) -> None:
    if head.odd_length >= 0:
        raise WireError("both Content-Length and Transfer-Encoding", reason="content_length")
    if head.chunked or value.lower() != b"chunked":
        raise WireError("Transfer-Encoding is not chunked", reason="transfer_encoding")
    if head.line.http10:
        raise WireError("Transfer-Encoding in an HTTP/1.0 request", reason="transfer_encoding")
    head.chunked = True


def _read_expect(head: RequestHead, value: bytes) -> None:
    if value.lower() != b"100-continue":
        raise RequestError("only Expect: 100-continue is understood", status=417, code="expectation_failed")
    head.expects_continue = not head.line.http10


def _read_connection(head: RequestHead, options: set[bytes]) -> None:
    if b"close" in options:
        head.keep_alive = False
    elif b"keep-alive" in options:
        head.keep_alive = True
    dropped = options - {b"close", b"keep-alive", b"content-length"}
    if dropped:
        head.forward = without_names(head.forward, dropped)
        if b"authorization" in dropped:
            head.authorization_line = b""


def _origin_form(target: bytes) -> bytes:
    """Reduce an absolute-form target to its path and query; the Host it names is not ours to judge."""
    if target.startswith(b"/") or target == b"*":
        if b"#" in target:
            raise RequestError("a fragment in the request target", code="malformed_request")
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None or _AUTHORITY.fullmatch(match[1]) is None:
        raise RequestError("the request target is neither a path nor a URL", code="malformed_request")
    rest = match[2]
    return rest if rest.startswith(b"/") else b"/" + rest


def _decoded(path: bytes) -> str:
    """Decode a path; dot segments and control characters are refused, because applications disagree about them."""
    plain = unquote_to_bytes(path) if b"%" in path else path
    try:
        text = plain.decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable() or "\\" in text or not {".", ".."}.isdisjoint(text.split("/")):
        raise RequestError("the request path is malformed or contains dot segments", code="malformed_request")
    return text
