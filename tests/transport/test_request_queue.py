"""Queued requests: worked on with a bound, tried again, given up and put back (A-156, A-157, A-158)."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager

import pytest

from kvrouter.errors import StoreError, TransportError, WireError
from kvrouter.store.queues import MessageQueues, open_message_queues
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.messages import Request, encode_request
from kvrouter.transport.queue_worker import QueueWorker
from kvrouter.transport.request_queue import Answer, RequestQueue
from tests.servers import RedisServer, redis_server

WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis-server for this module."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "nats", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty place for queues, one for each kind of backend."""
    if request.param == "memory":
        return "memory:"
    server, prefix = request.getfixturevalue(request.param), f"test{secrets.token_hex(4)}"
    return f"{server.url}/{prefix}" if request.param == "nats" else f"{server.url}/0/{prefix}"


def run(scenario: Awaitable[None]) -> None:
    """Run one test's story, with a bound on its time."""

    async def main() -> None:
        async with asyncio.timeout(150):
            await scenario

    asyncio.run(main())


class Bench:
    """Handlers that count how often each request reached them, on one queue."""

    def __init__(self, queues: MessageQueues, *, letters_max: int = 100) -> None:
        self.requests = RequestQueue(queues, "generate", letters_max=letters_max)
        self.endpoints = Endpoints()
        self.seen: list[str] = []
        self.busy = self.most = 0
        self.let_go = asyncio.Event()
        self.broken = True
        for handler in (self.echo, self.fails, self.refuses, self.hangs, self.waits, self.floods, self.flaky):
            self.endpoints.register(handler.__name__, handler)

    async def echo(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """Answer with what was asked, in two items."""
        self.seen.append(context.id)
        yield bytes(request.body)
        yield ",".join(f"{name}={value}" for name, value in context.headers.items()).encode()

    async def fails(self, _: Request, context: Context) -> AsyncIterator[bytes]:
        """Fail in the middle of the answer."""
        self.seen.append(context.id)
        yield b"half"
        raise ValueError("not for others to read")

    async def refuses(self, _: Request, context: Context) -> AsyncIterator[bytes]:
        """Fail in a way that no repetition helps."""
        self.seen.append(context.id)
        if not context.stopped:
            raise TransportError("there is no such model", code="INVALID_ARGUMENT")
        yield b""

    async def hangs(self, _: Request, context: Context) -> AsyncIterator[bytes]:
        """Never answer."""
        self.seen.append(context.id)
        await asyncio.Event().wait()
        yield b""

    async def waits(self, _: Request, context: Context) -> AsyncIterator[bytes]:
        """Answer when the test says so."""
        self.seen.append(context.id)
        self.busy += 1
        self.most = max(self.most, self.busy)
        await self.let_go.wait()
        self.busy -= 1
        yield b"done"

    async def floods(self, _: Request, context: Context) -> AsyncIterator[bytes]:
        """Answer with more than a queue can hold."""
        self.seen.append(context.id)
        while True:
            yield bytes(100_000)

    async def flaky(self, _: Request, context: Context) -> AsyncIterator[bytes]:
        """Fail until the test has mended it."""
        self.seen.append(context.id)
        if self.broken:
            raise OSError("out of order")
        yield b"mended"

    async def send(self, endpoint: str, id: str, *, reply_to: str = "replies", deadline: float | None = None) -> None:  # noqa: A002
        """Queue a request."""
        request = Request(endpoint=endpoint, body=b"ask " + id.encode())
        context = Context(id, headers={"traceparent": "00-1"}, deadline=deadline)
        await self.requests.send(request, context, now=asyncio.get_running_loop().time(), reply_to=reply_to)

    async def answers(self, count: int) -> dict[str, Answer]:
        """Wait for so many answers."""
        found: dict[str, Answer] = {}
        async with aclosing(self.requests.answers("replies")) as answers:  # type: ignore[type-var]
            async for answer in answers:
                found[answer.id] = answer
                if len(found) == count:
                    break
        return found

    @asynccontextmanager
    async def worker(self, **options: object) -> AsyncIterator[QueueWorker]:
        """A worker until the end of the block."""
        options = {"retry_seconds": (0.05,), **options}
        worker = QueueWorker(self.requests, self.endpoints, **options)  # type: ignore[arg-type]
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            await worker.drain(0.0)
            await running


async def until(question: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not question():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


async def until_empty(bench: Bench) -> None:
    """Wait until every request is settled."""
    deadline = time.monotonic() + WAIT_SECONDS
    while await bench.requests.depth():
        assert time.monotonic() < deadline, "the queue is never empty"
        await asyncio.sleep(0.01)


def test_queued_requests_are_answered_into_the_queue_that_they_name(url: str) -> None:
    """A-131: whole, with id and headers, whoever sent them when; the queue is empty then (A-156)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues)
            for number in range(30):
                await bench.send("echo", f"request-{number}")
            async with bench.worker() as worker:
                found = await bench.answers(30)
                await until_empty(bench)

            assert found["request-7"] == Answer(id="request-7", items=(b"ask request-7", b"traceparent=00-1"))
            assert sorted(bench.seen) == sorted(found)
            assert (worker.counters.taken, worker.counters.completed) == (30, 30)
            assert worker.counters.dead == {}

    run(scenario())


def test_a_request_nobody_waits_for_is_worked_on_all_the_same(url: str) -> None:
    """Without a reply queue its end is that it left the queue (A-156)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues)
            await bench.send("echo", "quiet", reply_to="")
            async with bench.worker() as worker:
                await until(lambda: worker.counters.completed)
                await until_empty(bench)
            assert bench.seen == ["quiet"]

    run(scenario())


def test_a_worker_takes_no_more_than_it_may(url: str) -> None:
    """The rest waits in the queue, where others can take it (A-156)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues)
            for number in range(10):
                await bench.send("waits", f"request-{number}")
            async with bench.worker(running_max=3) as worker:
                await until(lambda: bench.busy == 3)
                assert len(worker) == 3
                assert worker.counters.taken == 3
                bench.let_go.set()
                assert len(await bench.answers(10)) == 10
            assert bench.most == 3

    run(scenario())


def test_one_id_is_worked_on_once(url: str) -> None:
    """However often it is sent, and however often the queue gives it out again (A-158)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues)
            for _ in range(3):
                await bench.send("echo", "same")
            assert await bench.requests.depth() == 1
            async with bench.worker() as worker:
                await bench.answers(1)
                await until_empty(bench)
                request = Request(endpoint="echo", body=b"again")
                await bench.requests.queue.publish(encode_request(request, id="same", headers={}))
                await until(lambda: worker.counters.repeated)
                await until_empty(bench)
            assert bench.seen == ["same"]

    run(scenario())


def test_what_fails_again_and_again_becomes_a_dead_letter(url: str) -> None:
    """With reason, time and attempts; its requester hears of it (A-157)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues)
            before = time.time()
            await bench.send("fails", "bad")
            await bench.send("echo", "good")
            async with bench.worker(attempts_max=3) as worker:
                found = await bench.answers(2)
                await until_empty(bench)
            (letter,) = await bench.requests.dead_letters.browse()

            assert bench.seen.count("bad") == 3
            assert (letter.request_id, letter.endpoint, letter.reason) == ("bad", "fails", "INTERNAL")
            assert letter.text == "the handler failed: ValueError"
            assert letter.attempts == 3
            assert before - 1 < letter.queued <= letter.died + 1
            assert letter.died <= time.time()
            assert await bench.requests.dead_letters.count() == 1
            assert found["good"].error is None
            error = found["bad"].error
            assert error is not None
            assert error.code == "INTERNAL"
            assert (worker.counters.failed, worker.counters.retried) == (3, 2)
            assert worker.counters.dead == {"INTERNAL": 1}

    run(scenario())


def test_what_no_repetition_helps_is_given_up_at_once(url: str) -> None:
    """Wrong arguments, answers that are too long, deadlines, what is no request at all (A-157)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues)
            await bench.send("refuses", "wrong")
            await bench.send("floods", "long")
            await bench.send("hangs", "late", deadline=asyncio.get_running_loop().time() + 0.3)
            await bench.requests.queue.publish(b"no request")
            async with bench.worker() as worker:
                await bench.answers(3)
                await until(lambda: sum(worker.counters.dead.values()) == 4)
                await until_empty(bench)
            letters = await bench.requests.dead_letters.browse()

            assert {letter.request_id: (letter.reason, letter.attempts) for letter in letters} == {
                "wrong": ("INVALID_ARGUMENT", 1),
                "long": ("OUT_OF_RANGE", 1),
                "late": ("DEADLINE_EXCEEDED", 1),
                "": ("malformed", 1),
            }
            assert len(bench.endpoints) == 0, "a handler was left at work"

    run(scenario())


def test_a_dead_letter_put_back_is_worked_on_again(url: str) -> None:
    """Once, under its old id, by the worker that failed at it too; the others stay (A-158)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues)
            for number in range(3):
                await bench.send("flaky", f"request-{number}")
            async with bench.worker(attempts_max=2):
                await bench.answers(3)
                letters = await bench.requests.dead_letters.browse()
                bench.broken = False
                chosen = [letters[0].id, letters[2].id]
                assert await bench.requests.replay([*chosen, "none"]) == chosen
                assert await bench.requests.replay(chosen) == []
                found = await bench.answers(2)
                await until_empty(bench)

            wanted = {letters[0].request_id, letters[2].request_id}
            assert {each.id: each.items for each in found.values()} == dict.fromkeys(wanted, (b"mended",))
            assert await bench.requests.dead_letters.browse() == [letters[1]]
            assert await bench.requests.dead_letters.get(letters[1].id) == letters[1]
            assert await bench.requests.dead_letters.discard([letters[1].id, letters[0].id]) == 1
            assert await bench.requests.dead_letters.count() == 0

    run(scenario())


def test_while_the_dead_letters_are_full_nothing_is_lost(url: str) -> None:
    """The request is held, not worked on again, until there is room (A-157)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues, letters_max=1)
            await bench.send("refuses", "first")
            await bench.send("refuses", "second")
            async with bench.worker(running_max=1) as worker:
                await until(lambda: worker.counters.store_failures)
                (letter,) = await bench.requests.dead_letters.browse()
                assert letter.request_id == "first"
                assert await bench.requests.depth() == 1
                await bench.requests.dead_letters.discard([letter.id])
                await until_empty(bench)
            (letter,) = await bench.requests.dead_letters.browse()
            assert letter.request_id == "second"
            assert bench.seen == ["first", "second"]

    run(scenario())


def test_a_drained_worker_gives_back_what_it_cannot_finish(url: str) -> None:
    """Another takes it without waiting for the first one's time to be over (A-156)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench, other = Bench(queues), Bench(queues)
            await bench.send("waits", "long")
            async with bench.worker(ack_seconds=600.0) as worker:
                await until(lambda: bench.busy)
                assert await worker.drain(0.05) == 1
                assert len(worker) == 0
                assert worker.counters.returned == 1
            other.let_go.set()
            async with other.worker(ack_seconds=600.0):
                found = await other.answers(1)
            assert found["long"].items == (b"done",)

    run(scenario())


def test_a_drained_worker_finishes_what_it_can(url: str) -> None:
    """And takes nothing more (A-156)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues)
            await bench.send("waits", "begun")
            async with bench.worker() as worker:
                await until(lambda: bench.busy)
                draining = asyncio.create_task(worker.drain(WAIT_SECONDS))
                await asyncio.sleep(0)
                await bench.send("echo", "too-late")
                bench.let_go.set()
                assert await draining == 0
            assert worker.counters.completed == 1
            assert "too-late" not in bench.seen
            assert await bench.requests.depth() == 1

    run(scenario())


def test_endpoints_that_are_full_keep_requests_waiting_without_an_attempt(url: str) -> None:
    """Other transports fill the same endpoints; that is no failure of a queued request (A-156)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            bench = Bench(queues)
            bench.endpoints.streams_max = 1
            await bench.send("waits", "one")
            await bench.send("waits", "two")
            async with bench.worker(attempts_max=1) as worker:
                await until(lambda: bench.endpoints.counters.refused_busy)
                bench.let_go.set()
                found = await bench.answers(2)
                await until_empty(bench)
            assert {answer.items for answer in found.values()} == {(b"done",)}
            assert worker.counters.failed == 0

    run(scenario())


def test_what_cannot_be_queued(url: str) -> None:
    """Is said at once: further items, too much, a name that is none, a full queue (A-156)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            requests, now = RequestQueue(queues, "small", requests_max=1), 0.0
            with pytest.raises(WireError):
                await requests.send(Request(endpoint="echo", many_in=True), Context(), now=now)
            with pytest.raises(WireError) as too_large:
                await requests.send(Request(endpoint="echo", body=bytes(1 << 20)), Context(), now=now)
            assert too_large.value.reason == "too_large"
            for context, reply_to in ((Context("a b"), ""), (Context(), "a b")):
                with pytest.raises(StoreError) as refused:
                    await requests.send(Request(endpoint="echo"), context, now=now, reply_to=reply_to)
                assert refused.value.reason == "bad_name"
            await requests.send(Request(endpoint="echo"), Context(), now=now)
            with pytest.raises(StoreError) as refused:
                await requests.send(Request(endpoint="echo"), Context(), now=now)
            assert refused.value.reason == "full"

    run(scenario())
