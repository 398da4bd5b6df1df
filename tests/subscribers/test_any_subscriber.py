"""One subscriber for all transports: each is opened with its first source, and a source may change it while it runs."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter_publishers import (
    HttpEventPublisher,
    JetStreamEventPublisher,
    RedisEventPublisher,
    ZmqEventPublisher,
)
from kvrouter_subscribers import (
    AnyEventSubscriber,
    HttpEventSubscriber,
    JetStreamEventSubscriber,
    RedisEventSubscriber,
    ZmqEventSubscriber,
)
from tests.servers import nats_server, redis_server
from tests.subscribers.scene import RecordingSink, listening, run, stored, until

SOURCE = Source("worker", 0)


def makers(sink: RecordingSink) -> dict[Any, Callable[[], Any]]:
    """A subscriber for every transport."""
    return {
        "zmq": lambda: ZmqEventSubscriber(sink),
        "http": lambda: HttpEventSubscriber(sink),
        "jetstream": lambda: JetStreamEventSubscriber(sink),
        "redis": lambda: RedisEventSubscriber(sink),
    }


def test_a_source_changes_its_transport_while_the_router_runs(tmp_path: Path) -> None:
    """Each publisher is another life, so what the one before it stored is gone; nothing is claimed for ever."""

    async def scenario() -> None:
        sink = RecordingSink()
        sink.ingest.open(SOURCE, 0, now=0.0)
        subscriber = AnyEventSubscriber(makers(sink))
        running = asyncio.create_task(subscriber.run())
        for number, (publisher, endpoint, replay) in enumerate(publishers()):
            with publisher:
                subscriber.add(SOURCE, endpoint, replay_endpoint=replay)
                publisher.publish([stored(number)])
                await until(lambda number=number: sink.holds(number))
                status = subscriber.status(SOURCE)
                assert status is not None
                assert status.connected
        assert not any(sink.holds(number) for number in range(3))
        assert sink.holds(3)
        await subscriber.close()
        await running

    def publishers() -> Any:
        zmq = ZmqEventPublisher(
            "tcp://127.0.0.1:*", replay_endpoint="tcp://127.0.0.1:*", bind=True, wire="native", worker_id="worker"
        )
        yield zmq, zmq.endpoint, zmq.replay_endpoint
        http = HttpEventPublisher("127.0.0.1:0", worker_id="worker")
        yield http, http.endpoint, None
        yield JetStreamEventPublisher(nats_address, worker_id="worker"), nats_address, None
        yield RedisEventPublisher(redis_address, worker_id="worker"), redis_address, None

    with nats_server(tmp_path / "nats") as nats, redis_server(tmp_path / "redis") as redis:
        nats_address, redis_address = f"{nats.url}/kv", f"{redis.url}/0/kv"
        run(scenario())


def test_nothing_is_opened_for_transports_that_nobody_uses() -> None:
    """A router of ZeroMQ workers makes no connection to any broker."""
    sink, opened = RecordingSink(), []

    async def scenario() -> None:
        made = {name: lambda name=name, make=make: opened.append(name) or make() for name, make in makers(sink).items()}
        subscriber = AnyEventSubscriber(made)
        subscriber.add(SOURCE, "tcp://127.0.0.1:9")
        running = asyncio.create_task(subscriber.run())
        await until(lambda: subscriber.status(SOURCE))
        subscriber.add(Source("other", 0), "http://127.0.0.1:9")
        await subscriber.close()
        await running

    run(scenario())

    assert opened == ["zmq", "http"]


def test_a_source_is_known_to_one_transport_at_a_time() -> None:
    """Removing it asks nobody else; an unknown one is nobody's."""
    sink = RecordingSink()

    async def scenario() -> None:
        subscriber = AnyEventSubscriber(makers(sink))
        subscriber.add(SOURCE, "tcp://127.0.0.1:9")
        subscriber.add(SOURCE, "http://127.0.0.1:9")
        status = subscriber.status(SOURCE)
        assert status is not None
        assert status.transport == "http"
        subscriber.remove(SOURCE)
        subscriber.remove(SOURCE)
        assert subscriber.status(SOURCE) is None
        assert not subscriber.resync(SOURCE)

    run(scenario())


class BreakingSubscriber(ZmqEventSubscriber):
    """Breaks as soon as it runs, the first time."""

    lives = 0

    async def run(self) -> None:
        type(self).lives += 1
        if self.lives == 1:
            raise RuntimeError("a bug")
        await super().run()


def test_a_transport_that_breaks_is_made_anew_with_its_sources(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and neither the other transports nor the router end by it."""

    async def scenario() -> None:
        sink = RecordingSink()
        sink.ingest.open(SOURCE, 0, now=0.0)
        subscriber = AnyEventSubscriber({"zmq": lambda: BreakingSubscriber(sink)})
        running = asyncio.create_task(subscriber.run())
        with ZmqEventPublisher(
            "tcp://127.0.0.1:*", replay_endpoint="tcp://127.0.0.1:*", bind=True, wire="native", worker_id="worker"
        ) as publisher:
            subscriber.add(SOURCE, publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
            publisher.publish([stored(1)])
            await until(lambda: sink.holds(1))
        await subscriber.close()
        await running

    run(scenario())

    assert BreakingSubscriber.lives == 2
    assert [record.message for record in caplog.records] == ["internal_error"]


@pytest.mark.parametrize("scheme", ["nats", "redis"])
def test_a_broker_that_talks_nonsense_is_told_and_asked_again(scheme: str) -> None:
    """An address that was mistaken must not end the router."""

    async def scenario() -> None:
        sink, connections = RecordingSink(), [0]
        sink.ingest.open(SOURCE, 0, now=0.0)

        async def chatter(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections[0] += 1
            writer.write(bytes(range(65, 91)) * 10_000)
            await writer.drain()

        async with listening(chatter) as port:
            address = f"{scheme}://127.0.0.1:{port}"
            subscriber = AnyEventSubscriber(makers(sink))
            subscriber.add(SOURCE, f"{address}/s" if scheme == "nats" else f"{address}/0/s")
            running = asyncio.create_task(subscriber.run())
            await until(lambda: connections[0] >= 2)
            status = subscriber.status(SOURCE)
            await subscriber.close()
            await running
        assert status is not None
        assert "does not speak" in (status.last_error or "")

    run(scenario())


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        ("http://127.0.0.1", "http://host:port"),
        ("nats://127.0.0.1:4222", "nats://host[:port]/stream"),
        ("redis://:secret@127.0.0.1:6379/kv", "redis://host[:port]/database/stream"),
        ("amqp://127.0.0.1:5672", "must start with one of"),
    ],
)
def test_an_address_that_no_transport_can_use_is_refused_by_its_form(endpoint: str, named: str) -> None:
    """And no password is repeated."""
    subscriber = AnyEventSubscriber(makers(RecordingSink()))

    with pytest.raises(SettingsError) as refused:
        subscriber.add(SOURCE, endpoint)

    assert named in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_transport_that_is_not_offered_is_named() -> None:
    """Before anything is opened; the admin API answers with it."""
    subscriber = AnyEventSubscriber({})

    with pytest.raises(SettingsError, match="redis is not offered here"):
        subscriber.add(SOURCE, "redis://127.0.0.1:6379/0/kv")
