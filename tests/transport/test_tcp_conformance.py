"""The multiplexed TCP transport passes the suite of the request plane (A-212, A-280, A-372)."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.tcp_client import TcpRequestClient
from kvrouter.transport.tcp_connection import Heartbeat
from kvrouter.transport.tcp_server import TcpRequestServer
from tests.transport.conformance import RequestPlaneContract
from tests.transport.planes.tcp import make_server
from tests.transport.worker import WorkerProcess, started_worker


class TestTcp(RequestPlaneContract):
    """Over loopback."""

    @asynccontextmanager
    async def plane(self, endpoints: Endpoints) -> AsyncIterator[tuple[TcpRequestServer, TcpRequestClient]]:
        """A server on a free port, and a client."""
        server, client = make_server(endpoints), self.client()
        await server.start()
        try:
            yield server, client
        finally:
            await client.aclose()
            await server.stop()

    def client(self, **options: Any) -> TcpRequestClient:
        """A client; its heartbeats are as slow as by default unless asked for."""
        seconds = options.get("heartbeat_seconds", 30.0)
        return TcpRequestClient(heartbeat=Heartbeat(interval_seconds=seconds, timeout_seconds=4 * seconds))

    def worker(self) -> AbstractAsyncContextManager[WorkerProcess]:
        """A worker process."""
        return started_worker("tcp")

    def nowhere(self) -> str:
        """Nobody may listen on port 1 of loopback."""
        return "127.0.0.1:1"
