"""Queued requests when workers and servers die: each is answered or a dead letter in the end (A-156, A-157)."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from kvrouter.errors import StoreError
from kvrouter.store.queues import open_message_queues
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.messages import Request
from kvrouter.transport.queue_worker import QueueWorker
from kvrouter.transport.request_queue import Answer, RequestQueue
from tests.servers import Server
from tests.store.backends import mortal_server, queue_url
from tests.transport.test_request_queue import run

_CHECKOUT = Path(__file__).resolve().parents[2]
_WORKER = """
import asyncio, sys
from kvrouter.store.queues import open_message_queues
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.queue_worker import QueueWorker
from kvrouter.transport.request_queue import RequestQueue

async def echo(request, context):
    print("working", flush=True)
    await asyncio.Event().wait()
    yield b""

async def main():
    endpoints = Endpoints()
    endpoints.register("echo", echo)
    async with open_message_queues(sys.argv[1]) as queues:
        await QueueWorker(RequestQueue(queues, "generate"), endpoints, ack_seconds=1.0).run()

asyncio.run(main())
"""


@pytest.fixture(params=["nats", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of its own, that a test may kill."""
    with mortal_server(request.param, tmp_path) as started:
        yield started


async def echo(request: Request, _: Context) -> AsyncIterator[bytes]:
    """Answer with what was asked."""
    yield bytes(request.body)


@asynccontextmanager
async def working(requests: RequestQueue, *, attempts_max: int = 100) -> AsyncIterator[QueueWorker]:
    """A worker of this process."""
    endpoints = Endpoints()
    endpoints.register("echo", echo)
    worker = QueueWorker(requests, endpoints, attempts_max=attempts_max, ack_seconds=5.0, retry_seconds=(0.05,))
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.drain(0.0)
        await running


async def killed_at_work(url: str) -> None:
    """Have another process take a request, and kill it when it works on it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WORKER, url,
        stdout=asyncio.subprocess.PIPE, cwd=_CHECKOUT, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"working\n"
    finally:
        process.send_signal(signal.SIGKILL)
        await process.communicate()


async def first_answer(requests: RequestQueue) -> Answer:
    """Wait for an answer."""
    async with aclosing(requests.answers("replies")) as answers:  # type: ignore[type-var]
        return await anext(answers)


def test_the_request_of_a_killed_worker_is_answered_by_another(server: Server) -> None:
    """Killed with SIGKILL in the middle of its work (A-156)."""

    async def scenario() -> None:
        url = queue_url(server)
        async with open_message_queues(url) as queues:
            requests = RequestQueue(queues, "generate")
            await requests.send(Request(endpoint="echo", body=b"ask"), Context("one"), now=0.0, reply_to="replies")
            await killed_at_work(url)
            async with working(requests):
                assert await first_answer(requests) == Answer(id="one", items=(b"ask",))

    run(scenario())


def test_a_request_that_kills_its_workers_is_given_up(server: Server) -> None:
    """Nobody told of a failure; the deliveries tell (A-157)."""

    async def scenario() -> None:
        url = queue_url(server)
        async with open_message_queues(url) as queues:
            requests = RequestQueue(queues, "generate")
            await requests.send(Request(endpoint="echo", body=b"ask"), Context("one"), now=0.0, reply_to="replies")
            await killed_at_work(url)
            async with working(requests, attempts_max=1):
                answer = await first_answer(requests)
            (letter,) = await requests.dead_letters.browse()

            assert answer.error is not None
            assert answer.error.code == "ABORTED"
            assert (letter.request_id, letter.reason) == ("one", "abandoned")
            assert letter.attempts >= 2

    run(scenario())


def test_every_request_is_answered_through_restarts_of_the_server(server: Server) -> None:
    """While requests, work and answers flow, the server is killed twice (A-156)."""
    wanted = {f"request-{number}" for number in range(40)}

    async def scenario() -> None:
        async with open_message_queues(queue_url(server)) as queues:
            requests = RequestQueue(queues, "generate")

            async def send() -> None:
                for name in sorted(wanted):
                    request = Request(endpoint="echo", body=name.encode())
                    while True:
                        try:
                            await requests.send(request, Context(name), now=0.0, reply_to="replies")
                        except StoreError:
                            await asyncio.sleep(0.05)
                        else:
                            break

            async def disturb() -> None:
                for _ in range(2):
                    await asyncio.sleep(0.1)
                    await asyncio.to_thread(server.restart)

            async def read() -> dict[str, Answer]:
                found: dict[str, Answer] = {}
                while wanted - set(found):
                    try:
                        answer = await first_answer(requests)
                    except StoreError:
                        await asyncio.sleep(0.05)
                    else:
                        found[answer.id] = answer
                return found

            async with working(requests):
                _, _, found = await asyncio.gather(send(), disturb(), read())
            assert found == {name: Answer(id=name, items=(name.encode(),)) for name in wanted}

    run(scenario())
