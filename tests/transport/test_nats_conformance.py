"""The NATS transport passes the suite of the request plane, over a real server."""

import asyncio
from typing import Any

import pytest

from kvrouter.errors import NoInstancesError, TransportError
from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_acks import NatsAckSender
from kvrouter.transport.nats_client import NatsRequestClient
from kvrouter.transport.planes import RequestClient
from tests.servers import NatsServer
from tests.transport.conformance import RequestPlaneContract, eventually, run


class TestNats(RequestPlaneContract):
    """A-372, A-389: through one server."""

    transport = "core_nats"
    nobody = NoInstancesError
    server: NatsServer

    @pytest.fixture(autouse=True)
    def _server(self, nats: NatsServer) -> None:
        self.server = nats

    def arguments(self) -> tuple[str, ...]:
        """The server."""
        return (self.server.url,)

    def client(self, **options: Any) -> NatsRequestClient:
        """A client; a dead worker is noticed by its silence only, so its heartbeats are not rare."""
        seconds = options.get("heartbeat_seconds", 2.0)
        return NatsRequestClient(self.server.url, heartbeat_seconds=seconds, acknowledge_seconds=60)

    def nowhere(self) -> str:
        """A subject that nobody listens on."""
        return "workers.none"


@pytest.mark.parametrize("calls_home", [False, True])
def test_a_client_that_is_closed_while_it_connects_keeps_no_connection(nats: NatsServer, *, calls_home: bool) -> None:
    """Nobody would close it any more, and it would keep itself up for ever."""

    def made() -> RequestClient:
        if calls_home:
            return CallHomeClient(NatsAckSender(nats.url, ack_seconds=0.2), CallHomeListener())
        return NatsRequestClient(nats.url)

    async def scenario() -> None:
        before, client = asyncio.all_tasks(), made()
        asked = asyncio.create_task(client.request("workers.none", Request(endpoint="echo"), Context()))
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(TransportError):
            await asked
        await eventually(lambda: asyncio.all_tasks() == before)

    run(scenario())


def test_a_request_that_is_given_up_while_it_connects_keeps_no_connection(nats: NatsServer) -> None:
    """After however many steps of it; which of them connect depends on the machine."""

    async def scenario() -> None:
        before = asyncio.all_tasks()
        for turns in range(0, 100, 2):
            client = NatsRequestClient(nats.url)
            asked = asyncio.create_task(client.request("workers.none", Request(endpoint="echo"), Context()))
            for _ in range(turns):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await client.aclose()
            await eventually(lambda: asyncio.all_tasks() == before)

    run(scenario())
