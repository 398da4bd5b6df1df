"""Load reports travel beside the events of every transport, and disturb nothing there."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from kvrouter.events import Source
from kvrouter.events.load import KV_METRICS_TOPIC, LoadReport, decode_load, encode_load
from kvrouter.events.nats_names import load_subject
from kvrouter.events.redis_names import load_channel
from kvrouter.redis_client import RedisClient
from kvrouter_publishers import JetStreamEventPublisher, RedisEventPublisher, ZmqEventPublisher
from kvrouter_subscribers import JetStreamEventSubscriber, RedisEventSubscriber, ZmqEventSubscriber
from kvrouter_subscribers.redis_loads import LoadListener
from tests.servers import nats_server, redis_server
from tests.subscribers import jetstream_scene, redis_scene
from tests.subscribers.planes import BROKERS, STREAM, TRANSPORTS, Plane, plane
from tests.subscribers.scene import (
    ANY_TCP,
    QUICK,
    WORKER,
    RecordingSink,
    run,
    scripted,
    stored,
    until,
)

OTHER = Source("other", 0)
BUSY = LoadReport(worker_id="", timestamp=5.0, num_requests_waiting=3, kv_active_blocks=10, gpu_cache_usage_perc=0.5)
OURS = replace(BUSY, worker_id=WORKER.worker_id)


@pytest.fixture(params=TRANSPORTS)
def any_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each transport in turn."""
    with plane(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=BROKERS)
def broker_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each transport with a broker in turn."""
    with plane(request.param, tmp_path) as made:
        yield made


def test_a_publishers_load_reaches_the_router(any_plane: Plane) -> None:
    """A-305: under the publisher's own name, whatever the report says; and again when it changes."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        sink = RecordingSink()
        with any_plane.publisher() as publisher:
            async with any_plane.subscriber(sink, on_load=heard.append) as subscriber:
                any_plane.follow(subscriber, sink, publisher)
                await until(lambda: sink.applied() >= 0)

                def tells(report: LoadReport, expected: LoadReport) -> bool:
                    publisher.publish_load(report)
                    return heard[-1:] == [expected]

                await until(lambda: tells(BUSY, OURS))
                idle = replace(BUSY, worker_id="somebody", rank=9, num_requests_waiting=0)
                await until(lambda: tells(idle, replace(OURS, num_requests_waiting=0)))

    run(scenario())


def test_reports_are_no_batches(any_plane: Plane) -> None:
    """Events are counted, numbered and applied as if there were none; so it is where nobody wants them."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        sinks = RecordingSink(), RecordingSink()
        with any_plane.publisher(digest_seconds=None) as publisher:
            async with (
                any_plane.subscriber(sinks[0], on_load=heard.append) as wanting,
                any_plane.subscriber(sinks[1]) as other,
            ):
                for subscriber, sink in ((wanting, sinks[0]), (other, sinks[1])):
                    any_plane.follow(subscriber, sink, publisher)
                    await until(lambda sink=sink: sink.applied() >= 0)  # type: ignore[misc]
                for number in range(30):
                    publisher.publish([stored(number)])
                    publisher.publish_load(replace(BUSY, kv_active_blocks=number))
                    await until(lambda number=number: all(sink.applied() == number + 1 for sink in sinks))  # type: ignore[misc]
                await until(lambda: heard and heard[-1].kv_active_blocks == 29)

                for subscriber, sink in ((wanting, sinks[0]), (other, sinks[1])):
                    assert {outcome for _, _, outcome in sink.receipts} <= {"applied", "duplicate", "restarted"}
                    assert any_plane.malformed(subscriber) == 0
                    assert subscriber.status(WORKER).messages <= 33

    run(scenario())


def test_a_taker_that_fails_is_counted_and_ends_nothing(any_plane: Plane) -> None:
    """Neither the events nor the reports after it."""

    async def scenario() -> None:
        heard: list[LoadReport] = []

        def take(report: LoadReport) -> None:
            heard.append(report)
            raise RuntimeError("broken on purpose")

        sink = RecordingSink()
        with any_plane.publisher() as publisher:
            async with any_plane.subscriber(sink, on_load=take) as subscriber:
                any_plane.follow(subscriber, sink, publisher)
                await until(lambda: sink.applied() >= 0)

                def fails() -> bool:
                    publisher.publish_load(replace(BUSY, kv_active_blocks=len(heard)))
                    return bool(subscriber.status(WORKER).sink_errors >= 2)

                await until(fails)
                publisher.publish([stored(1)])
                await until(lambda: sink.holds(1))

                assert "broken on purpose" in subscriber.status(WORKER).last_error
                assert subscriber.status(WORKER).connects == 1

    run(scenario())


def test_only_those_that_are_followed_are_heard(broker_plane: Plane) -> None:
    """A stream carries a fleet; a router may know a part of it."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        sink = RecordingSink()
        with broker_plane.publisher() as publisher, broker_plane.publisher(OTHER) as other:
            async with broker_plane.subscriber(sink, on_load=heard.append) as subscriber:
                broker_plane.follow(subscriber, sink, publisher)
                await until(lambda: sink.applied() >= 0)

                def tells() -> bool:
                    for number, each in enumerate((other, publisher)):
                        each.publish_load(replace(BUSY, kv_active_blocks=len(heard) + number))
                    return len(heard) >= 3 and other.statistics()["load_reports_sent"] >= 3

                await until(tells)

                assert {report.source for report in heard} == {WORKER}
                assert subscriber.streams()[0].load_reports == len(heard)

    run(scenario())


def test_reports_are_heard_again_after_the_broker_was_away(broker_plane: Plane) -> None:
    """Both sides connect again; the newest report comes, and those that waited meanwhile do not."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        sink, news = RecordingSink(), count()
        with broker_plane.publisher() as publisher:
            async with broker_plane.subscriber(sink, on_load=heard.append) as subscriber:
                broker_plane.follow(subscriber, sink, publisher)

                def tells(blocks: int) -> bool:
                    """Say something new each time: who was not there yet hears the next one."""
                    publisher.publish_load(replace(BUSY, kv_active_blocks=blocks, num_requests_waiting=next(news)))
                    return bool(heard) and heard[-1].kv_active_blocks == blocks

                await until(lambda: tells(1))
                broker_plane.server.kill()
                await until(lambda: not subscriber.streams()[0].connected)
                await until(lambda: not publisher.statistics()["connected"])
                for blocks in range(100, 200):
                    publisher.publish_load(replace(BUSY, kv_active_blocks=blocks))
                broker_plane.server.start()
                await until(lambda: tells(2))

                assert {report.kv_active_blocks for report in heard} <= {1, 2, 199}

    run(scenario())


def test_a_redis_server_that_stands_still_is_noticed_by_who_listens_to_it(tmp_path: Path) -> None:
    """No message is no sign: it is asked whether it lives, and the channel is listened to anew."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        failures: list[Exception] = []
        with redis_server(tmp_path) as server:
            async with (
                RedisClient({"port": server.port}, answer_seconds=0.2) as hasty,
                RedisClient({"port": server.port}, answer_seconds=20.0) as client,
            ):
                listener = LoadListener(
                    hasty,
                    STREAM,
                    take=lambda message: heard.append(decode_load(message)),
                    fail=failures.append,
                    limits=redis_scene.QUICK,
                )
                listening = asyncio.create_task(listener.run())

                async def tells() -> None:
                    while not heard:  # `run` bounds it.
                        await client.command("PUBLISH", load_channel(STREAM), encode_load(OURS))

                async def pings() -> int:
                    told = await client.command("INFO", "commandstats")
                    return int(told["cmdstat_ping"]["calls"])

                await tells()
                before = await pings()
                while await pings() < before + 2:  # As above.
                    await asyncio.sleep(0.01)
                with server.paused():
                    failed = len(failures)  # A machine without time may look like a server that stands still.
                    await until(lambda: len(failures) > failed)
                heard.clear()
                await tells()
                listening.cancel()
                await asyncio.wait({listening})

        assert all(isinstance(failure, TimeoutError) for failure in failures)

    run(scenario())


def test_what_is_no_report_is_counted(broker_plane: Plane) -> None:
    """Whoever else may write there."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        sink = RecordingSink()
        with broker_plane.publisher() as publisher:
            async with broker_plane.subscriber(sink, on_load=heard.append) as subscriber:
                broker_plane.follow(subscriber, sink, publisher)
                await until(lambda: sink.applied() >= 0)

                async def sends(payload: bytes) -> None:
                    if broker_plane.name == "jetstream":
                        async with jetstream_scene.client(broker_plane.server.url) as connected:
                            await connected.publish(load_subject(STREAM, WORKER), payload)
                            await connected.flush()
                    else:
                        async with redis_scene.client(broker_plane.server.url) as connected:
                            await connected.publish(load_channel(STREAM), payload)

                while not broker_plane.malformed(subscriber):  # `run` bounds it.
                    await sends(b"\xc1")
                await sends(encode_load(OURS))
                await until(lambda: heard == [OURS])

                assert "load report" in subscriber.streams()[0].last_error

    run(scenario())


def test_no_broker_keeps_reports(broker_plane: Plane) -> None:
    """They are a state: whoever comes later needs the next one."""

    async def scenario() -> None:
        with broker_plane.publisher(digest_seconds=None) as publisher:
            publisher.publish([stored(1)])
            for blocks in range(5):
                publisher.publish_load(replace(BUSY, kv_active_blocks=blocks))
                await until(lambda blocks=blocks: publisher.statistics()["load_reports_sent"] > blocks)  # type: ignore[misc]
            await until(lambda: publisher.statistics()["unacknowledged_frames"] == 0)

            if broker_plane.name == "jetstream":
                async with jetstream_scene.client(broker_plane.server.url) as connected:
                    info = await connected.jetstream().stream_info(STREAM)
                    assert info.state.messages == 2
            else:
                async with redis_scene.client(broker_plane.server.url) as connected:
                    assert await connected.keys() == [STREAM.encode()]
                    assert await connected.xlen(STREAM) == 2

    run(scenario())


def test_zeromq_counts_what_is_no_report_and_drops_what_is_anothers() -> None:
    """Neither is a batch, though its frames look like one."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        sink = RecordingSink()
        async with scripted() as engine, ZmqEventSubscriber(sink, limits=QUICK, on_load=heard.append) as subscriber:
            sink.ingest.open(WORKER, 0, now=0.0)
            subscriber.add(WORKER, engine.endpoint, replay_endpoint=engine.replay_endpoint)

            def status() -> int:
                engine.publish(0)
                return sink.applied() == 0

            await until(status)
            topic, number = KV_METRICS_TOPIC.encode(), bytes(8)
            engine.send(topic, number, encode_load(replace(OURS, worker_id="other")))
            engine.send(topic, number, b"\xc1")
            engine.send(topic)
            engine.send(topic, number, b"x" * 20_000)
            engine.send(topic, number, encode_load(OURS))
            await until(lambda: heard)

            transport = subscriber.status(WORKER)
            assert transport is not None
            assert heard == [OURS]
            assert transport.malformed == 3
            assert "load report" in str(transport.last_error)
            engine.publish(1)
            await until(lambda: sink.applied() == 1)

    run(scenario())


@pytest.mark.parametrize("topic", ["", "kv", "events"])
def test_reports_come_whatever_the_topic_of_the_events_is(topic: str) -> None:
    """Theirs is subscribed to as well, unless it is among those of the events already."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        sink, news = RecordingSink(), count()
        with ZmqEventPublisher(ANY_TCP, topic=topic, wire="native", worker_id=WORKER.worker_id) as publisher:
            async with ZmqEventSubscriber(sink, limits=QUICK, on_load=heard.append) as subscriber:
                sink.ingest.open(WORKER, 0, now=0.0)
                subscriber.add(WORKER, publisher.endpoint, topic=topic)

                def tells() -> bool:
                    publisher.publish_load(replace(BUSY, kv_active_blocks=next(news)))
                    publisher.publish([stored(1)])
                    return len(heard) >= 3 and sink.applied() > 0

                await until(tells)

                order = [report.kv_active_blocks or 0 for report in heard]
                assert order == sorted(set(order))

    run(scenario())


def test_a_server_that_forbids_the_channel_takes_events_all_the_same(tmp_path: Path) -> None:
    """Rights on keys are not rights on channels; both sides say what is missing."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        sink = RecordingSink()
        with redis_server(tmp_path, "--user", "worker", "on", ">secret", "~*", "+@all", "resetchannels") as server:
            endpoint = f"redis://worker:secret@127.0.0.1:{server.port}/0/{STREAM}"
            with RedisEventPublisher(endpoint, worker_id=WORKER.worker_id) as publisher:
                async with RedisEventSubscriber(sink, limits=redis_scene.QUICK, on_load=heard.append) as subscriber:
                    sink.ingest.open(WORKER, 0, now=0.0)
                    subscriber.add(WORKER, endpoint)

                    def forbidden() -> bool:
                        blocks = publisher.statistics()["load_reports_sent"]
                        publisher.publish_load(replace(BUSY, kv_active_blocks=blocks))
                        return publisher.statistics()["load_reports_forbidden"] >= 2

                    await until(forbidden)
                    publisher.publish([stored(1)])
                    await until(lambda: sink.holds(1))
                    await until(lambda: "load reports" in str(subscriber.streams()[0].last_error))

                    assert heard == []
                    assert publisher.statistics()["disconnects"] == 0

    run(scenario())


def test_a_user_that_may_not_tell_its_load_publishes_events_all_the_same(tmp_path: Path) -> None:
    """A NATS server says so and keeps the connection."""

    async def scenario() -> None:
        heard: list[LoadReport] = []
        sink = RecordingSink()
        rights = '{ publish: { deny: "kv_metrics.>" }, subscribe: { deny: "kv_metrics.>" } }'
        users = f"authorization {{ users: [ {{ user: w, password: s, permissions: {rights} }} ] }}"
        with nats_server(tmp_path, configuration=users) as server:
            endpoint = f"nats://w:s@127.0.0.1:{server.port}/{STREAM}"
            with JetStreamEventPublisher(endpoint, worker_id=WORKER.worker_id) as publisher:
                async with JetStreamEventSubscriber(
                    sink, limits=jetstream_scene.QUICK, on_load=heard.append
                ) as subscriber:
                    sink.ingest.open(WORKER, 0, now=0.0)
                    subscriber.add(WORKER, endpoint)
                    await until(lambda: sink.applied() >= 0)

                    def tells() -> bool:
                        blocks = publisher.statistics()["load_reports_sent"]
                        publisher.publish_load(replace(BUSY, kv_active_blocks=blocks))
                        return bool(blocks >= 3)

                    await until(tells)
                    publisher.publish([stored(1)])
                    await until(lambda: sink.holds(1))

                    assert heard == []
                    assert (publisher.statistics()["connects"], publisher.statistics()["disconnects"]) == (1, 0)
                    assert subscriber.streams()[0].connects == 1

    run(scenario())
