"""Discovery on every store: registering, following, dying, coming back (A-121, A-224 ff., A-235)."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kvrouter.discovery import Directory, Discovery, Instance, TransportEndpoint
from kvrouter.discovery.records import BUCKET, Health
from kvrouter.errors import NoInstancesError
from kvrouter.store import open_key_value_store
from tests.servers import Server, etcd_server, nats_server, redis_server
from tests.transport.conformance import eventually, run

SERVERS: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
    "etcd": etcd_server,
    "nats": nats_server,
    "redis": redis_server,
}


def instance(number: int, endpoint: str = "generate", zone: str | None = None, health: Health = "healthy") -> Instance:
    """A worker's record."""
    way = TransportEndpoint(transport_id="tcp", address=f"127.0.0.1:{9000 + number}")
    return Instance(
        namespace="test",
        component="backend",
        endpoint=endpoint,
        instance_id=number,
        transports=(way,),
        zone=zone,
        health=health,
    )


@pytest.fixture(params=["file", *SERVERS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Server | None]]:
    """The URL of a store, and its server if it has one."""
    if request.param == "file":
        yield tmp_path.as_uri(), None
        return
    with SERVERS[request.param](tmp_path) as server:
        url = getattr(server, "url")  # noqa: B009 - every one of them has it
        yield f"{url}/0/test" if request.param == "redis" else f"{url}/test", server


def test_workers_come_and_go(place: tuple[str, Server | None]) -> None:
    """A-121, A-235: who registers is found, who closes is gone, of other endpoints nothing is seen."""

    async def scenario() -> None:
        async with (
            Discovery(open_key_value_store(place[0])) as here,
            Discovery(open_key_value_store(place[0])) as there,
        ):
            first = await there.register(instance(1, zone="west"))
            directory = Directory(here, "test", "backend", "generate")
            await directory.start()
            assert [each.zone for each in directory.instances()] == ["west"]
            await there.register(instance(2))
            await there.register(instance(3, endpoint="embed"))
            await eventually(lambda: len(directory.instances()) == 2)
            await first.close()
            await eventually(lambda: [each.instance_id for each in directory.instances()] == [2])
            assert sorted(each.instance_id for each in await here.instances("test")) == [2, 3]
            await directory.close()

    run(scenario())


def test_a_worker_that_dies_without_a_word_is_forgotten(place: tuple[str, Server | None]) -> None:
    """A-235: when the lifetime of its record is over; one that lives stays for longer than that."""

    async def scenario() -> None:
        async with (
            Discovery(open_key_value_store(place[0]), lease_seconds=5.0) as here,
            Discovery(open_key_value_store(place[0]), lease_seconds=5.0) as there,
        ):
            await here.register(instance(1))
            dying = await there.register(instance(2))
            directory = Directory(here, "test")
            await directory.start()
            assert len(directory.instances()) == 2
            assert dying._renewing is not None
            dying._renewing.cancel()
            await eventually(lambda: [each.instance_id for each in directory.instances()] == [1])
            await directory.close()

    run(scenario())


def test_health_is_told_and_the_unhealthy_are_left_out(place: tuple[str, Server | None]) -> None:
    """A-233: a reason travels with it."""

    async def scenario() -> None:
        async with Discovery(open_key_value_store(place[0])) as discovery:
            registration = await discovery.register(instance(1))
            directory = Directory(discovery, "test")
            await directory.start()
            registration.set_health("degraded", "half of the memory is gone")
            await eventually(lambda: directory.instances()[0].health == "degraded")
            assert directory.instances()[0].health_reason == "half of the memory is gone"
            registration.set_health("unhealthy")
            await eventually(lambda: not directory.instances())
            with pytest.raises(NoInstancesError, match="No instances found"):
                await directory.wait(seconds=0.01)
            registration.set_health("healthy")
            assert [each.instance_id for each in await directory.wait()] == [1]
            await directory.close()

    run(scenario())


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_store_that_loses_everything_learns_it_again(place: tuple[str, Server | None]) -> None:
    """A-232: workers write their records again, and while the store is away the last that was known stands."""
    url, server = place
    assert server is not None, "only servers lose everything"

    async def scenario() -> None:
        async with Discovery(open_key_value_store(url), lease_seconds=5.0) as discovery:
            await discovery.register(instance(1))
            directory = Directory(discovery, "test")
            await directory.start()
            await asyncio.to_thread(server.kill)
            await eventually(lambda: discovery.counters.failed_renewals)
            assert [each.instance_id for each in directory.instances()] == [1]
            server.lose_data()
            await asyncio.to_thread(server.start)
            await eventually(lambda: directory.resyncs)
            await eventually(lambda: [each.instance_id for each in directory.instances()] == [1])
            renewals = discovery.counters.renewals
            await eventually(lambda: discovery.counters.renewals > renewals)
            # A stall longer than the lease ends the record, and the next renewal writes it again.
            await eventually(lambda: [each.instance_id for each in directory.instances()] == [1])
            await directory.close()

    run(scenario())


def test_a_record_that_nobody_can_read_is_counted(tmp_path: Path) -> None:
    """It hides no other."""

    async def scenario() -> None:
        async with Discovery(open_key_value_store(tmp_path.as_uri())) as discovery:
            async with open_key_value_store(tmp_path.as_uri()) as store:
                await store.bucket(BUCKET).put("instances/test/backend/generate/9", b"nonsense")
            await discovery.register(instance(1))
            directory = Directory(discovery)
            await directory.start()
            assert [each.instance_id for each in directory.instances()] == [1]
            assert discovery.counters.malformed == 1
            await directory.close()

    run(scenario())


def test_listeners_hear_who_is_there_and_each_change() -> None:
    """Renewals are no changes."""

    async def scenario() -> None:
        heard: list[tuple[str, int | None]] = []
        async with Discovery(open_key_value_store("memory:"), lease_seconds=6.0) as discovery:
            registration = await discovery.register(instance(1))
            directory = Directory(discovery)
            await directory.start()
            directory.listen(lambda key, each: heard.append((key, None if each is None else each.instance_id)))
            await eventually(lambda: discovery.counters.renewals)
            await registration.close()
            await eventually(lambda: len(heard) == 2)
            assert [number for _, number in heard] == [1, None]
            await directory.close()

    run(scenario())
