"""The multiplexed TCP transport passes the suite of the request plane."""

from typing import Any

from kvrouter.transport.tcp_client import TcpRequestClient
from kvrouter.transport.tcp_connection import Heartbeat
from tests.transport.conformance import RequestPlaneContract


class TestTcp(RequestPlaneContract):
    """A-212, A-280, A-372, A-389: over loopback."""

    transport = "tcp"

    def client(self, **options: Any) -> TcpRequestClient:
        """A client; its heartbeats are as slow as by default unless asked for."""
        seconds = options.get("heartbeat_seconds", 30.0)
        return TcpRequestClient(heartbeat=Heartbeat(interval_seconds=seconds, timeout_seconds=4 * seconds))

    def nowhere(self) -> str:
        """Nobody may listen on port 1 of loopback."""
        return "127.0.0.1:1"
