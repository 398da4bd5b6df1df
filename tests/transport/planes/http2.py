"""The HTTP/2 transport, for the conformance suite."""

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_server import HttpRequestServer

__all__ = ["make_server"]


def make_server(endpoints: Endpoints) -> HttpRequestServer:
    """A server on a free port."""
    return HttpRequestServer(endpoints)
