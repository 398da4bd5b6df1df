"""What a worker's HTTP request plane refuses, and with which status."""

import asyncio
import http.client
import json
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

import pytest

from kvrouter.transport.access import AccessGuard, StaticKeys
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_app import HttpApp, HttpAppOptions
from kvrouter.transport.http_server import HttpRequestServer
from tests.transport.http_scene import SSE, Worker, message, scene


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
