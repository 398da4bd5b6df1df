"""The client's side over real sockets: pipelining, bodies, expectations, refusals, limits and timeouts."""

import asyncio
import json

import pytest

from kvrouter.errors import RequestError, UnknownModelError
from kvrouter.service.proxy import Reply, Request, Route

from .wire import OK, Answer, Conversation, Fleet, answering, connected, get, post, proxying, until, worker

_POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


def _error(answer: Answer) -> dict[str, str | None]:
    """Return the OpenAI-shaped error of an answer; it must have all four fields."""
    error: dict[str, str | None] = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Requests sent without waiting are answered one after the other, local ones too."""

    async def script(conversation: Conversation) -> None:
        while True:
            _, body = await conversation.request()
            await asyncio.sleep(0.01 if body == b"1" else 0)
            conversation.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n" + body)

    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        client.send(post(b"1") + post(b"x", "/echo") + post(b"2") + get("/livez") + post(b"3"))

        bodies = [(await client.answer()).body for _ in range(5)]
        assert bodies == [b"1", b"x", b"2", b"alive", b"3"]
        assert w.connections == 1


async def test_a_pipelining_client_that_never_reads_is_held_back() -> None:
    """Its answers do not pile up in memory: no further request is read until it reads."""
    big = b"x" * 50_000
    async with proxying() as (server, _), connected(server, receive_buffer=4096) as client:
        client.pause_reading()
        for _ in range(400):
            client.send(post(big, "/echo"))
        await until(lambda: any(each.write_paused for each in server._connections))
        handled = server.statistics.requests
        for _ in range(20):
            await asyncio.sleep(0.005)

        assert server.statistics.requests == handled
        assert handled < 200
        client.resume_reading()
        for _ in range(400):
            assert len((await client.answer()).body) == 50_000


async def test_a_chunked_request_body_reaches_the_worker_with_a_length() -> None:
    """Routing needs the whole body, so it goes on whole; its bytes are the same, trailers are dropped."""
    request = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    request += b'5\r\n{"a":\r\n3;x=y\r\n 1}\r\n0\r\nX-Trailer: 1\r\n\r\n'
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        for start in range(0, len(request), 9):
            client.send(request[start : start + 9])
            await asyncio.sleep(0)
        await client.answer()

        head, body = w.requests[0]
        assert body == b'{"a": 1}'
        assert b"content-length: 8\r\n" in head
        assert b"chunked" not in head.lower()
        assert b"X-Trailer" not in head


async def test_expect_100_continue() -> None:
    """The client is told to go on once the head is accepted, and the worker is not asked."""
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        whole = post(b"hello", headers="Expect: 100-continue\r\n")
        client.send(whole[:-5])
        interim = await client.answer()
        client.send(whole[-5:])
        final = await client.answer()

        assert (interim.status, final.status) == (100, 200)
        assert w.requests[0][1] == b"hello"
        assert b"expect" not in w.requests[0][0].lower()


async def test_no_continue_when_the_body_is_there_or_refused() -> None:
    """A body that came along needs no 100, and a refused request gets its refusal instead."""
    async with worker(answering(OK)) as w, proxying(w.endpoint, body_bytes_max=10) as (server, _):
        async with connected(server) as client:
            assert (await client.ask(post(b"hello", headers="Expect: 100-continue\r\n"))).status == 200
        async with connected(server) as client:
            assert (await client.ask(post(b"x" * 11, headers="Expect: 100-continue\r\n")[:-11])).status == 413


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (_POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "malformed_request"),
        (_POST + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "malformed_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "http_version"),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method_not_allowed"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417, "expectation_failed"),
        (b"GET /" + b"x" * 9000, 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431, "too_many_headers"),
        (_POST + b"Content-Length: 99999999\r\n\r\n", 413, "body_too_large"),
    ],
)  # fmt: skip
async def test_refusals_say_why_and_close(request_bytes: bytes, status: int, code: str) -> None:
    """One OpenAI-shaped error, then the end of the connection; what follows is never read as a request."""
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        client.send(request_bytes + post(b"smuggled"))
        answer = await client.answer()

        assert answer.status == status
        assert _error(answer)["code"] == code
        assert answer.headers["connection"] == "close"
        assert await client.closed() == b""
        assert fleet.requests == []
        assert server.statistics.refusals == {code: 1}


async def test_a_large_refused_body_does_not_hide_the_refusal() -> None:
    """A client in the middle of sending reads its 413 instead of a reset."""
    async with proxying(body_bytes_max=1000) as (server, _), connected(server) as client:
        client.send(post(b"x" * 600_000))
        answer = await client.answer()

        assert answer.status == 413
        assert _error(answer)["message"] == "the request body exceeds 1000 bytes"


async def test_a_refusal_by_the_dispatcher_comes_before_the_body() -> None:
    """A client without a key cannot make us hold a large body; one without a body keeps its connection."""
    async with proxying() as (server, fleet), connected(server) as client:
        first = await client.ask(get(headers="X-Refuse: 1\r\n"))
        second = await client.ask(post(b"x" * 1_000_000, headers="X-Refuse: 1\r\n")[:200])

        assert (first.status, second.status) == (401, 401)
        assert "connection" not in first.headers
        assert second.headers["connection"] == "close"
        assert fleet.requests == []


async def test_errors_of_the_dispatcher_become_replies() -> None:
    """Our own errors carry their status; others are 500, counted and reported without their text."""
    seen: list[tuple[str, Exception]] = []

    class Failing(Fleet):
        error: Exception = RuntimeError("secret")

        def route(self, request: Request, excluded: object) -> Reply:
            raise self.error

    fleet = Failing()
    async with proxying(fleet=fleet, on_error=lambda *told: seen.append(told)) as (server, _):
        async with connected(server) as client:
            internal = await client.ask(post())
            fleet.error = UnknownModelError("x", ["b", "a"])
            unknown = await client.ask(post())
            fleet.error = RequestError("bad JSON", code="invalid_json", param="body")
            bad = await client.ask(post())

        assert (internal.status, _error(internal)["code"]) == (500, "internal_error")
        assert b"secret" not in internal.body
        assert [where for where, _ in seen] == ["route"]
        assert server.statistics.internal_errors == 1
        assert (unknown.status, _error(unknown)["code"]) == (404, "model_not_found")
        assert "known models: a, b" in str(_error(unknown)["message"])
        assert (bad.status, _error(bad)["param"]) == (400, "body")


async def test_an_error_never_repeats_megabytes_of_what_was_sent() -> None:
    """The name that nobody knows is cut before those that somebody does."""

    class Failing(Fleet):
        error: Exception = UnknownModelError("x" * 10_000_000, ["b", "a", *(f"m{n:04}" for n in range(4000))])

        def route(self, request: Request, excluded: object) -> Reply:
            raise self.error

    fleet = Failing()
    async with proxying(fleet=fleet) as (server, _), connected(server) as client:
        unknown = _error(await client.ask(post()))
        fleet.error = RequestError("y" * 10_000_000, param="z" * 10_000_000)
        quoted = await client.ask(post())

    assert "xxx...' is not served here; known models: a, b, m0000" in str(unknown["message"])
    assert str(unknown["message"]).endswith(" and 3938 more")
    assert len(quoted.body) < 5000


@pytest.mark.parametrize("call", ["admit", "try_local", "first_token", "finished"])
async def test_a_bug_in_the_dispatcher_harms_one_request_at_most(call: str) -> None:
    """Before the answer it is a 500, after that the answer still arrives; it is counted, reported, and over."""
    reported: list[str] = []

    def broken(*_: object) -> None:
        raise RuntimeError("bug")

    async with worker(answering(OK)) as w:
        fleet = Fleet(w.endpoint)
        setattr(fleet, call, broken)
        async with proxying(fleet=fleet, on_error=lambda where, _: reported.append(where)) as (server, _):
            async with connected(server) as client:
                status = (await client.ask(post())).status
            delattr(fleet, call)
            async with connected(server) as client:
                after = (await client.ask(post())).status

        assert (status, after) == (500 if call in ("admit", "try_local") else 200, 200)
        assert reported == [call]
        assert server.statistics.internal_errors == 1


async def test_what_is_no_worker_is_not_named() -> None:
    """A route without a worker id, such as our own admin API, shows no route headers and reads well in an error."""

    class Admin(Fleet):
        def route(self, request: Request, excluded: object) -> Route:
            return Route(self.endpoints["w0"], "", is_inference=False)

    async with worker(answering(OK)) as w, proxying(fleet=Admin(w.endpoint)) as (server, _):
        async with connected(server) as client:
            answer = await client.ask(get())
            w.stop()
            failed = await client.ask(get())

        assert not [name for name in answer.headers if name.startswith("x-kvrouter")]
        assert str(_error(failed)["message"]).startswith("the service behind this path: cannot connect")


async def test_a_route_may_take_its_time() -> None:
    """A dispatcher that tokenises elsewhere answers later; replies and errors work the same."""
    async with worker(answering(OK)) as w:

        class Slow(Fleet):
            async def _later(self, request: Request, excluded: tuple[str, ...]) -> object:
                await asyncio.sleep(0)
                if request.body == b"reply":
                    return Reply(418, b"tea")
                if request.body == b"error":
                    raise RequestError("no", status=422)
                return Fleet.route(self, request, excluded)

            def route(self, request: Request, excluded: object) -> object:  # type: ignore[override]
                return self._later(request, ())

        async with proxying(fleet=Slow(w.endpoint)) as (server, _), connected(server) as client:
            statuses = [(await client.ask(post(body))).status for body in (b"{}", b"reply", b"error")]

        assert statuses == [200, 418, 422]


async def test_a_slow_head_is_408_however_many_bytes_come() -> None:
    """Bytes do not prolong the time for a head (slowloris)."""
    async with proxying(header_seconds=0.2) as (server, _), connected(server) as client:
        client.send(b"GET / HTTP/1.1\r\n")

        async def drip() -> None:
            while True:
                client.send(b"X: y\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        answer = await client.answer()
        dripping.cancel()

        assert (answer.status, _error(answer)["code"]) == (408, "request_timeout")


async def test_a_body_that_stops_is_408() -> None:
    """Silence within a body ends the request; progress prolongs it."""
    now = 1000.0
    async with proxying(body_seconds=10.0, clock=lambda: now) as (server, _), connected(server) as client:
        client.send(post(b"x" * 100)[:-50])
        for _ in range(8):
            await until(lambda: [each.deadline for each in server._connections] == [now + 10.0])  # noqa: B023
            now += 6.0
            await until(lambda: server._plane.now == now)  # noqa: B023 - awaited here: deadlines have been looked at
            client.send(b"x")
        await until(lambda: [each.deadline for each in server._connections] == [now + 10.0])
        now += 60.0
        answer = await client.answer()

        assert (answer.status, _error(answer)["code"]) == (408, "request_timeout")
        assert server.statistics.buffered_bytes == 0


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    """Before its first request and after one."""
    async with proxying(keepalive_seconds=0.1) as (server, _), connected(server) as fresh, connected(server) as used:
        await used.ask(get("/livez"))

        assert await fresh.closed() == b""
        assert await used.closed() == b""


async def test_too_many_connections_are_refused() -> None:
    """One more than allowed gets 503 with Retry-After; a place that becomes free is used again."""
    async with proxying(connections_max=2) as (server, _):
        async with connected(server) as first, connected(server) as second:
            await first.ask(get("/livez"))
            await second.ask(get("/livez"))
            async with connected(server) as third:
                answer = await third.answer()
        await until(lambda: not server._connections)
        async with connected(server) as fourth:
            after = await fourth.ask(get("/livez"))

    assert (answer.status, answer.headers["retry-after"], after.status) == (503, "1", 200)
    assert server.statistics.connections_refused == 1


async def test_bodies_in_memory_are_bounded_together() -> None:
    """Many large bodies at once: the one too many is refused, and memory is given back."""
    async with proxying(buffered_bytes_max=250_000) as (server, _):
        async with connected(server) as first, connected(server) as second, connected(server) as third:
            for client in (first, second):
                client.send(post(b"x" * 100_000, "/echo")[:-10])
            await until(lambda: server.statistics.buffered_bytes == 200_000)
            chunked = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            third.send(chunked + b"186a0\r\n" + b"x" * 99_000)
            refused = await third.answer()
            first.send(b"x" * 10)
            accepted = await first.answer()

            assert (refused.status, _error(refused)["code"]) == (503, "buffers_full")
            assert refused.headers["retry-after"] == "1"
            assert len(accepted.body) == 100_000
        await until(lambda: server.statistics.buffered_bytes == 0)


async def test_large_bodies_go_through_whole() -> None:
    """Several megabytes, both ways."""
    body = bytes(range(256)) * 16_384

    async def script(conversation: Conversation) -> None:
        _, received = await conversation.request()
        conversation.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(received) + received)
        await conversation.flush()

    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        answer = await client.ask(post(body))

        assert answer.body == body
