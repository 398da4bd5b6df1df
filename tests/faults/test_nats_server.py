"""The server dies, comes back with its data or without, or stands still: the index becomes the truth again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvrouter.events import Source
from tests.servers import NatsServer, nats_server
from tests.subscribers.jetstream_scene import QUICK, STREAM, Worker, client, following, working
from tests.subscribers.scene import WORKER, run, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that tests may kill."""
    with nats_server(tmp_path) as started:
        yield started


@pytest.fixture
def endpoint(server: NatsServer) -> str:
    """The stream of these tests."""
    return f"{server.url}/{STREAM}"


def test_a_killed_server_that_keeps_its_data_costs_nothing(endpoint: str, server: NatsServer) -> None:
    """What was published meanwhile waits at the publisher; nothing is asked for twice."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(50)
                await scene.heals(worker)
                await until(lambda: not scene.status().replaying)
                snapshots = scene.status().snapshots
                for life in range(1, 4):
                    server.kill()
                    worker.work(50, first=50 * life)
                    await until(lambda: not scene.status().connected)
                    server.start()
                    await scene.heals(worker)
                state, status = scene.state(), scene.status()

        assert (state.gaps_lost, state.restarts, state.digest_mismatches) == (0, 0, 0)
        assert (status.snapshots, status.connects, status.disconnects) == (snapshots, 4, 3)

    run(scenario())


def test_a_server_killed_under_load_loses_nothing(endpoint: str, server: NatsServer) -> None:
    """Frames that were sent and not acknowledged are sent again; the server knows those that it has."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint, outstanding_max=32) as worker:
                for life in range(4):
                    worker.work(150, first=150 * life)
                    await until(lambda: worker.count("frames_acknowledged") > 300 * life + 20)  # noqa: B023 - awaited here
                    server.restart()
                await scene.heals(worker)
                state = scene.state()

        assert (state.restarts, state.applied_sequence) == (0, worker.count("next_sequence") - 1)

    run(scenario())


def test_a_server_that_lost_its_data_is_filled_again(endpoint: str, server: NatsServer) -> None:
    """The publisher sees that its newest frames are gone, and sends them again; routers take a snapshot."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(50)
                await scene.heals(worker)
                server.restart(keep_data=False)
                await until(lambda: worker.count("streams_lost") == 1 and scene.status().snapshots >= 1)
                worker.work(10, first=50)
                await scene.heals(worker)
                async with following() as newcomer:
                    newcomer.listen(endpoint)
                    await newcomer.heals(worker)

        assert scene.state().restarts == 0
        assert newcomer.status().snapshots == 0

    run(scenario())


def test_data_lost_beyond_the_publishers_memory_are_made_good_by_a_snapshot(endpoint: str, server: NatsServer) -> None:
    """Who had not read them yet sees numbers missing that nobody has any more."""

    async def scenario() -> None:
        with working(endpoint, buffer_steps=5) as worker:
            worker.work(100)
            await until(worker.delivered)
            server.restart(keep_data=False)
            await until(lambda: worker.count("streams_lost") == 1)
            async with following() as scene:
                scene.listen(endpoint)
                await scene.heals(worker)
                worker.work(10, first=100)
                await scene.heals(worker)
                status = scene.status()

        assert status.snapshots >= 1
        assert status.replayed_batches < 20

    run(scenario())


def test_a_long_outage_is_compacted_and_still_exact(tmp_path: Path) -> None:
    """A queue that is full keeps what changed, not each step on the way there."""

    async def scenario() -> None:
        server = NatsServer(tmp_path)
        endpoint = f"{server.url}/{STREAM}"
        with working(endpoint, max_queue_size=50) as worker:
            worker.work(500)
            try:
                server.start()
                async with following() as scene:
                    scene.listen(endpoint)
                    await scene.heals(worker)
                    worker.work(10, first=500)
                    await scene.heals(worker)
            finally:
                server.stop()

        assert worker.count("next_sequence") < 500

    run(scenario())


def test_a_server_that_stands_still_is_waited_for(endpoint: str, server: NatsServer) -> None:
    """Its connections stay open; what it does not answer in time is sent again, and kept once."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint, request_seconds=0.2) as worker:
                worker.work(20)
                await scene.heals(worker)
                before = scene.state().duplicates  # A snapshot that came first makes some of what the stream has.
                with server.paused():
                    worker.work(20, first=20)
                    await until(lambda: worker.count("frames_resent") > 0)
                await scene.heals(worker)
                async with client(server.url) as connected:
                    kept = (await connected.jetstream().stream_info(STREAM)).state.messages
                state = scene.state()

        assert kept == worker.count("next_sequence")
        assert (state.duplicates - before, state.gaps, state.applied_sequence) == (0, 0, kept - 1)

    run(scenario())


def test_a_silent_server_is_given_up_by_its_readers(endpoint: str, server: NatsServer) -> None:
    """No heartbeat for too long is a lost connection, and the router says so."""

    async def scenario() -> None:
        limits = replace(QUICK, heartbeat_seconds=0.1, request_seconds=0.5)
        async with following(limits) as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(5)
                await scene.heals(worker)
                with server.paused():
                    await until(lambda: not scene.status().connected)
                    assert scene.state().state == "suspect"
                worker.work(5, first=5)
                await scene.heals(worker)

        assert (scene.state().restarts, scene.state().gaps_lost) == (0, 0)

    run(scenario())


def test_many_sources_heal_together(endpoint: str, server: NatsServer) -> None:
    """One connection less is many sources less; each of them comes back."""

    async def scenario() -> None:
        sources = [Source(f"worker-{number}", rank) for number in range(4) for rank in range(2)]
        async with following() as scene:
            scene.listen(endpoint, *sources)
            workers = [Worker(endpoint, source) for source in sources]
            try:
                for worker in workers:
                    worker.work(20)
                server.restart(keep_data=False)
                for worker in workers:
                    worker.work(20, first=20)
                for worker in workers:
                    await scene.heals(worker)
            finally:
                for worker in workers:
                    worker.publisher.close()

        assert scene.stream().unknown == 0

    run(scenario())


def test_a_stream_that_is_deleted_under_everybody_is_made_anew(endpoint: str, server: NatsServer) -> None:
    """An operator's mistake is an outage like others."""

    async def scenario() -> None:
        async with following() as scene, client(server.url) as connected:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(20)
                await scene.heals(worker)
                await connected.jetstream().delete_stream(STREAM)
                worker.work(20, first=20)
                await scene.heals(worker)

        assert scene.state(WORKER).restarts == 0
        assert worker.count("frames_refused") > 0

    run(scenario())
