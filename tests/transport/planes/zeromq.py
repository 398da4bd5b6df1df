"""The ZeroMQ transport, for the conformance suite."""

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.zmq_server import ZmqRequestServer

__all__ = ["make_server"]


def make_server(endpoints: Endpoints) -> ZmqRequestServer:
    """A server on a free port."""
    return ZmqRequestServer(endpoints)
