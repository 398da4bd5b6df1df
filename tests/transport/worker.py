"""A worker as a process of its own, so that it can be killed and frozen.

`python -m tests.transport.worker TRANSPORT` prints its address and serves until it is killed.
"""

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.planes import RequestServer
from tests.transport.handlers import Handlers

__all__ = ["WorkerProcess", "make_server", "started_worker"]

_CHECKOUT = Path(__file__).resolve().parents[2]


class WorkerProcess:
    """A running worker."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process, self.address = process, address

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


@asynccontextmanager
async def started_worker(transport: str, *arguments: str) -> AsyncIterator[WorkerProcess]:
    """Start a worker and wait for its address; it is gone afterwards.

    `transport` is the module of this package's folder `planes` that has `make_server(endpoints, *arguments)`.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.transport.worker", transport, *arguments,
        stdout=asyncio.subprocess.PIPE, cwd=_CHECKOUT, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert line, "the worker did not start"
        yield WorkerProcess(process, line.decode().strip())
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def make_server(transport: str, endpoints: Endpoints, *arguments: str) -> RequestServer:
    """The server of a transport, not started yet: what `make_server` of its module in `planes` makes."""
    module = importlib.import_module(f"tests.transport.planes.{transport}")
    return cast("RequestServer", module.make_server(endpoints, *arguments))


async def _serve(transport: str, *arguments: str) -> None:
    endpoints = Endpoints()
    Handlers().register(endpoints)
    server = make_server(transport, endpoints, *arguments)
    await server.start()
    print(server.address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
