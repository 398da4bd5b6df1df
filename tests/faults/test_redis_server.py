"""The server dies, comes back with its data or without, forgets or stands still: the index becomes the truth again."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from kvrouter.events import Source
from tests.servers import RedisServer, redis_server
from tests.subscribers.redis_scene import QUICK, STREAM, Worker, client, following, working
from tests.subscribers.scene import WAIT_SECONDS, WORKER, RecordingSink, run, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that tests may kill; every change is on its disk before it is answered."""
    with redis_server(tmp_path, "--appendfsync", "always") as started:
        yield started


@pytest.fixture
def endpoint(server: RedisServer) -> str:
    """The stream of these tests."""
    return f"{server.url}/0/{STREAM}"


def deliver(worker: Worker) -> None:
    """Let the server have everything before anybody reads it: readers share our event loop, which stands still."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not worker.delivered():
        assert time.monotonic() < deadline, "the server never got it"
        time.sleep(0.001)


def test_a_killed_server_that_keeps_its_data_costs_nothing(endpoint: str, server: RedisServer) -> None:
    """What was published meanwhile waits at the publisher; nothing is asked for twice."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(50)
                await scene.heals(worker)
                asked = scene.status().snapshots
                for life in range(1, 4):
                    server.kill()
                    worker.work(50, first=50 * life)
                    await until(lambda: not scene.status().connected)
                    server.start()
                    await scene.heals(worker)
                state, status = scene.state(), scene.status()

        assert (state.gaps_lost, state.restarts, state.digest_mismatches) == (0, 0, 0)
        assert (status.snapshots - asked, status.connects, status.disconnects) == (0, 4, 3)
        assert scene.stream().trimmed == 0

    run(scenario())


def test_a_server_killed_under_load_loses_nothing(endpoint: str, server: RedisServer) -> None:
    """Frames whose answer was lost are sent again, and applied once."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                for life in range(4):
                    worker.work(300, first=300 * life)
                    await until(lambda: worker.count("frames_acknowledged") > 600 * life + 20)  # noqa: B023 - awaited here
                    server.restart()
                await scene.heals(worker)
                state = scene.state()

        assert (state.gaps_lost, state.restarts) == (0, 0)
        assert state.applied_sequence == worker.count("next_sequence") - 1

    run(scenario())


def test_a_server_that_lost_its_data_is_filled_again(endpoint: str, server: RedisServer) -> None:
    """The publisher sees that its frames are gone, and sends them again; who comes later finds them."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(50)
                await scene.heals(worker)
                server.restart(keep_data=False)
                await until(lambda: worker.count("streams_lost") == 1)
                worker.work(10, first=50)
                await scene.heals(worker)
                async with following() as newcomer:
                    newcomer.listen(endpoint)
                    await newcomer.heals(worker)

        assert scene.state().restarts == 0
        assert worker.count("frames_resent") == 101
        assert newcomer.status().snapshots == 0

    run(scenario())


def test_data_lost_beyond_the_publishers_memory_are_made_good_by_a_snapshot(endpoint: str, server: RedisServer) -> None:
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

    run(scenario())


def test_a_long_outage_is_compacted_and_still_exact(tmp_path: Path) -> None:
    """A queue that is full keeps what changed, not each step on the way there."""

    async def scenario() -> None:
        server = RedisServer(tmp_path)
        endpoint = f"{server.url}/0/{STREAM}"
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

    run(scenario())


def test_a_server_that_stands_still_is_given_up_and_found_again(endpoint: str, server: RedisServer) -> None:
    """Its connections stay open; who gets no answer in time says that the source cannot be heard."""

    async def scenario() -> None:
        limits = replace(QUICK, request_seconds=0.3)
        async with following(limits) as scene:
            scene.listen(endpoint)
            with working(endpoint, request_seconds=1.1) as worker:
                worker.work(20)
                await scene.heals(worker)
                with server.paused():
                    before = worker.count("disconnects")
                    worker.work(20, first=20)
                    await until(lambda: not scene.status().connected)
                    assert scene.state().state == "suspect"
                    await until(lambda: worker.count("disconnects") > before)
                await scene.heals(worker)
                state = scene.state()

        assert (state.restarts, state.gaps_lost) == (0, 0)
        assert worker.count("frames_resent") > 0

    run(scenario())


@pytest.mark.parametrize("then", ["goes on", "is silent"])
def test_a_server_that_is_told_to_forget_everything_is_noticed(endpoint: str, server: RedisServer, then: str) -> None:
    """FLUSHALL takes the stream and the groups; what nobody had read by then comes in a snapshot."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint, digest_seconds=None) as worker, redis.Redis.from_url(server.url) as connected:
                worker.work(50)
                await scene.heals(worker)
                worker.work(200, first=50)
                deliver(worker)
                connected.flushall()
                if then == "goes on":
                    worker.work(50, first=250)
                await scene.heals(worker)
                stream, status = scene.stream(), scene.status()

        assert status.snapshots >= 1
        assert stream.trimmed >= 1

    run(scenario())


def test_a_stream_that_is_shortened_under_a_slow_reader_is_made_good(endpoint: str, server: RedisServer) -> None:
    """The source that goes on shows a gap; the one that fell silent shows nothing, and is asked all the same."""

    async def scenario() -> None:
        silent, busy = WORKER, Source("busy", 0)
        async with following(replace(QUICK, read_entries=20)) as scene:
            scene.listen(endpoint, silent, busy)
            with (
                working(endpoint, silent, digest_seconds=None) as still,
                working(endpoint, busy, digest_seconds=None, maxlen=50) as other,
            ):
                for worker in (still, other):
                    worker.work(10)
                    await scene.heals(worker)
                still.work(5, first=10)
                deliver(still)
                other.work(500, first=10)
                deliver(other)
                await until(lambda: scene.stream().trimmed > 0)
                await scene.heals(other)
                await scene.heals(still)

        assert scene.status(busy).snapshots >= 1

    run(scenario())


def test_a_subscriber_that_dies_in_the_middle_of_a_batch_loses_nothing(endpoint: str, server: RedisServer) -> None:
    """The next one of its name, over the same index or none, has everything; nothing is applied twice."""

    async def scenario() -> None:
        sink = RecordingSink()
        with working(endpoint) as worker:
            worker.churn(random.Random(1), 500)
            await until(worker.delivered)
            async with following(sink=sink, name="router") as scene:
                scene.listen(endpoint)
                await until(lambda: scene.sink.applied() > 50)
                scene.subscriber.remove(WORKER)  # Ends the reader where it stands: nothing is acknowledged any more.
            assert sink.applied() < worker.count("next_sequence") - 1

            async with following(sink=sink, name="router") as same, following(name="other") as fresh:
                for scene in (same, fresh):
                    scene.listen(endpoint)
                    await scene.heals(worker)
                    assert scene.wrong_claims(worker) == set()

    run(scenario())


def test_a_publisher_that_is_killed_and_started_again_begins_a_new_life(endpoint: str, tmp_path: Path) -> None:
    """What the dead one held is not claimed any more, wherever its stream had ended."""
    program = f"""
import sys
from tests.subscribers.redis_scene import Worker
worker = Worker({endpoint!r})
worker.work(200)
while not worker.delivered():
    pass
print("delivered", flush=True)
step = 200
while True:
    worker.work(1, first=step)
    step += 1
"""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            for life in range(2):
                with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
                    assert process.stdout is not None
                    assert process.stdout.readline() == b"delivered\n"
                    await until(lambda: scene.state().blocks >= 400)
                    process.kill()
                with working(endpoint) as worker:
                    worker.work(5, first=10_000 * (life + 1))
                    await scene.heals(worker)
                    assert scene.wrong_claims(worker) == set()
            state = scene.state()

        assert state.restarts == 3

    run(scenario())


def test_many_sources_heal_together_from_everything_at_once(endpoint: str, server: RedisServer) -> None:
    """Random work, and at random moments each fault: afterwards every index is the truth, and no loss is silent."""
    rng = random.Random(20)

    async def scenario() -> None:
        sources = [Source(f"worker-{number}", rank) for number in range(3) for rank in range(2)]
        limits = replace(QUICK, request_seconds=0.5)
        async with following(limits) as scene, client(server.url) as connected:
            scene.listen(endpoint, *sources)
            workers = [Worker(endpoint, source, request_seconds=1.1, maxlen=200) for source in sources]
            try:
                for fault in ("kill", "flush", "lose", "restart one", "trim", "pause", "kill"):
                    for worker in workers:
                        worker.churn(rng, 60)
                    if fault == "kill":
                        server.restart()
                    elif fault == "lose":
                        server.restart(keep_data=False)
                    elif fault == "flush":
                        await connected.flushall()
                    elif fault == "trim":
                        await connected.execute_command("XTRIM", STREAM, "MAXLEN", 3)
                    elif fault == "pause":
                        with server.paused():
                            await until(lambda: not scene.stream().connected)
                    else:
                        workers[0].publisher.close()
                        workers[0] = Worker(endpoint, sources[0], request_seconds=1.1)
                    for worker in workers:
                        worker.churn(rng, 20)
                    for worker in workers:
                        await scene.heals(worker)
                        assert scene.wrong_claims(worker) == set()
                restarts = [scene.state(source).restarts for source in sources]
            finally:
                for worker in workers:
                    worker.publisher.close(timeout_seconds=0.5)

        assert restarts == [1, 0, 0, 0, 0, 0]
        assert scene.stream().unknown == 0

    run(scenario())
