"""Records in the store become workers of the router, change with them and leave with them."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvrouter.discovery import Discovery, Instance, TransportEndpoint
from kvrouter.discovery.records import BUCKET
from kvrouter.routing.constraints import Taint
from kvrouter.service.planes.discovered import spec_of
from kvrouter.service.proxy import Endpoint
from kvrouter.store.local_keys import LocalKeyValueStore
from tests.planes.inprocess import Words, admin, eventually, routed, run, worker
from tests.servers import Server, etcd_server, free_port, nats_server, redis_server


def test_what_a_record_says_of_its_worker_is_what_the_router_knows(tmp_path: Path) -> None:
    """A-121, A-222: events, ranks, labels and zone come with the record; its engine's address and key do not."""
    told = {
        "kv_events_endpoint": "tcp://10.0.0.1:5557", "data_parallel_size": 2, "labels": ["gpu=b200"], "worker_id": "w7",
    }  # fmt: skip

    async def scenario() -> None:
        async with worker(tmp_path, Words("a"), worker=told, zone="west"), routed(tmp_path) as router:
            await router.ready()
            [found] = router.service.registry
            assert found.spec.worker_id == "w7"
            assert found.spec.events == {0: "tcp://10.0.0.1:5557", 1: "tcp://10.0.0.1:5558"}
            assert found.spec.traits.zone == "west"
            assert found.spec.traits.labels == {"gpu": "b200", "zone": "west"}
            assert await router.said() == "a hello"

    run(scenario())


def test_a_worker_that_leaves_gets_no_requests_and_finishes_what_runs(tmp_path: Path) -> None:
    """A-164: its record goes first; the answer that runs is whole, and the router has forgotten it meanwhile."""

    async def scenario() -> None:
        words = Words("a")
        async with routed(tmp_path) as router:
            async with worker(tmp_path, words, drain_seconds=60.0) as leaving:
                await router.ready()
                async with router.stream("wait bye") as heard:
                    assert await anext(heard) == "a"
                    stopping = asyncio.create_task(leaving.__aexit__(None, None, None))
                    await eventually(lambda: not len(router.service.registry))
                    refused = await router.chat()
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker")
                    words.release.set()
                    assert [word async for word in heard] == ["wait", "bye"]
                    await stopping
            assert router.figure("discovery_registrations_total") == 1
            assert router.figure("discovery_removals_total") == 1

    run(scenario())


def test_a_worker_whose_record_ends_is_forgotten(tmp_path: Path) -> None:
    """A-121: as when a process dies without a word, and its lease runs out."""

    async def scenario() -> None:
        async with worker(tmp_path, Words("a")) as served, routed(tmp_path) as router:
            await router.ready()
            store = LocalKeyValueStore(str(tmp_path / "records"))
            await served.registrations[0].close()
            await eventually(lambda: not len(router.service.registry))
            assert await store.bucket(BUCKET).entries("instances/") == {}
            await store.close()

    run(scenario())


def test_a_record_that_cannot_be_used_harms_nobody(tmp_path: Path) -> None:
    """A-135: unknown fields, or nonsense, are counted and logged; the others are served."""

    async def scenario() -> None:
        store = LocalKeyValueStore(str(tmp_path / "records"))
        await store.bucket(BUCKET).put("instances/kvrouter/backend/generate/1", b"nonsense")
        async with (
            worker(tmp_path, Words("b"), worker={"colour": "red"}),
            worker(tmp_path, Words("a")),
            routed(tmp_path) as router,
        ):
            await router.ready()
            await eventually(lambda: router.figure("discovery_malformed_records_total") == 2)
            assert await router.said() == "a hello"
            assert len(router.service.registry) == 1
        await store.close()

    run(scenario())


def test_a_record_that_changes_changes_its_worker(tmp_path: Path) -> None:
    """A-233: unhealthy ones get no requests, degraded ones are the last choice, and both may recover."""

    async def scenario() -> None:
        async with worker(tmp_path, Words("a")) as served, routed(tmp_path) as router:
            await router.ready()
            [found], [registration] = router.service.registry, served.registrations
            registration.set_health("unhealthy", "no memory")
            await eventually(lambda: found.draining)
            registration.set_health("degraded", "slow")
            await eventually(lambda: not found.draining)
            await eventually(lambda: found.spec.traits.taints == (Taint("degraded", "", soft=True),))
            assert await router.said() == "a hello"
            registration.set_health("healthy")
            await eventually(lambda: not found.spec.traits.taints)
            assert [found] == list(router.service.registry)

    run(scenario())


def test_where_one_transport_leads_nowhere_the_next_one_is_taken(tmp_path: Path) -> None:
    """A-231, A-232: fall-back to what else the record has; each worker its own way, in one fleet."""

    async def scenario() -> None:
        store = f"file://{tmp_path / 'records'}"
        async with worker(tmp_path, Words("a"), "http") as served, routed(tmp_path) as router:
            await router.ready()
            await served.registrations[0].close()
            [http] = served.registrations[0].instance.transports
            dead = TransportEndpoint(transport_id="tcp", address=f"127.0.0.1:{free_port()}")
            both = msgspec.structs.replace(served.registrations[0].instance, transports=(dead, http))
            await eventually(lambda: not len(router.service.registry))
            async with Discovery(LocalKeyValueStore(store.removeprefix("file://"))) as discovery:
                await discovery.register(both)
                await router.ready()
                assert await router.said() == "a hello"
                assert router.figure("transport_errors_total", transport="tcp", error_type="connection") > 0
                assert router.service.planes is not None
                assert router.service.planes.ways.instances.fallbacks > 0

    run(scenario())


def test_a_way_that_this_router_has_not_is_said_in_words(tmp_path: Path) -> None:
    """A-227, D-4: without a NATS server nothing is tried, and the worker's record says why it gets no requests."""

    async def scenario() -> None:
        record = Instance(
            namespace="kvrouter", component="backend", endpoint="generate", instance_id=7,
            transports=(TransportEndpoint(transport_id="nats", address="demo.backend-7"),),
        )  # fmt: skip
        async with (
            Discovery(LocalKeyValueStore(str(tmp_path / "records"))) as discovery,
            routed(tmp_path, preferred="http") as router,
        ):
            await discovery.register(record)
            await eventually(lambda: len(router.service.registry) == 1)
            [found] = router.service.registry
            await eventually(lambda: found.last_error)
            assert "no NATS server is set (--nats-server)" in str(found.last_error)

    run(scenario())


def test_the_admin_api_shows_ways_and_leaves_records_alone(tmp_path: Path) -> None:
    """A-228: how each worker is reached can be listed; what a record says is changed by its worker only."""

    async def scenario() -> None:
        async with worker(tmp_path, Words("a"), "tcp", "http") as served, routed(tmp_path) as router:
            await router.ready()
            async with admin(router) as client:
                told = (await client.get("/request-plane")).json()
                [name] = told["workers"]
                assert told["enabled"]
                assert (told["preferred"], told["configured"], told["discovery_error"]) == ("tcp", "tcp", None)
                assert told["workers"][name] == served.addresses
                refused = await client.patch(f"/workers/{name}", json={"zone": "east"})
                assert (refused.status_code, refused.json()["error"]["code"]) == (409, "discovered")
                refused = await client.post("/workers", json={"url": "http://127.0.0.1:9", "id": name})
                assert refused.status_code == 409
                drained = await client.post(f"/workers/{name}/drain")
                assert drained.json()["lifecycle"] == "draining"

    run(scenario())


@pytest.mark.parametrize(
    ("start", "ending"),
    [(etcd_server, "/x"), (nats_server, "/x"), (redis_server, "/0/x")],
    ids=["etcd", "nats", "redis"],
)
def test_records_are_found_wherever_they_are_kept(
    tmp_path: Path, start: Callable[[Path], AbstractContextManager[Server]], ending: str
) -> None:
    """A-121, A-235: the same on every store, and the switch beside them; requests need none of these servers."""

    async def scenario(server: Server) -> None:
        store = server.url + ending
        async with routed(tmp_path, store=store) as router, admin(router) as client:
            async with worker(store, Words("a"), "tcp", "http"):
                await router.ready()
                assert await router.said() == "a hello"
                assert (await client.put("/request-plane/http")).status_code == 200
                planes = router.service.planes
                assert planes is not None
                await eventually(lambda: planes.ways.preferred == "http")
                server.kill()
                assert await router.said() == "a hello"
                server.start()
            await eventually(lambda: not len(router.service.registry))

    with start(tmp_path) as server:
        run(scenario(server))


def test_readiness_tells_that_workers_are_not_discovered(tmp_path: Path) -> None:
    """A-235: a store that is away degrades a router that knows workers; one that knows none says why."""

    async def scenario(server: Server) -> None:
        store = f"{server.url}/0/x"
        async with routed(tmp_path, store=store) as router:

            async def readiness() -> Any:
                return (await router.client.get("/readyz")).json()

            async with worker(store, Words("a")):
                await router.ready()
                await eventually(lambda: router.service.config.store_up)
                assert (await readiness())["discovery"] == {"degraded": False, "error": None}
                server.kill()
                await eventually(lambda: not router.service.config.store_up)
                away = await readiness()
                assert (away["ready"], away["discovery"]["degraded"]) == (True, True)
                assert await router.said() == "a hello"
                router.service.registry.remove(next(iter(router.service.registry)).spec.worker_id, now=0.0)
                reasons = (await readiness())["reasons"]
                assert reasons[1] == "workers are not discovered: the store of the records does not answer"
                server.start()
                await eventually(lambda: router.service.config.store_up)
                assert not (await readiness())["discovery"]["degraded"]

    with redis_server(tmp_path) as server:
        run(scenario(server))


def test_a_records_address_and_key_are_not_the_workers_to_say() -> None:
    """A-222: requests go where the record's transports lead, and nowhere else."""
    record = Instance(
        namespace="n", component="c", endpoint="e", instance_id=255,
        transports=(TransportEndpoint(transport_id="http", address="http://10.0.0.1:8081/v1/rpc"),),
        worker={"url": "http://127.0.0.1:1", "endpoint": "http://127.0.0.1:2", "api_key": "secret", "models": ["m"]},
    )  # fmt: skip

    spec = spec_of(record, reached := Endpoint("", 0, host_header=b"worker"))

    assert (spec.worker_id, spec.url, spec.api_key, spec.trusted) == ("ff", None, None, False)
    assert (spec.address, spec.models) == ("http:http://10.0.0.1:8081/v1/rpc", ("m",))
    assert spec.reached is reached
