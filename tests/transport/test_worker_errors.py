"""What arrives at a worker and cannot be read, or shows that something was lost, is told, whatever brought it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from urllib.parse import urlsplit

import grpc
import nats as nats_client
import pytest
import zmq
import zmq.asyncio
from prometheus_client import CollectorRegistry

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.envelope import Envelope, encode_envelope
from kvrouter.transport.envelope_mux import new_stream_id
from kvrouter.transport.grpc_messages import METHOD, SERVICE, encode_message
from kvrouter.transport.messages import Kind
from kvrouter.transport.metrics import WorkHandlerMetrics
from kvrouter.transport.n_part import NPart, encode_n_part
from kvrouter.transport.servers import make_call_home_server, make_server
from tests.servers import NatsServer
from tests.transport.conformance import eventually, run

SECOND = encode_envelope(Envelope(Kind.REQUEST, new_stream_id(), 1, b"the first one is missing"))
NONSENSE = NPart((b"nonsense",))


async def over_zmq(address: str, message: NPart, url: str) -> None:
    """A client that says this, and stays until it is gone."""
    context = zmq.asyncio.Context()
    with closing(context.socket(zmq.DEALER)) as socket:
        socket.setsockopt(zmq.LINGER, 30_000)
        socket.connect(address)
        await socket.send_multipart(message.parts)
    await asyncio.to_thread(context.term)


async def over_grpc(address: str, message: NPart, url: str) -> None:
    """Likewise."""
    async with grpc.aio.insecure_channel(address) as channel:
        said = encode_message(message) if message is not NONSENSE else b"nonsense"
        async for _ in channel.stream_stream(f"/{SERVICE}/{METHOD}")(iter([said])):
            pass


async def over_nats(address: str, message: NPart, url: str) -> None:
    """Likewise."""
    client = await nats_client.connect(url)
    await client.publish(address, encode_n_part(message), reply="_INBOX.nobody.0")
    await client.close()


Say = Callable[[str, NPart, str], Awaitable[None]]


@pytest.mark.parametrize(("transport", "say"), [("zmq", over_zmq), ("grpc", over_grpc), ("nats", over_nats)])
def test_what_cannot_be_read_and_what_was_lost_are_errors_of_the_worker(
    nats: NatsServer, transport: str, say: Say
) -> None:
    """A-163: each once, whichever transport it came over."""
    endpoints, told = Endpoints(), Told()
    told.metrics.refusals(endpoints)

    async def scenario() -> None:
        server = make_server(transport, endpoints, host="127.0.0.1", nats_server=nats.url, subject="errors.worker")
        await server.start()
        await say(server.address, NONSENSE, nats.url)
        await eventually(lambda: told.errors("invalid_message") == 1)
        await say(server.address, SECOND, nats.url)
        await eventually(lambda: told.errors("lost_message") == 1)
        await server.stop()

    run(scenario())
    assert told.errors("invalid_message") == 1


def test_what_is_no_request_to_a_worker_that_calls_home_is_an_error_of_it() -> None:
    """A-163: headers that are no JSON, in Dynamo's first protocol."""
    endpoints, told = Endpoints(), Told()
    told.metrics.refusals(endpoints)

    async def scenario() -> None:
        server, home = make_call_home_server("tcp", endpoints, host="127.0.0.1")
        told.metrics.call_home(home)
        await server.start()
        there = urlsplit(f"tcp://{server.address}")
        reader, writer = await asyncio.open_connection(there.hostname, there.port)
        writer.write(b"\0\1e" + b"\0\1{" + b"\0\0\0\0")
        assert await reader.read()
        writer.close()
        await eventually(lambda: told.errors("invalid_message") == 1)
        await server.stop()

    run(scenario())


class Told:
    """A worker's figures."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.metrics = WorkHandlerMetrics(self._registry)

    def errors(self, error_type: str) -> float | None:
        """How many there were of a kind."""
        return self._registry.get_sample_value("work_handler_errors_total", {"error_type": error_type})
