"""A worker that says its name, then each word of a request; over any transport, found by discovery.

Run it with: python examples/echo/server.py tcp --name a
or, with a NATS server: python examples/echo/server.py nats --name a --nats nats://127.0.0.1:4222
Several may run beside each other. Ask them with examples/echo/client.py.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator

from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.serve import serve

TRANSPORTS = ("tcp", "http", "zmq", "grpc", "nats", "call-home")


async def main(transport: str, name: str, store: str, nats: str) -> None:
    """Serve until interrupted. With `call-home`, requests come over NATS and answers leave over TCP."""

    async def echo(request: Request, context: Context) -> AsyncIterator[bytes]:
        yield name.encode()
        for word in bytes(request.body).split():
            if context.stopped:
                return
            yield word

    home = transport == "call-home"
    ways = ("nats" if home else transport,)
    async with serve(
        "demo/backend", {"echo": echo}, store=store, transports=ways, nats_server=nats, answers_home=home
    ) as worker:
        print(f"{name} serves over {transport} at {worker.addresses[ways[0]]}", flush=True)  # noqa: T201
        await worker.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="an echoing worker")
    parser.add_argument("transport", choices=TRANSPORTS)
    parser.add_argument("--name", default="a")
    parser.add_argument("--store", default="file:///tmp/kvrouter-echo", help="where discovery is kept")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", help="NATS server, where the transport needs one")
    given = parser.parse_args()
    asyncio.run(main(given.transport, given.name, given.store, given.nats))
