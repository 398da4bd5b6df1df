"""Every transport runs on uvloop as it does on asyncio's own loop: services run on the faster one."""

import asyncio
import importlib
from collections.abc import Callable

import pytest
import uvloop

from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.grpc_client import GrpcRequestClient
from kvrouter.transport.http_client import HttpRequestClient
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_acks import NatsAckSender
from kvrouter.transport.nats_client import NatsRequestClient
from kvrouter.transport.planes import RequestClient
from kvrouter.transport.tcp_client import TcpRequestClient
from kvrouter.transport.tcp_v0_acks import TcpV0Sender
from kvrouter.transport.zmq_client import ZmqRequestClient
from tests.servers import NatsServer
from tests.transport.handlers import Handlers

PLANES: dict[str, tuple[str, bool, Callable[[str], RequestClient]]] = {
    "tcp": ("tcp", False, lambda _: TcpRequestClient()),
    "zmq": ("zeromq", False, lambda _: ZmqRequestClient()),
    "http": ("http2", False, lambda _: HttpRequestClient()),
    "grpc": ("grpc_calls", False, lambda _: GrpcRequestClient()),
    "nats": ("core_nats", True, NatsRequestClient),
    "call-home": ("callhome_tcp", False, lambda _: CallHomeClient(TcpV0Sender(ack_seconds=30.0), CallHomeListener())),
    "call-home-nats": (
        "callhome_tcp", True, lambda url: CallHomeClient(NatsAckSender(url, ack_seconds=30.0), CallHomeListener()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANES)
def test_a_plane_runs_on_uvloop(name: str, nats: NatsServer) -> None:
    """A-381: two answers one after the other, then many at a time, then a clean end."""
    module, needs_nats, make_client = PLANES[name]

    async def scenario() -> None:
        endpoints = Endpoints()
        Handlers().register(endpoints)
        make_server = importlib.import_module(f"tests.transport.planes.{module}").make_server
        server, client = make_server(endpoints, *([nats.url] if needs_nats else [])), make_client(nats.url)
        await server.start()

        async def count(upto: int) -> list[bytes]:
            request = Request(endpoint="count", body=b"%d" % upto)
            async with await client.request(server.address, request, Context()) as stream:
                return await stream.collect()

        assert await count(3) == await count(3) == [b"0", b"1", b"2"]
        assert [len(items) for items in await asyncio.gather(*map(count, range(50)))] == list(range(50))
        await client.aclose()
        await server.stop()

    async def bounded() -> None:
        async with asyncio.timeout(100):
            await scenario()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
