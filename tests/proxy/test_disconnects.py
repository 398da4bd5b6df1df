"""A client that leaves takes its work with it, at once and in every phase."""

import asyncio

import pytest

from kvrouter.service.proxy import Request, Route

from .wire import (
    OK,
    STREAM_HEAD,
    Conversation,
    Fleet,
    answering,
    chunk,
    connected,
    post,
    proxying,
    silence,
    until,
    worker,
)


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_leaving_while_the_worker_is_silent_aborts_it(how: str) -> None:
    """Not streaming, no byte answered yet: the engine must still see it and stop."""
    async with worker(silence) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        client.send(post())
        await until(lambda: w.requests)
        if how == "close":
            client.close()
        elif how == "reset":
            client.reset()
        else:
            client.writer.write_eof()

        await until(lambda: w.closed == 1)
        assert fleet.outcomes == ["client_gone"]
        assert server.statistics.requests_active == 0
        await until(lambda: server.statistics.connections_open == 0)


async def test_leaving_in_the_middle_of_a_stream_aborts_the_worker() -> None:
    """The worker sees its connection closed although it was not writing."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(STREAM_HEAD + chunk(b"data: 1\n\n"))
        await conversation.closed()

    async with worker(script) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        client.send(post())
        await client.head()
        client.close()

        await until(lambda: w.closed == 1)
        assert fleet.outcomes == ["client_gone"]


async def test_leaving_while_the_worker_writes_aborts_it() -> None:
    """An endless stream ends with its client."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(STREAM_HEAD)
        try:
            while True:
                conversation.send(chunk(b"data: 1\n\n"))
                await conversation.flush()
                await asyncio.sleep(0)
        except ConnectionError:
            conversation.worker.closed += 1

    async with worker(script) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        client.send(post())
        await client.reader.readexactly(1000)
        client.close()

        await until(lambda: w.closed == 1)
        assert fleet.outcomes == ["client_gone"]


async def test_leaving_while_a_route_is_awaited_cancels_it() -> None:
    """A tokenisation for nobody is given up."""
    cancelled = asyncio.Event()
    asked = asyncio.Event()

    class Tokenising(Fleet):
        async def _tokenise(self) -> Route:
            asked.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

        def route(self, request: Request, excluded: object) -> object:  # type: ignore[override]
            return self._tokenise()

    fleet = Tokenising()
    async with proxying(fleet=fleet) as (server, _), connected(server) as client:
        client.send(post())
        await asked.wait()
        client.close()

        await asyncio.wait_for(cancelled.wait(), 60)
        assert fleet.told == []


async def test_a_route_decided_in_the_moment_of_leaving_is_given_back() -> None:
    """The dispatcher hears of every route it gave, also of one that came too late."""
    async with worker(answering(OK)) as w:
        late: list[asyncio.Future[Route]] = []

        class Late(Fleet):
            def route(self, request: Request, excluded: object) -> object:  # type: ignore[override]
                late.append(asyncio.get_running_loop().create_future())
                return late[0]

        fleet = Late(w.endpoint)
        async with proxying(fleet=fleet) as (server, _), connected(server) as client:
            client.send(post())
            await until(lambda: late)
            await asyncio.sleep(0)
            for connection in server._connections:
                connection.abort()
            late[0].set_result(Route(w.endpoint, "w0"))  # seen after the loss of the connection, in the same turn
            await until(lambda: fleet.told)

            assert fleet.told == [("client_gone", "w0")]
            assert w.requests == []


async def test_leaving_before_a_route_is_awaited_cancels_it_too() -> None:
    """Whoever keeps a place for it must hear that nobody wants it, although no task has begun to wait."""
    asked: list[asyncio.Future[Route]] = []

    class Waiting(Fleet):
        def route(self, request: Request, excluded: object) -> object:  # type: ignore[override]
            for connection in server._connections:
                connection.abort()  # heard of before the task that is made next takes its first step
            asked.append(asyncio.get_running_loop().create_future())
            return asked[0]

    fleet = Waiting()
    async with proxying(fleet=fleet) as (server, _), connected(server) as client:
        client.send(post())

        await until(lambda: asked and asked[0].cancelled())
        assert fleet.told == []


async def test_leaving_while_connecting_gives_the_place_back() -> None:
    """Also while waiting for a free connection: the next in line gets it."""
    async with (
        worker(silence) as w,
        proxying(w.endpoint, worker_connections_max=1, connect_seconds=30) as (server, fleet),
        connected(server) as first,
        connected(server) as second,
        connected(server) as third,
    ):
        first.send(post(b"1"))
        await until(lambda: w.requests)
        second.send(post(b"2"))
        third.send(post(b"3"))
        await until(lambda: len(fleet.requests) == 3)
        second.close()
        await until(lambda: "client_gone" in fleet.outcomes)
        first.close()
        await until(lambda: len(w.requests) == 2)

        assert w.requests[1][1] == b"3"
        assert fleet.outcomes == ["client_gone", "client_gone"]


async def test_leaving_in_the_middle_of_a_request_leaves_nothing() -> None:
    """No worker is asked, and the memory of the body is given back."""
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        client.send(post(b"x" * 100_000)[:-1])
        await until(lambda: server.statistics.buffered_bytes == 100_000)
        client.close()

        await until(lambda: server.statistics.connections_open == 0)
        assert server.statistics.buffered_bytes == 0
        assert server.statistics.requests_active == 0
        assert fleet.requests == []


async def test_a_client_that_left_does_not_disturb_others() -> None:
    """The aborted connection is not put back into the pool."""
    async with worker(silence) as slow, worker(answering(OK)) as w:
        fleet = Fleet(slow.endpoint)
        async with proxying(fleet=fleet) as (server, _):
            async with connected(server) as client:
                client.send(post())
                await until(lambda: slow.requests)
            await until(lambda: fleet.outcomes == ["client_gone"])
            await until(lambda: server.pool.connections(slow.endpoint) == (0, 0))
            fleet.endpoints = {"w1": w.endpoint}
            async with connected(server) as client:
                assert (await client.ask(post())).status == 200
