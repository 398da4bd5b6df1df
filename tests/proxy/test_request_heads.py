"""Request heads: what is understood, and every shape that two parsers could read differently is refused."""

from typing import Any

import pytest

from kvrouter.errors import RequestError
from kvrouter.service.proxy.limits import ProxyLimits
from kvrouter.service.proxy.request_head import RequestHead, RequestHeads

pytestmark = pytest.mark.usefixtures("http_core")

BASE = b"POST /v1/completions HTTP/1.1\r\nHost: a"


def _parse(block: bytes, **limits: Any) -> RequestHead:
    return RequestHeads(ProxyLimits(**limits)).parse(block)[0]


def _refused(block: bytes, **limits: int) -> int:
    with pytest.raises(RequestError) as raised:
        _parse(block, **limits)
    return raised.value.status


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: +5",
        b"Content-Length: -5",
        b"Content-Length: 5, 5",
        b"Content-Length: 5 5",
        b"Content-Length: 0x5",
        b"Content-Length: 5_0",
        b"Content-Length: \xb2",
        b"Content-Length:",
        b"Content-Length: " + b"9" * 19,
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding:",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b" Transfer-Encoding: chunked",
        b"X: 1\r\n folded",
        b"X: 1\r\n\tfolded",
        b"X: 1\rContent-Length: 5",
        b"X: 1\nContent-Length: 5",
        b"X: a\x00b",
        b"X: a\x7fb",
        b"X\x00: 1",
        b"X",
        b": 1",
        b"X y: 1",
        b"X\xc3\xa9: 1",
        b"Host: b",
        b"Authorization: a\r\nAuthorization: b",
    ],
)
def test_ambiguous_header_lines_are_refused(lines: bytes) -> None:
    """A shape that could hide a second request is 400."""
    assert _refused(BASE + b"\r\n" + lines) == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"", 400),
        (b"GET /", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"GET / x HTTP/1.1", 400),
        (b"G\x00T / HTTP/1.1", 400),
        (b"GET /\x7f HTTP/1.1", 400),
        (b"GET /\xc3\xa9 HTTP/1.1", 400),
        (b"GET / http/1.1", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / HTTP/2.0", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"GET / HTTP/0.9", 505),
        (b"CONNECT a:443 HTTP/1.1", 405),
        (b"TRACE / HTTP/1.1", 405),
        (b"GET a/b HTTP/1.1", 400),
        (b"GET ftp://a/ HTTP/1.1", 400),
        (b"GET http:///x HTTP/1.1", 400),
        (b"GET http://u@a/ HTTP/1.1", 400),
        (b"GET /a#b HTTP/1.1", 400),
        (b"GET /a/../b HTTP/1.1", 400),
        (b"GET /a/./b HTTP/1.1", 400),
        (b"GET /%2e%2e/b HTTP/1.1", 400),
        (b"GET /a%2f..%2fb HTTP/1.1", 400),
        (b"GET /a%00 HTTP/1.1", 400),
        (b"GET /a%0d%0ab HTTP/1.1", 400),
        (b"GET /a%ff HTTP/1.1", 400),
        (b"GET /a%5c..%5cb HTTP/1.1", 400),
    ],
)
def test_bad_request_lines_are_refused(line: bytes, status: int) -> None:
    """Malformed lines, other protocols and paths that applications read differently."""
    assert _refused(line + b"\r\nHost: a") == status


@pytest.mark.parametrize("host", [b"", b"a", b"a:80", b"[::1]:80", b"x.example"])
def test_a_host_is_required_once(host: bytes) -> None:
    """HTTP/1.1 needs exactly one Host, HTTP/1.0 none."""
    assert _parse(b"GET / HTTP/1.1\r\nHost: " + host).line.path == "/"
    assert _parse(b"GET / HTTP/1.0").line.http10
    assert _refused(b"GET / HTTP/1.1") == 400
    assert _refused(b"GET / HTTP/1.1\r\nHost: a b") == 400
    assert _refused(b"GET / HTTP/1.1\r\nHost: a/b") == 400


@pytest.mark.parametrize(
    ("target", "sent", "path", "query"),
    [
        (b"/v1/models?x=1&y=/?", b"/v1/models?x=1&y=/?", "/v1/models", "x=1&y=/?"),
        (b"/%77orkers", b"/%77orkers", "/workers", ""),
        (b"/caf%C3%A9/", b"/caf%C3%A9/", "/café/", ""),
        (b"http://other:80/v1/models?x", b"/v1/models?x", "/v1/models", "x"),
        (b"HTTP://other", b"/", "/", ""),
        (b"https://other?q=1", b"/?q=1", "/", "q=1"),
        (b"*", b"*", "*", ""),
        (b"//double", b"//double", "//double", ""),
    ],
)
def test_targets(target: bytes, sent: bytes, path: str, query: str) -> None:
    """The path that is judged is decoded; the target that is sent is as the client wrote it."""
    line = _parse(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: a").line

    assert (line.target, line.path, line.query) == (sent, path, query)


def test_limits_of_a_head() -> None:
    """Too many header lines are 431."""
    many = b"".join(b"\r\nx%d: 1" % number for number in range(20))

    assert _refused(BASE + many, headers_max=20) == 431
    assert len(_parse(BASE + many, headers_max=21).headers) == 21


def test_expectations() -> None:
    """100-continue is understood in HTTP/1.1, ignored in HTTP/1.0, anything else refused."""
    assert _parse(BASE + b"\r\nExpect: 100-Continue").expects_continue
    assert not _parse(b"GET / HTTP/1.0\r\nExpect: 100-continue").expects_continue
    assert _refused(BASE + b"\r\nExpect: magic") == 417


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (b"", True),
        (b"\r\nConnection: close", False),
        (b"\r\nConnection: Keep-Alive, CLOSE", False),
        (b"\r\nConnection: x\r\nConnection: close", False),
        (b"\r\nConnection: keep-alive", True),
        (b"\r\nConnection: upgrade", True),
    ],
)
def test_persistence(lines: bytes, kept: bool) -> None:
    """Close wins wherever it stands."""
    assert _parse(BASE + lines).keep_alive is kept


def test_framing_headers_cannot_be_nominated_away() -> None:
    """Connection: content-length does not remove the length; authorization may be removed."""
    head, length = RequestHeads(ProxyLimits()).parse(
        BASE + b"\r\nContent-Length: 5\r\nAuthorization: k\r\nConnection: content-length, authorization, x-y"
    )

    assert (head.forward, length) == (b"", 5)
    assert head.authorization_line == b""


def test_memory_of_lines_is_bounded() -> None:
    """Lines that never come again do not pile up."""
    heads = RequestHeads(ProxyLimits())
    for number in range(10_000):
        heads.parse(b"GET /%d HTTP/1.1\r\nHost: a\r\nx: %d" % (number, number))

    assert len(heads.memory.plain) <= 512
    assert len(heads._lines) <= 1024
    assert len(heads._header_lines.known) <= 4096


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length", b"CONTENT-LENGTH", b"Content-length"])
def test_a_remembered_head_is_read_like_a_new_one(name: bytes) -> None:
    """Heads that differ in their length alone share a memory, and none of its strictness is lost."""
    heads = RequestHeads(ProxyLimits())
    for length in (5, 7, 5):
        head, found = heads.parse(BASE + b"\r\n%b: %d\r\nX: 1" % (name, length))
        assert (found, head.forward) == (length, b"\r\nX: 1")
    heads.parse(BASE + b"\r\nTransfer-Encoding: chunked\r\nX: 1")
    for smuggled in (b"Transfer-Encoding: chunked\r\nX: 1", b"X: 1\r\n%b: 5" % name, b"X: 1\r\n folded", b"X : 1"):
        data = BASE + b"\r\n%b: 5\r\n%b\r\n\r\n" % (name, smuggled)
        assert heads.memory.find(data, len(data)) is None
        with pytest.raises(RequestError):
            heads.parse(data[:-4])
    assert heads.parse(BASE + b"\r\nX: 1")[1] == -1
