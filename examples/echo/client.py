"""Asks the workers of examples/echo/server.py in turn, and prints each answer as it comes.

Run it with: python examples/echo/client.py tcp one two three
It finds them by discovery; a worker that is lost is replaced by another one.
"""

import argparse
import asyncio

from kvrouter.discovery import Directory, Discovery
from kvrouter.store import open_key_value_store
from kvrouter.transport.messages import Request
from kvrouter.transport.plane_client import PlaneClient
from kvrouter.transport.planes import RequestClient
from kvrouter.transport.registry import Registered, TransportRegistry


def make_client(transport: str, nats: str) -> RequestClient:
    """The client of a transport; only what is asked for is imported."""
    match transport:
        case "tcp":
            from kvrouter.transport.tcp_client import TcpRequestClient  # noqa: PLC0415

            return TcpRequestClient()
        case "http":
            from kvrouter.transport.http_client import HttpRequestClient  # noqa: PLC0415

            return HttpRequestClient()
        case "zmq":
            from kvrouter.transport.zmq_client import ZmqRequestClient  # noqa: PLC0415

            return ZmqRequestClient()
        case "grpc":
            from kvrouter.transport.grpc_client import GrpcRequestClient  # noqa: PLC0415

            return GrpcRequestClient()
        case "nats":
            from kvrouter.transport.nats_client import NatsRequestClient  # noqa: PLC0415

            return NatsRequestClient(nats)
        case _:
            from kvrouter.transport.callhome_client import CallHomeClient  # noqa: PLC0415
            from kvrouter.transport.callhome_listener import CallHomeListener  # noqa: PLC0415
            from kvrouter.transport.nats_acks import NatsAckSender  # noqa: PLC0415

            return CallHomeClient(NatsAckSender(nats), CallHomeListener())


async def main(given: argparse.Namespace) -> None:
    """Send the same words several times, to one worker after the other."""
    transport = make_client(given.transport, given.nats)
    registry = TransportRegistry()
    # Requests of call-home travel over NATS, and answers over TCP.
    transport_id = "nats+tcp" if given.transport == "call-home" else given.transport
    registry.register(Registered(transport_id=transport_id, client=transport))
    discovery = Discovery(open_key_value_store(given.store))
    directory = Directory(discovery, "demo", "backend", "echo")
    await directory.start()
    while len(directory.instances()) < given.workers:  # noqa: ASYNC110 - `directory.wait` is for the first one
        await asyncio.sleep(0.1)
    client = PlaneClient(directory, registry, mode="round-robin")
    for _ in range(given.requests):
        async for item in client.items(Request(endpoint="echo", body=" ".join(given.words).encode())):
            print(item.decode(), end=" ", flush=True)  # noqa: T201
        print()  # noqa: T201
    await transport.aclose()
    await directory.close()
    await discovery.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a client of the echoing workers")
    parser.add_argument("transport", choices=("tcp", "http", "zmq", "grpc", "nats", "call-home"))
    parser.add_argument("words", nargs="+")
    parser.add_argument("--workers", type=int, default=1, help="how many must be there before the first request")
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--store", default="file:///tmp/kvrouter-echo", help="where discovery is kept")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", help="NATS server, where the transport needs one")
    asyncio.run(main(parser.parse_args()))
