"""Answers that go home over TCP pass the suite of the request plane, with a pool and without."""

from typing import Any

import pytest

from kvrouter.errors import NoInstancesError, TransportError
from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_acks import NatsAckSender
from kvrouter.transport.tcp_v0_acks import TcpV0Sender
from tests.servers import NatsServer
from tests.transport.conformance import RequestPlaneContract, run


class TestTcpRequestsPooled(RequestPlaneContract):
    """A-201, A-202: requests over the first TCP framing; connections home are used again."""

    transport = "callhome_tcp"
    pooled = "yes"
    notices_silence = False

    def arguments(self) -> tuple[str, ...]:
        """No NATS server, and whether connections are used again."""
        return "", self.pooled

    def client(self, **options: Any) -> CallHomeClient:
        """A client; there are no heartbeats."""
        return CallHomeClient(
            TcpV0Sender(ack_seconds=30.0), CallHomeListener(reuse=self.pooled == "yes"), call_home_seconds=5.0
        )

    def nowhere(self) -> str:
        """Nobody may listen on port 1 of loopback."""
        return "127.0.0.1:1"


class TestTcpRequestsUnpooled(TestTcpRequestsPooled):
    """A-201: a connection home for each answer, as older peers know it."""

    pooled = "no"


class TestNatsRequests(TestTcpRequestsPooled):
    """A-119, A-201: requests over NATS, which carries at most 1 MiB."""

    nobody = NoInstancesError
    message_bytes_max = 1 << 20
    server: NatsServer

    @pytest.fixture(autouse=True)
    def _server(self, nats: NatsServer) -> None:
        self.server = nats

    def arguments(self) -> tuple[str, ...]:
        """The NATS server."""
        return (self.server.url,)

    def client(self, **options: Any) -> CallHomeClient:
        """A client; there are no heartbeats."""
        return CallHomeClient(
            NatsAckSender(self.server.url, ack_seconds=30.0), CallHomeListener(), call_home_seconds=5.0
        )

    def nowhere(self) -> str:
        """A subject that nobody listens on."""
        return "workers.none"


def test_a_client_that_was_given_no_address_closes_all_the_same() -> None:
    """What a record says may be no address; that is the request's failure alone."""

    async def scenario() -> None:
        client = CallHomeClient(TcpV0Sender(), CallHomeListener())
        with pytest.raises(TransportError, match="is no address"):
            await client.request("nowhere", Request(endpoint="echo"), Context())
        await client.aclose()

    run(scenario())
