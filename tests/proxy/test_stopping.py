"""Stopping: answers say so, what is under way may finish, what does not is cut, and nothing is left behind."""

import asyncio
import gc
import warnings

import pytest

from .wire import (
    OK,
    STREAM_HEAD,
    Conversation,
    Fleet,
    answering,
    chunk,
    connected,
    get,
    post,
    proxying,
    silence,
    until,
    worker,
)


async def test_answers_say_close_once_draining_begins() -> None:
    """Local ones, proxied ones and streams; requests are still taken, so that balancers can move on first."""
    async with (
        worker(answering(OK)) as w,
        proxying(w.endpoint) as (server, _),
        connected(server) as first,
        connected(server) as second,
    ):
        assert "connection" not in (await first.ask(post())).headers
        server.begin_drain()

        assert (await first.ask(post())).headers["connection"] == "close"
        assert (await second.ask(get("/livez"))).headers["connection"] == "close"
        assert await first.closed() == b""
        async with connected(server) as third:
            assert (await third.ask(post())).status == 200


async def test_draining_waits_for_what_is_under_way() -> None:
    """A stream finishes, a half-sent request is answered, idle connections close, new ones are refused."""
    go = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(STREAM_HEAD)
        await go.wait()
        conversation.send(chunk(b"data: 1\n\n") + b"0\r\n\r\n")
        await conversation.flush()

    async with (
        worker(script) as w,
        proxying(w.endpoint) as (server, fleet),
        connected(server) as idle,
        connected(server) as busy,
        connected(server) as sending,
    ):
        await idle.ask(get("/livez"))
        busy.send(post())
        await busy.head()
        sending.send(post(b"hello", "/echo")[:-1])
        await until(lambda: server.statistics.requests_active == 2)
        draining = asyncio.create_task(server.drain(30))

        assert await idle.closed() == b""
        assert server.port == 0
        sending.send(b"o")
        assert (await sending.answer()).body == b"hello"
        go.set()
        assert (await busy.reader.read()).endswith(b"0\r\n\r\n")
        assert await draining == 0
        assert fleet.outcomes == ["ok"]


async def test_draining_waits_for_a_client_that_reads_slowly() -> None:
    """An answer that is still in our buffers is not thrown away."""
    big = b"x" * 600_000
    async with proxying() as (server, _), connected(server, receive_buffer=4096) as client:
        client.pause_reading()
        for _ in range(40):
            client.send(post(big, "/echo"))
        await until(lambda: any(each.write_paused for each in server._connections))
        draining = asyncio.create_task(server.drain(30))
        await until(lambda: server.port == 0)
        client.resume_reading()

        answers = [await client.answer()]
        while "connection" not in answers[-1].headers:
            answers.append(await client.answer())
        assert all(answer.whole and len(answer.body) == len(big) for answer in answers)
        assert await draining == 0


async def test_what_does_not_finish_is_cut() -> None:
    """After the time given, the worker is let go, the client is told to come again, and the number is told."""
    async with worker(silence) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        client.send(post())
        await until(lambda: w.requests)

        assert await server.drain(0.05) == 1
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert "retry-after" in answer.headers
        assert b"stopping" in answer.body
        assert await client.closed() == b""
        await until(lambda: w.closed == 1)
        assert fleet.outcomes == ["client_gone"]


async def test_a_stream_that_does_not_finish_ends_with_an_error_event() -> None:
    """Its client can tell it from one that is whole, and why it is short."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(STREAM_HEAD + chunk(b"data: 1\n\n"))
        await conversation.closed()

    async with worker(script) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        client.send(post())
        await client.head()

        assert await server.drain(0.05) == 1
        rest = await client.closed()
        assert rest.startswith(chunk(b"data: 1\n\n"))
        assert b"stopping" in rest
        assert not rest.endswith(b"0\r\n\r\n")
        await until(lambda: w.closed == 1)
        assert fleet.outcomes == ["client_gone"]
        assert server.statistics.truncated == 1


async def test_an_upload_that_does_not_finish_is_cut() -> None:
    """Nobody waits for what a client has not sent in the time given."""
    async with proxying() as (server, fleet), connected(server) as client:
        client.send(post(b"hello", "/echo")[:-1])
        await until(lambda: server.statistics.requests_active == 1)

        assert await server.drain(0.05) == 1
        assert await client.closed() == b""
        assert fleet.outcomes == []


async def test_closing_leaves_nothing_behind() -> None:
    """Pending routes, connects and connections of both kinds are gone; a second close is harmless."""

    class Stuck(Fleet):
        def route(self, request: object, excluded: object) -> object:  # type: ignore[override]
            return asyncio.sleep(3600)

    async with (
        worker(silence) as w,
        proxying(w.endpoint) as (server, fleet),
        proxying(fleet=Stuck()) as (other, _),
        connected(server) as first,
        connected(other) as second,
    ):
        first.send(post())
        second.send(post())
        await until(lambda: w.requests and other.statistics.requests_active)
        await server.close()
        await other.close()
        await server.close()

        assert server.statistics.connections_open == other.statistics.connections_open == 0
        assert server.statistics.requests_active == other.statistics.requests_active == 0
        assert fleet.outcomes == ["client_gone"]
        await until(lambda: w.closed == 1)
        assert not [task for task in asyncio.all_tasks() if "_await_route" in repr(task)]


def test_the_stock_event_loop_serves_as_well() -> None:
    """The faster one is not necessary."""

    async def scenario() -> tuple[int, bytes, list[str]]:
        async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
            await client.ask(post(b"x" * 100_000))
            answer = await client.ask(post())
            return answer.status, answer.body, fleet.outcomes

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asyncio.run(scenario()) == (200, b"{}", ["ok", "ok"])
        gc.collect()


async def test_an_error_while_sweeping_does_not_end_the_sweeps() -> None:
    """Deadlines are looked at again, whatever happened."""
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))
    async with proxying(keepalive_seconds=0.1) as (server, _):
        fails = iter([True])

        def expire() -> None:
            if next(fails, False):
                raise RuntimeError("once")

        server.pool.expire = expire  # type: ignore[method-assign]
        async with connected(server) as client:
            assert await client.closed() == b""

    assert [str(problem) for problem in problems] == ["once"]


@pytest.mark.parametrize("seconds", [0.0, 5.0])
async def test_draining_an_idle_server_is_quick(seconds: float) -> None:
    """Nothing to wait for."""
    async with proxying() as (server, _):
        assert await server.drain(seconds) == 0
