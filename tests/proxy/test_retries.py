"""Failures before the first byte: who is asked again, how often, and what the client is told in the end."""

import asyncio
import json
import socket

from kvrouter.errors import NoWorkerError
from kvrouter.service.proxy import Endpoint, Request

from .wire import (
    OK,
    Conversation,
    Fleet,
    answering,
    connected,
    get,
    post,
    proxying,
    silence,
    until,
    unused_endpoint,
    worker,
)


async def _dies(conversation: Conversation) -> None:
    """Script: take a request and close without a word."""
    await conversation.request()


async def test_a_worker_that_refuses_is_replaced_by_the_next() -> None:
    """The client does not notice."""
    async with (
        worker(answering(OK)) as good,
        proxying(await unused_endpoint(), good.endpoint) as (server, fleet),
        connected(server) as client,
    ):
        answer = await client.ask(post(b'{"p":1}'))

        assert (answer.status, answer.headers["x-kvrouter-worker"]) == (200, "w1")
        assert good.requests[0][1] == b'{"p":1}'
        assert fleet.outcomes == ["connect_failed", "ok"]
        assert server.statistics.retries == 1


async def test_a_worker_that_dies_before_its_first_byte_is_replaced() -> None:
    """The request is sent again, with the worker that failed left out."""
    async with (
        worker(_dies) as bad,
        worker(answering(OK)) as good,
        proxying(bad.endpoint, good.endpoint) as (server, fleet),
        connected(server) as client,
    ):
        answer = await client.ask(post())

        assert answer.status == 200
        assert (len(bad.requests), len(good.requests)) == (1, 1)
        assert fleet.told == [("upstream_lost", "w0"), ("first_token", "w1"), ("ok", "w1")]


async def test_attempts_are_bounded() -> None:
    """After the last one the client is told which worker failed how, and when to come back."""
    async with (
        worker(_dies) as bad,
        proxying(*[bad.endpoint] * 5, attempts_max=3) as (server, fleet),
        connected(server) as client,
    ):
        answer = await client.ask(post())

        error = json.loads(answer.body)["error"]
        assert (answer.status, error["code"]) == (502, "worker_lost")
        assert error["message"] == "worker w2: the worker closed the connection before its answer"
        assert answer.headers["retry-after"] == "1"
        assert fleet.outcomes == ["upstream_lost"] * 3
        assert (await client.ask(get("/livez"))).status == 200


async def test_when_no_other_worker_is_left_the_failure_is_told() -> None:
    """Unreachable is 503: nothing was done, so it is safe to try again."""
    async with proxying(await unused_endpoint()) as (server, fleet), connected(server) as client:
        answer = await client.ask(post())

        error = json.loads(answer.body)["error"]
        assert (answer.status, error["code"]) == (503, "worker_unreachable")
        assert "worker w0: cannot connect" in error["message"]
        assert fleet.outcomes == ["connect_failed"]


async def test_no_worker_at_all_is_503_with_the_routers_retry_after() -> None:
    """The dispatcher's NoWorkerError is passed on."""
    async with proxying() as (server, _), connected(server) as client:
        answer = await client.ask(post())

        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert json.loads(answer.body)["error"]["code"] == "no_worker"


async def test_a_stale_kept_alive_connection_is_replaced_at_once() -> None:
    """A worker that closes idle connections early costs nothing: same worker, no attempt lost, nobody told."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(OK)
        if conversation.number == 1:
            await conversation.request()  # the next request arrives, and is met with a close
            return
        await conversation.request()
        conversation.send(OK)
        await conversation.closed()

    async with worker(script) as w, proxying(w.endpoint, attempts_max=1) as (server, fleet):
        async with connected(server) as client:
            statuses = [(await client.ask(post())).status for _ in range(3)]

        assert statuses == [200, 200, 200]
        assert w.connections == 2
        assert fleet.outcomes == ["ok", "ok", "ok"]
        assert (server.statistics.stale_retries, server.statistics.attempts) == (1, 3)


async def test_many_stale_connections_cost_one_retry() -> None:
    """After one stale connection a new one is opened, instead of trying the whole pool."""
    closing = False

    async def script(conversation: Conversation) -> None:
        while True:
            await conversation.request()
            if closing and conversation.number <= 8:
                return
            await until(lambda: conversation.worker.connections >= 8)
            conversation.send(OK)

    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        others = [connected(server) for _ in range(8)]
        clients = [await each.__aenter__() for each in others]
        for sending in clients:
            sending.send(post())
        for sending in clients:
            await sending.answer()
        closing = True

        assert (await client.ask(post())).status == 200
        assert w.connections == 9
        for each in others:
            await each.__aexit__(None, None, None)


async def test_a_worker_that_closes_its_idle_connections_is_noticed_at_once() -> None:
    """A connection closed while idle leaves the pool before anyone uses it."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(OK)

    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        await client.ask(post())
        await until(lambda: server.pool.connections(w.endpoint) == (0, 0))

        assert (await client.ask(post())).status == 200
        assert server.statistics.stale_retries == 0


async def test_only_repeatable_requests_are_sent_twice() -> None:
    """A POST that is not inference may have taken effect: it is sent once, on a new connection."""

    async def script(conversation: Conversation) -> None:
        head, _ = await conversation.request()
        if head.startswith(b"GET"):
            conversation.send(OK)
            await conversation.request()

    async with worker(script) as w, worker(answering(OK)) as other:
        fleet = Fleet(w.endpoint, other.endpoint, is_inference=False)
        async with proxying(fleet=fleet) as (server, _), connected(server) as client:
            await client.ask(get())
            answer = await client.ask(post(path="/workers"))

            assert answer.status == 502
            assert [head.split()[0] for head, _ in w.requests] == [b"GET", b"POST"]
            assert w.connections == 2
            assert other.requests == []
            assert (await client.ask(b"DELETE /workers/a HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200


async def test_a_partial_head_is_not_repeated() -> None:
    """Once a worker has sent a byte it may have worked: 502, and nobody else is asked."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(b"HTTP/1.1 200 OK\r\ncontent-")
        await conversation.flush()

    async with (
        worker(script) as w,
        worker(answering(OK)) as other,
        proxying(w.endpoint, other.endpoint) as (server, fleet),
        connected(server) as client,
    ):
        answer = await client.ask(post())

        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "worker_lost")
        assert fleet.told == [("upstream_lost", "w0")]
        assert other.requests == []


async def test_a_malformed_answer_is_502() -> None:
    """Ambiguous framing from a worker is never passed on; that connection is not used again."""
    bad = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}"
    for garbage in (bad, b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 101 Sw\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000):
        async with (
            worker(answering(garbage)) as w,
            proxying(w.endpoint) as (server, fleet),
            connected(server) as client,
        ):
            answer = await client.ask(post())

            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "worker_bad_response")
            assert fleet.outcomes == ["bad_response"]
            pool, endpoint = server.pool, w.endpoint
            await until(lambda pool=pool, endpoint=endpoint: pool.connections(endpoint) == (0, 0))  # type: ignore[misc]


async def test_bytes_after_an_answer_end_the_connection() -> None:
    """An answer nobody asked for never reaches the next client."""
    async with (
        worker(answering(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")) as w,
        proxying(w.endpoint) as (server, _),
        connected(server) as client,
    ):
        first, second = await client.ask(post()), await client.ask(post())

        assert (first.body, second.body) == (b"{}", b"{}")
        assert w.connections == 2


async def test_a_silent_worker_is_504() -> None:
    """No first byte in time: the worker is told to stop, and no other one repeats the work."""
    now = 1000.0
    async with (
        worker(silence) as w,
        worker(answering(OK)) as other,
        proxying(w.endpoint, other.endpoint, first_byte_seconds=10.0, clock=lambda: now) as (server, fleet),
        connected(server) as client,
    ):
        client.send(post())
        await until(lambda: w.requests)
        now += 60.0
        answer = await client.answer()

        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (504, "worker_timeout")
        assert fleet.outcomes == ["timeout"]
        assert other.requests == []
        await until(lambda: w.closed == 1)
        assert (await client.ask(get("/livez"))).status == 200


async def test_a_worker_that_does_not_accept_in_time_is_replaced() -> None:
    """The connect timeout counts as an unreachable worker."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(3):  # fill the backlog: further SYNs get no answer
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        async with worker(answering(OK)) as good:
            endpoint = Endpoint("127.0.0.1", full.getsockname()[1])
            async with (
                proxying(endpoint, good.endpoint, connect_seconds=2) as (server, fleet),
                connected(server) as client,
            ):
                answer = await client.ask(post())

        for filler in fillers:
            filler.close()
    assert answer.status == 200
    assert fleet.outcomes == ["connect_failed", "ok"]


async def test_waiting_for_a_route_has_an_end() -> None:
    """A dispatcher that never answers is given up."""

    class Stuck(Fleet):
        cancelled = 0

        async def _never(self) -> object:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            raise NoWorkerError("never")

        def route(self, request: Request, excluded: object) -> object:  # type: ignore[override]
            return self._never()

    fleet = Stuck()
    async with proxying(fleet=fleet, first_byte_seconds=0.1) as (server, _), connected(server) as client:
        answer = await client.ask(post())
        await until(lambda: fleet.cancelled == 1)

        assert answer.status == 504
        assert fleet.outcomes == []


async def test_all_connections_in_use_lets_another_worker_answer() -> None:
    """A worker at its connection limit is passed over when none becomes free in time."""
    async with (
        worker(silence) as busy,
        worker(answering(OK)) as other,
        proxying(busy.endpoint, other.endpoint, worker_connections_max=1, connect_seconds=2) as (server, fleet),
        connected(server) as first,
        connected(server) as second,
    ):
        first.send(post())
        await until(lambda: busy.requests)
        answer = await second.ask(post())

        assert answer.headers["x-kvrouter-worker"] == "w1"
        assert fleet.outcomes == ["saturated", "ok"]


async def test_those_who_wait_for_a_connection_are_served_in_order() -> None:
    """One connection serves ten clients, first come first served."""
    async with worker(answering(OK)) as w, proxying(w.endpoint, worker_connections_max=1) as (server, fleet):
        clients = [connected(server) for _ in range(10)]
        entered = [await each.__aenter__() for each in clients]
        for number, client in enumerate(entered):
            client.send(post(b"%d" % number))
        for client in entered:
            assert (await client.answer()).status == 200

        assert w.connections == 1
        assert sorted(body for _, body in w.requests) == [b"%d" % number for number in range(10)]
        assert fleet.outcomes == ["ok"] * 10
        for each in clients:
            await each.__aexit__(None, None, None)
