"""Asks a worker how busy it is, every 100 ms, over whatever request plane the environment says.

Run it beside worker.py: KVROUTER_REQUEST_PLANE=http python examples/http_mode/poll.py
This is what a consumer of the NATS subject `namespace.demo.kv_metrics` becomes where there is no NATS.
"""

import argparse
import asyncio
import json
import os
import sys

from kvrouter.discovery import Directory, Discovery
from kvrouter.store import open_key_value_store
from kvrouter.transport.messages import Request
from kvrouter.transport.plane_client import PlaneClient
from kvrouter.transport.plane_settings import plane_settings
from kvrouter.transport.planes import RequestClient
from kvrouter.transport.registry import Registered, TransportRegistry

INTERVAL_SECONDS = 0.1


def make_client(plane: str, nats: str) -> RequestClient:
    """The client of a request plane; only what is asked for is imported."""
    match plane:
        case "http":
            from kvrouter.transport.http_client import HttpRequestClient  # noqa: PLC0415

            return HttpRequestClient()
        case "nats":
            from kvrouter.transport.nats_client import NatsRequestClient  # noqa: PLC0415

            return NatsRequestClient(nats)
        case "tcp":
            from kvrouter.transport.tcp_client import TcpRequestClient  # noqa: PLC0415

            return TcpRequestClient()
    raise SystemExit(f"this example has no client for {plane}")


async def main(store: str, nats: str, times: int) -> None:
    """Ask so many times, and print each answer's first report on a line."""
    plane = plane_settings(os.environ).request_plane
    transport = make_client(plane, nats)
    registry = TransportRegistry()
    registry.register(Registered(transport_id=plane, client=transport))
    discovery = Discovery(open_key_value_store(store))
    directory = Directory(discovery, "demo", "backend", "load_metrics")
    await directory.start()
    client = PlaneClient(directory, registry, wait_seconds=30.0)
    for _ in range(times):
        async for item in client.items(Request(endpoint="load_metrics")):
            reports = json.loads(item)["reports"]
            sys.stdout.write(json.dumps(reports[:1]) + "\n")
            sys.stdout.flush()
        await asyncio.sleep(INTERVAL_SECONDS)
    await transport.aclose()
    await directory.close()
    await discovery.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="asks a worker for its load")
    parser.add_argument("--store", default="file:///tmp/kvrouter-http-mode", help="where discovery is kept")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", help="NATS server; used in nats mode only")
    parser.add_argument("--times", type=int, default=20, help="how often to ask")
    given = parser.parse_args()
    asyncio.run(main(given.store, given.nats, given.times))
