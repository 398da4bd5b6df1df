"""Slow readers hold back those who write to them; memory stays bounded and flat."""

import asyncio
import gc
import resource
import tracemalloc

from .wire import (
    OK,
    STREAM_HEAD,
    Conversation,
    answering,
    chunk,
    connected,
    get,
    post,
    proxying,
    until,
    worker,
)

MIB = 1024 * 1024


async def test_a_slow_client_holds_the_worker_back() -> None:
    """The worker can write only what buffers hold; when the client reads on, everything arrives."""
    total = 64 * MIB
    written = 0

    async def script(conversation: Conversation) -> None:
        nonlocal written
        await conversation.request()
        conversation.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        for _ in range(total // 65536):
            conversation.send(b"x" * 65536)
            await conversation.flush()
            written += 65536

    async with (
        worker(script) as w,
        proxying(w.endpoint) as (server, fleet),
        connected(server, receive_buffer=4096) as client,
    ):
        client.pause_reading()
        client.send(post())
        await until(lambda: any(each.write_paused for each in server._connections))
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.05)

        assert written < 32 * MIB
        (connection,) = server._connections
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < MIB
        client.resume_reading()
        await client.head()
        received = 0
        while received < total:
            received += len(await client.reader.read(MIB))
        await until(lambda: fleet.outcomes == ["ok"])


async def test_a_client_that_stops_reading_is_cut_off() -> None:
    """It must not keep a worker busy for ever."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(STREAM_HEAD)
        try:
            while True:
                conversation.send(chunk(b"x" * 65536))
                await conversation.flush()
        except ConnectionError:
            conversation.worker.closed += 1

    async with (
        worker(script) as w,
        proxying(w.endpoint, stall_seconds=0.2, idle_seconds=60) as (server, fleet),
        connected(server, receive_buffer=4096) as client,
    ):
        client.pause_reading()
        client.send(post())
        await until(lambda: w.closed == 1)

        assert fleet.outcomes == ["client_gone"]


async def test_a_slow_client_does_not_make_the_worker_look_slow() -> None:
    """While we do not read from it, the worker's idle time does not run."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (8 * MIB) + b"x" * (8 * MIB))
        await conversation.flush()

    now = 1000.0
    async with (
        worker(script) as w,
        proxying(w.endpoint, idle_seconds=1, stall_seconds=10_000, clock=lambda: now) as (server, fleet),
        connected(server, receive_buffer=4096) as client,
    ):
        client.pause_reading()
        client.send(post())
        await until(lambda: any(each.write_paused for each in server._connections))
        for _ in range(10):
            now += 100
            await until(lambda: server._plane.now == now)  # noqa: B023 - awaited here: deadlines have been looked at
        client.resume_reading()
        answer = await client.answer()

        assert len(answer.body) == 8 * MIB
        await until(lambda: fleet.outcomes == ["ok"])


async def test_a_worker_that_reads_slowly_gets_the_whole_body() -> None:
    """The body waits in memory, within its limit, and nothing else is read from the client meanwhile."""
    body = b"y" * (16 * MIB)
    go = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await go.wait()
        await conversation.request()
        conversation.send(OK)
        await conversation.request()
        conversation.send(OK)
        await conversation.closed()

    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        client.send(post(body))
        await until(lambda: server.statistics.attempts == 1)
        client.send(post(body))
        for _ in range(10):
            await asyncio.sleep(0.01)
        (connection,) = server._connections

        assert connection._parser.buffered < MIB
        assert connection._paused
        go.set()
        statuses = [(await client.answer()).status, (await client.answer()).status]
        assert statuses == [200, 200]
        assert [received for _, received in w.requests] == [body, body]


async def test_memory_is_flat_over_many_requests() -> None:
    """Thousands of exchanges with ever new ids, headers and sizes leave nothing behind."""

    async def requests(count: int, offset: int) -> None:
        for number in range(offset, offset + count):
            size = number % 700
            answer = await client.ask(post(b"z" * size, headers=f"X-Request-Id: r{number}\r\nX-N: {number}\r\n"))
            assert answer.status == 200

    def traced() -> int:
        heads = server._plane.request_heads
        for told in (fleet.told, fleet.usages, fleet.requests, fleet.statuses, w.requests):
            told.clear()
        for bounded in (heads.memory.plain, heads._header_lines.known):
            bounded.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        await requests(5000, 0)
        tracemalloc.start()
        try:
            before = traced()
            await requests(3000, 5000)
            grown = traced() - before
        finally:
            tracemalloc.stop()

        assert grown < MIB // 4
        assert len(server._plane._tasks) == 0


async def test_ten_thousand_idle_connections() -> None:
    """They cost a few KiB each, do not slow a request down, and all of them are closed in the end."""
    count = _connections_possible(10_000)
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _):
        loop = asyncio.get_running_loop()
        gc.collect()
        tracemalloc.start()
        transports = []
        for _ in range(count):
            transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", server.port)
            transport.write(get("/livez"))
            transports.append(transport)
        await until(lambda: server.statistics.requests == count, 90)
        per_connection = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.stop()
        async with connected(server) as client:
            answer = await client.ask(post())

        assert answer.status == 200
        assert server.statistics.connections_open >= count
        assert per_connection < 8 * 1024  # both sides of the connection together
        for transport in transports:
            transport.abort()
        await until(lambda: server.statistics.connections_open == 0, 90)


def _connections_possible(wanted: int) -> int:
    """Raise the limit of open files as far as allowed; both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + 200
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, (soft - 200) // 2)


async def test_exchanges_leave_no_reference_cycles() -> None:
    """What a request made is gone when it ends: nothing waits for the collector."""
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        for _ in range(20):
            await client.ask(post(b"z" * 700))
        gc.collect()
        gc.disable()
        try:
            for _ in range(500):
                await client.ask(post(b"z" * 700))
            unreachable = gc.collect()
        finally:
            gc.enable()

        assert unreachable < 50
