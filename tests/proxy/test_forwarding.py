"""What is sent on is one message and the same message to every parser: nothing can be smuggled through."""

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.errors import RequestError, WireError
from kvrouter.service.proxy.forwarding import render_request, render_response
from kvrouter.service.proxy.limits import ProxyLimits
from kvrouter.service.proxy.messages import Endpoint
from kvrouter.service.proxy.request_head import RequestHeads
from kvrouter.service.proxy.request_parser import RequestParser
from kvrouter.service.proxy.response_head import ResponseHeads

pytestmark = pytest.mark.usefixtures("http_core")

LIMITS = ProxyLimits()
ENDPOINT = Endpoint("engine", 8000, path_prefix=b"/base")

_names = st.sampled_from(
    ["Content-Length", "content-length", "Transfer-Encoding", "Connection", "Host", "X-A", "TE", "Upgrade", "Expect"]
)
_values = st.sampled_from(
    ["5", "0", "+5", "5, 5", "chunked", "Chunked", "identity", "gzip, chunked", "close", "keep-alive", "X-A",
     "content-length", "transfer-encoding, host", "100-continue", "", " 5", "5 ", "\t5", "a", "h2c"]
)  # fmt: skip
_separators = st.sampled_from([": ", ":", ":\t", " : ", ":\r\n "])
_endings = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n\r\n"])
_line = st.builds(lambda name, colon, value, end: name + colon + value + end, _names, _separators, _values, _endings)
_tail = st.sampled_from(
    [b"hello", b"", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n", b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"]
)


@st.composite
def _nasty(draw: st.DrawFn, first: str) -> bytes:
    """A head made of dangerous lines, and something after it."""
    head = first + "\r\n" + "Host: a\r\n" * draw(st.integers(0, 1)) + "".join(draw(st.lists(_line, max_size=4)))
    return head.encode() + b"\r\n" + draw(_tail) + draw(_tail)


class _Seen:
    """Collects what httptools sees."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.complete = 0

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.complete += 1


def _as_httptools(data: bytes) -> list[bytes]:
    seen = _Seen()
    httptools.HttpRequestParser(seen).feed_data(data)
    assert seen.complete == len(seen.bodies)
    return seen.bodies


def _as_h11(data: bytes) -> tuple[bytes, bytes]:
    """Return target and body; there must be exactly one request."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        body += bytes(event.data)
    assert connection.trailing_data == (b"", False)
    return bytes(request.target), body


@settings(max_examples=600)
@given(_nasty("POST /v1/completions?a=1 HTTP/1.1") | _nasty("POST /v1/completions?a=1 HTTP/1.0"))
def test_a_worker_sees_exactly_the_request_that_we_judged(data: bytes) -> None:
    """If a request is accepted at all, h11 and httptools read what is sent on as one request with the same body."""
    parser = RequestParser(LIMITS, RequestHeads(LIMITS))
    parser.feed(data)
    try:
        head = parser.read_head()
        body = parser.read_body() if head is not None else None
    except RequestError:
        return
    if head is None or body is None:
        return

    length = len(body) if head.chunked else parser.length
    sent = render_request(head, ENDPOINT, request_id="r", extra_headers=b"X-Rank: 1\r\n", length=length, body=body)

    assert _as_h11(sent) == (b"/base/v1/completions?a=1", body)
    assert _as_httptools(sent) == [body]


@settings(max_examples=600)
@given(_nasty("HTTP/1.1 200 OK") | _nasty("HTTP/1.0 200 OK"), st.booleans())
def test_a_client_sees_exactly_the_answer_that_we_framed(data: bytes, keep_alive: bool) -> None:
    """If an answer is accepted at all, h11 reads what is sent on as one answer that ends where we say."""
    end = data.find(b"\r\n\r\n")
    sink: list[bytes] = []
    try:
        head, length = ResponseHeads().parse(data[:end])
        framing = head.body("POST", length, sink)
        used = framing.feed(data[end + 4 :])
    except WireError:
        return
    if not framing.done:
        return
    raw = data[end + 4 : end + 4 + used]
    expected = b"".join(sink) if head.chunked else raw

    sent = render_response(
        head,
        length=length,
        request_id="r",
        route_line=b"\r\nx-worker: 1\r\nx-overlap: ",
        overlap_tokens=17,
        keep_alive=keep_alive,
        http10=False,
        body=raw,
    )

    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(sent)
    answer = connection.next_event()
    assert isinstance(answer, h11.Response)
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        body += bytes(event.data)
    assert body == expected
    assert connection.trailing_data[0] == b""


def test_extra_headers_replace_lines_of_the_same_name() -> None:
    """Whatever their case, and nothing else is touched."""
    head, length = RequestHeads(LIMITS).parse(
        b"POST / HTTP/1.1\r\nHost: a\r\nX-RANK: 9\r\nX-Rank-Other: 8\r\nContent-Length: 0"
    )

    sent = render_request(head, ENDPOINT, request_id="r", extra_headers=b"x-rank: 1\r\n", length=length, body=b"")

    assert sent == (
        b"POST /base/ HTTP/1.1\r\nhost: engine:8000\r\nX-Rank-Other: 8\r\ncontent-length: 0\r\n"
        b"x-request-id: r\r\nx-rank: 1\r\n\r\n"
    )
