"""The floor: `python -m benchmarks.fleet.passthrough PORT WORKER_PORT...` copies bytes and understands none of them.

One connection to a worker per client connection, workers in turn. A router cannot be faster than this on the same
event loop, because it does this and more.
"""

import argparse
import asyncio
import itertools
import sys
from collections.abc import Iterator
from typing import cast

from benchmarks import event_loop

_BACKLOG = 4096


def main() -> int:
    """Copy until the process is told to end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.passthrough", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("workers", type=int, nargs="+")
    arguments = parser.parse_args()
    event_loop.run(_serve(arguments.port, arguments.workers))
    return 0


class Client(asyncio.Protocol):
    """The client's side; bytes that arrive before the worker's side is open wait for it."""

    def __init__(self, workers: Iterator[int]) -> None:
        self._workers = workers
        self._early: list[bytes] = []
        self._worker: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._opening = asyncio.get_running_loop().create_task(self._open(cast("asyncio.Transport", transport)))

    def data_received(self, data: bytes) -> None:
        if self._worker is None:
            self._early.append(data)
        else:
            self._worker.write(data)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the loop's signature
        if self._worker is not None:
            self._worker.close()

    async def _open(self, client: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        self._worker, _ = await loop.create_connection(lambda: Upstream(client), "127.0.0.1", next(self._workers))
        self._worker.writelines(self._early)
        self._early.clear()


class Upstream(asyncio.Protocol):
    """The worker's side."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the loop's signature
        self._client.close()


async def _serve(port: int, workers: list[int]) -> None:
    turns = itertools.cycle(workers)
    server = await asyncio.get_running_loop().create_server(lambda: Client(turns), "127.0.0.1", port, backlog=_BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
