"""Workers of the benchmark of transports: `python -m benchmarks.transports_side NAME [NATS]`, each its own process.

`WORKERS` are ours, all with the same two handlers; `PEERS` do the same with plain NATS and plain gRPC, and nothing of
ours. Each prints its address and serves until it is ended.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from benchmarks import event_loop
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.messages import Request
from kvrouter.transport.planes import RequestServer

__all__ = ["GRPC_ITEMS", "GRPC_UNARY", "ITEM_BYTES", "NATS_ITEMS", "NATS_UNARY", "PEERS", "WORKERS"]

ITEM_BYTES = 64
GRPC_SERVICE = "benchmark.Echo"
GRPC_UNARY, GRPC_ITEMS = f"/{GRPC_SERVICE}/Unary", f"/{GRPC_SERVICE}/Items"
NATS_UNARY, NATS_ITEMS = "plain.unary", "plain.items"
_ITEM = bytes(ITEM_BYTES)


async def echo(request: Request, _: Context) -> AsyncIterator[bytes]:
    """The body, as one item."""
    yield bytes(request.body)


async def count(request: Request, _: Context) -> AsyncIterator[bytes]:
    """As many items as the body says."""
    for _number in range(int(bytes(request.body))):
        yield _ITEM


def _tcp(endpoints: Endpoints, _: str) -> RequestServer:
    from kvrouter.transport.tcp_server import TcpRequestServer  # noqa: PLC0415 - only what is measured

    return TcpRequestServer(endpoints)


def _http(endpoints: Endpoints, _: str) -> RequestServer:
    from kvrouter.transport.http_server import HttpRequestServer  # noqa: PLC0415 - as above

    return HttpRequestServer(endpoints)


def _zmq(endpoints: Endpoints, _: str) -> RequestServer:
    from kvrouter.transport.zmq_server import ZmqRequestServer  # noqa: PLC0415 - as above

    return ZmqRequestServer(endpoints)


def _nats(endpoints: Endpoints, server: str) -> RequestServer:
    from kvrouter.transport.nats_server import NatsRequestServer  # noqa: PLC0415 - as above

    return NatsRequestServer(endpoints, server=server, subject="ours.worker")


def _grpc(endpoints: Endpoints, _: str) -> RequestServer:
    from kvrouter.transport.grpc_server import GrpcRequestServer  # noqa: PLC0415 - as above

    return GrpcRequestServer(endpoints)


def _call_home(endpoints: Endpoints, _: str, *, pooled: bool = True) -> RequestServer:
    from kvrouter.transport.callhome_worker import CallHomeWorker  # noqa: PLC0415 - as above
    from kvrouter.transport.pool import PoolSettings  # noqa: PLC0415 - as above
    from kvrouter.transport.tcp_v0_acks import TcpV0Server  # noqa: PLC0415 - as above

    return TcpV0Server(CallHomeWorker(endpoints, pool=PoolSettings(enabled=pooled)))


def _call_home_unpooled(endpoints: Endpoints, server: str) -> RequestServer:
    return _call_home(endpoints, server, pooled=False)


def _call_home_nats(endpoints: Endpoints, server: str) -> RequestServer:
    from kvrouter.transport.callhome_worker import CallHomeWorker  # noqa: PLC0415 - as above
    from kvrouter.transport.nats_acks import NatsAckServer  # noqa: PLC0415 - as above

    return NatsAckServer(CallHomeWorker(endpoints), server=server, subject="home.worker")


async def _plain_nats(server: str) -> str:
    import nats  # noqa: PLC0415 - as above
    from nats.aio.msg import Msg  # noqa: PLC0415 - as above

    client = await nats.connect(server)

    async def unary(message: Msg) -> None:
        await message.respond(message.data)

    async def items(message: Msg) -> None:
        for _number in range(int(message.data)):
            await client.publish(message.reply, _ITEM)

    await client.subscribe(NATS_UNARY, cb=unary)
    await client.subscribe(NATS_ITEMS, cb=items)
    await client.flush()
    return server


async def _plain_grpc(_: str) -> str:
    import grpc  # noqa: PLC0415 - as above

    async def unary(body: bytes, _context: Any) -> bytes:
        return body

    async def items(body: bytes, _context: Any) -> AsyncIterator[bytes]:
        for _number in range(int(body)):
            yield _ITEM

    server = grpc.aio.server()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Items": grpc.unary_stream_rpc_method_handler(items),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(GRPC_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _kept.append(server)
    return f"127.0.0.1:{port}"


_kept: list[object] = []  # a server of gRPC ends when nobody holds it

WORKERS: dict[str, Callable[[Endpoints, str], RequestServer]] = {
    "tcp": _tcp,
    "call-home": _call_home,
    "call-home-unpooled": _call_home_unpooled,
    "http": _http,
    "zmq": _zmq,
    "nats": _nats,
    "call-home-nats": _call_home_nats,
    "grpc": _grpc,
}
PEERS: dict[str, Callable[[str], Awaitable[str]]] = {"plain-nats": _plain_nats, "plain-grpc": _plain_grpc}


async def _serve(name: str, nats_server: str) -> None:
    if name in PEERS:
        address = await PEERS[name](nats_server)
    else:
        endpoints = Endpoints()
        endpoints.register("echo", echo)
        endpoints.register("count", count)
        server = WORKERS[name](endpoints, nats_server)
        await server.start()
        address = server.address
    print(f"address {address}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    event_loop.run(_serve(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))
