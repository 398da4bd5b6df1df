"""Where a JetStream subscriber begins to read, and what completes what the stream no longer has."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.servers import NatsServer, nats_server
from tests.subscribers.jetstream_scene import OTHER, QUICK, STREAM, client, following, working
from tests.subscribers.scene import WORKER, run, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server without any stream."""
    with nats_server(tmp_path) as started:
        yield started


@pytest.fixture
def endpoint(server: NatsServer) -> str:
    """The stream of these tests."""
    return f"{server.url}/{STREAM}"


def test_a_subscriber_that_comes_late_reads_all_that_is_there(endpoint: str) -> None:
    """And knows that it was a replay that is over."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            worker.work(300)
            await until(worker.delivered)
            async with following() as scene:
                scene.listen(endpoint)
                await scene.heals(worker)

        assert scene.sink.finished == [True]
        assert {way for way, _, _ in scene.sink.receipts} == {"replayed"}

    run(scenario())


def test_a_stream_that_forgot_its_beginning_is_completed_by_a_snapshot(endpoint: str, server: NatsServer) -> None:
    """What the stream no longer has, the publisher knows."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            worker.work(100)
            await until(worker.delivered)
            async with client(server.url) as connected:
                await connected.jetstream().purge_stream(STREAM, seq=150)
            async with following() as scene:
                scene.listen(endpoint)
                await scene.heals(worker)
                status = scene.status()

        assert (status.snapshots, status.snapshots_failed) == (1, 0)

    run(scenario())


def test_an_empty_stream_is_completed_by_a_snapshot(endpoint: str, server: NatsServer) -> None:
    """An idle worker's events expire; its blocks do not."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            worker.work(30)
            await until(worker.delivered)
            async with client(server.url) as connected:
                await connected.jetstream().purge_stream(STREAM)
            async with following() as scene:
                scene.listen(endpoint)
                await scene.heals(worker)
                worker.work(10, first=30)
                await scene.heals(worker)

        assert scene.status().snapshots == 1

    run(scenario())


def test_a_source_that_is_added_late_is_read_again_from_the_stream(endpoint: str) -> None:
    """Its messages were passed over before, and counted."""

    async def scenario() -> None:
        with working(endpoint) as worker, working(endpoint, OTHER) as other:
            async with following() as scene:
                scene.listen(endpoint)
                worker.work(30)
                other.work(30)
                await scene.heals(worker)
                await until(lambda: other.delivered() and scene.stream().unknown == 61)
                scene.listen(endpoint, OTHER)
                await scene.heals(other)
                other.work(5, first=30)
                await scene.heals(other)
                status = scene.status(OTHER)

        assert (status.replays, status.replays_failed, status.snapshots) == (1, 0, 0)

    run(scenario())


def test_a_stream_that_is_too_long_is_not_read_again(endpoint: str) -> None:
    """The publisher's snapshot is then the shorter way."""

    async def scenario() -> None:
        with working(endpoint) as worker, working(endpoint, OTHER) as other:
            async with following(replace(QUICK, replay_messages_max=10)) as scene:
                scene.listen(endpoint)
                worker.work(30)
                other.work(30)
                await scene.heals(worker)
                await until(lambda: other.delivered() and scene.stream().unknown == 61)
                scene.listen(endpoint, OTHER)
                await scene.heals(other)
                status = scene.status(OTHER)

        assert (status.snapshots, status.replayed_batches) == (1, 0)

    run(scenario())


def test_reading_begins_behind_a_stored_position(endpoint: str) -> None:
    """A-319: a router that restored its index reads what came since, once."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            async with following() as before:
                before.listen(endpoint)
                worker.work(50)
                await before.heals(worker)
                positions = before.subscriber.positions()
                assert before.subscriber.position(endpoint) == 101
            worker.work(5, first=50)
            await until(worker.delivered)
            async with following(positions=positions) as after:
                after.sink.ingest.open(WORKER, 0, now=0.0)
                after.subscriber.add(WORKER, endpoint)
                await until(lambda: after.stream().position == 111)

        assert positions == {endpoint: 101}
        assert after.sink.receipts[0][1] == 101

    run(scenario())
