"""A worker and a client of each transport of the request plane, with a bad network between them.

With call-home the network is between the worker and where its answers go; over NATS, between client and server.
"""

import asyncio
import contextlib
import gc
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import psutil

from kvrouter.errors import TransportError
from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.grpc_client import GrpcRequestClient
from kvrouter.transport.grpc_server import GrpcRequestServer
from kvrouter.transport.http_client import HttpRequestClient
from kvrouter.transport.http_server import HttpRequestServer
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_client import NatsRequestClient
from kvrouter.transport.nats_server import NatsRequestServer
from kvrouter.transport.planes import RequestClient, RequestServer
from kvrouter.transport.pool import PoolSettings
from kvrouter.transport.server_stream import ServerStream
from kvrouter.transport.tcp_client import TcpRequestClient
from kvrouter.transport.tcp_connection import Heartbeat
from kvrouter.transport.tcp_server import TcpRequestServer
from kvrouter.transport.tcp_v0_acks import TcpV0Sender, TcpV0Server
from kvrouter.transport.zmq_client import ZmqRequestClient
from kvrouter.transport.zmq_server import ZmqRequestServer
from tests.faults.chaos_network import BadNetwork
from tests.servers import free_port
from tests.transport.conformance import run
from tests.transport.handlers import Handlers

__all__ = ["TRANSPORTS", "Asking", "Held", "PlaneScene", "make_client", "on_plane"]

TRANSPORTS: Final = ("tcp", "call-home", "http", "http-attached", "nats", "nats-worker", "zmq", "grpc")
_PATIENCE_SECONDS: Final = 30.0
_SETTLE_SECONDS: Final = 60.0


@dataclass
class Asking:
    """Somebody who asks a worker."""

    address: str
    client: RequestClient

    async def ask(self, endpoint: str, body: bytes = b"") -> list[bytes]:
        """Every item of an answer."""
        request = Request(endpoint=endpoint, body=body)
        async with await self.client.request(self.address, request, Context()) as stream:
            return await stream.collect()

    async def ask_until_answered(self, endpoint: str, body: bytes = b"") -> list[bytes]:
        """Likewise, again and again until there is a whole one."""
        while True:
            with contextlib.suppress(TransportError):
                return await self.ask(endpoint, body)
            await asyncio.sleep(0.02)

    async def begun(self, name: str, *, seconds: float | None = None) -> tuple[ClientStream, str]:
        """A request that lasts, whose first item has arrived, and its id; begun again where it was lost before."""
        for attempt in range(1000):
            request_id = f"{name}-{attempt}"
            deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
            with contextlib.suppress(TransportError):
                request = Request(endpoint="hang", body=b"x")
                stream = await self.client.request(self.address, request, Context(request_id, deadline=deadline))
                assert await anext(stream) == b"x"
                return stream, request_id
            await asyncio.sleep(0.02)
        raise AssertionError("no request could be begun")


@dataclass
class PlaneScene(Asking):
    """A worker of this process, somebody who asks it, and what is between them."""

    endpoints: Endpoints
    handlers: Handlers
    network: BadNetwork


class Held:
    """What this process holds at a moment: descriptors, tasks and streams."""

    def __init__(self) -> None:
        gc.collect()
        self.descriptors = psutil.Process().num_fds()
        self.tasks = len(asyncio.all_tasks())
        self.streams = sum(type(each) in (ClientStream, ServerStream) for each in gc.get_objects())

    def __repr__(self) -> str:
        return f"{self.descriptors} descriptors, {self.tasks} tasks, {self.streams} streams"

    def exceeds(self, before: "Held") -> bool:
        """Whether more of anything is held than before."""
        return self.descriptors > before.descriptors or self.tasks > before.tasks or self.streams > before.streams

    async def settled(self) -> None:
        """Wait until no more is held than at this moment; after a minute say what is."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _SETTLE_SECONDS
        while len(asyncio.all_tasks()) > self.tasks and loop.time() < until:
            await asyncio.sleep(0.01)
        while (now := Held()).exceeds(self):
            assert loop.time() < until, f"{now} are held, where there were {self}"
            await asyncio.sleep(0.1)


class _ListenerBehind(CallHomeListener):
    """Is dialled through a network."""

    behind: BadNetwork

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.behind.port}"


def make_client(
    name: str, nats: str, network: BadNetwork | None = None, heartbeat_seconds: float = 30.0
) -> RequestClient:
    """A client; answers go home through `network`, if there is one."""
    beat = Heartbeat(interval_seconds=heartbeat_seconds, timeout_seconds=4 * heartbeat_seconds)
    makers: dict[str, Callable[[], RequestClient]] = {
        "tcp": lambda: TcpRequestClient(heartbeat=beat),
        "call-home": lambda: _calls_home(network, call_home_seconds=max(2.0, heartbeat_seconds)),
        "http": lambda: HttpRequestClient(acknowledge_seconds=_PATIENCE_SECONDS, heartbeat=beat),
        "http-attached": lambda: HttpRequestClient(
            answers="attached", acknowledge_seconds=_PATIENCE_SECONDS, heartbeat=beat
        ),
        "nats": lambda: NatsRequestClient(
            nats, heartbeat_seconds=heartbeat_seconds, acknowledge_seconds=3 * heartbeat_seconds
        ),
        "zmq": lambda: ZmqRequestClient(heartbeat_seconds=heartbeat_seconds),
        "grpc": lambda: GrpcRequestClient(keepalive_seconds=heartbeat_seconds),
    }
    return makers[name.removesuffix("-worker")]()


def _calls_home(network: BadNetwork | None, *, call_home_seconds: float) -> RequestClient:
    sender = TcpV0Sender(ack_seconds=_PATIENCE_SECONDS)
    if network is None:
        return CallHomeClient(sender, CallHomeListener(), call_home_seconds=call_home_seconds)
    listener = _ListenerBehind(port=network.target)
    listener.behind = network
    return CallHomeClient(sender, listener, call_home_seconds=call_home_seconds)


def _make_server(name: str, endpoints: Endpoints, nats: str, heartbeat_seconds: float) -> RequestServer:
    beat = Heartbeat(interval_seconds=heartbeat_seconds, timeout_seconds=4 * heartbeat_seconds)
    match name:
        case "tcp":
            return TcpRequestServer(endpoints, heartbeat=beat)
        case "call-home":
            return TcpV0Server(CallHomeWorker(endpoints, pool=PoolSettings(idle_min=0)))
        case "http" | "http-attached":
            return HttpRequestServer(endpoints, heartbeat=beat)
        case "nats" | "nats-worker":
            subject = f"workers.{random.SystemRandom().getrandbits(64):x}"
            return NatsRequestServer(endpoints, server=nats, subject=subject, heartbeat_seconds=heartbeat_seconds)
        case "zmq":
            return ZmqRequestServer(endpoints, silent_seconds=4 * heartbeat_seconds)
        case _:
            return GrpcRequestServer(endpoints, keepalive_seconds=heartbeat_seconds)


def on_plane(
    name: str,
    scenario: Callable[[PlaneScene], Coroutine[Any, Any, None]],
    *,
    nats: str,
    seed: int = 0,
    heartbeat_seconds: float = 30.0,
    networked: bool = True,
) -> None:
    """Run a scenario with a worker that serves all handlers in this process; afterwards nothing of it may be left."""

    async def whole() -> None:
        complaints: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, told: complaints.append(f"{told['message']} {told.get('exception')!r}"))
        before = Held()
        async with _plane_scene(name, nats, random.Random(seed), heartbeat_seconds, networked=networked) as scene:
            await scenario(scene)
        await before.settled()
        assert complaints == []

    run(whole())


@asynccontextmanager
async def _plane_scene(
    name: str, nats: str, chance: random.Random, heartbeat_seconds: float, *, networked: bool
) -> AsyncIterator[PlaneScene]:
    async with AsyncExitStack() as stack:
        endpoints, handlers = Endpoints(), Handlers()
        handlers.register(endpoints)
        network = BadNetwork(_port_of(nats) if name.startswith("nats") else free_port(), chance)
        await network.open()
        stack.push_async_callback(network.close)
        through = f"127.0.0.1:{network.port}"
        bad_nats = f"nats://{through}" if networked else nats
        server = _make_server(name, endpoints, bad_nats if name == "nats-worker" else nats, heartbeat_seconds)
        await server.start()
        stack.push_async_callback(server.stop)
        address = server.address
        if networked and name != "call-home" and not name.startswith("nats"):
            network.target = _port_of(address)
            address = address.replace(f"127.0.0.1:{network.target}", through)
        client = make_client(
            name, bad_nats if name == "nats" else nats, network if networked else None, heartbeat_seconds
        )
        stack.push_async_callback(client.aclose)
        yield PlaneScene(address, client, endpoints, handlers, network)


def _port_of(address: str) -> int:
    """The port within an address of whatever form."""
    return int(address.split("127.0.0.1:")[1].partition("/")[0])
