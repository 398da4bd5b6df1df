"""Requests by name through discovery: mixed fleets, retries, fall-back, a transport that is switched (A-161, A-231)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvrouter.discovery import Directory, Discovery, Instance, TransportEndpoint, encode_instance
from kvrouter.errors import DisconnectedError, NoInstancesError, RefusedError, TransportError
from kvrouter.store.memory_keys import MemoryKeyValueStore
from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_acks import NatsAckSender
from kvrouter.transport.nats_client import NatsRequestClient
from kvrouter.transport.plane_client import PlaneClient
from kvrouter.transport.planes import RequestClient
from kvrouter.transport.registry import NoTransportError, Registered, TransportRegistry
from kvrouter.transport.serve import ServedWorker, serve
from kvrouter.transport.server_stream import Handler
from kvrouter.transport.tcp_client import TcpRequestClient
from kvrouter.transport.zmq_client import ZmqRequestClient
from tests.servers import NatsServer
from tests.transport.conformance import eventually, run

ECHO = Request(endpoint="echo", body=b"x")


def named(name: str) -> Handler:
    """A handler that answers with a name."""

    async def echo(request: Request, context: Context) -> AsyncIterator[bytes]:
        yield name.encode()

    return echo


@asynccontextmanager
async def fleet(
    store: MemoryKeyValueStore, *, nats: str | None = None, **options: object
) -> AsyncIterator[tuple[PlaneClient, TransportRegistry]]:
    """A client with every transport."""
    registry = TransportRegistry()
    clients: dict[str, RequestClient] = {"tcp": TcpRequestClient(), "zmq": ZmqRequestClient()}
    registry.register(Registered(transport_id="tcp", priority=0, client=clients["tcp"]))
    registry.register(Registered(transport_id="zmq", priority=1, client=clients["zmq"]))
    nats_client = None
    if nats is not None:
        nats_client = NatsRequestClient(nats)
        registry.register(Registered(transport_id="nats", priority=2, client=nats_client))
    discovery = Discovery(store)
    directory = Directory(discovery, "demo", "backend", "echo")
    await directory.start()
    try:
        yield PlaneClient(directory, registry, **options), registry  # type: ignore[arg-type]
    finally:
        await directory.close()
        await discovery.close()
        for client in (*clients.values(), nats_client):
            if client is not None:
                await client.aclose()


def worker(store: MemoryKeyValueStore, name: str, *transports: str, **options: object) -> ServedWorker:
    """A worker that answers with its name."""
    return serve("demo/backend", {"echo": named(name)}, store=store, transports=transports or ("tcp",), **options)  # type: ignore[arg-type]


async def ask(client: PlaneClient) -> str:
    """Who answers."""
    return b"".join([item async for item in client.items(ECHO)]).decode()


def test_a_fleet_may_mix_transports(nats: NatsServer) -> None:
    """A-116, A-161, A-231: each worker is reached as its record says."""

    async def scenario() -> None:
        store = MemoryKeyValueStore()
        async with (
            worker(store, "a", "tcp"),
            worker(store, "b", "zmq"),
            worker(store, "c", "nats", nats_server=nats.url),
            fleet(store, nats=nats.url) as (client, _),
        ):
            await eventually(lambda: len(client.directory.instances()) == 3)
            assert Counter([await ask(client) for _ in range(30)]) == {"a": 10, "b": 10, "c": 10}

    run(scenario())


def test_a_worker_that_is_gone_is_replaced() -> None:
    """A-137, A-129: retried elsewhere before its record has ended."""

    async def scenario() -> None:
        store = MemoryKeyValueStore()
        dead = TransportEndpoint(transport_id="tcp", address="127.0.0.1:1")
        async with worker(store, "a"), fleet(store) as (client, _), Discovery(store) as discovery:
            await discovery.register(record(1, dead))
            await eventually(lambda: len(client.directory.instances()) == 2)
            assert {await ask(client) for _ in range(10)} == {"a"}
            assert client.counters.retries > 0
            with pytest.raises(TransportError):
                await client.request(ECHO, instance_id=1)

    run(scenario())


def test_another_transport_is_tried_where_one_has_no_connection() -> None:
    """A-232: the record's next way in."""

    async def scenario() -> None:
        store = MemoryKeyValueStore()
        async with worker(store, "a", "zmq") as served, fleet(store) as (client, _), Discovery(store) as discovery:
            broken = TransportEndpoint(transport_id="tcp", address="127.0.0.1:1")
            works = TransportEndpoint(transport_id="zmq", address=served.addresses["zmq"])
            await discovery.register(record(1, broken, works))
            await eventually(lambda: len(client.directory.instances()) == 2)
            async with await client.request(ECHO, instance_id=1) as stream:
                assert await stream.collect() == [b"a"]
            assert client.fallbacks == 1

    run(scenario())


def test_a_transport_is_switched_while_requests_run() -> None:
    """A-303: streams that are open go on; new ones take what the registry has then."""

    async def scenario() -> None:
        store = MemoryKeyValueStore()
        async with worker(store, "a", "tcp", "zmq"), fleet(store) as (client, registry):
            await eventually(client.directory.instances)
            first = await client.request(ECHO)
            tcp = registry.unregister("tcp")
            assert tcp is not None
            assert await ask(client) == "a"
            assert await first.collect() == [b"a"]
            registry.unregister("zmq")
            with pytest.raises(NoTransportError, match="none is here"):
                await client.request(ECHO)

    run(scenario())


def test_a_busy_worker_is_passed_over_and_a_wrong_request_is_not_repeated() -> None:
    """What may be retried says so."""

    async def scenario() -> None:
        store = MemoryKeyValueStore()
        async with (
            worker(store, "busy", streams_max=0),
            worker(store, "free"),
            fleet(store) as (client, _),
        ):
            await eventually(lambda: len(client.directory.instances()) == 2)
            assert {await ask(client) for _ in range(6)} == {"free"}
            retries = client.counters.retries
            with pytest.raises(RefusedError, match="nonsense"):
                await client.request(Request(endpoint="nonsense"))
            assert client.counters.retries <= retries + 1

    run(scenario())


def test_an_answer_that_had_not_begun_is_asked_for_again() -> None:
    """A-302: its worker was lost before the first item; after it, the caller is told."""

    async def scenario() -> None:
        store, calls = MemoryKeyValueStore(), []

        async def dies_first(request: Request, context: Context) -> AsyncIterator[bytes]:
            calls.append(context.id)
            if len(calls) == 1:
                raise DisconnectedError("as if the worker had died")
            yield b"first"
            if len(calls) == 3:
                raise DisconnectedError("as if the worker had died")

        handlers: dict[str, Handler] = {"echo": dies_first}
        async with (
            serve("demo/backend", handlers, store=store),
            serve("demo/backend", handlers, store=store),
            fleet(store) as (client, _),
        ):
            await eventually(lambda: len(client.directory.instances()) == 2)
            assert await ask(client) == "first"
            assert calls[0] == calls[1]
            with pytest.raises(TransportError):
                await ask(client)
            assert len(calls) == 3

    run(scenario())


def test_a_request_that_is_over_counts_no_more() -> None:
    """A-129: least-connections looks at what is open now, not at what ever was."""

    async def scenario() -> None:
        store, release = MemoryKeyValueStore(), asyncio.Event()

        async def busy(request: Request, context: Context) -> AsyncIterator[bytes]:
            await release.wait()
            yield b"busy"

        handlers: dict[str, Handler] = {"echo": busy}
        async with (
            serve("demo/backend", handlers, store=store),
            worker(store, "free"),
            fleet(store, mode="least-connections") as (client, _),
        ):
            await eventually(lambda: len(client.directory.instances()) == 2)
            first = [await client.request(ECHO) for _ in range(2)]  # one at each
            await eventually(lambda: any(len(stream._inbound) for stream in first))
            ended: list[str] = []
            for stream in first:
                stream.when_closed(lambda: ended.append("stream"))
            await eventually(lambda: ended)
            assert [await ask(client) for _ in range(4)] == ["free"] * 4
            release.set()
            assert {(await stream.collect())[0] for stream in first} == {b"busy", b"free"}
            assert len(ended) == 2

    run(scenario())


def test_a_worker_that_calls_home_says_so_in_its_record(nats: NatsServer) -> None:
    """A-201, A-221, A-229: requests over NATS, answers over TCP; other transports have answers of their own."""

    async def scenario() -> None:
        store, client = MemoryKeyValueStore(), CallHomeClient(NatsAckSender(nats.url), CallHomeListener())
        registry, directory = TransportRegistry(), Directory(Discovery(store), "demo", "backend", "echo")
        registry.register(Registered(transport_id="nats+tcp", client=client))
        async with worker(store, "a", "nats", nats_server=nats.url, answers_home=True):
            await directory.start()
            [instance] = directory.instances()
            assert instance.response_transport is not None
            assert instance.response_transport.metadata == {"mode": "call_home"}
            assert b'"nats_tcp"' in encode_instance(instance)
            assert await ask(PlaneClient(directory, registry)) == "a"
            await directory.close()
        await client.aclose()
        with pytest.raises(TransportError, match="tcp, http, nats only, not with zmq"):
            worker(store, "b", "zmq", answers_home=True)
        with pytest.raises(TransportError, match="known: tcp, http, zmq, nats, grpc"):
            worker(store, "c", "pigeon")

    run(scenario())


def test_nobody_there_is_told_at_once_or_waited_for() -> None:
    """A-135: "No instances found", resolved by a registration."""

    async def scenario() -> None:
        store = MemoryKeyValueStore()
        async with fleet(store) as (client, _), fleet(store, wait_seconds=30.0) as (patient, _):
            with pytest.raises(NoInstancesError, match="No instances found"):
                await client.request(ECHO)
            waiting = asyncio.create_task(ask(patient))
            async with worker(store, "a"):
                assert await waiting == "a"

    run(scenario())


def record(number: int, *transports: TransportEndpoint) -> Instance:
    """A record of the same endpoint."""
    return Instance(
        namespace="demo", component="backend", endpoint="echo", instance_id=number, transports=transports
    )  # fmt: skip
