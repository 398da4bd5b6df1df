"""Following JetStream while nothing fails: who gets what, from where on, and what is told about it."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.js import JetStreamContext

from kvrouter.events import Source
from tests.servers import NatsServer, nats_server
from tests.subscribers.jetstream_scene import (
    OTHER,
    QUICK,
    STREAM,
    Worker,
    api,
    client,
    following,
    frame,
    put,
    working,
)
from tests.subscribers.scene import WAIT_SECONDS, WORKER, run, until

RANK_1 = Source("worker", 1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server without any stream."""
    with nats_server(tmp_path) as started:
        yield started


@pytest.fixture
def endpoint(server: NatsServer) -> str:
    """The stream of these tests."""
    return f"{server.url}/{STREAM}"


def test_what_is_published_is_in_the_index(endpoint: str) -> None:
    """A-301, A-501: stores and removals, in their order."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            await until(worker.delivered)
            async with following() as scene:
                scene.listen(endpoint)
                await until(lambda: scene.status().connected)
                worker.work(100)
                await scene.heals(worker)

        assert [sequence for _, sequence, _ in scene.sink.receipts] == list(range(201))
        assert scene.status().last_error is None

    run(scenario())


def test_all_sources_of_a_stream_share_one_connection_and_one_consumer(endpoint: str, server: NatsServer) -> None:
    """Each is told apart by what its frames say."""

    async def scenario() -> None:
        sources = (WORKER, RANK_1, OTHER)
        async with following(name="router-a") as scene:
            scene.listen(endpoint, *sources)
            workers = [Worker(endpoint, source) for source in sources]
            for each, worker in enumerate(workers):
                worker.work(20 + each)
            for worker in workers:
                await scene.heals(worker)
            async with client(server.url) as connected:
                consumers = (await api(connected, f"CONSUMER.LIST.{STREAM}"))["consumers"]
            for worker in workers:
                worker.publisher.close()

        assert [consumer["name"] for consumer in consumers] == ["router-a"]
        assert consumers[0]["config"]["durable_name"] == "router-a"

    run(scenario())


def test_every_broadcast_subscriber_gets_everything(endpoint: str) -> None:
    """Two routers do not take messages from each other."""

    async def scenario() -> None:
        async with following() as one, following() as two:
            one.listen(endpoint)
            two.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(50)
                await one.heals(worker)
                await two.heals(worker)

    run(scenario())


def test_two_routers_of_one_name_do_not_fight_for_their_consumer(
    endpoint: str, server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The second one says so, once in the log, and leaves it alone; when the first one stops it takes over, whole."""

    async def scenario() -> None:
        async with following(name="twin") as second, client(server.url) as connected:
            async with following(name="twin") as first:
                with working(endpoint) as worker:
                    first.listen(endpoint)
                    await until(lambda: first.status().connected)
                    made = (await connected.jetstream().consumer_info(STREAM, "twin")).created
                    second.listen(endpoint)
                    worker.work(100)
                    await first.heals(worker)
                    await until(lambda: second.stream().name_conflicts > 2)
                    assert (await connected.jetstream().consumer_info(STREAM, "twin")).created == made
                assert not second.status().connected
                assert "another router reads as 'twin'" in str(second.status().last_error)
                assert (first.stream().name_conflicts, first.stream().connects, second.stream().messages) == (0, 1, 0)
            await until(lambda: second.status().connected)
            with working(endpoint) as worker:
                worker.work(20)
                await second.heals(worker)

    run(scenario())
    assert [record.name for record in caplog.records if "router_name_taken" in record.message] == [
        "kvrouter_subscribers"
    ]


def test_two_routers_of_one_name_that_start_at_once_agree_who_reads(endpoint: str) -> None:
    """Each may have deleted the other's consumer once; then one stays away."""

    async def scenario() -> None:
        async with following(name="twin") as first, following(name="twin") as second:
            with working(endpoint) as worker:
                worker.work(10)
                for scene in (first, second):
                    scene.listen(endpoint)
                await until(lambda: max(scene.stream().name_conflicts for scene in (first, second)) > 3)
                other, reader = sorted((first, second), key=lambda scene: -scene.stream().name_conflicts)
                await until(lambda: reader.status().connected)
                connects = reader.stream().connects
                await until(lambda: other.stream().name_conflicts > 6)
                worker.work(10, first=10)
                await reader.heals(worker)
                assert reader.stream().connects == connects

    run(scenario())


def test_a_group_shares_the_messages(endpoint: str) -> None:
    """Each goes to one member; together they have all, and nobody asks for what others have."""

    async def scenario() -> None:
        limits = replace(QUICK, fetch_messages=4)
        async with following(limits, mode="worker-group") as one, following(limits, mode="worker-group") as two:
            one.listen(endpoint)
            two.listen(endpoint)
            with working(endpoint, digest_seconds=None) as worker:
                await until(lambda: one.stream().connected and two.stream().connected)

                def shared() -> bool:
                    worker.store(1)
                    return bool(one.sink.receipts and two.sink.receipts)

                await until(shared)
                await until(worker.delivered)
                total = worker.count("next_sequence")
                await until(lambda: len(one.sink.receipts) + len(two.sink.receipts) == total)

        heard = sorted(sequence for sink in (one.sink, two.sink) for _, sequence, _ in sink.receipts)
        assert heard == list(range(total))
        assert ("snapshot", WORKER) not in one.sink.calls + two.sink.calls

    run(scenario())


def test_messages_are_acknowledged_after_the_sink_has_them(endpoint: str, server: NatsServer) -> None:
    """A-319: what the server believes to be done is done."""

    async def scenario() -> None:
        async with following(name="router-a") as scene, client(server.url) as connected:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(500)
                await scene.heals(worker)
                applied = scene.stream().position

                async def floor() -> int:
                    info = await api(connected, f"CONSUMER.INFO.{STREAM}.router-a")
                    return int(info["ack_floor"]["stream_seq"])

                while (acknowledged := await floor()) < applied:
                    await asyncio.sleep(0.01)

        assert acknowledged == applied == scene.stream().acknowledged == 1001

    run(scenario())


def test_what_is_no_frame_is_counted_and_passed_over(endpoint: str) -> None:
    """One bad message must not hold up a stream that many workers share."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            await until(worker.delivered)
            async with following() as scene, client(endpoint.rpartition("/")[0]) as connected:
                scene.listen(endpoint)
                await put(connected, b"", b"\x93not a frame", b'{"worker_id":1}')
                worker.work(5)
                await scene.heals(worker)
                stream = scene.stream()

        assert stream.malformed == 3
        assert "message" in str(stream.last_error)

    run(scenario())


def test_a_snapshots_part_among_the_events_is_not_an_event(endpoint: str) -> None:
    """It would be taken for a batch that says much less than it means."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            await until(worker.delivered)
            async with following() as scene, client(endpoint.rpartition("/")[0]) as connected:
                scene.listen(endpoint)
                await put(connected, frame(0, 1, snapshot=(0, 1)))
                await until(lambda: scene.status().malformed == 1)

        assert not scene.sink.holds(1)

    run(scenario())


def test_a_failing_sink_is_counted_and_does_not_end_the_stream(endpoint: str) -> None:
    """The supervised edge: the fault is told, the next batch is handed over."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            scene.sink.failing["receive"] = RuntimeError("broken on purpose")
            with working(endpoint) as worker:
                await until(lambda: scene.status().sink_errors == 1)
                worker.work(10)
                await scene.heals(worker)

        assert "broken on purpose" in str(scene.status().last_error)

    run(scenario())


def test_a_removed_source_is_heard_no_more(endpoint: str) -> None:
    """The others of its stream go on."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint, WORKER, OTHER)
            with working(endpoint) as worker, working(endpoint, OTHER) as other:
                worker.work(5)
                other.work(5)
                await scene.heals(worker)
                await scene.heals(other)
                scene.subscriber.remove(OTHER)
                heard = scene.state(OTHER).applied_batches
                other.work(5, first=5)
                await until(other.delivered)
                worker.work(5, first=5)
                await scene.heals(worker)

        assert scene.subscriber.status(OTHER) is None
        assert scene.state(OTHER).applied_batches == heard

    run(scenario())


def test_an_end_that_comes_with_an_answer_is_not_overlooked(
    endpoint: str, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client library swallows a cancellation that comes at that moment; the reader ends all the same."""

    async def scenario() -> None:
        stream_info = JetStreamContext.stream_info

        async def answered(self: JetStreamContext, *args: Any, **options: Any) -> Any:
            info = await stream_info(self, *args, **options)
            if "jetstream-reader" in str(asyncio.current_task()):
                scene.subscriber._stop.set()
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(WAIT_SECONDS)
            return info

        with working(endpoint) as worker:
            await until(worker.delivered)
            async with following() as scene:
                monkeypatch.setattr(JetStreamContext, "stream_info", answered)
                scene.listen(endpoint)
                await until(lambda: scene.subscriber._running is not None and scene.subscriber._running.done())

    run(scenario())


def test_the_last_source_of_a_stream_takes_its_connection_along(endpoint: str, server: NatsServer) -> None:
    """A subscriber without sources costs the server nothing."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                await scene.heals(worker)
            scene.subscriber.remove(WORKER)
            connections = f"{server.monitoring}/connz"
            await until(lambda: httpx.get(connections).json()["num_connections"] == 0)

        assert scene.subscriber.streams() == []

    run(scenario())


def test_a_resync_brings_the_whole_state(endpoint: str) -> None:
    """An operator who doubts need not wait for the next digest."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(10)
                await scene.heals(worker)

                assert scene.subscriber.resync(WORKER)
                assert not scene.subscriber.resync(OTHER)
                await until(lambda: scene.status().snapshots == 1 and not scene.status().replaying)
                await scene.heals(worker)

    run(scenario())


def test_a_lie_that_is_proved_by_a_digest_is_made_good(endpoint: str) -> None:
    """Whoever forges a batch is found out by the publisher's next words."""

    async def scenario() -> None:
        async with following() as scene, client(endpoint.rpartition("/")[0]) as connected:
            scene.listen(endpoint)
            with working(endpoint, digest_seconds=0.2) as worker:
                worker.work(10)
                await scene.heals(worker)
                state = scene.state()
                life = worker.publisher._core.incarnation
                await put(connected, frame(state.applied_sequence + 1, 7777, incarnation=life))
                await until(lambda: scene.status().snapshots >= 1)
                worker.work(3, first=10)
                await scene.heals(worker)

        assert not scene.sink.holds(7777)

    run(scenario())


def test_a_consumer_that_nobody_uses_expires(endpoint: str, server: NatsServer) -> None:
    """A router that went away must not hold back the stream for ever."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            with working(endpoint) as worker:
                async with following(replace(QUICK, inactive_seconds=0.2), name="router-a") as scene:
                    scene.listen(endpoint)
                    await scene.heals(worker)

                async def consumers() -> int:
                    return len((await api(connected, f"CONSUMER.LIST.{STREAM}"))["consumers"])

                while await consumers():
                    await asyncio.sleep(0.02)

    run(scenario())


def test_a_stream_that_is_not_there_yet_is_waited_for(endpoint: str) -> None:
    """Routers may start before the first worker."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            await until(lambda: "stream not found" in str(scene.status().last_error))
            assert not scene.status().connected
            with working(endpoint) as worker:
                worker.work(3)
                await scene.heals(worker)

        assert scene.stream().last_error is None

    run(scenario())
