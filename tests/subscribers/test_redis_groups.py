"""Consumer groups on Redis: whose entries are whose, what the dead leave behind, and who clears it away."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvrouter.events.redis_names import alive_key, reader_key, router_group
from tests.servers import RedisServer, redis_server
from tests.subscribers.redis_scene import QUICK, STREAM, client, following, frame, put, working
from tests.subscribers.scene import WORKER, run, until


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


def test_each_router_sees_everything(endpoint: str, server: RedisServer) -> None:
    """Each has a group of its own, and acknowledges what its sink has."""

    async def scenario() -> None:
        async with following(name="a") as first, following(name="b") as second, client(server.url) as connected:
            for scene in (first, second):
                scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(100)
                for scene in (first, second):
                    await scene.heals(worker)

                    async def pending(group: str) -> int:
                        return int((await connected.execute_command("XPENDING", STREAM, group))["pending"])

                for name in ("a", "b"):
                    while await pending(router_group(name)):
                        await asyncio.sleep(0.01)

    run(scenario())


def test_a_worker_group_shares_the_entries(endpoint: str) -> None:
    """Each goes to one member."""

    async def scenario() -> None:
        async with (
            following(mode="worker-group", name="a") as first,
            following(mode="worker-group", name="b") as second,
        ):
            for scene in (first, second):
                scene.listen(endpoint)
                await until(lambda: scene.status().connected)  # noqa: B023 - awaited here
            with working(endpoint, digest_seconds=None) as worker:
                worker.work(300)
                total = 601
                await until(lambda: first.stream().messages + second.stream().messages == total)

        received = sorted(sequence for scene in (first, second) for _, sequence, _ in scene.sink.receipts)
        assert received == list(range(total))
        assert not first.subscriber.resync(WORKER)

    run(scenario())


def test_what_a_dead_member_left_is_taken_over(endpoint: str, server: RedisServer) -> None:
    """Entries that were given out and never acknowledged go to who lives; a member that returns finds its own."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            await put(connected, *(frame(sequence, sequence) for sequence in range(8)))
            group = ("XREADGROUP", "GROUP", "kvrouter-workers")
            await connected.execute_command("XGROUP", "CREATE", STREAM, "kvrouter-workers", "0")
            await connected.execute_command(*group, "dead", "COUNT", 3, "STREAMS", STREAM, ">")
            await connected.execute_command(*group, "back", "COUNT", 2, "STREAMS", STREAM, ">")
            limits = replace(QUICK, claim_seconds=0.3)
            async with following(limits, mode="worker-group", name="back") as scene:
                scene.listen(endpoint)
                await until(lambda: scene.stream().messages == 8)
                assert scene.stream().claimed == 3
                sequences = [sequence for _, sequence, _ in scene.sink.receipts]
                assert sequences[:2] == [3, 4], "what it had not acknowledged comes first"
                assert sorted(sequences) == list(range(8))
                while (await connected.execute_command("XPENDING", STREAM, "kvrouter-workers"))["pending"]:
                    await asyncio.sleep(0.01)

    run(scenario())


def test_groups_of_dead_routers_are_removed(endpoint: str, server: RedisServer) -> None:
    """By those who live, when the dead ones were not heard of for long enough; others' groups are not ours."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            await put(connected, frame(0, 0))
            for group in (router_group("dead"), router_group("asleep"), "somebody-else"):
                await connected.execute_command("XGROUP", "CREATE", STREAM, group, "0")
            await connected.execute_command("SET", alive_key(STREAM, router_group("asleep")), 1, "EX", 60)
            limits = replace(QUICK, sweep_seconds=0.05)
            async with following(limits, name="alive") as scene:
                scene.listen(endpoint)

                async def groups() -> set[bytes]:
                    rows = await connected.execute_command("XINFO", "GROUPS", STREAM)
                    return {row[1] for row in rows}

                while router_group("dead").encode() in await groups():
                    await asyncio.sleep(0.01)
                left = await groups()
                seconds = await connected.ttl(alive_key(STREAM, router_group("alive")))

        assert left == {router_group("alive").encode(), router_group("asleep").encode(), b"somebody-else"}
        assert 290 <= seconds <= 300

    run(scenario())


def test_a_router_that_slept_too_long_makes_its_group_anew(endpoint: str, server: RedisServer) -> None:
    """And goes on where it had stopped, with nothing missing."""

    async def scenario() -> None:
        async with following(name="sleeper") as scene, client(server.url) as connected:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(20)
                await scene.heals(worker)
                asked = scene.status().snapshots
                await connected.execute_command("XGROUP", "DESTROY", STREAM, router_group("sleeper"))
                worker.work(20, first=20)
                await scene.heals(worker)

        assert scene.status().snapshots == asked
        assert scene.stream().trimmed == 0

    run(scenario())


def test_a_router_without_a_name_takes_its_group_along(endpoint: str, server: RedisServer) -> None:
    """One with a name leaves it for its next life."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            for name in (None, "named"):
                async with following(name=name) as scene:
                    scene.listen(endpoint)
                    await until(lambda: scene.status().connected)
            rows = await connected.execute_command("XINFO", "GROUPS", STREAM)

        assert [row[1] for row in rows] == [router_group("named").encode()]

    run(scenario())


def test_two_routers_of_one_name_do_not_share_their_entries(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    """The second one says so, once in the log, and reads nothing; when the first one stops it takes over, whole."""

    async def scenario() -> None:
        async with following(name="twin") as second:
            async with following(name="twin") as first:
                first.listen(endpoint)
                await until(lambda: first.status().connected)
                second.listen(endpoint)
                with working(endpoint) as worker:
                    worker.work(100)
                    await first.heals(worker)
                    await until(lambda: second.stream().name_conflicts > 2)
                    assert not second.status().connected
                    assert "another router reads as 'kvrouter:twin'" in str(second.status().last_error)
                    assert (first.stream().name_conflicts, second.stream().messages) == (0, 0)
            await until(lambda: second.status().connected)
            assert second.status().last_error is None
            with working(endpoint) as worker:
                worker.work(20)
                await second.heals(worker)

    run(scenario())
    assert [record.name for record in caplog.records if "router_name_taken" in record.message] == [
        "kvrouter_subscribers"
    ]


def test_the_name_of_a_router_that_died_is_free_soon(endpoint: str, server: RedisServer) -> None:
    """It gave nothing back; the key that names it expires by itself."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            key = reader_key(STREAM, router_group("crashed"))
            await connected.execute_command("SET", key, "of an earlier life", "PX", 600_000)
            async with following(name="crashed") as scene:
                scene.listen(endpoint)
                await until(lambda: scene.stream().name_conflicts)
                assert await connected.get(key) == b"of an earlier life"
                await connected.execute_command("PEXPIRE", key, 1)
                await until(lambda: scene.status().connected)
                assert 0 < await connected.pttl(key) <= 10_000
            assert not await connected.exists(key)

    run(scenario())


@pytest.mark.parametrize("taken", [True, False])
def test_a_router_that_slept_beyond_its_lease_asks_before_it_reads(
    endpoint: str, server: RedisServer, *, taken: bool
) -> None:
    """Another one may have moved the group meanwhile; what it read there is read again."""

    async def scenario() -> None:
        async with (
            following(replace(QUICK, lease_seconds=0.4), name="sleeper") as scene,
            client(server.url) as connected,
        ):
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(20)
                await scene.heals(worker)
                connects = scene.stream().connects
                key = reader_key(STREAM, router_group("sleeper"))
                if taken:
                    await connected.execute_command("SET", key, "another")
                else:
                    await connected.execute_command("DEL", key)
                await connected.execute_command("XADD", STREAM, "*", "e", b"what another one took")
                await connected.execute_command("XGROUP", "SETID", STREAM, router_group("sleeper"), "$")
                worker.work(20, first=20)
                if taken:  # The other one reads for as long as it takes us to notice, and goes.
                    await until(lambda: scene.stream().name_conflicts)
                    await connected.execute_command("DEL", key)
                await until(lambda: scene.stream().connects > connects)
                await scene.heals(worker)
                assert bool(scene.stream().name_conflicts) is taken

    run(scenario())
