"""The multiplexed TCP transport, for the conformance suite."""

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.tcp_server import TcpRequestServer

__all__ = ["make_server"]


def make_server(endpoints: Endpoints) -> TcpRequestServer:
    """A server on a free port."""
    return TcpRequestServer(endpoints)
