"""Response heads: what is passed on, where the body ends, and ambiguous answers are errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import WireError
from kvrouter.service.proxy.chunked import ChunkedBody
from kvrouter.service.proxy.response_head import LengthBody, ResponseHeads, UntilCloseBody


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"HTTP/2 200 OK\r\nContent-Length: 1\r\nContent-Length: 1",
        b"HTTP/1.1 099 x",
        b"HTTP/1.1 600 x",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1  200 OK",
        b"http/1.1 200 OK",
        b"HTTP/1.1 200 O\x00K",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nX : 1",
        b"HTTP/1.1 200 OK\r\n folded: 1",
        b"HTTP/1.1 200 OK\r\nX: 1\nY: 2",
        b"HTTP/1.1 200 OK" + b"\r\nX: 1" * 257,
    ],
)
def test_ambiguous_answers_are_errors(block: bytes) -> None:
    """A worker that breaks HTTP is not guessed at."""
    with pytest.raises(WireError):
        ResponseHeads().parse(block)


@pytest.mark.parametrize(
    ("block", "method", "framing"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", "GET", LengthBody),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", "GET", ChunkedBody),
        (b"HTTP/1.1 200 OK", "GET", UntilCloseBody),
        (b"HTTP/1.1 200 OK", "HEAD", LengthBody),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", "HEAD", LengthBody),
        (b"HTTP/1.1 204 No Content", "POST", LengthBody),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5", "GET", LengthBody),
    ],
)
def test_where_a_body_ends(block: bytes, method: str, framing: type) -> None:
    """By status and method first, then by coding, length, or close."""
    head, length = ResponseHeads().parse(block)

    assert isinstance(head.body(method, length), framing)


@pytest.mark.parametrize(
    ("block", "kept"),
    [
        (b"HTTP/1.1 200 OK", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close", False),
        (b"HTTP/1.0 200 OK", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive", True),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close", False),
    ],
)
def test_persistence(block: bytes, kept: bool) -> None:
    """HTTP/1.0 keeps only what it says it keeps."""
    assert ResponseHeads().parse(block)[0].keep_alive is kept


def test_the_version_is_ours() -> None:
    """An HTTP/1.0 worker's answer goes out as HTTP/1.1."""
    assert ResponseHeads().parse(b"HTTP/1.0 200 Fine")[0].status_line == b"HTTP/1.1 200 Fine"


def test_a_reason_may_be_left_out() -> None:
    """Many servers do, some with its space; clients always get the space."""
    assert ResponseHeads().parse(b"HTTP/1.1 200")[0].status_line == b"HTTP/1.1 200 "
    assert ResponseHeads().parse(b"HTTP/1.1 200 ")[0].status_line == b"HTTP/1.1 200 "


@given(st.binary(max_size=200))
def test_garbage_is_an_error_and_nothing_else(block: bytes) -> None:
    """Only WireError is raised."""
    for data in (block, b"HTTP/1.1 200 OK\r\n" + block):
        try:
            ResponseHeads().parse(data)
        except WireError:
            continue
