"""What is sent on: the request head for a worker and the response head for a client. Pure.

Lines that mean something only between two neighbours are gone already (`request_head`, `response_head`); here our own
are added, and the length of the body in our own spelling.
"""

from collections.abc import Callable
from typing import Final

from kvrouter import native_core

from .header_lines import without_names
from .messages import Endpoint
from .request_head import RequestHead
from .response_head import ResponseHead

__all__ = ["join_parts", "render_request", "render_response"]

_LENGTH: Final = b"\r\ncontent-length: "
_REQUEST_ID: Final = b"\r\nx-request-id: "


def render_request(
    head: RequestHead, endpoint: Endpoint, *, request_id: str, extra_headers: bytes, length: int, body: bytes
) -> bytes:
    """Return a request for a worker; `length` is that of its body, -1 where the client announced none.

    A body that came in chunks is whole by now and has a length. `body` is put after the head, and may be left empty.
    """
    line, forward, authorization_line = head.line, head.forward, endpoint.authorization_line
    if extra_headers:
        forward = without_names(forward, _names(extra_headers))
    if authorization_line is None:
        authorization_line = head.authorization_line
    return _join(
        line.verb,
        b" ",
        endpoint.path_prefix,
        line.target,
        b" HTTP/1.1\r\nhost: ",
        endpoint.host_header,
        forward,
        _LENGTH if length >= 0 else b"",
        length if length >= 0 else b"",
        _REQUEST_ID,
        request_id,
        b"\r\n",
        authorization_line,
        extra_headers,
        b"\r\n",
        body,
    )


def render_response(
    head: ResponseHead,
    *,
    length: int,
    request_id: str,
    route_line: bytes,
    overlap_tokens: int,
    keep_alive: bool,
    http10: bool,
    body: bytes,
) -> bytes:
    """Return an answer for a client; `length` is the Content-Length that the worker announced, or -1.

    `route_line` ends where the number of `overlap_tokens` belongs; where it is empty, neither is sent. `body` is put
    after the head, and may be left empty.
    """
    forward = head.forward
    if http10 and head.chunked:
        forward = without_names(forward, {b"transfer-encoding"})
    connection = b"\r\nconnection: keep-alive\r\n\r\n" if http10 else b"\r\n\r\n"
    return _join(
        head.status_line,
        forward,
        _LENGTH if length >= 0 else b"",
        length if length >= 0 else b"",
        _REQUEST_ID,
        request_id,
        route_line,
        overlap_tokens if route_line else b"",
        connection if keep_alive else b"\r\nconnection: close\r\n\r\n",
        body,
    )


def join_parts(*parts: bytes | str | int) -> bytes:
    """Return bytes as they are, text encoded, and numbers in decimal, one after the other; the reference."""
    return b"".join([each if isinstance(each, bytes) else str(each).encode() for each in parts])


def _names(lines: bytes) -> set[bytes]:
    return {line.partition(b":")[0].lower() for line in lines.split(b"\r\n")} - {b""}


_join: Callable[..., bytes] = native_core.native.join_text if native_core.present else join_parts
