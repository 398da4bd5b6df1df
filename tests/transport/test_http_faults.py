"""The request plane over HTTP/2 under faults, between real ends: aborts, cuts, slow readers, farewells, TLS."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from kvrouter.errors import DisconnectedError, RefusedError, UnreachableError
from kvrouter.transport.access import AccessGuard, StaticKeys
from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_app import HttpAppOptions
from kvrouter.transport.http_client import Answers, HttpAckClient, HttpRequestClient
from kvrouter.transport.http_origins import parse_http_address
from kvrouter.transport.http_server import HttpRequestServer
from kvrouter.transport.messages import Codec, Request, encode_request
from kvrouter.transport.tcp_connection import Heartbeat
from kvrouter.transport.tls import PlaneTls
from tests.transport.conformance import eventually, run
from tests.transport.handlers import Handlers

CERTIFICATES = Path(__file__).parent / "certificates"
AUTHORITY = str(CERTIFICATES / "authority.pem")
SERVER_TLS = PlaneTls(cert_path=str(CERTIFICATES / "server.pem"), key_path=str(CERTIFICATES / "server.key"))
CLIENT_TLS = PlaneTls(
    ca_path=AUTHORITY,
    client_cert_path=str(CERTIFICATES / "client.pem"),
    client_key_path=str(CERTIFICATES / "client.key"),
)
FLOOD = Request(endpoint="flood", body=b"1000000")


class Plane:
    """A server, a client and what they hold."""

    def __init__(self, server: HttpRequestServer, client: HttpRequestClient, handlers: Handlers) -> None:
        self.server, self.client, self.handlers = server, client, handlers

    async def ask(self, endpoint: str, body: bytes = b"", codec: Codec = "raw") -> list[bytes]:
        """Every item of an answer."""
        request = Request(endpoint=endpoint, body=body, codec=codec)
        async with await self.client.request(self.server.address, request, Context()) as stream:
            return await stream.collect()

    def streams(self) -> int:
        """Streams that the client has open."""
        return sum(map(sum, self.client.origins.connections().values()))

    def is_idle(self) -> bool:
        """Whether nothing is held for any request."""
        return not (
            len(self.server.endpoints) or len(self.server.app) or len(self.server.app.answers) or self.streams()
        )


@asynccontextmanager
async def plane(
    *,
    answers: Answers = "inline",
    tls: PlaneTls | None = None,
    client_files: PlaneTls | None = None,
    guard: AccessGuard | None = None,
    **options: Any,
) -> AsyncIterator[Plane]:
    """A started server on loopback, and a patient client."""
    endpoints, handlers = Endpoints(guard=guard), Handlers()
    handlers.register(endpoints)
    server = HttpRequestServer(endpoints, tls=tls, **options)
    await server.start()
    client = HttpRequestClient(
        answers=answers,
        acknowledge_seconds=60,
        connect_seconds=30,
        tls=client_files,
    )
    try:
        yield Plane(server, client, handlers)
    finally:
        await client.aclose()
        await server.stop()


# -- aborts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", ["inline", "attached"])
def test_a_thousand_aborted_requests_leave_nothing(answers: Answers) -> None:
    """A-275: no stream, no task, no answer, no socket, whenever they are aborted; the connection goes on."""

    async def scenario() -> None:
        async with plane(answers=answers) as served:
            await served.ask("echo", b"x")
            sockets, tasks = len(psutil.Process().net_connections()), len(asyncio.all_tasks())

            async def abort(number: int) -> None:
                beginning = asyncio.create_task(served.client.request(served.server.address, FLOOD, Context()))
                if number % 4 == 0 and answers == "inline":
                    await asyncio.sleep(0)
                    beginning.cancel()
                    await asyncio.gather(beginning, return_exceptions=True)
                    return
                stream = await beginning
                for _ in range(max(0, number % 4 - 1)):
                    await anext(stream)
                await stream.aclose()

            for first in range(0, 1000, 20):
                await asyncio.gather(*(abort(number) for number in range(first, first + 20)))
            await eventually(lambda: served.is_idle() and len(asyncio.all_tasks()) <= tasks)
            assert await served.ask("echo", b"still here") == [b"still here"]
            assert len(psutil.Process().net_connections()) <= sockets

    run(scenario())


def test_a_request_that_is_aborted_before_it_is_taken_is_dropped_in_time() -> None:
    """B.9: the worker has taken it all the same, and nobody fetches its answer."""

    async def scenario() -> None:
        async with plane(answers="attached", options=HttpAppOptions(attach_seconds=0.2)) as served:
            await served.client.origins.acquire(parse_http_address(served.server.address)[0])
            beginning = asyncio.create_task(served.client.request(served.server.address, FLOOD, Context()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            beginning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await beginning
            await eventually(served.is_idle)

    run(scenario())


def test_a_client_that_is_silent_is_lost() -> None:
    """A-213, B.6: a half-open connection, in the middle of an answer; the handler is cancelled."""
    h2 = H2Connection(H2Configuration(client_side=True, validate_outbound_headers=False))
    h2.initiate_connection()
    headers = {
        ":method": "POST",
        ":path": "/v1/rpc/hang",
        ":scheme": "http",
        ":authority": "x",
        "accept": "text/event-stream",
    }
    h2.send_headers(1, list(headers.items()))
    h2.send_data(1, encode_request(Request(endpoint="hang", body=b"x"), id="silent", headers={}), end_stream=True)

    async def scenario() -> None:
        heartbeat = Heartbeat(interval_seconds=0.2, timeout_seconds=1)
        async with plane(heartbeat=heartbeat) as served:
            url = urlsplit(served.server.address)
            _, writer = await asyncio.open_connection(url.hostname, url.port)
            writer.write(h2.data_to_send())
            await eventually(lambda: served.handlers.cancelled == ["silent"])
            writer.close()

    run(scenario())


def test_many_slow_readers_hold_up_nobody_else() -> None:
    """C.1.3: what is not read takes no room of the others on the same connection."""

    async def scenario() -> None:
        async with plane() as served:
            streams = [await served.client.request(served.server.address, FLOOD, Context()) for _ in range(100)]
            (item,) = await served.ask("echo", bytes(2 << 20))
            assert len(item) == 2 << 20
            assert list(served.client.origins.connections().values()) == [[100]]
            for stream in streams:
                assert len(await anext(stream)) == 16 << 10
                await stream.aclose()
            await eventually(served.is_idle)

    run(scenario())


def test_a_connection_that_is_cut_ends_the_work_at_both_ends() -> None:
    """A-275: between the two, in the middle of an answer; the next request goes over a new one."""

    async def scenario() -> None:
        async with plane() as served, cutter(served.server.address) as (address, cut):
            stream = await served.client.request(address, Request(endpoint="hang", body=b"x"), Context("cut"))
            assert await anext(stream) == b"x"
            cut()
            with pytest.raises(DisconnectedError) as lost:
                await anext(stream)
            assert not lost.value.retryable
            await eventually(lambda: served.handlers.cancelled == ["cut"])
            async with await served.client.request(address, Request(endpoint="echo", body=b"y"), Context()) as again:
                assert await again.collect() == [b"y"]
            await eventually(served.is_idle)

    run(scenario())


def test_a_server_that_stops_closes_its_connections() -> None:
    """B.6: leave, drain, close; the client notices."""

    async def scenario() -> None:
        async with plane() as served:
            address = served.server.address
            assert await served.ask("echo", b"x") == [b"x"]
            await served.server.stop()
            await eventually(lambda: not served.client.origins.connections())
            with pytest.raises(UnreachableError):
                await served.client.request(address, Request(endpoint="echo"), Context())
            with pytest.raises(RuntimeError):
                assert served.server.address

    run(scenario())


# -- codecs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer_format", ["sse", "ndjson", "binary"])
@pytest.mark.parametrize("codec", ["json", "msgpack", "raw"])
def test_items_arrive_as_they_were_sent(codec: Codec, answer_format: Any) -> None:
    """A-117, A-209: in every codec and every format."""
    body = {"json": b'{"token":[1,2]}', "msgpack": b"\x81\xa5token\x92\x01\x02", "raw": bytes(range(256))}[codec]

    async def scenario() -> None:
        async with plane() as served:
            client = HttpRequestClient(answer_format=answer_format, acknowledge_seconds=60)
            request = Request(endpoint="echo", body=body, codec=codec)
            async with await client.request(served.server.address, request, Context()) as stream:
                assert await stream.collect() == [body]
            await client.aclose()

    run(scenario())


# -- answers that go home over TCP -----------------------------------------------------------------------------------


def test_requests_over_http_are_answered_over_tcp() -> None:
    """A-119, A-161, A-201: the recommended pair of the seed; one program serves both ways."""

    async def scenario() -> None:
        endpoints, handlers = Endpoints(), Handlers()
        handlers.register(endpoints)
        worker = CallHomeWorker(endpoints)
        worker.start()
        server = HttpRequestServer(endpoints, accept=worker.accept)
        await server.start()
        client = CallHomeClient(HttpAckClient(acknowledge_seconds=60), CallHomeListener())
        request = Request(endpoint="count", body=b"3", codec="json")
        async with await client.request(server.address, request, Context()) as stream:
            assert await stream.collect() == [b"0", b"1", b"2"]
        with pytest.raises(RefusedError, match="nonsense"):
            await client.request(server.address, Request(endpoint="nonsense"), Context())
        await client.aclose()
        await server.stop()
        await worker.close()

    run(scenario())


# -- TLS -------------------------------------------------------------------------------------------------------------


def test_requests_go_over_tls() -> None:
    """A-139: h2 by ALPN; a client that does not trust the authority is told."""

    async def scenario() -> None:
        async with plane(tls=SERVER_TLS, client_files=PlaneTls(ca_path=AUTHORITY)) as served:
            assert served.server.address.startswith("https://")
            assert await served.ask("echo", b"x") == [b"x"]
            distrustful = HttpRequestClient(connect_seconds=30)
            with pytest.raises(UnreachableError, match="certificate"):
                await distrustful.request(served.server.address, Request(endpoint="echo"), Context())
            await distrustful.aclose()

    run(scenario())


def test_clients_show_a_certificate_where_they_must() -> None:
    """A-139: mutual TLS."""
    tls = PlaneTls(cert_path=SERVER_TLS.cert_path, key_path=SERVER_TLS.key_path, client_ca_path=AUTHORITY)

    async def scenario() -> None:
        async with plane(tls=tls, client_files=CLIENT_TLS) as served:
            assert await served.ask("echo", b"x") == [b"x"]
            anonymous = HttpRequestClient(tls=PlaneTls(ca_path=AUTHORITY), connect_seconds=30)
            with pytest.raises(UnreachableError):
                await anonymous.request(served.server.address, Request(endpoint="echo"), Context())
            await anonymous.aclose()

    run(scenario())


def test_a_token_goes_with_every_request() -> None:
    """A-140: with that for the answer too."""

    async def scenario() -> None:
        async with plane(guard=AccessGuard(authorise=StaticKeys({"us": "right"}))) as served:
            client = HttpRequestClient(answers="attached", token="right", acknowledge_seconds=60)
            async with await client.request(served.server.address, Request(endpoint="echo", body=b"x"), Context()) as s:
                assert await s.collect() == [b"x"]
            await client.aclose()
            with pytest.raises(RefusedError) as refusal:
                await served.ask("echo")
            assert refusal.value.code == "UNAUTHENTICATED"

    run(scenario())


def test_answers_are_fetched_from_another_port() -> None:
    """A-209: with a connection of its own."""

    async def scenario() -> None:
        async with plane(answers="attached", response_port=0, options=HttpAppOptions(root="/rpc")) as served:
            assert await served.ask("count", b"3") == [b"0", b"1", b"2"]
            assert len(served.client.origins.connections()) == 2

    run(scenario())


@asynccontextmanager
async def cutter(address: str) -> AsyncIterator[tuple[str, Any]]:
    """A relay before an address; gives its own, and what cuts every connection through it."""
    target = urlsplit(address)
    writers: list[asyncio.StreamWriter] = []
    moving: set[asyncio.Task[None]] = set()

    async def move(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        except OSError:
            pass
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(target.hostname, target.port)
        writers.extend((writer, far_writer))
        for ends in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(move(*ends))
            moving.add(task)
            task.add_done_callback(moving.discard)

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()
        writers.clear()

    server = await asyncio.start_server(relay, target.hostname, 0)
    try:
        yield f"http://{target.hostname}:{server.sockets[0].getsockname()[1]}{target.path}", cut
    finally:
        server.close()
        cut()
        await asyncio.gather(*moving, return_exceptions=True)
