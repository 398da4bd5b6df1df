"""Requests over the first TCP framing and over NATS, answers home over TCP; for the conformance suite."""

from uuid import uuid4

from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.nats_acks import NatsAckServer
from kvrouter.transport.planes import RequestServer
from kvrouter.transport.pool import PoolSettings
from kvrouter.transport.tcp_v0_acks import TcpV0Server

__all__ = ["make_server"]


def make_server(endpoints: Endpoints, server: str = "", pooled: str = "yes") -> RequestServer:
    """A worker that calls home; through a NATS server if one is named."""
    worker = CallHomeWorker(endpoints, pool=PoolSettings(enabled=pooled == "yes", idle_min=0))
    if server:
        return NatsAckServer(worker, server=server, subject=f"workers.{uuid4().hex}")
    return TcpV0Server(worker)
