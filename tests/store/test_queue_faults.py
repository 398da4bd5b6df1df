"""Message queues when processes and servers die: what the queue has taken is delivered, and it is used again."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvrouter.errors import StoreError
from kvrouter.store.queues import MessageQueue, QueueConsumer, QueueLimits, open_message_queues
from tests.servers import Server
from tests.store.backends import mortal_server, queue_url
from tests.store.conftest import Run
from tests.store.test_queues import LONG_SECONDS, taken, texts, until

_CHECKOUT = Path(__file__).resolve().parents[2]
_TAKER = """
import asyncio, sys
from kvrouter.store.queues import open_message_queues

async def main():
    async with open_message_queues(sys.argv[1]) as queues:
        consumer = await queues.queue("work").worker_group(ack_seconds=float(sys.argv[2]))
        found = []
        while len(found) < int(sys.argv[3]):
            found += await consumer.fetch(1)
        await consumer.acknowledge(found[0])
        print("taken", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(params=["nats", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of its own, that a test may kill."""
    with mortal_server(request.param, tmp_path) as started:
        yield started


@asynccontextmanager
async def taker(url: str, *, ack_seconds: float, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that has taken so many messages and acknowledged the first."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _TAKER, url, str(ack_seconds), str(count),
        stdout=asyncio.subprocess.PIPE, cwd=_CHECKOUT, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"taken\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def publish_surely(queue: MessageQueue, data: bytes) -> None:
    """Publish until the queue has it, as a publisher does that names its messages."""
    while True:
        try:
            await queue.publish(data, message_id=data.decode())
        except StoreError as error:
            if error.reason != "unavailable":
                raise
            await asyncio.sleep(0.05)
        else:
            return


async def take_surely(consumer: QueueConsumer, wanted: set[bytes]) -> set[bytes]:
    """Take and acknowledge until nothing of `wanted` is missing, through failures."""
    seen: set[bytes] = set()
    while not wanted <= seen:
        try:
            found = await consumer.fetch(wait_seconds=0.5)
            seen.update(texts(found))
            await consumer.acknowledge(*found)
        except StoreError as error:
            if error.reason != "unavailable":
                raise
            await asyncio.sleep(0.05)
    return seen


def test_what_a_killed_process_had_taken_goes_to_another(server: Server, run: Run) -> None:
    """Killed with SIGKILL while it works: all but what it acknowledged is delivered again (A-314, A-316)."""

    async def scenario() -> None:
        url = queue_url(server)
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            for number in range(4):
                await queue.publish(b"%d" % number)
            async with taker(url, ack_seconds=1.0, count=3) as process:
                process.send_signal(signal.SIGKILL)
                await process.wait()
            consumer = await queue.worker_group(ack_seconds=1.0)
            assert await take_surely(consumer, {b"1", b"2", b"3"}) <= {b"0", b"1", b"2", b"3"}
            await until(queue.depth, 0)

    run(scenario())


def test_a_killed_server_has_kept_what_it_took(server: Server, run: Run) -> None:
    """Messages, how far consumers were, and which ids it knows."""

    async def scenario() -> None:
        async with open_message_queues(queue_url(server)) as queues:
            queue = queues.queue("work")
            for number in range(20):
                await queue.publish(b"%d" % number, message_id=f"id-{number}")
            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            await consumer.acknowledge(*await taken(consumer, 5))
            await until(queue.depth, 15)
            await asyncio.to_thread(server.restart)

            async def known() -> bool:
                try:
                    return (await queue.publish(b"19", message_id="id-19")).duplicate
                except StoreError:
                    return False

            await until(known, True)
            assert await queue.depth() == 15
            expected = {b"%d" % number for number in range(5, 20)}
            assert await take_surely(consumer, expected) == expected

    run(scenario())


def test_publishers_and_consumers_live_through_restarts(server: Server, run: Run) -> None:
    """While messages flow, the server dies twice: each of them arrives, whoever must ask again."""

    async def scenario() -> None:
        async with open_message_queues(queue_url(server)) as queues:
            queue = queues.queue("work")
            consumer = await queue.worker_group(ack_seconds=2.0)
            sent = {b"message-%d" % number for number in range(60)}

            async def publish() -> None:
                for data in sorted(sent):
                    await publish_surely(queue, data)

            async def disturb() -> None:
                for _ in range(2):
                    await asyncio.sleep(0.1)
                    await asyncio.to_thread(server.restart)

            _, _, seen = await asyncio.gather(publish(), disturb(), take_surely(consumer, sent))
            assert seen == sent

    run(scenario())


def test_a_server_that_lost_its_data_is_used_again(server: Server, run: Run) -> None:
    """Stream and consumer are made anew; what is published from then on is delivered."""

    async def scenario() -> None:
        async with open_message_queues(queue_url(server)) as queues:
            queue = queues.queue("work")
            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            await publish_surely(queue, b"lost")
            await asyncio.to_thread(server.restart, keep_data=False)
            await publish_surely(queue, b"kept")
            assert await take_surely(consumer, {b"kept"}) == {b"kept"}

            log = queues.queue("events", QueueLimits(retention="log"))
            reader = await log.broadcast("reader", new_only=True, ack_seconds=LONG_SECONDS)
            await asyncio.to_thread(server.restart, keep_data=False)
            await publish_surely(log, b"after")
            assert await take_surely(reader, {b"after"}) == {b"after"}

    run(scenario())


def test_without_a_server_every_method_says_so(server: Server, run: Run) -> None:
    """And none waits for ever."""

    async def scenario() -> None:
        async with open_message_queues(queue_url(server)) as queues:
            queue = queues.queue("work")
            consumer = await queue.worker_group()
            server.kill()
            calls = (queue.publish(b""), queue.depth(), queue.consumers(), queue.browse(), consumer.fetch())
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(outcome, StoreError)
                assert outcome.reason == "unavailable"
            await consumer.close()

    run(scenario())
