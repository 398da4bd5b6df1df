"""The UCX transport, for the conformance suite."""

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.ucx_server import UcxRequestServer

__all__ = ["make_server"]


def make_server(endpoints: Endpoints) -> UcxRequestServer:
    """A server on a free port; clients are given up after a minute and a half, as their machine may be slow."""
    return UcxRequestServer(endpoints, heartbeat_seconds=30.0)
