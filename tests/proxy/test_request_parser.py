"""The request parser: any split of the same bytes gives the same requests, and nothing but refusals comes out."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvrouter.errors import RequestError
from kvrouter.service.proxy.limits import ProxyLimits
from kvrouter.service.proxy.request_head import RequestHeads
from kvrouter.service.proxy.request_parser import RequestParser

pytestmark = pytest.mark.usefixtures("http_core")

LIMITS = ProxyLimits(header_bytes_max=1024, target_bytes_max=256, body_bytes_max=4096)

Seen = list[tuple[str, str, bytes]]


def _requests(pieces: list[bytes], limits: ProxyLimits = LIMITS) -> tuple[Seen, int]:
    """Return the requests in `pieces`, and the status of the refusal that ended them (0: none)."""
    parser, seen, reading = RequestParser(limits, RequestHeads(limits)), [], None
    try:
        for piece in pieces:
            parser.feed(piece)
            while True:
                if reading is None:
                    reading = parser.read_head()
                    if reading is None:
                        break
                body = parser.read_body()
                if body is None:
                    break
                seen.append((reading.line.method, reading.line.path, body))
                reading = None
    except RequestError as error:
        return seen, error.status
    return seen, 0


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


_token = st.text("abcXYZ-_", min_size=1, max_size=8)
_value = st.text('ab 1\t;,="é', max_size=20)


@st.composite
def _request(draw: st.DrawFn) -> tuple[bytes, tuple[str, str, bytes]]:
    """A well-formed request as bytes, and what should be read."""
    path = "/" + draw(_token)
    body = draw(st.binary(max_size=300))
    lines = [f"X-{draw(_token)}: {draw(_value)}" for _ in range(draw(st.integers(0, 3)))]
    if draw(st.booleans()):
        lines.append("Transfer-Encoding: Chunked")
        cuts = draw(st.lists(st.integers(0, 400), max_size=4))
        pieces = [piece for piece in _split(body, cuts) if piece]
        framed = b"".join(b"%x;e=%d\r\n%b\r\n" % (len(piece), len(piece), piece) for piece in pieces)
        framed += b"0\r\n" + draw(st.sampled_from([b"", b"X-Trailer: 1\r\n"])) + b"\r\n"
    else:
        lines.append(f"content-length: {len(body)}")
        framed = body
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", *lines]) + "\r\n\r\n"
    empty_lines = draw(st.sampled_from([b"", b"\r\n"]))
    return empty_lines + head.encode() + framed, ("POST", path, body)


@given(st.lists(_request(), min_size=1, max_size=3), st.lists(st.integers(0, 5000), max_size=12))
def test_any_split_gives_the_same_requests(
    requests: list[tuple[bytes, tuple[str, str, bytes]]], cuts: list[int]
) -> None:
    """Pipelined requests are read alike, however the bytes arrive."""
    stream = b"".join(raw for raw, _ in requests)

    assert _requests(_split(stream, cuts)) == ([expected for _, expected in requests], 0)


@given(_request())
def test_one_byte_at_a_time(request: tuple[bytes, tuple[str, str, bytes]]) -> None:
    """The finest split of all."""
    raw, expected = request

    assert _requests([raw[i : i + 1] for i in range(len(raw))]) == ([expected], 0)


_FRAGMENTS = st.sampled_from(
    [
        b"POST /x HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n", b"Host: a\r\n", b"\r\n", b"\n", b"\r", b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\n", b"fffffffff\r\n", b"-1\r\n",
        b"Expect: 100-continue\r\n", b": ", b" ", b"\x00", b"x" * 200, b"X: " + b"y" * 900 + b"\r\n", b"/" * 300,
    ]
)  # fmt: skip
_garbage = st.lists(_FRAGMENTS | st.binary(max_size=20), max_size=14).map(b"".join)


@settings(max_examples=400)
@given(_garbage, st.lists(st.integers(0, 5000), max_size=8))
@example(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", [1])
@example(b"G" * 400, [100, 200, 300])
@example(b"GET /" + b"x" * 300 + b"\nHost: a\r\n\r\n", [10, 310])
@example(b"POST / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 1100 + b"\r\n\r\n", [200, 1000, 1100])
def test_garbage_is_refused_alike_however_it_is_split(stream: bytes, cuts: list[int]) -> None:
    """Nothing but a refusal is raised, and the same one for every split."""
    assert _requests(_split(stream, cuts)) == _requests([stream])


def test_limits_are_seen_before_the_end() -> None:
    """A long head, target or body is refused as soon as it shows."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\n"

    assert _requests([b"GET /" + b"x" * 400])[1] == 414
    assert _requests([head + b"x: " + b"y" * 1100])[1] == 431
    assert _requests([head + b"Content-Length: 4097\r\n\r\n"])[1] == 413
    assert _requests([head + b"Content-Length: 4096\r\n\r\n"])[1] == 0
    assert _requests([head + b"Transfer-Encoding: chunked\r\n\r\n1001\r\n" + b"x" * 4097])[1] == 413
    assert _requests([b"GET / HTTP/1.1\nHost: a\n\n"])[1] == 400


def test_body_memory_is_what_the_body_needs() -> None:
    """A body that comes in tiny pieces is held in one buffer, not in a list of pieces."""
    limits = ProxyLimits()
    parser = RequestParser(limits, RequestHeads(limits))
    parser.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
    parser.read_head()
    for _ in range(333):
        parser.feed(b"abc")
        assert parser.read_body() is None

    assert parser.body_bytes == 999
    assert parser.buffered == 0
