"""A server and a client of every transport, with what keeps others out: TLS, tokens, a guard."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from kvrouter.transport.access import AccessGuard, Token
from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.grpc_client import GrpcRequestClient
from kvrouter.transport.grpc_server import GrpcRequestServer
from kvrouter.transport.http_client import HttpRequestClient
from kvrouter.transport.http_server import HttpRequestServer
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_access import NatsAccess
from kvrouter.transport.nats_acks import NatsAckSender, NatsAckServer
from kvrouter.transport.nats_client import NatsRequestClient
from kvrouter.transport.nats_server import NatsRequestServer
from kvrouter.transport.planes import RequestClient, RequestServer
from kvrouter.transport.pool import PoolSettings
from kvrouter.transport.tcp_client import TcpRequestClient
from kvrouter.transport.tcp_server import TcpRequestServer
from kvrouter.transport.tcp_v0_acks import TcpV0Sender, TcpV0Server
from kvrouter.transport.tls import PlaneTls
from kvrouter.transport.zmq_client import ZmqRequestClient
from kvrouter.transport.zmq_server import ZmqRequestServer

__all__ = ["PATIENT_SECONDS", "TLS_WAYS", "WAYS", "Secured", "Ways"]

WAYS = ("tcp", "http", "http attached", "grpc", "zmq", "nats", "call-home", "call-home over nats")
TLS_WAYS = ("tcp", "http", "http attached", "grpc", "call-home")
"""Those that bring TLS themselves; NATS's is its server's, ZeroMQ has CURVE."""
PATIENT_SECONDS = 60.0


@dataclass
class Ways:
    """How planes are made: what both ends know. `nats` is the URL of a server."""

    nats: str = ""
    server_tls: PlaneTls | None = None
    client_tls: PlaneTls | None = None
    access: NatsAccess = field(default_factory=lambda: NatsAccess(connect_seconds=PATIENT_SECONDS))
    _subject: str = field(default_factory=lambda: f"workers.{uuid4().hex}")

    def server(self, way: str, endpoints: Endpoints) -> RequestServer:
        """The server of a transport, not started."""
        match way:
            case "tcp":
                return TcpRequestServer(endpoints, tls=self.server_tls)
            case "http" | "http attached":
                return HttpRequestServer(endpoints, tls=self.server_tls)
            case "grpc":
                return GrpcRequestServer(endpoints, tls=self.server_tls)
            case "zmq":
                return ZmqRequestServer(endpoints, silent_seconds=4 * PATIENT_SECONDS)
            case "nats":
                return NatsRequestServer(
                    endpoints,
                    server=self.nats,
                    subject=self._subject,
                    heartbeat_seconds=PATIENT_SECONDS,
                    access=self.access,
                )
        worker = CallHomeWorker(endpoints, pool=PoolSettings(idle_min=0), tls=self.client_tls)
        if way == "call-home":
            return TcpV0Server(worker, tls=self.server_tls)
        return NatsAckServer(worker, server=self.nats, subject=self._subject, access=self.access)

    def client(self, way: str, token: Token | None = None) -> RequestClient:
        """A client of a transport."""
        tls = self.client_tls
        match way:
            case "tcp":
                return TcpRequestClient(token=token, tls=tls, connect_seconds=PATIENT_SECONDS)
            case "http" | "http attached":
                return HttpRequestClient(
                    answers="inline" if way == "http" else "attached",
                    token=token,
                    tls=tls,
                    connect_seconds=PATIENT_SECONDS,
                    acknowledge_seconds=PATIENT_SECONDS,
                )
            case "grpc":
                return GrpcRequestClient(token=token, tls=tls)
            case "zmq":
                return ZmqRequestClient(token=token, heartbeat_seconds=PATIENT_SECONDS, connect_seconds=PATIENT_SECONDS)
            case "nats":
                return NatsRequestClient(self.nats, heartbeat_seconds=PATIENT_SECONDS, token=token, access=self.access)
        sender: Any = TcpV0Sender(ack_seconds=PATIENT_SECONDS, tls=tls)
        if way == "call-home over nats":
            sender = NatsAckSender(self.nats, ack_seconds=PATIENT_SECONDS, access=self.access)
        listener = CallHomeListener(tls=self.server_tls)
        return CallHomeClient(sender, listener, call_home_seconds=PATIENT_SECONDS, token=token)


class Secured:
    """A started server, and clients that are closed at the end."""

    def __init__(self, way: str, ways: Ways, guard: AccessGuard | None) -> None:
        self.way, self.ways = way, ways
        self.endpoints = Endpoints(guard=guard)
        self.seen: list[Context] = []
        self.endpoints.register("who", self._who)
        self.endpoints.register("other", self._who)
        self.server = ways.server(way, self.endpoints)
        self._clients: list[RequestClient] = []

    @classmethod
    @asynccontextmanager
    async def started(cls, way: str, ways: Ways, guard: AccessGuard | None = None) -> AsyncIterator["Secured"]:
        """One of a transport, until the end of the block."""
        served = cls(way, ways, guard)
        await served.server.start()
        try:
            yield served
        finally:
            for client in served._clients:
                await client.aclose()
            await served.server.stop()

    def client(self, token: Token | None = None, ways: Ways | None = None) -> RequestClient:
        """A client that shows a token, or knows other things than the server does."""
        client = (ways or self.ways).client(self.way, token)
        self._clients.append(client)
        return client

    async def ask(self, client: RequestClient, endpoint: str = "who") -> str:
        """Ask who we are to the worker."""
        async with await client.request(self.server.address, Request(endpoint=endpoint), Context()) as stream:
            return b"".join(await stream.collect()).decode()

    async def _who(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        self.seen.append(context)
        yield context.identity.encode() or b"nobody"
