"""The NATS transport passes the suite of the request plane, over a real server (A-372, A-389)."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from kvrouter.errors import NoInstancesError
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.nats_client import NatsRequestClient
from kvrouter.transport.nats_server import NatsRequestServer
from tests.servers import NatsServer
from tests.transport.conformance import RequestPlaneContract
from tests.transport.planes.core_nats import make_server
from tests.transport.worker import WorkerProcess, started_worker


class TestNats(RequestPlaneContract):
    """Through one server."""

    nobody = NoInstancesError
    server: NatsServer

    @pytest.fixture(autouse=True)
    def _server(self, nats: NatsServer) -> None:
        self.server = nats

    @asynccontextmanager
    async def plane(self, endpoints: Endpoints) -> AsyncIterator[tuple[NatsRequestServer, NatsRequestClient]]:
        """A worker and a client."""
        server, client = make_server(endpoints, self.server.url), self.client()
        await server.start()
        try:
            yield server, client
        finally:
            await client.aclose()
            await server.stop()

    def client(self, **options: Any) -> NatsRequestClient:
        """A client; a dead worker is noticed by its silence only, so its heartbeats are not rare."""
        return NatsRequestClient(self.server.url, heartbeat_seconds=options.get("heartbeat_seconds", 2.0))

    def worker(self) -> AbstractAsyncContextManager[WorkerProcess]:
        """A worker process."""
        return started_worker("core_nats", self.server.url)

    def nowhere(self) -> str:
        """A subject that nobody listens on."""
        return "workers.none"
