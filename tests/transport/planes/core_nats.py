"""The NATS transport, for the conformance suite."""

from uuid import uuid4

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.nats_server import NatsRequestServer

__all__ = ["make_server"]


def make_server(endpoints: Endpoints, server: str) -> NatsRequestServer:
    """A worker on a subject of its own."""
    return NatsRequestServer(endpoints, server=server, subject=f"workers.{uuid4().hex}", group_subject="workers.any")
