"""The request plane of a worker as plain HTTP clients see it: HTTP/1.1, statuses, events to look at, control."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from kvrouter.errors import RefusedError
from kvrouter.transport.access import AccessGuard, Peer, StaticKeys
from kvrouter.transport.asgi_metrics import HttpMetrics, InstrumentedApp
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_app import HttpApp, HttpAppOptions
from kvrouter.transport.http_client import HttpAckClient
from kvrouter.transport.http_server import HttpRequestServer
from kvrouter.transport.messages import Request, encode_request
from kvrouter.transport.n_part import NPart, encode_n_part, from_two_part
from kvrouter.transport.two_part import decode_two_part, encode_two_part
from tests.transport.conformance import eventually, run
from tests.transport.handlers import Handlers

SSE = "text/event-stream"


@dataclass
class Reply:
    """What a plain client got."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Worker:
    """A server, and a client of HTTP/1.1 as any other program is one."""

    server: HttpRequestServer
    endpoints: Endpoints
    handlers: Handlers = field(default_factory=Handlers)

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        """One request on a connection of its own."""
        return await asyncio.to_thread(self._ask, method, path, body, headers)

    def open(self, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPConnection:
        """Send a request and leave the connection open."""
        connection = http.client.HTTPConnection(urlsplit(self.server.address).netloc, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return connection

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        connection = self.open(method, path, body, **headers)
        response = connection.getresponse()
        reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return reply


def scene(scenario: Callable[[Worker], Coroutine[Any, Any, None]], *, streams_max: int = 100, **options: Any) -> None:
    """Run a scenario on a worker."""

    async def whole() -> None:
        async with worker(streams_max=streams_max, **options) as served:
            await scenario(served)
            served.handlers.release.set()
            await eventually(lambda: not len(served.endpoints) and not len(served.server.app))

    run(whole())


@asynccontextmanager
async def worker(*, streams_max: int = 100, guard: AccessGuard | None = None, **options: Any) -> AsyncIterator[Worker]:
    """A started worker with the handlers of the conformance suite."""
    endpoints, handlers = Endpoints(streams_max=streams_max, guard=guard), Handlers()
    handlers.register(endpoints)
    server = HttpRequestServer(endpoints, **options)
    await server.start()
    try:
        yield Worker(server, endpoints, handlers)
    finally:
        await server.stop()


def message(endpoint: str = "echo", body: bytes = b'{"a":1}', name: str = "r", **control: Any) -> bytes:
    """A request in JSON as two-part message; `connection_info` and other members as given."""
    encoded = encode_request(Request(endpoint=endpoint, body=body, codec="json"), id=name, headers={})
    header, rest = decode_two_part(encoded)
    return encode_two_part(json.dumps(json.loads(bytes(header)) | control).encode(), rest)


def attached(subject: str) -> dict[str, Any]:
    """Asks for an answer that is fetched."""
    return {"connection_info": {"transport": "http_response", "info": json.dumps({"subject": subject})}}


# -- answers ---------------------------------------------------------------------------------------------------------


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
        reply = await served.ask("POST", "/v1/rpc/hang", message("hang", b"1"), Accept=SSE)
        assert b"event: error\ndata: " in reply.body
        assert b"DEADLINE_EXCEEDED" in reply.body
        late = await served.ask("POST", "/v1/rpc/hang", message("hang", b"", "late"), Accept=SSE)
        assert late.status == 504
        await eventually(lambda: sorted(served.handlers.cancelled) == ["late", "r"])

    scene(scenario, options=HttpAppOptions(stream_seconds=0.5))


# -- errors ----------------------------------------------------------------------------------------------------------


def test_what_fails_before_the_first_item_is_a_status() -> None:
    """A-210: statuses before headers, an `error` event afterwards."""

    async def scenario(served: Worker) -> None:
        early = await served.ask("POST", "/v1/rpc/fail_before", message("fail_before", b"typed"), Accept=SSE)
        assert early.status == 404
        assert json.loads(early.body)["error"]["message"] == "no such model"
        late = await served.ask("POST", "/v1/rpc/fail_after", message("fail_after", name="s"), Accept=SSE)
        assert late.status == 200
        assert b"event: error\ndata: " in late.body
        assert b"RESOURCE_EXHAUSTED" in late.body
        other = await served.ask("POST", "/v1/rpc/fail_before", message("fail_before", name="t"), Accept=SSE)
        assert other.status == 500
        assert b"secret" not in other.body

    scene(scenario)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"model": "m", "prompt": "plain JSON, as curl would send it"}', bytes(24)]
)
def test_a_body_that_is_no_message_is_refused_in_words(body: bytes) -> None:
    """A-134, D-8: 400 before any 202, naming the codec."""

    async def scenario(served: Worker) -> None:
        reply = await served.ask("POST", "/v1/rpc/echo", body)
        assert reply.status == 400
        text = json.loads(reply.body)["error"]["message"]
        assert "Invalid message" in text
        assert "two-part codec" in text

    scene(scenario)


def test_what_follows_a_message_is_refused() -> None:
    """D-8: a request has one message, unless it says that items follow."""

    async def scenario(served: Worker) -> None:
        assert (await served.ask("POST", "/v1/rpc/echo", message() + b"more")).status == 400

    scene(scenario)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/rpc/echo", {}, 405),
        ("PUT", "/v1/rpc/response/x", {}, 405),
        ("GET", "/v1/rpc/response/x/stop", {}, 405),
        ("POST", "/v1/rpc/nonsense", {}, 404),
        ("POST", "/elsewhere", {}, 404),
        ("GET", "/v1/rpc/response/unknown", {}, 404),
        ("POST", "/v1/rpc/response/unknown/stop", {}, 404),
        ("POST", "/v1/rpc/response/unknown/else", {}, 404),
        ("DELETE", "/v1/rpc/response/unknown", {}, 404),
        ("POST", "/v1/rpc/echo", {"Content_Type": "application/json"}, 415),
    ],
)
def test_requests_are_refused_with_the_status_that_fits(
    method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """A-125, B.6, B.9: 404, 405 with Allow, 415."""

    async def scenario(served: Worker) -> None:
        reply = await served.ask(method, path, message(""), **headers)
        assert reply.status == status
        assert json.loads(reply.body)["error"]["message"]
        assert ("allow" in reply.headers) == (status == 405)

    scene(scenario)


def test_an_unknown_endpoint_is_told_as_such() -> None:
    """B.6: `Endpoint not found`."""

    async def scenario(served: Worker) -> None:
        assert b"Endpoint not found" in (await served.ask("POST", "/v1/rpc/nonsense", message(""))).body

    scene(scenario)


def test_a_message_beyond_the_limit_is_refused() -> None:
    """B.6: 413, by the length that is told, by that of its prefix, or by what arrives."""
    options = HttpAppOptions(message_bytes_max=1000)

    async def scenario(served: Worker) -> None:
        assert (await served.ask("POST", "/v1/rpc/echo", message(body=bytes(2000)))).status == 413
        assert (await served.ask("POST", "/v1/rpc/echo", message(body=b"1"), Accept=SSE)).status == 200

    scene(scenario, options=options)
    for content_type in ("application/octet-stream", "application/x-kvr-npart"):
        assert asyncio.run(status_of_chunks(options, message(body=bytes(2000)), content_type)) == 413


def test_requests_that_are_not_whole_are_bounded() -> None:
    """B.6: 429, however many clients send a little at a time."""
    options = HttpAppOptions(assembling_bytes_max=1000)

    assert asyncio.run(status_of_chunks(options, message(body=bytes(3000)))) == 429


def test_a_request_that_does_not_arrive_is_given_up() -> None:
    """A client cannot hold a request open for ever."""

    async def scenario(served: Worker) -> None:
        connection = http.client.HTTPConnection(urlsplit(served.server.address).netloc, timeout=60)
        connection.putrequest("POST", "/v1/rpc/echo")
        connection.putheader("Content-Length", "1000")
        await asyncio.to_thread(connection.endheaders, b"a little")
        response = await asyncio.to_thread(connection.getresponse)
        assert response.status == 408
        connection.close()
        response.close()

    scene(scenario, options=HttpAppOptions(body_seconds=0.2))


def test_a_busy_worker_says_when_to_come_back() -> None:
    """B.6: 429, and 503 while it drains, with Retry-After."""

    async def scenario(served: Worker) -> None:
        assert (await served.ask("POST", "/v1/rpc/hang", message("hang", b""))).status == 202
        busy = await served.ask("POST", "/v1/rpc/echo", message(name="s"))
        assert busy.status == 429
        assert int(busy.headers["retry-after"]) > 0
        served.endpoints.draining = True
        draining = await served.ask("POST", "/v1/rpc/echo", message(name="t"))
        assert draining.status == 503
        assert int(draining.headers["retry-after"]) > 0

    scene(scenario, streams_max=1)


def test_health_says_whether_requests_are_taken() -> None:
    """A-164: ready, then draining."""

    async def scenario(served: Worker) -> None:
        ready = await served.ask("GET", "/v1/rpc/health")
        assert ready.status == 200
        assert "echo" in json.loads(ready.body)["endpoints"]
        served.endpoints.draining = True
        assert (await served.ask("GET", "/v1/rpc/health")).status == 503

    scene(scenario)


def test_a_token_is_asked_for() -> None:
    """A-140: bearer tokens; without one, or with another, 401."""

    async def scenario(served: Worker) -> None:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
            reply = await served.ask("POST", "/v1/rpc/echo", message(), **headers)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        assert (await served.ask("POST", "/v1/rpc/echo", message(), Authorization="bearer right")).status == 202

    scene(scenario, guard=AccessGuard(authorise=StaticKeys({"us": "right"})))


# -- answers that are fetched ----------------------------------------------------------------------------------------


def test_an_answer_has_one_consumer() -> None:
    """B.9: 404 unknown, 409 while somebody has it, 410 when it is over."""

    async def scenario(served: Worker) -> None:
        assert (await served.ask("POST", "/v1/rpc/hang", message("hang", b"1", **attached("one")))).status == 202
        connection = await asyncio.to_thread(served.open, "GET", "/v1/rpc/response/one", Accept=SSE)
        response = await asyncio.to_thread(connection.getresponse)
        assert (await served.ask("GET", "/v1/rpc/response/one")).status == 409
        assert (await served.ask("POST", "/v1/rpc/echo", message(name="s", **attached("one")))).status == 409
        served.handlers.release.set()
        assert b"event: done" in await asyncio.to_thread(response.read)
        connection.close()
        await eventually(lambda: not len(served.server.app.answers))
        assert (await served.ask("GET", "/v1/rpc/response/one")).status == 410

    scene(scenario)


def test_an_answer_that_nobody_fetches_is_dropped() -> None:
    """B.9: after the deadline, and its work is killed."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/hang", message("hang", b"", **attached("one")))
        await eventually(lambda: served.handlers.cancelled == ["r"])
        assert (await served.ask("GET", "/v1/rpc/response/one")).status == 410
        assert served.server.app.answers.expired == 1

    scene(scenario, options=HttpAppOptions(attach_seconds=0.2))


def test_an_answer_that_nobody_fetches_yet_is_bounded() -> None:
    """B.9: at most 64 items wait."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/count", message("count", b"1000", **attached("one")))
        answer = served.server.app.answers.find("one")
        await eventually(lambda: answer.has(64))
        assert not answer.has(66)
        reply = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE)
        assert b"id: 999\ndata: 999\n\n" in reply.body

    scene(scenario)


def test_a_lost_consumer_may_come_back() -> None:
    """B.9: with the number of the last item that it has seen, as long as the next one is kept; else 410."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/count", message("count", b"100", **attached("one")))
        first = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE)
        assert b"id: 99\n" in first.body
        await eventually(lambda: not len(served.server.app))
        again = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE, Last_Event_ID="97")
        assert again.body.endswith(b"id: 98\ndata: 98\n\nid: 99\ndata: 99\n\nevent: done\ndata: {}\n\n")
        await eventually(lambda: not len(served.server.app))
        assert b"id: 97" not in again.body
        assert (await served.ask("GET", "/v1/rpc/response/one", Last_Event_ID="3")).status == 410
        assert (await served.ask("GET", "/v1/rpc/response/one", Last_Event_ID="x")).status == 400

    scene(scenario, options=HttpAppOptions(resume_seconds=60))


def test_a_consumer_that_comes_back_in_time_keeps_the_work_alive() -> None:
    """B.9: a cut connection is not the end, where resuming is offered."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/hang", message("hang", b"1", **attached("one")))
        connection = await asyncio.to_thread(served.open, "GET", "/v1/rpc/response/one", Accept=SSE)
        response = await asyncio.to_thread(connection.getresponse)
        connection.close()
        response.close()
        await eventually(lambda: not len(served.server.app))
        served.handlers.release.set()
        again = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE, Last_Event_ID="0")
        assert b"id: 1\ndata: released\n\n" in again.body
        assert served.handlers.cancelled == []

    scene(scenario, options=HttpAppOptions(resume_seconds=60))


def test_a_consumer_that_leaves_ends_the_work() -> None:
    """B.5, B.9: a lost client kills, where resuming is not offered."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/hang", message("hang", b"1", **attached("one")))
        connection = await asyncio.to_thread(served.open, "GET", "/v1/rpc/response/one", Accept=SSE)
        response = await asyncio.to_thread(connection.getresponse)
        connection.close()
        response.close()
        await eventually(lambda: served.handlers.cancelled == ["r"])

    scene(scenario)


def test_an_answer_is_stopped_by_name() -> None:
    """B.5: POST {root}/{subject}/stop lets the handler end by itself; DELETE kills."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/until_stopped", message("until_stopped", **attached("one")))
        assert (await served.ask("POST", "/v1/rpc/response/one/stop")).status == 202
        reply = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE)
        assert b"data: last\n\n" in reply.body
        await served.ask("POST", "/v1/rpc/hang", message("hang", b"1", "s", **attached("two")))
        assert (await served.ask("DELETE", "/v1/rpc/response/two")).status == 204
        await eventually(lambda: served.handlers.cancelled == ["s"])

    scene(scenario)


# -- answers that go another way -------------------------------------------------------------------------------------


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


def test_a_taken_port_is_an_error_at_the_start() -> None:
    """B.6: not a second server that gets a part of the requests."""

    async def scenario(served: Worker) -> None:
        port = urlsplit(served.server.address).port
        assert port is not None
        for second in (HttpRequestServer(Endpoints(), port=port), HttpRequestServer(Endpoints(), response_port=port)):
            with pytest.raises(OSError, match="in use"):
                await second.start()
            await second.stop()

    scene(scenario)


async def status_of_chunks(options: HttpAppOptions, body: bytes, content_type: str = "application/octet-stream") -> int:
    """The status of a request without a length, in chunks, as an ASGI server brings them."""
    chunks = [body[at : at + 500] for at in range(0, len(body), 500)]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(event: MutableMapping[str, Any]) -> None:
        sent.append(event)

    app = HttpApp(Endpoints(), options)
    headers = [(b"content-type", content_type.encode())]
    await app({"type": "http", "method": "POST", "path": "/v1/rpc/echo", "headers": headers}, receive, send)
    return int(sent[0]["status"])
