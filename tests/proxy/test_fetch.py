"""The small client for questions of our own, and the pool it shares with the data plane."""

import asyncio

import pytest

from kvrouter.service.proxy import Endpoint, ProxyLimits, Response, UpstreamError, UpstreamPool, fetch

from .wire import (
    OK,
    STREAM_HEAD,
    Conversation,
    answering,
    answering_then_closing,
    chunk,
    silence,
    until,
    unused_endpoint,
    worker,
)


async def _get(pool: UpstreamPool, endpoint: Endpoint, **options: object) -> Response:
    return await fetch(pool, endpoint, "GET", "/health", **options)  # type: ignore[arg-type]


async def test_a_question_and_its_answer() -> None:
    """Method, path, headers, body out; status, headers, body in."""
    pool = UpstreamPool(ProxyLimits())
    async with worker(answering(OK), path_prefix=b"/p", authorization=b"Bearer k") as w:
        answer = await fetch(pool, w.endpoint, "POST", "/tokenize", headers=[(b"x-a", b"1")], body=b'{"a":1}')

        head, body = w.requests[0]
        assert head.startswith(b"POST /p/tokenize HTTP/1.1\r\n")
        assert b"\r\nx-a: 1\r\nauthorization: Bearer k\r\ncontent-length: 7\r\n" in head
        assert (body, answer.status, answer.body) == (b'{"a":1}', 200, b"{}")
        assert (b"content-type", b"application/json") in answer.headers
        pool.close()


async def test_every_framing_is_understood() -> None:
    """Length, chunks in small pieces, until close, none, and interim answers before."""
    pool = UpstreamPool(ProxyLimits())
    chunked = STREAM_HEAD + chunk(b"ab") + chunk(b"c") + b"0\r\n\r\n"
    pieces = [chunked[i : i + 5] for i in range(0, len(chunked), 5)]
    for script, expected in (
        (answering(b"HTTP/1.1 100 Continue\r\n\r\n", OK), b"{}"),
        (answering(*pieces), b"abc"),
        (answering_then_closing(b"HTTP/1.1 200 OK\r\n\r\n", b"until", b"close"), b"untilclose"),
        (answering(b"HTTP/1.1 204 No Content\r\n\r\n"), b""),
    ):
        async with worker(script) as w:
            assert (await _get(pool, w.endpoint)).body == expected
    pool.close()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"", "upstream_lost"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", "upstream_lost"),
        (b"garbage\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, "bad_response"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000, "bad_response"),
        (STREAM_HEAD + b"zz\r\n", "bad_response"),
    ],
)
async def test_anything_but_a_whole_answer_is_an_error(answer: bytes, outcome: str) -> None:
    """And the connection is not kept."""
    pool = UpstreamPool(ProxyLimits())
    async with worker(answering_then_closing(answer)) as w:
        with pytest.raises(UpstreamError) as raised:
            await _get(pool, w.endpoint, max_bytes=1000)

        assert raised.value.outcome == outcome
        await until(lambda: pool.connections(w.endpoint)[0] == 0)


async def test_a_silent_worker_times_out() -> None:
    """The connection is closed, so that the worker stops as well."""
    pool = UpstreamPool(ProxyLimits())
    async with worker(silence) as w:
        (await pool.connect(w.endpoint)).release(reusable=True)  # So that the time is for the answer alone.
        with pytest.raises(UpstreamError) as raised:
            await _get(pool, w.endpoint, timeout_seconds=0.05)

        assert raised.value.outcome == "timeout"
        await until(lambda: w.closed == 1)


async def test_a_refused_connection() -> None:
    """It says why."""
    with pytest.raises(UpstreamError, match="cannot connect") as raised:
        await _get(UpstreamPool(ProxyLimits()), await unused_endpoint())

    assert raised.value.outcome == "connect_failed"


async def test_a_stale_connection_is_replaced() -> None:
    """A kept-alive connection that the worker closes on the next question costs one more try."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(OK)
        await conversation.request()

    pool = UpstreamPool(ProxyLimits())
    async with worker(script) as w:
        await _get(pool, w.endpoint)
        answer = await _get(pool, w.endpoint)

        assert answer.status == 200
        assert w.connections == 2
        pool.close()


async def test_questions_ignore_the_connection_limit() -> None:
    """A worker busy to its limit is still asked for its health."""
    pool = UpstreamPool(ProxyLimits(worker_connections_max=1))
    async with worker(silence) as w:
        busy = await pool.connect(w.endpoint)
        asking = asyncio.create_task(_get(pool, w.endpoint, timeout_seconds=60))
        await until(lambda: w.requests)

        asking.cancel()
        busy.abort()
        await until(lambda: pool.connections(w.endpoint) == (0, 0))


async def test_the_warmest_connection_is_reused_and_the_rest_expire() -> None:
    """Last in, first out; an idle connection is closed in time and never handed out late."""
    now = 0.0
    pool = UpstreamPool(ProxyLimits(pool_idle_seconds=4), clock=lambda: now)
    async with worker(answering(OK)) as w:
        first, second = await pool.connect(w.endpoint), await pool.connect(w.endpoint)
        first.release(reusable=True)
        now = 3.0
        second.release(reusable=True)

        assert pool.take(w.endpoint) is second
        second.release(reusable=True)
        now = 4.5
        pool.expire()
        await until(lambda: pool.connections(w.endpoint) == (1, 1))
        now = 100.0
        assert pool.take(w.endpoint) is None
        await until(lambda: pool.connections(w.endpoint) == (0, 0))
        pool.expire()
        assert pool._endpoints == {}


async def test_idle_connections_are_bounded_and_forgotten() -> None:
    """More than the bound are closed; a worker that is removed keeps none."""
    pool = UpstreamPool(ProxyLimits(pool_idle_max=2))
    async with worker(answering(OK)) as w:
        opened = [await pool.connect(w.endpoint) for _ in range(3)]
        for connection in opened:
            connection.release(reusable=True)
        await until(lambda: pool.connections(w.endpoint) == (2, 2))

        pool.forget(w.endpoint)
        await until(lambda: pool.connections(w.endpoint) == (0, 0))


async def test_bytes_on_an_idle_connection_end_it() -> None:
    """A worker that speaks without being asked is out of step."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(OK)
        await conversation.flush()
        await released.wait()
        conversation.send(OK)
        await conversation.closed()

    released = asyncio.Event()
    pool = UpstreamPool(ProxyLimits())
    async with worker(script) as w:
        await _get(pool, w.endpoint)
        released.set()

        await until(lambda: pool.connections(w.endpoint) == (0, 0))


@pytest.mark.parametrize("endings", [["timeout"], ["cancel"]])
async def test_those_who_stop_waiting_leave_no_gap(endings: list[str]) -> None:
    """A connection handed over in the moment of giving up goes to the next one or back to the pool."""
    pool = UpstreamPool(ProxyLimits(worker_connections_max=1, connect_seconds=1 if endings == ["timeout"] else 30))
    async with worker(silence) as w:
        held = await pool.connect(w.endpoint)
        waiting = asyncio.create_task(pool.connect(w.endpoint))
        await asyncio.sleep(0)
        if endings == ["cancel"]:
            held.release(reusable=True)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert pool.take(w.endpoint) is held
        else:
            with pytest.raises(UpstreamError) as raised:
                await waiting
            assert raised.value.outcome == "saturated"
        held.abort()
        await until(lambda: pool.connections(w.endpoint) == (0, 0))


def test_how_an_endpoint_is_written() -> None:
    """As a person would expect it in a message, and in the Host header."""
    assert str(Endpoint("a", 80)) == "a:80"
    assert str(Endpoint("::1", 80)) == "[::1]:80"
    assert Endpoint("::1", 80).host_header == b"[::1]:80"
    assert str(Endpoint("", 0, unix_path="/x")) == "unix:/x"
