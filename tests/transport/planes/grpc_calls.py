"""The gRPC transport, for the conformance suite."""

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.grpc_server import GrpcRequestServer

__all__ = ["make_server"]


def make_server(endpoints: Endpoints) -> GrpcRequestServer:
    """A server on a free port."""
    return GrpcRequestServer(endpoints)
