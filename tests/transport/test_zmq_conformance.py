"""The ZeroMQ transport passes the suite of the request plane."""

from typing import Any

from kvrouter.transport.zmq_client import ZmqRequestClient
from tests.transport.conformance import RequestPlaneContract


class TestZmq(RequestPlaneContract):
    """A-381, A-389, A-390: over loopback."""

    transport = "zeromq"

    def client(self, **options: Any) -> ZmqRequestClient:
        """A client; its heartbeats are slow unless asked for."""
        return ZmqRequestClient(heartbeat_seconds=options.get("heartbeat_seconds", 10.0))

    def nowhere(self) -> str:
        """Nobody may listen on port 1 of loopback."""
        return "tcp://127.0.0.1:1"
