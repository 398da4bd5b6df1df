"""Where message queues are kept: as streams that other programs can write to and look at."""

import secrets

import pytest
from nats import connect
from redis.asyncio import Redis

from kvrouter.errors import SettingsError
from kvrouter.store.queues import WORKER_GROUP, QueueLimits, open_message_queues
from tests.servers import NatsServer, RedisServer
from tests.store.conftest import Run
from tests.store.test_queues import LONG_SECONDS, taken, texts


def test_on_nats_a_queue_is_a_stream_that_others_can_write_to(nats: NatsServer, run: Run) -> None:
    """In files, with the subjects `{stream}.*` (A-312), and each consumer durable, pulled and explicit (A-316)."""

    async def scenario() -> None:
        prefix = f"test{secrets.token_hex(4)}"
        async with open_message_queues(f"{nats.url}/{prefix}") as queues:
            queue = queues.queue("events", QueueLimits(retention="log", age_seconds_max=600.0))
            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS, orphan_seconds=300.0)
            client = await connect(nats.url)
            jetstream, stream = client.jetstream(), f"{prefix}-events"
            await jetstream.publish(f"{stream}.another", b"from elsewhere", headers={"Nats-Msg-Id": "worker-1:17"})
            await queue.publish(b"ours")
            config = (await jetstream.stream_info(stream)).config
            durable = (await jetstream.consumer_info(stream, WORKER_GROUP)).config
            last = await jetstream.get_last_msg(stream, f"{stream}.queue")
            await client.close()

            assert (config.subjects, config.storage, config.max_age) == ([f"{stream}.*"], "file", 600.0)
            assert (durable.durable_name, durable.deliver_subject, durable.ack_policy) == (
                WORKER_GROUP,
                None,
                "explicit",
            )
            assert durable.inactive_threshold == 300.0
            assert last.data == b"ours"
            foreign, _ = await taken(consumer, 2)
            assert (foreign.message.data, foreign.message.id) == (b"from elsewhere", "worker-1:17")

    run(scenario())


def test_on_redis_a_queue_is_a_stream_with_groups_that_others_can_read(redis: RedisServer, run: Run) -> None:
    """Entries that others add are delivered too (A-156, A-316)."""

    async def scenario() -> None:
        prefix = f"test{secrets.token_hex(4)}"
        async with (
            open_message_queues(f"{redis.url}/0/{prefix}") as queues,
            Redis.from_url(redis.url, protocol=2) as client,
        ):
            queue = queues.queue("work")
            consumer = await queue.worker_group(ack_seconds=LONG_SECONDS)
            stream = f"{{{prefix}:work}}:queue:stream"
            await client.xadd(stream, {"data": b"from elsewhere"})
            await client.xadd(stream, {"other": b"field"})
            assert texts(await taken(consumer, 2)) == [b"from elsewhere", b""]
            (group,) = await client.xinfo_groups(stream)
            assert (group["name"], group["pending"]) == (WORKER_GROUP.encode(), 2)

    run(scenario())


def test_where_queues_can_be() -> None:
    """A directory and etcd keep none; what has no known form is nothing at all."""
    for url in ("file:///tmp/queues", "etcd://127.0.0.1:2379/kv", "amqp://127.0.0.1/x"):
        with pytest.raises(SettingsError):
            open_message_queues(url)
