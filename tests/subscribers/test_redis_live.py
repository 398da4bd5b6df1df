"""Following Redis Streams while nothing fails: who gets what, from where on, and what is told about it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvrouter.events import Source
from kvrouter.events.redis_names import request_key
from tests.servers import RedisServer, redis_server
from tests.subscribers.redis_scene import QUICK, STREAM, client, following, frame, put, working
from tests.subscribers.scene import WORKER, run, until

OTHER = Source("other", 0)
RANK_1 = Source("worker", 1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests of this module."""
    with redis_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    """A server without any stream."""

    async def empty() -> None:
        async with client(shared.url) as connected:
            await connected.flushall()

    run(empty())
    return shared


@pytest.fixture
def endpoint(server: RedisServer) -> str:
    """The stream of these tests."""
    return f"{server.url}/0/{STREAM}"


def test_what_is_published_is_in_the_index(endpoint: str) -> None:
    """Stores and removals, in their order; all of them before the subscriber came, and after."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            worker.work(50)
            await until(worker.delivered)
            async with following() as scene:
                scene.listen(endpoint)
                await scene.heals(worker)
                worker.work(50, first=50)
                await scene.heals(worker)

        assert [sequence for _, sequence, _ in scene.sink.receipts] == list(range(201))
        assert scene.status().last_error is None
        assert scene.status().snapshots == 0

    run(scenario())


def test_many_sources_share_a_stream_and_a_connection(endpoint: str, server: RedisServer) -> None:
    """They are told apart by what they say of themselves; those that nobody follows are counted."""

    async def scenario() -> None:
        async with following() as scene, client(server.url) as connected:
            scene.listen(endpoint, WORKER, RANK_1, OTHER)
            await until(lambda: scene.status().connected)
            with (
                working(endpoint) as first,
                working(endpoint, RANK_1) as second,
                working(endpoint, OTHER) as third,
                working(endpoint, Source("stranger", 0)) as stranger,
            ):
                for worker in (first, second, third, stranger):
                    worker.work(30)
                for worker in (first, second, third):
                    await scene.heals(worker)
                await until(lambda: scene.stream().unknown == stranger.count("batches_published"))
                groups = await connected.execute_command("XINFO", "GROUPS", STREAM)

        assert len(groups) == 1

    run(scenario())


def test_a_source_that_is_added_later_gets_what_was_there_before(endpoint: str) -> None:
    """The stream is read again for it alone; one that is added anew begins anew, and a removed one is left alone."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            await until(lambda: scene.status().connected)
            with working(endpoint) as worker, working(endpoint, OTHER) as other:
                for each in (worker, other):
                    each.work(30)
                await scene.heals(worker)
                await until(lambda: scene.stream().unknown == other.count("next_sequence") == 61)
                scene.listen(endpoint, OTHER)
                await scene.heals(other)
                assert scene.status(OTHER).replayed_batches > 0

                scene.subscriber.remove(OTHER)
                assert scene.subscriber.status(OTHER) is None
                other.work(10, first=30)
                worker.work(10, first=30)
                await scene.heals(worker)
                scene.listen(endpoint, OTHER)
                await scene.heals(other)

    run(scenario())


def test_a_late_joiner_whose_history_was_trimmed_takes_a_snapshot(endpoint: str, server: RedisServer) -> None:
    """What the stream no longer has, the publisher still knows; two who ask at once get the same."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            with working(endpoint) as worker:
                worker.work(200)
                await until(worker.delivered)
                await connected.execute_command("XTRIM", STREAM, "MAXLEN", 10)
                async with following() as first, following() as second:
                    for scene in (first, second):
                        scene.listen(endpoint)
                    for scene in (first, second):
                        await scene.heals(worker)
                        assert scene.status().snapshots >= 1
                        assert scene.wrong_claims(worker) == set()

    run(scenario())


def test_a_resync_gets_the_whole_state_anew(endpoint: str) -> None:
    """Whoever doubts a source may ask; a source that is not followed cannot be asked."""

    async def scenario() -> None:
        async with following() as scene:
            assert not scene.subscriber.resync(WORKER)
            with working(endpoint) as worker:
                scene.listen(endpoint)
                worker.work(20)
                await scene.heals(worker)
                before = scene.status().snapshots
                assert scene.subscriber.resync(WORKER)
                await until(lambda: scene.status().snapshots > before)
                await scene.heals(worker)

    run(scenario())


def test_a_large_snapshot_comes_in_parts_no_faster_than_they_are_taken(endpoint: str, server: RedisServer) -> None:
    """The server holds a few parts at a time; afterwards nothing is left there."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            with working(endpoint) as worker:
                for first in range(0, 30_000, 300):
                    worker.store(*range(first, first + 300))
                await until(worker.delivered)
                await connected.execute_command("XTRIM", STREAM, "MAXLEN", 1)
                async with following() as scene:
                    scene.listen(endpoint)
                    await scene.heals(worker)
                    assert scene.status().snapshots == 1
                keys = [key async for key in connected.scan_iter("*:snapshot:*")]

        assert worker.count("snapshot_parts_sent") > 1
        assert keys == []

    run(scenario())


def test_a_publisher_without_snapshots_says_so(endpoint: str, server: RedisServer) -> None:
    """The source goes on with what comes, and is never claimed to be whole; nobody waits in vain."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            with working(endpoint, snapshots=False) as worker:
                worker.work(50)
                await until(worker.delivered)
                await connected.execute_command("XTRIM", STREAM, "MAXLEN", 10)
                async with following() as scene:
                    scene.listen(endpoint)
                    await until(lambda: scene.status().snapshots_failed > 0)
                    assert "makes none" in str(scene.status().last_error)
                    assert scene.wrong_claims(worker) == set()
                    worker.clear()
                    worker.work(5, first=100)
                    await until(
                        lambda: worker.delivered() and scene.sink.applied() == worker.count("next_sequence") - 1
                    )
                    assert scene.wrong_claims(worker) == set()

    run(scenario())


def test_a_request_that_nobody_answers_is_withdrawn(endpoint: str, server: RedisServer) -> None:
    """A publisher that comes later is not asked for what nobody waits for."""

    async def scenario() -> None:
        limits = replace(QUICK, request_seconds=0.2, snapshot_attempts=1)
        async with following(limits) as scene, client(server.url) as connected:
            scene.listen(endpoint)
            await until(lambda: scene.status().snapshots_failed == 1)

            assert "does not answer" in str(scene.status().last_error)
            assert await connected.exists(request_key(STREAM, WORKER)) == 0

    run(scenario())


def test_a_router_that_knows_its_position_goes_on_there(endpoint: str) -> None:
    """What its sink knows already is not read again; what came since is."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            worker.work(50)
            await until(worker.delivered)
            async with following() as scene:
                scene.listen(endpoint)
                await scene.heals(worker)
                positions = scene.subscriber.positions()
            read = len(scene.sink.receipts)
            worker.work(20, first=50)
            async with following(sink=scene.sink, positions=positions) as again:
                again.listen(endpoint)
                await again.heals(worker)

        assert [sequence for _, sequence, _ in again.sink.receipts[read:]] == list(range(101, 141))
        assert (again.status().snapshots, again.status().replays) == (0, 0)

    run(scenario())


def test_a_position_that_the_stream_no_longer_has_is_not_trusted(endpoint: str, server: RedisServer) -> None:
    """Between what the sink knows and what the stream begins with, something may be missing."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            worker.work(50)
            async with following() as scene:
                scene.listen(endpoint)
                await scene.heals(worker)
                positions = scene.subscriber.positions()
            worker.work(20, first=50)
            await until(worker.delivered)
            async with client(server.url) as connected:
                await connected.execute_command("XTRIM", STREAM, "MAXLEN", 5)
            async with following(sink=scene.sink, positions=positions) as again:
                again.listen(endpoint)
                await again.heals(worker)

        assert again.status().snapshots >= 1
        assert again.state().restarts == 0

    run(scenario())


GARBAGE: list[tuple[str, list[object]]] = [
    ("another field", [b"x", b"y"]),
    ("no envelope", [b"e", b"garbage"]),
    ("an engine's batch", [b"e", b"\x93\xcb\x00\x00\x00\x00\x00\x00\x00\x00\x90\xc0"]),
    ("nothing", [b"e", b""]),
]


@pytest.mark.parametrize(("_name", "fields"), GARBAGE, ids=[name for name, _ in GARBAGE])
def test_what_is_no_event_is_counted_and_passed(
    endpoint: str, server: RedisServer, _name: str, fields: list[object]
) -> None:
    """One writer of nonsense does not stop the others."""

    async def scenario() -> None:
        async with following() as scene, client(server.url) as connected:
            scene.listen(endpoint)
            await put(connected, frame(0, 0))
            await until(lambda: scene.sink.applied() == 0)
            await connected.execute_command("XADD", STREAM, "*", *fields)
            await put(connected, frame(1, 1))
            await until(lambda: scene.sink.applied() == 1)

            assert scene.stream().malformed == 1
            assert scene.stream().last_error

    run(scenario())


def test_a_part_of_a_snapshot_among_the_events_is_refused(endpoint: str, server: RedisServer) -> None:
    """It would be applied as an ordinary batch, twice."""

    async def scenario() -> None:
        async with following() as scene, client(server.url) as connected:
            scene.listen(endpoint)
            await until(lambda: scene.status().connected)
            await put(connected, frame(0, 0), frame(0, 1, snapshot=(0, 1)), frame(1, 2))
            await until(lambda: scene.sink.applied() == 1)

            assert scene.status().malformed == 1
            assert not scene.sink.holds(1)

    run(scenario())


def test_a_fault_of_the_sink_is_counted_and_does_not_end_the_stream(endpoint: str, server: RedisServer) -> None:
    """Whatever it is; the first of them is logged."""

    async def scenario() -> None:
        async with following() as scene, client(server.url) as connected:
            scene.sink.failing = {"connected": RuntimeError("one"), "receive": RuntimeError("two")}
            scene.listen(endpoint)
            await until(lambda: scene.status().connected)
            await put(connected, frame(0, 0), frame(0, 0), frame(1, 1))
            await until(lambda: scene.sink.applied() == 1)

            assert scene.status().sink_errors == 2
            assert "two" in str(scene.status().last_error)

    run(scenario())
