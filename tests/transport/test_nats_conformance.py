"""The NATS transport passes the suite of the request plane, over a real server."""

from typing import Any

import pytest

from kvrouter.errors import NoInstancesError
from kvrouter.transport.nats_client import NatsRequestClient
from tests.servers import NatsServer
from tests.transport.conformance import RequestPlaneContract


class TestNats(RequestPlaneContract):
    """A-372, A-389: through one server."""

    transport = "core_nats"
    nobody = NoInstancesError
    server: NatsServer

    @pytest.fixture(autouse=True)
    def _server(self, nats: NatsServer) -> None:
        self.server = nats

    def arguments(self) -> tuple[str, ...]:
        """The server."""
        return (self.server.url,)

    def client(self, **options: Any) -> NatsRequestClient:
        """A client; a dead worker is noticed by its silence only, so its heartbeats are not rare."""
        seconds = options.get("heartbeat_seconds", 2.0)
        return NatsRequestClient(self.server.url, heartbeat_seconds=seconds, acknowledge_seconds=60)

    def nowhere(self) -> str:
        """A subject that nobody listens on."""
        return "workers.none"
