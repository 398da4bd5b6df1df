"""TLS on either side, and a real ASGI server behind."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from kvrouter.service.proxy import Endpoint

from .wire import OK, STREAM_HEAD, answering, chunk, connected, post, proxying, silence, until, worker

CERTIFICATES = Path(__file__).parent / "certificates"


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "certificate.pem", CERTIFICATES / "key.pem")
    return context


def _client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=CERTIFICATES / "certificate.pem")


async def test_tls_on_both_sides() -> None:
    """Bodies, streams and keep-alive work as they do in clear text."""
    body = b"x" * 300_000
    stream = (STREAM_HEAD, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n") + b"0\r\n\r\n")
    async with (
        worker(answering(*stream), tls=_server_context(), tls_context=_client_context()) as w,
        proxying(w.endpoint, tls=_server_context()) as (server, _),
        connected(server, _client_context()) as client,
    ):
        for _ in range(3):
            answer = await client.ask(post(body))
            assert answer.body == b"data: 1\n\ndata: 2\n\n"

        assert w.requests[0][1] == body
        assert w.connections == 1


async def test_a_worker_whose_certificate_is_not_trusted_is_unreachable() -> None:
    """It is passed over like one that refuses."""
    async with (
        worker(answering(OK), tls=_server_context(), tls_context=ssl.create_default_context()) as bad,
        worker(answering(OK)) as good,
        proxying(bad.endpoint, good.endpoint) as (server, fleet),
        connected(server) as client,
    ):
        answer = await client.ask(post())

        assert answer.headers["x-kvrouter-worker"] == "w1"
        assert fleet.outcomes == ["connect_failed", "ok"]


async def test_leaving_over_tls_aborts_the_worker() -> None:
    """The same promise as in clear text."""
    async with (
        worker(silence) as w,
        proxying(w.endpoint, tls=_server_context()) as (server, fleet),
        connected(server, _client_context()) as client,
    ):
        client.send(post())
        await until(lambda: w.requests)
        client.close()

        await until(lambda: w.closed == 1)
        assert fleet.outcomes == ["client_gone"]


async def test_refusals_reach_a_tls_client() -> None:
    """There is no half-close in TLS; the answer still arrives."""
    async with proxying(tls=_server_context()) as (server, _), connected(server, _client_context()) as client:
        answer = await client.ask(b"GET / HTTP/1.1\r\n\r\n")

        assert answer.status == 400


@asynccontextmanager
async def serving(application: Any, http: str) -> AsyncIterator[int]:
    """A uvicorn server, and its port. One that is left open, as by a test that fails, holds up the end of its loop."""
    config = uvicorn.Config(application, port=0, http=http, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_a_real_asgi_server_behind(http: str) -> None:
    """What vLLM and SGLang run on: whole and streamed answers, reuse, and its notice of a client that left."""
    gone = asyncio.Event()

    async def application(scope: dict[str, object], receive: object, send: object) -> None:
        assert scope["type"] == "http"
        message = await receive()  # type: ignore[operator]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})  # type: ignore[operator]
        if message["body"] == b"wait":
            await receive()  # type: ignore[operator]
            gone.set()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})  # type: ignore[operator]

    async with (
        serving(application, http) as port,
        proxying(Endpoint("127.0.0.1", port)) as (server, fleet),
        connected(server) as client,
    ):
        for _ in range(3):
            answer = await client.ask(post())
            assert (answer.body, answer.whole) == (b"data: 1\n\ndata: [DONE]\n\n", True)
        client.send(post(b"wait"))
        await client.head()
        client.close()
        await asyncio.wait_for(gone.wait(), 60)

        await until(lambda: fleet.outcomes == ["ok", "ok", "ok", "client_gone"])
