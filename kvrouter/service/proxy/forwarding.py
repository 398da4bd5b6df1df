"""What is sent on: the request head for a worker and the response head for a client. Pure.

Lines that mean something only between two neighbours are gone already (`request_head`, `response_head`); here our own
are added, and the length of the body in our own spelling.
"""

from .header_lines import without_names
from .messages import Endpoint
from .request_head import RequestHead
from .response_head import ResponseHead

__all__ = ["render_request", "render_response"]


def render_request(
    head: RequestHead, endpoint: Endpoint, *, request_id: str, extra_headers: bytes, length: int
) -> bytes:
    """Return the head to send to a worker; `length` is that of the body, -1 where the client announced none.

    A body that came in chunks is whole by now and has a length.
    """
    line, forward = head.line, head.forward
    if extra_headers:
        forward = without_names(forward, _names(extra_headers))
    if endpoint.authorization is None:
        authorization = b"" if head.authorization is None else head.authorization + b"\r\n"
    else:
        authorization = b"authorization: %b\r\n" % endpoint.authorization if endpoint.authorization else b""
    # Joining costs half of what formatting does.
    return b"".join(
        (
            line.verb,
            b" ",
            endpoint.path_prefix,
            line.target,
            b" HTTP/1.1\r\nhost: ",
            endpoint.host_header,
            forward,
            b"\r\ncontent-length: %d\r\nx-request-id: " % length if length >= 0 else b"\r\nx-request-id: ",
            request_id.encode(),
            b"\r\n",
            authorization,
            extra_headers,
            b"\r\n",
        )
    )


def render_response(
    head: ResponseHead, *, length: int, request_id: str, route_lines: bytes, keep_alive: bool, http10: bool
) -> bytes:
    """Return the head to send to a client; `route_lines` are ready-made, each with its CRLF.

    `length` is the Content-Length that the worker announced, or -1.
    """
    forward = head.forward
    if http10 and head.chunked:
        forward = without_names(forward, {b"transfer-encoding"})
    connection = b"connection: keep-alive\r\n" if http10 else b""
    return b"".join(
        (
            head.status_line,
            forward,
            b"\r\ncontent-length: %d\r\nx-request-id: " % length if length >= 0 else b"\r\nx-request-id: ",
            request_id.encode(),
            b"\r\n",
            route_lines,
            connection if keep_alive else b"connection: close\r\n",
            b"\r\n",
        )
    )


def _names(lines: bytes) -> set[bytes]:
    return {line.partition(b":")[0].lower() for line in lines.split(b"\r\n")} - {b""}
