"""How many connections the planes need, and that one may be shared out to several workers on its way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_client import HttpRequestClient
from kvrouter.transport.http_server import HttpRequestServer
from kvrouter.transport.messages import Request
from kvrouter.transport.pool import PoolSettings
from kvrouter.transport.tcp_v0_acks import TcpV0Sender, TcpV0Server
from tests.transport.conformance import run
from tests.transport.handlers import Handlers

REQUESTS = 60


async def created_and_reused(pool: PoolSettings) -> tuple[int, int]:
    """What a worker's connections home are, after some requests one after the other."""
    endpoints = Endpoints()
    Handlers().register(endpoints)
    worker = CallHomeWorker(endpoints, pool=pool)
    server, client = TcpV0Server(worker), CallHomeClient(TcpV0Sender(ack_seconds=60.0), CallHomeListener())
    await server.start()
    for _ in range(REQUESTS):
        async with await client.request(server.address, Request(endpoint="count", body=b"3"), Context()) as stream:
            assert await stream.collect() == [b"0", b"1", b"2"]
    [counters] = worker.pool.counters().values()
    await client.aclose()
    await server.stop()
    return counters.created, counters.reused


def test_a_pool_needs_fewer_connections() -> None:
    """A-204, A-279: one carries answer after answer; without a pool each has its own."""

    async def scenario() -> None:
        created, reused = await created_and_reused(PoolSettings(idle_min=0))
        assert created + reused == REQUESTS
        assert created < reused  # one, and another where the one before is not back yet
        assert await created_and_reused(PoolSettings(enabled=False)) == (REQUESTS, 0)

    run(scenario())


def test_a_balancer_may_stand_between_clients_and_workers() -> None:
    """A-130: over HTTP; each connection goes to one of the workers, and the answers are whole."""

    async def scenario() -> None:
        servers = [HttpRequestServer(named(name)) for name in "ab"]
        for server in servers:
            await server.start()
        balancer = await asyncio.start_server(Balancer(servers), "127.0.0.1", 0)
        address = f"http://127.0.0.1:{balancer.sockets[0].getsockname()[1]}/v1/rpc"
        said: Counter[bytes] = Counter()
        for _ in range(4):
            client = HttpRequestClient(acknowledge_seconds=60, connect_seconds=30)
            async with await client.request(address, Request(endpoint="who"), Context()) as stream:
                said.update(await stream.collect())
            await client.aclose()
        assert said == {b"a": 2, b"b": 2}
        balancer.close()
        for server in servers:
            await server.stop()

    run(scenario())


def named(name: str) -> Endpoints:
    """A worker that says who it is."""

    async def who(_: Request, __: Context) -> AsyncIterator[bytes]:
        yield name.encode()

    endpoints = Endpoints()
    endpoints.register("who", who)
    return endpoints


class Balancer:
    """Gives each connection to the next one of the servers."""

    def __init__(self, servers: list[HttpRequestServer]) -> None:
        self._ports = [int(server.address.split(":")[2].partition("/")[0]) for server in servers]

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry the bytes both ways until one side has no more."""
        self._ports.append(port := self._ports.pop(0))
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
    except OSError:
        pass
    writer.close()
