"""The request plane of a worker as plain HTTP clients see it: HTTP/1.1, statuses, events to look at, control."""

import asyncio
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from kvrouter.errors import RefusedError
from kvrouter.transport.access import Peer
from kvrouter.transport.asgi_metrics import HttpMetrics, InstrumentedApp
from kvrouter.transport.context import Context
from kvrouter.transport.http_app import HttpAppOptions
from kvrouter.transport.http_client import HttpAckClient
from kvrouter.transport.n_part import NPart, encode_n_part, from_two_part
from kvrouter.transport.two_part import decode_two_part
from tests.transport.conformance import eventually
from tests.transport.http_scene import SSE, Worker, attached, message, scene


def test_the_same_post_is_answered_by_events() -> None:
    """A-125, A-150, A-207, A-211, A-278, D-14: 200 and `data:` events, `event: done` at the end, over HTTP/1.1 too."""

    async def scenario(served: Worker) -> None:
        reply = await served.ask("POST", "/v1/rpc/echo", message(), Accept=SSE)
        assert reply.status == 200
        assert reply.headers["content-type"] == SSE
        assert reply.headers["cache-control"] == "no-cache"
        assert reply.headers["x-accel-buffering"] == "no"
        assert b'id: 0\ndata: {"a":1}\n\n' in reply.body
        assert reply.body.endswith(b"event: done\ndata: {}\n\n")

    scene(scenario)


def test_a_request_is_taken_before_it_is_done_and_its_answer_fetched() -> None:
    """A-108, A-109, A-120, A-208, A-276: 202 at once; GET streams, with what came before."""

    async def scenario(served: Worker) -> None:
        taken = await served.ask("POST", "/v1/rpc/hang", message("hang", b"1"))
        assert (taken.status, taken.body) == (202, b"")
        assert len(served.endpoints) == 1
        served.handlers.release.set()
        reply = await served.ask("GET", taken.headers["location"], Accept=SSE)
        assert reply.status == 200
        assert b"data: 1\n\n" in reply.body
        assert b"data: released\n\n" in reply.body

    scene(scenario)


@pytest.mark.parametrize(
    ("accept", "content_type", "text"),
    [
        ("application/x-ndjson", "application/x-ndjson", b'{"data":{"a":1},"complete_final":false}\n'),
        ("application/octet-stream", "application/octet-stream", b'{"data":{"a":1},"complete_final":false}'),
        (SSE, SSE, b'data: {"a":1}'),
    ],
)
def test_the_format_is_the_clients_choice(accept: str, content_type: str, text: bytes) -> None:
    """A-209, A-277: by its Accept header."""

    async def scenario(served: Worker) -> None:
        reply = await served.ask("POST", "/v1/rpc/echo", message(), Accept=accept)
        assert reply.headers["content-type"] == content_type
        assert text in reply.body

    scene(scenario)


def test_the_format_has_a_default() -> None:
    """A-209, A-277: the worker's setting, where the client names none."""

    async def scenario(served: Worker) -> None:
        taken = await served.ask("POST", "/v1/rpc/echo", message(), Accept="*/*")
        assert taken.status == 202
        reply = await served.ask("GET", taken.headers["location"], Accept="*/*")
        assert reply.headers["content-type"] == "application/x-ndjson"

    scene(scenario, options=HttpAppOptions(answer_format="ndjson"))


@pytest.mark.parametrize(
    "tail",
    [
        "echo",
        "demo/backend/echo/7f",
        "demo/backend/echo",
        "namespace.demo.component.backend.endpoint.echo.instance.7f",
        "namespace.demo.component.backend.endpoint.echo",
    ],
)
@pytest.mark.parametrize("root", ["/v1/rpc", "/v1/dynamo"])
def test_endpoints_have_several_names(root: str, tail: str) -> None:
    """A-105, A-108, D-2: with namespace, component and instance before and behind; under both roots."""

    async def scenario(served: Worker) -> None:
        assert (await served.ask("POST", f"{root}/{tail}", message(""), Accept=SSE)).status == 200

    scene(scenario)


def test_answers_may_have_a_port_of_their_own() -> None:
    """A-208, A-209, D-14: where they are is told with the 202."""

    async def scenario(served: Worker) -> None:
        taken = await served.ask("POST", "/v1/rpc/echo", message())
        url = urlsplit(taken.headers["location"])
        assert url.netloc != urlsplit(served.server.address).netloc
        reader = http.client.HTTPConnection(url.netloc, timeout=60)
        await asyncio.to_thread(reader.request, "GET", url.path)
        response = await asyncio.to_thread(reader.getresponse)
        assert b"event: done" in await asyncio.to_thread(response.read)
        reader.close()

    scene(scenario, response_port=0)


def test_a_message_of_n_parts_is_a_request_too() -> None:
    """A-386: told apart by its type."""

    async def scenario(served: Worker) -> None:
        parts: NPart = from_two_part(decode_two_part(message()))
        headers = {"Accept": SSE, "Content_Type": "application/x-kvr-npart"}
        assert (await served.ask("POST", "/v1/rpc/echo", encode_n_part(parts), **headers)).status == 200
        assert (await served.ask("POST", "/v1/rpc/echo", b"\1" * 40, **headers)).status == 400

    scene(scenario)


def test_trace_headers_of_http_reach_the_handler() -> None:
    """A-110: where the message has none; legacy names of the request's id too."""
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"

    async def scenario(served: Worker) -> None:
        reply = await served.ask(
            "POST", "/v1/rpc/headers", message("headers"), Accept=SSE,
            traceparent=trace, tracestate="a=b", x_dynamo_request_id="r-7",
        )  # fmt: skip
        told = json.loads(reply.body.partition(b"data: ")[2].partition(b"\n\n")[0])
        assert told["headers"] == {"traceparent": trace, "tracestate": "a=b", "x-request-id": "r-7"}

    scene(scenario)


def test_silence_is_filled_with_comments() -> None:
    """B.9: so that proxies do not cut the connection."""

    async def scenario(served: Worker) -> None:
        connection = await asyncio.to_thread(served.open, "POST", "/v1/rpc/hang", message("hang", b"1"), Accept=SSE)
        response = await asyncio.to_thread(connection.getresponse)
        lines = [await asyncio.to_thread(response.readline) for _ in range(9)]
        assert lines.count(b":\n") >= 2
        connection.close()
        response.close()
        await eventually(lambda: served.handlers.cancelled == ["r"])

    scene(scenario, options=HttpAppOptions(beat_seconds=0.01))


def test_an_answer_that_takes_too_long_ends_with_an_error() -> None:
    """A-209: the time-out of streams; its work is killed."""

    async def scenario(served: Worker) -> None:
        status, names = 504, ["late"]
        while status == 504:  # A machine that stalls may not bring the first item in time: then it is no stream yet.
            names.append(f"r{len(names)}")
            reply = await served.ask("POST", "/v1/rpc/hang", message("hang", b"1", names[-1]), Accept=SSE)
            status = reply.status
        assert b"event: error\ndata: " in reply.body
        assert b"DEADLINE_EXCEEDED" in reply.body
        late = await served.ask("POST", "/v1/rpc/hang", message("hang", b"", "late"), Accept=SSE)
        assert late.status == 504
        await eventually(lambda: set(served.handlers.cancelled) >= {"late", names[-1]})

    scene(scenario, options=HttpAppOptions(stream_seconds=0.5))


def test_requests_whose_answers_go_home_are_handed_on() -> None:
    """A-117, A-118, A-119, A-120, A-229: the same bytes as over NATS; 202 once they are taken."""
    taken: list[bytes] = []
    info: dict[str, Any] = {"connection_info": {"transport": "tcp_server", "info": "{}"}}

    async def scenario(served: Worker) -> None:
        client = HttpAckClient(acknowledge_seconds=60)
        await client.send(served.server.address, message(**info), Context())
        assert taken == [message(**info)]
        with pytest.raises(RefusedError, match="two-part"):
            await client.send(served.server.address, message(name="bad", **info), Context())
        await client.aclose()

    def accept(given: bytes, *, peer: Peer) -> None:
        assert peer.address == "127.0.0.1"
        if b"bad" in given:
            raise RefusedError("this is no two-part message", code="INVALID_ARGUMENT")
        taken.append(given)

    scene(scenario, accept=accept)


def test_ways_that_a_worker_does_not_have_are_refused() -> None:
    """B.6: before anything is done."""

    async def scenario(served: Worker) -> None:
        info: dict[str, Any] = {"connection_info": {"transport": "tcp_server", "info": "{}"}}
        assert (await served.ask("POST", "/v1/rpc/echo", message(**info))).status == 400
        info = {"connection_info": {"transport": "http_response", "info": "nonsense"}}
        assert (await served.ask("POST", "/v1/rpc/echo", message(**info))).status == 400
        assert (await served.ask("POST", "/v1/rpc/echo", message(**attached("a/b")))).status == 400
        many = message(request_type="many_in", **attached("one"))
        assert (await served.ask("POST", "/v1/rpc/echo", many)).status == 400

    scene(scenario)


def test_requests_are_counted_under_the_names_of_dashboards() -> None:
    """A-132, A-142, A-143, A-144: by what is put around the application."""
    registry = CollectorRegistry()
    metrics = HttpMetrics(registry)

    async def scenario(served: Worker) -> None:
        assert (await served.ask("POST", "/v1/rpc/echo", message(), Accept=SSE)).status == 200
        assert (await served.ask("POST", "/v1/rpc/echo", b"junk")).status == 400

    scene(scenario, wrap=lambda app: InstrumentedApp(app, metrics, routes=["/v1/rpc"]))
    for code in ("200", "400"):
        labels = {"method": "POST", "route": "/v1/rpc", "code": code}
        assert registry.get_sample_value("http_requests_total", labels) == 1
    assert registry.get_sample_value("http_inflight_requests") == 0
    assert registry.get_sample_value("http_request_bytes_total", {"route": "/v1/rpc"}) == len(message()) + 4
