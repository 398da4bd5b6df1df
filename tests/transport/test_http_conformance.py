"""The HTTP/2 transport passes the suite of the request plane, inline and attached."""

from typing import Any

from kvrouter.transport.http_client import Answers, HttpRequestClient
from kvrouter.transport.http_formats import Format
from kvrouter.transport.tcp_connection import Heartbeat
from tests.transport.conformance import RequestPlaneContract


class TestHttpInline(RequestPlaneContract):
    """A-101, A-207, A-389: the answer is the response to the request, in two-part messages."""

    transport = "http2"
    answers: Answers = "inline"
    answer_format: Format = "binary"

    def client(self, **options: Any) -> HttpRequestClient:
        """A client; its pings are slow unless asked for."""
        seconds = options.get("heartbeat_seconds", 30.0)
        return HttpRequestClient(
            answers=self.answers,
            answer_format=self.answer_format,
            acknowledge_seconds=60,
            connect_seconds=30,
            heartbeat=Heartbeat(interval_seconds=seconds, timeout_seconds=5 * seconds),
        )

    def nowhere(self) -> str:
        """Nobody may listen on port 1 of loopback."""
        return "http://127.0.0.1:1/v1/rpc"


class TestHttpEvents(TestHttpInline):
    """A-150: the answer is a stream of server-sent events; items of no codec in base64."""

    answer_format: Format = "sse"


class TestHttpAttached(TestHttpInline):
    """202, and the answer is fetched in lines of JSON by a second request (A-208, A-276)."""

    bidirectional = False  # the second request is a GET: there is no way for further items
    answers: Answers = "attached"
    answer_format: Format = "ndjson"
