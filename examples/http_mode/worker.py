"""A worker whose request plane is what the environment says, and which tells its load all the time.

Run it with: KVROUTER_REQUEST_PLANE=http python examples/http_mode/worker.py
With `nats` it answers and collects service stats and publishes its load over NATS; with every other plane it never
connects to NATS, and `poll.py` is how its load is known. check.sh proves that.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator
from itertools import count

from kvrouter.events.load import LoadReport
from kvrouter.reporting import KvMetricsApp, Reporting
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.plane_settings import plane_settings
from kvrouter.transport.serve import serve
from kvrouter.transport.servers import ServerSettings


async def generate(request: Request, context: Context) -> AsyncIterator[bytes]:
    """Answer with the words of the request."""
    for word in bytes(request.body).split():
        if context.stopped:
            return
        yield word


async def main(store: str, nats: str) -> None:
    """Serve until interrupted."""
    planes = plane_settings(os.environ)
    reporting = Reporting("demo/backend", plane=planes.request_plane, nats_server=nats, event_plane=planes.event_plane)
    async with (
        serve(
            "demo/backend",
            reporting.handlers({"generate": generate}),
            store=store,
            transports=(planes.request_plane,),
            nats_server=nats,
            settings=ServerSettings(http_wrap=lambda app: KvMetricsApp(app, reporting.metrics)),
        ) as worker,
        reporting.running(worker.instance_id, worker.addresses),
    ):
        for step in count():
            reporting.publish(load(waiting=step % 7))
            if not step:
                address = worker.addresses[planes.request_plane]
                sys.stdout.write(f"serves over {planes.request_plane} at {address}\n")
                sys.stdout.flush()
            await asyncio.sleep(0.05)


def load(*, waiting: int) -> LoadReport:
    """What an engine would say of itself."""
    return LoadReport(
        worker_id="worker-a", num_requests_waiting=waiting, kv_active_blocks=100 * waiting, kv_total_blocks=1000
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a worker that tells its load")
    parser.add_argument("--store", default="file:///tmp/kvrouter-http-mode", help="where discovery is kept")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", help="NATS server; used in nats mode only")
    given = parser.parse_args()
    asyncio.run(main(given.store, given.nats))
