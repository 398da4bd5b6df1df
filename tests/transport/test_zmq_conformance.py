"""The ZeroMQ transport passes the suite of the request plane (A-381, A-389)."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.zmq_client import ZmqRequestClient
from kvrouter.transport.zmq_server import ZmqRequestServer
from tests.transport.conformance import RequestPlaneContract
from tests.transport.planes.zeromq import make_server
from tests.transport.worker import WorkerProcess, started_worker


class TestZmq(RequestPlaneContract):
    """Over loopback."""

    @asynccontextmanager
    async def plane(self, endpoints: Endpoints) -> AsyncIterator[tuple[ZmqRequestServer, ZmqRequestClient]]:
        """A server on a free port, and a client."""
        server, client = make_server(endpoints), self.client()
        await server.start()
        try:
            yield server, client
        finally:
            await client.aclose()
            await server.stop()

    def client(self, **options: Any) -> ZmqRequestClient:
        """A client; its heartbeats are slow unless asked for."""
        return ZmqRequestClient(heartbeat_seconds=options.get("heartbeat_seconds", 10.0))

    def worker(self) -> AbstractAsyncContextManager[WorkerProcess]:
        """A worker process."""
        return started_worker("zeromq")

    def nowhere(self) -> str:
        """Nobody may listen on port 1 of loopback."""
        return "tcp://127.0.0.1:1"
