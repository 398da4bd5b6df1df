"""One contract for every message queue (A-312…A-317, A-131), in memory and on real servers."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from kvrouter.errors import StoreError
from kvrouter.store.queues import (
    WORKER_GROUP,
    Delivery,
    MessageQueue,
    Published,
    QueueConsumer,
    QueueLimits,
    open_message_queues,
)
from tests.store.backends import queue_url
from tests.store.conftest import Run

Result = TypeVar("Result")
LOG = QueueLimits(retention="log")
WAIT_SECONDS = 60.0
LONG_SECONDS = 600.0
"""Longer than any test: what is taken so is not delivered again by itself."""


@pytest.fixture(params=["memory", "nats", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty place for queues, one for each kind of backend."""
    if request.param == "memory":
        return "memory:"
    return queue_url(request.getfixturevalue(request.param))


async def taken(consumer: QueueConsumer, count: int, *, at_once: int = 100) -> list[Delivery]:
    """Wait until so many messages were delivered."""
    found: list[Delivery] = []
    deadline = time.monotonic() + WAIT_SECONDS
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} messages were delivered"
        found += await consumer.fetch(min(at_once, count - len(found)), wait_seconds=1.0)
    return found


async def until(question: Callable[[], Awaitable[Result]], answer: Result) -> None:
    """Wait until a question has an answer."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (now := await question()) != answer:
        assert time.monotonic() < deadline, f"it stays {now!r}"
        await asyncio.sleep(0.02)


def texts(deliveries: list[Delivery]) -> list[bytes]:
    """What was delivered."""
    return [delivery.message.data for delivery in deliveries]


async def fill(queue: MessageQueue, count: int) -> list[bytes]:
    """Publish numbered messages; returns them."""
    messages = [b"message %d" % number for number in range(count)]
    for message in messages:
        await queue.publish(message)
    return messages


def test_messages_come_in_order_and_an_acknowledged_one_is_gone(url: str, run: Run) -> None:
    """A-301, A-314, A-316: a worker group with a durable pull consumer takes them oldest first."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            sent = await fill(queue, 50)
            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            found = await taken(consumer, 50, at_once=7)

            assert texts(found) == sent
            assert {delivery.deliveries for delivery in found} == {1}
            assert await queue.depth() == 50
            await consumer.acknowledge(*found)
            await until(queue.depth, 0)
            await consumer.acknowledge(*found)  # again, as after a lost answer
            assert await consumer.fetch(wait_seconds=0.05) == []

    run(scenario())


def test_a_fetch_wakes_for_a_message_that_comes_later(url: str, run: Run) -> None:
    """Who waits need not ask again."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            waiting = asyncio.create_task(consumer.fetch(wait_seconds=WAIT_SECONDS))
            await asyncio.sleep(0)
            await queue.publish(b"here")
            assert texts(await waiting) == [b"here"]
            await consumer.close()

    run(scenario())


def test_each_message_of_a_group_goes_to_one_member(url: str, run: Run) -> None:
    """Two members share; both get some, none gets another's (A-314)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            sent = await fill(queue, 20)
            first = await queue.worker_group(ack_seconds=LONG_SECONDS)
            second = await queue.worker_group(ack_seconds=LONG_SECONDS)
            found = []
            for _ in range(10):
                found += await taken(first, 1) + await taken(second, 1)

            assert sorted(texts(found)) == sorted(sent)
            assert [info.name for info in await queue.consumers()] == [WORKER_GROUP]

    run(scenario())


def test_each_broadcast_consumer_gets_every_message(url: str, run: Run) -> None:
    """A-315, A-371: also what was published before; `new_only` begins behind that."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("events", LOG)
            sent = await fill(queue, 5)
            consumers = [await queue.broadcast(name, ack_seconds=LONG_SECONDS) for name in ("one", "two")]
            late = await queue.broadcast("late", new_only=True, ack_seconds=LONG_SECONDS)
            await queue.publish(b"last")
            for consumer in consumers:
                found = await taken(consumer, 6)
                assert texts(found) == [*sent, b"last"]
                await consumer.acknowledge(*found)
            assert texts(await taken(late, 1)) == [b"last"]
            assert await queue.depth() == 6

    run(scenario())


def test_what_is_given_back_comes_again_and_is_counted(url: str, run: Run) -> None:
    """At once or after a delay; each delivery has its number."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            await queue.publish(b"again", message_id="request-1")
            for number in (1, 2, 3):
                (delivery,) = await taken(consumer, 1)
                assert (delivery.deliveries, delivery.message.id) == (number, "request-1")
                await consumer.give_back(delivery, delay_seconds=0.1 * (number - 1))
            (delivery,) = await taken(consumer, 1)
            began = time.monotonic()
            await consumer.give_back(delivery, delay_seconds=1.0)
            (delivery,) = await taken(consumer, 1)
            assert time.monotonic() - began > 0.9, "the delay was not kept"
            assert delivery.deliveries == 5

    run(scenario())


def test_what_nobody_acknowledges_comes_again(url: str, run: Run) -> None:
    """To another member of the group, as after the death of the first."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            sent = await fill(queue, 3)
            first = await queue.worker_group(ack_seconds=0.5)
            assert len(await taken(first, 3)) == 3
            await first.close()
            second = await queue.worker_group(ack_seconds=0.5)
            seen: set[bytes] = set()
            while len(seen) < 3:
                found = await taken(second, 1)
                assert found[0].deliveries >= 2
                await second.acknowledge(*found)
                seen.update(texts(found))
            assert seen == set(sent)
            await until(queue.depth, 0)

    run(scenario())


def test_the_last_member_says_for_how_long_messages_are_held(url: str, run: Run) -> None:
    """A setting that was changed counts for a group that is there already."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("events", LOG)
            await queue.publish(b"held")
            first = await queue.broadcast("reader", new_only=True, ack_seconds=LONG_SECONDS)
            second = await queue.broadcast("reader", ack_seconds=0.5, orphan_seconds=LONG_SECONDS)
            await queue.publish(b"new")
            assert texts(await taken(second, 1)) == [b"new"]
            (again,) = await taken(second, 1)
            assert (again.message.data, again.deliveries) == (b"new", 2)
            await first.close()

    run(scenario())


def test_an_extended_message_stays_with_its_worker(url: str, run: Run) -> None:
    """However long it works on it, as long as it says so; the other comes again in between."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            consumer = await queue.worker_group(ack_seconds=4.0)
            await queue.publish(b"long")
            (delivery,) = await taken(consumer, 1)
            began = last = time.monotonic()
            while time.monotonic() - began < 6.0:
                await asyncio.sleep(0.5)
                await consumer.extend(delivery)
                slow, last = time.monotonic() - last > 3.0, time.monotonic()
                assert slow or await consumer.fetch(wait_seconds=0.01) == []
                if slow:  # The machine stood still for longer than the message's time.
                    return
            await consumer.acknowledge(delivery)
            await until(queue.depth, 0)

    run(scenario())


def test_an_id_is_taken_once(url: str, run: Run) -> None:
    """Who publishes again after a lost answer learns where the first one is; no id, no comparison."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            first = await queue.publish(b"one", message_id="id-1")
            again = await queue.publish(b"one", message_id="id-1")
            other = await queue.publish(b"one", message_id="id-2")

            assert again == Published(first.sequence, duplicate=True)
            assert not first.duplicate
            assert not other.duplicate
            await queue.publish(b"one")
            assert await queue.depth() == 3

            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            await consumer.acknowledge(*await taken(consumer, 3))
            assert (await queue.publish(b"one", message_id="id-1")).duplicate, "done with is not unknown"

    run(scenario())


def test_an_id_is_forgotten_after_its_time(url: str, run: Run) -> None:
    """So that what is remembered is bounded."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work", QueueLimits(duplicate_seconds=0.5))
            first = await queue.publish(b"one", message_id="id")

            async def published_again() -> bool:
                again = await queue.publish(b"one", message_id="id")
                return not again.duplicate and again.sequence != first.sequence

            await until(published_again, answer=True)

    run(scenario())


def test_a_work_queue_that_is_full_takes_nothing(url: str, run: Run) -> None:
    """Nothing is lost for it, and there is room again when something is done with."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work", QueueLimits(messages_max=3))
            await fill(queue, 3)
            with pytest.raises(StoreError) as refused:
                await queue.publish(b"too many")
            assert refused.value.reason == "full"

            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            await consumer.acknowledge(*await taken(consumer, 1))
            await until(queue.depth, 2)
            await queue.publish(b"fits")
            assert texts(await taken(consumer, 3)) == [b"message 1", b"message 2", b"fits"]

    run(scenario())


def test_a_log_keeps_the_last_messages(url: str, run: Run) -> None:
    """The oldest go, by number and by age; a consumer that was behind goes on with what is kept."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("events", QueueLimits(retention="log", messages_max=3))
            consumer = await queue.broadcast("reader", ack_seconds=LONG_SECONDS)
            await fill(queue, 5)
            assert [message.data for message in await queue.browse()] == [b"message 2", b"message 3", b"message 4"]
            assert len(texts(await taken(consumer, 3))) == 3

            short = queues.queue("short", QueueLimits(retention="log", age_seconds_max=1.0, duplicate_seconds=1.0))
            await short.publish(b"old")
            await until(short.depth, 0)
            assert await short.browse() == []

    run(scenario())


def test_what_a_message_may_not_be(url: str, run: Run) -> None:
    """Too long, or with an id that some backend cannot hold; the longest one arrives whole."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            longest = secrets.token_bytes(queue.limits.message_bytes_max)
            await queue.publish(longest, message_id="x" * 256)
            with pytest.raises(StoreError) as refused:
                await queue.publish(longest + b"x")
            assert refused.value.reason == "too_large"
            for hostile in ("", "a b", "a\r\nb", "ü", "x" * 257):
                with pytest.raises(StoreError) as refused:
                    await queue.publish(b"", message_id=hostile)
                assert refused.value.reason == "bad_name"
            for hostile in ("", "a.b", "a b", "*", ">", "x" * 65):
                with pytest.raises(StoreError) as refused:
                    await queues.queue(hostile).publish(b"")
                assert refused.value.reason == "bad_name"
                with pytest.raises(StoreError) as refused:
                    await queue.worker_group(hostile)
                assert refused.value.reason == "bad_name"

            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            assert texts(await taken(consumer, 1)) == [longest]

    run(scenario())


def test_a_work_queue_has_one_group_only(url: str, run: Run) -> None:
    """Else nobody would know when a message is done with."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            await queue.worker_group()
            for other in (queue.worker_group("second"), queue.broadcast("reader")):
                with pytest.raises(StoreError) as refused:
                    await other
                assert refused.value.reason == "unsupported"

            assert await queue.delete_consumer(WORKER_GROUP)
            await queue.worker_group("second")

    run(scenario())


def test_who_only_publishes_makes_no_consumer(url: str, run: Run) -> None:
    """The publisher-only mode (A-313); consumers that come later get what was published."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            sent = await fill(queue, 3)
            assert await queue.consumers() == []
            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            assert texts(await taken(consumer, 3)) == sent

    run(scenario())


def test_consumers_are_listed_and_deleted(url: str, run: Run) -> None:
    """With how far they are (A-317); a deleted one begins anew when it comes again."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("events", LOG)
            await fill(queue, 4)
            one, two = [await queue.broadcast(name, ack_seconds=LONG_SECONDS) for name in ("one", "two")]
            found = await taken(one, 3)
            await one.acknowledge(found[0])

            async def state() -> list[tuple[str, int, int]]:
                return [(info.name, info.waiting, info.pending) for info in await queue.consumers()]

            await until(state, [("one", 1, 2), ("two", 4, 0)])
            assert await queue.delete_consumer("one")
            assert not await queue.delete_consumer("one")
            await until(state, [("two", 4, 0)])
            assert [delivery.deliveries for delivery in await taken(one, 4)] == [1, 1, 1, 1]
            assert len(await taken(two, 4)) == 4

    run(scenario())


def test_a_consumer_that_nobody_uses_is_forgotten(url: str, run: Run) -> None:
    """A broadcast consumer whose process died keeps no place for ever (B.11)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("events", LOG)
            await queue.broadcast("orphan", orphan_seconds=1.0)
            await queue.broadcast("stays", orphan_seconds=LONG_SECONDS)

            async def names() -> list[str]:
                return [info.name for info in await queue.consumers()]

            await until(names, ["stays"])

    run(scenario())


def test_a_purge_leaves_consumers_and_nothing_else(url: str, run: Run) -> None:
    """Neither what waits nor what was delivered comes again (A-317)."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("events", LOG)
            consumer = await queue.broadcast("reader", ack_seconds=0.5)
            await fill(queue, 5)
            await taken(consumer, 2)
            await queue.purge()

            assert await queue.depth() == 0
            assert [info.name for info in await queue.consumers()] == ["reader"]
            await queue.publish(b"new")
            assert texts(await taken(consumer, 1)) == [b"new"]

    run(scenario())


def test_messages_are_looked_at_and_removed_without_being_taken(url: str, run: Run) -> None:
    """By their sequence, page by page."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("letters")
            for number in range(5):
                await queue.publish(b"%d" % number, message_id=f"id-{number}")
            first = await queue.browse(2)
            rest = await queue.browse(after=first[-1].sequence)

            assert [message.data for message in first + rest] == [b"0", b"1", b"2", b"3", b"4"]
            assert [message.id for message in first] == ["id-0", "id-1"]
            assert await queue.get(first[1].sequence) == first[1]
            assert await queue.remove(first[1].sequence)
            assert not await queue.remove(first[1].sequence)
            assert await queue.get(first[1].sequence) is None
            assert await queue.get("nonsense") is None
            assert not await queue.remove("nonsense")
            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            assert texts(await taken(consumer, 4)) == [b"0", b"2", b"3", b"4"]

    run(scenario())


def test_an_unknown_queue_is_empty_and_a_deleted_one_can_be_used_again(url: str, run: Run) -> None:
    """Nobody need make a queue, and nobody need know whether it is there."""

    async def scenario() -> None:
        async with open_message_queues(url) as queues:
            queue = queues.queue("work")
            assert (await queue.depth(), await queue.browse(), await queue.consumers()) == (0, [], [])
            assert await queue.get("1") is None
            await queue.purge()
            await queue.delete()

            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            await queue.publish(b"one", message_id="id")
            await queue.delete()
            assert await queue.depth() == 0
            assert not (await queue.publish(b"two", message_id="id")).duplicate
            assert texts(await taken(consumer, 1)) == [b"two"]

    run(scenario())
